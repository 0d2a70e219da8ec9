"""What is done to a text before it is cut into words.

Unicode normalisation, where a `tokenizer.json` has that step (Qwen's composes accents); and
SentencePiece's spaces: each becomes `▁`, and one may stand before a text. llama.cpp and the
`Prepend` step of the `tokenizers` library put it before every text between special tokens;
the library's `Metaspace` puts it before a text that does not begin with one already, or, as
`first`, only where no special token stands before that.

Left out: every other normaliser (`hf_tokenizer` refuses them by name).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import numpy as np

from batchgauge.errors import UserError

SPACE = "▁"
FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Keys that no GGUF has; the ways of a `tokenizer.json` stand under them.
FORM_KEY, PREFIX_KEY = "tokenizer.batchgauge.normal_form", "tokenizer.batchgauge.space_prefix"


def flag(metadata: Mapping[str, Any], key: str, otherwise: bool) -> bool:
    """What a tokenizer's key says, `otherwise` where it is missing. Raises UserError."""
    value = metadata.get(f"tokenizer.ggml.{key}", otherwise)
    if not isinstance(value, bool | np.bool_):
        raise UserError(
            f"The model file's `tokenizer.ggml.{key}` is {value!r}; expected true or false."
        )
    return bool(value)


@dataclass(frozen=True)
class Normaliser:
    """`form` of Unicode or none; whether spaces become `▁`, and where one is put before a text."""

    form: str = ""
    spaces: bool = False
    prefix: str = ""

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any], *, spaces: bool) -> Normaliser:
        """As the file has it. Raises UserError for what is none of the ways known."""
        form = metadata.get(FORM_KEY, "")
        if not spaces:
            return cls(form)
        usual = "every" if flag(metadata, "add_space_prefix", True) else ""
        return cls(form, True, metadata.get(PREFIX_KEY, usual))

    def __call__(self, text: str, *, first: bool = True) -> str:
        """The text as words are cut from it; `first` where nothing stands before it."""
        if self.form and not text.isascii():
            form = cast(Literal["NFC", "NFD", "NFKC", "NFKD"], self.form)
            text = unicodedata.normalize(form, text)
        if not self.spaces or not text:
            return text
        text = text.replace(" ", SPACE)
        wanted = self.prefix == "missing" or (self.prefix == "first" and first)
        if self.prefix == "every" or (wanted and not text.startswith(SPACE)):
            return SPACE + text
        return text


AS_IS = Normaliser()
