"""Chat templates: the Jinja program in a model's metadata that lays out a conversation.

It comes from a file that anyone can write, so it runs in Jinja's sandbox.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from jinja2.sandbox import ImmutableSandboxedEnvironment

from batchgauge.errors import UserError


class ChatTemplate:
    """One model's way to write a conversation as text."""

    def __init__(self, source: str, bos: str = "", eos: str = "") -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _raise
        environment.globals["strftime_now"] = _now
        self._special = {"bos_token": bos, "eos_token": eos}
        try:
            self._template = environment.from_string(source)
        except jinja2.TemplateError as error:
            raise UserError(f"The model's chat template cannot be read: {error}.") from None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ChatTemplate | None:
        """The template of a GGUF file, None if it has none. Raises UserError for a broken one."""
        if (source := metadata.get("tokenizer.chat_template")) is None:
            return None
        tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens", ())

        def special(name: str) -> str:
            token = metadata.get(f"tokenizer.ggml.{name}_token_id")
            return tokens[token] if token is not None and token < len(tokens) else ""

        return cls(source, special("bos"), special("eos"))

    def __call__(self, prompt: str) -> str:
        """The text of a conversation in which the user said `prompt` and the model is next.

        Raises UserError when the template refuses or fails.
        """
        messages = [{"role": "user", "content": prompt}]
        try:
            return self._template.render(
                messages=messages, add_generation_prompt=True, **self._special
            )
        except (jinja2.TemplateError, TypeError, ValueError, ArithmeticError) as error:
            raise UserError(f"The model's chat template failed: {error}.") from None


def _raise(message: str) -> str:
    raise jinja2.TemplateError(message)


def _now(form: str) -> str:
    return dt.datetime.now().astimezone().strftime(form)
