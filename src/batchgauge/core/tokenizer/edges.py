"""Where a model's texts begin and end, and which tokens end an answer, as its file says.

By llama.cpp's rules; every engine asks here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from batchgauge.core.tokenizer.normalise import PREFIX_KEY, flag
from batchgauge.core.tokenizer.pretokenize import ADD_BOS, check_name
from batchgauge.errors import UserError

NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # GGUF token types
BYTES, PIECES = "gpt2", "llama"  # kinds of vocabularies, by their names in a GGUF
_DEFAULT_IDS = {"bos": 1, "eos": 2}  # of SentencePiece, where a file names none
# Tokens that end an answer by their name, and those of them that llama.cpp knows as padding,
# repository and file separators of fill-in-the-middle models.
END_NAMES = frozenset({
    "<|eot_id|>", "<|im_end|>", "<|end|>", "<|return|>", "<|call|>", "<|flush|>", "<|calls|>",
    "<end_of_turn>", "<|endoftext|>", "</s>", "<|eom_id|>", "<EOT>", "_<EOT>", "[EOT]", "[EOS]",
    "<|end_of_text|>", "<end_of_utterance>", "<eos>", "<turn|>", "<|tool_response>",
    "<｜end▁of▁sentence｜>",
    "<|fim_pad|>", "<fim-pad>", "<fim_pad>", "<PAD>", "[PAD]",
    "<|fim_repo|>", "<|repo_name|>", "<fim-repo>", "<REPO>", "<reponame>", "<|file_sep|>",
})  # fmt: skip
_END_KEYS = ("eos", "eot", "eom", "fim_pad", "fim_rep", "fim_sep")


@dataclass(frozen=True)
class Edges:
    """Where texts begin and end in one model.

    begin, finish   ids to put before and behind a text, none or one
    ends            ids that end an answer
    """

    begin: tuple[int, ...]
    finish: tuple[int, ...]
    ends: frozenset[int]

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Edges:
        """By llama.cpp's rules: `add_bos_token` and `add_eos_token`, where they are missing what
        the pre-tokenizer implies; every end token that the file lists or a control token names.

        Raises UserError for an id that is no token.
        """
        tokens = texts_of(metadata.get("tokenizer.ggml.tokens", ()))

        def listed(key: str) -> tuple[int, ...]:
            return special_ids(metadata, key, len(tokens))

        pieces = metadata.get("tokenizer.ggml.model") == PIECES
        try:
            implied = pieces or check_name(metadata.get("tokenizer.ggml.pre")) in ADD_BOS
        except UserError:  # a tokenizer of another kind, which a foreign engine may know
            implied = False
        ends = {i for key in _END_KEYS for i in listed(key)}
        return cls(
            begin=listed("bos")[:1] if flag(metadata, "add_bos_token", implied) else (),
            finish=listed("eos")[:1] if flag(metadata, "add_eos_token", False) else (),
            ends=frozenset(ends | _named_ends(metadata, tokens)),
        )

    def around(self, ids: list[int]) -> list[int]:
        """`ids` of a text with what belongs before and behind it, unless it is there already."""
        if self.begin and tuple(ids[:1]) != self.begin:
            ids = [*self.begin, *ids]
        if self.finish and tuple(ids[-1:]) != self.finish:
            ids = [*ids, *self.finish]
        return ids


def texts_of(tokens: Iterable[object]) -> list[str]:
    """Tokens as a list. Raises UserError for what is no text."""
    texts = list(tokens) if isinstance(tokens, Iterable) and not isinstance(tokens, str) else [0]
    if not {type(text) for text in texts} <= {str}:
        raise UserError("The model file's `tokenizer.ggml.tokens` are no texts; expected an array.")
    result: list[str] = texts  # type: ignore[assignment]  # as has just been seen
    try:
        "".join(result).encode()
    except UnicodeEncodeError:
        raise UserError(
            "A token of the model file has a lone surrogate; the file is damaged."
        ) from None
    return result


def special_ids(metadata: Mapping[str, Any], key: str, count: int) -> tuple[int, ...]:
    """The ids, one or an array of them, under a special token's key. Raises UserError."""
    name = f"tokenizer.ggml.{key}_token_id"
    of_gguf = metadata.get("tokenizer.ggml.model") == PIECES and PREFIX_KEY not in metadata
    implied = _DEFAULT_IDS.get(key) if of_gguf and count > max(_DEFAULT_IDS.values()) else None
    if (value := metadata.get(name, implied)) is None:
        return ()
    ids = list(value) if isinstance(value, list | tuple | np.ndarray) else [value]
    for i in ids:
        is_id = isinstance(i, int | np.integer) and not isinstance(i, bool)
        if not is_id or not 0 <= i < count:
            raise UserError(
                f"The model file's `{name}` is {str(i)[:40]!r}, which is no token; "
                f"expected 0 to {count - 1}."
            )
    return tuple(map(int, ids))


def _named_ends(metadata: Mapping[str, Any], tokens: Iterable[str]) -> set[int]:
    """Ids of the control or user defined tokens that end an answer by their name.

    Without token types every token of such a name counts.
    """
    types = metadata.get("tokenizer.ggml.token_type")
    named = [
        (i, token)
        for i, token in enumerate(tokens)
        if token in END_NAMES
        and (types is None or (i < len(types) and types[i] in (CONTROL, USER_DEFINED)))
    ]
    names = {token for _, token in named}
    calls = names & {"<|call|>", "<|calls|>"}
    not_ends = set()
    if calls and names & {"<|return|>", "<|flush|>"}:  # there `<|end|>` ends a message only
        not_ends.add("<|end|>")
    if "<|tool_response>" in names:  # there `</s>` is text
        not_ends.add("</s>")
    return {i for i, token in named if token not in not_ends}
