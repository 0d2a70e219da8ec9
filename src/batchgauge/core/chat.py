"""Chat templates: the Jinja program in a model's metadata that lays out a conversation.

It comes from a file that anyone can write, so it runs in Jinja's sandbox and in a process
of its own (`chat_child`) with bounds on time, memory and output. One such process serves
all templates; it starts at the first conversation (about 0.1 s) and costs about 0.1 ms a
text from then on. A model whose template is never used never starts it, and is never
refused for it.

Left out: tools, and messages whose content is more than text.
"""

from __future__ import annotations

import atexit
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path
from threading import Lock, Timer
from typing import Any

from batchgauge.errors import UserError

MAX_SOURCE = 1 << 20  # characters of a template; real ones have up to about 30,000
MAX_TEXT = 1 << 20  # characters it may write, beside eight times the prompt's own
MAX_MEMORY = 128 << 20  # bytes
MAX_CPU_S = 0.75  # computing time of one text; real ones take about a millisecond
MAX_WALL_S = 10.0  # of one call, instead, where computing time cannot be bounded
_START_S = 60.0

# Windows cannot bound computing time; there `kill` makes a process exit with 1.
_BY_THE_CLOCK_ALONE = not hasattr(signal, "setitimer")
_TOO_LONG = {1} if _BY_THE_CLOCK_ALONE else {-signal.SIGPROF}

# Names that templates know special tokens by, and the metadata's keys of their ids.
_SPECIAL = {
    "bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "sep_token": "seperator",
    "pad_token": "padding", "cls_token": "cls", "mask_token": "mask",
}  # fmt: skip


# What was said so far, or what the user alone says: messages have a `role` and a `content`.
Conversation = str | Sequence[Mapping[str, str]]


class ChatTemplate:
    """One model's way to write a conversation as text. `special`: token name to text."""

    def __init__(self, source: object, special: Mapping[str, str] | None = None) -> None:
        self._source = source
        self._special = dict(special or {})
        self._hopeless: UserError | None = None  # what ended the process, whatever the prompt

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> ChatTemplate | None:
        """The template of a GGUF file, None if it has none; of several named ones, `default`.

        A template that cannot be used is no error before it is used.
        """
        prefix = "tokenizer.chat_template"
        source = metadata.get(prefix) or metadata.get(f"{prefix}.default")
        named = [key.removeprefix(f"{prefix}.") for key in metadata if key.startswith(f"{prefix}.")]
        if not source and not named:
            return None
        if not source:
            source = UserError(
                f"The model has chat templates named {', '.join(sorted(named))}; "
                "expected one that is the default."
            )
        tokens: Sequence[str] = metadata.get("tokenizer.ggml.tokens", ())
        special = {}
        for name, key in _SPECIAL.items():
            token = metadata.get(f"tokenizer.ggml.{key}_token_id")
            if isinstance(token, int) and 0 <= token < len(tokens):
                special[name] = tokens[token]
        return cls(source, special)

    def __call__(self, prompt: Conversation) -> str:
        """The text of a conversation in which the model is next.

        Raises UserError when the template cannot be read, refuses, fails, or wants more
        time or memory than it is given.
        """
        (text,) = self.render([prompt])
        if isinstance(text, UserError):
            raise text
        return text

    def render(self, prompts: Sequence[Conversation]) -> list[str | UserError]:
        """The text for each conversation, or what is wrong with it."""
        answers: list[str | UserError] = []
        if problem := self._unfit():
            return [problem] * len(prompts)
        while len(answers) < len(prompts):
            answers += self._ask(prompts[len(answers) :])
            if isinstance(answers[-1], _EndedError) and self._hopeless is None:
                probe = self._ask(["Hello"])[0]  # is it this prompt, or any?
                self._hopeless = probe if isinstance(probe, _EndedError) else None
            if self._hopeless is not None:
                answers += [self._hopeless] * (len(prompts) - len(answers))
        return answers

    def _unfit(self) -> UserError | None:
        """Why this template need not be tried."""
        if isinstance(self._source, UserError):
            return self._source
        if not isinstance(self._source, str):
            kind = type(self._source).__name__
            return UserError(f"The model's chat template is of type {kind}; expected text.")
        if len(self._source) > MAX_SOURCE:
            return UserError(
                f"The model's chat template has {len(self._source)} characters; "
                f"expected at most {MAX_SOURCE}."
            )
        return self._hopeless

    def _ask(self, prompts: Sequence[Conversation]) -> list[str | UserError]:
        return _renderer.ask({"source": self._source, "special": self._special}, prompts)


class _EndedError(UserError):
    """The process was ended over a text, or ended itself."""


class _Renderer:
    """The one process that renders, started when it is first needed."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, job: dict[str, Any], prompts: Sequence[Conversation]) -> list[str | UserError]:
        """Answers to the first prompts, at least one: all, or up to one that ended the process."""
        bounds = {"cpu_s": MAX_CPU_S, "memory": MAX_MEMORY, "characters": MAX_TEXT}
        line = json.dumps(job | bounds | {"prompts": list(prompts)}).encode() + b"\n"
        with self._lock:
            process = self._running()
            try:
                with _killed_after(MAX_WALL_S, process) if _BY_THE_CLOCK_ALONE else nullcontext():
                    answers = self._answers(process, line, len(prompts))
            except BaseException:
                self._drop(process)  # interrupted: what it still writes answers nobody
                raise
            if len(answers) < len(prompts):
                answers.append(self._how_it_ended(process))
        return answers

    def close(self) -> None:
        """End the process, if there is one."""
        if self._process is not None:
            self._drop(self._process)

    def _answers(
        self, process: subprocess.Popen[bytes], line: bytes, count: int
    ) -> list[str | UserError]:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(line)
            process.stdin.flush()
        except BrokenPipeError:
            return []
        answers: list[str | UserError] = []
        for _ in range(count):
            if not (reply := process.stdout.readline()).endswith(b"\n"):
                break
            said = json.loads(reply)
            error = said.get("error")
            problem = UserError(f"The model's chat template {_sentence(error)}") if error else None
            answers.append(problem or said["text"])
        return answers

    def _running(self) -> subprocess.Popen[bytes]:
        if self._process is not None and self._process.poll() is None:
            return self._process
        program = Path(__file__).with_name("chat_child.py")
        found = [find_spec(name) for name in ("jinja2", "markupsafe")]
        folders = [str(Path(one.origin).parents[1]) for one in found if one and one.origin]
        try:
            process = subprocess.Popen(
                [sys.executable, "-I", str(program), *dict.fromkeys(folders)],
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise UserError(
                "The process that renders chat templates cannot be started: "
                f"{error.strerror or error}."
            ) from None
        assert process.stdout is not None
        with _killed_after(_START_S, process):
            ready = process.stdout.readline() == b"ready\n"
        if not ready:
            self._drop(process)
            raise UserError(
                "The process that renders chat templates did not start; expected Jinja2 to be "
                "installed for this Python."
            )
        self._process = process
        return process

    def _how_it_ended(self, process: subprocess.Popen[bytes]) -> _EndedError:
        self._drop(process)
        if process.returncode in _TOO_LONG:
            return _EndedError(
                f"The model's chat template failed: it takes more than {MAX_CPU_S} s to compute."
            )
        return _EndedError(
            "The model's chat template failed: it ended the process that renders it."
        )

    def _drop(self, process: subprocess.Popen[bytes]) -> None:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
        self._process = None


@contextmanager
def _killed_after(seconds: float, process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Inside, `process` is killed when this takes so long."""
    watch = Timer(seconds, process.kill)
    watch.daemon = True
    watch.start()
    try:
        yield
    finally:
        watch.cancel()


def _sentence(text: str) -> str:
    """`text` in one line of bounded length that ends in a full stop."""
    line = " ".join(text.split())
    line = line if len(line) <= 300 else f"{line[:300]}…"
    return line if line.endswith(".") else f"{line}."


_renderer = _Renderer()
_left_behind: list[_Renderer] = []  # the parent's, whose pipes a forked child must not touch


@atexit.register
def _close() -> None:
    _renderer.close()


def _after_fork() -> None:
    global _renderer  # noqa: PLW0603  (one a process)
    _left_behind.append(_renderer)
    _renderer = _Renderer()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
