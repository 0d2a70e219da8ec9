"""A byte-level BPE vocabulary as a GGUF's metadata carries it: tokens, merges, token types.

Tokens are written in GPT-2's byte alphabet, where each of the 256 bytes has a
printable character of its own (space is `Ġ`). Special tokens (types `control` and
`user defined`) are written as they are.

A byte without a token of its own cannot be encoded: as in HF `tokenizers` (no
unknown token) and llama.cpp it is dropped. SmolLM2 lacks the control characters
U+0004, U+0006, U+0013, U+0014, U+0016, U+001D and the bytes F1 and F2, which only
code points from U+40000 to U+BFFFF use, all unassigned; `missing_bytes` names them.

Left out: other kinds of vocabularies (SentencePiece, WordPiece), normalisers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from batchgauge.core.tokenizer.pretokenize import IGNORE_MERGES, check_name
from batchgauge.errors import UserError

CONTROL, USER_DEFINED = 3, 4  # GGUF token types
Pairs = Mapping[tuple[int, int], tuple[int, int]]  # (left id, right id) -> (rank, merged id)


def byte_alphabet() -> list[str]:
    """GPT-2's printable character for each byte, 256 of them.

    Bytes that are printable in Latin-1 stand for themselves, the others for the
    characters from U+0100 on, in order.
    """
    itself = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = iter(range(0x100, 0x200))
    return [chr(byte if byte in itself else next(others)) for byte in range(256)]


@dataclass(frozen=True)
class Vocabulary:
    """What an exact tokenizer needs to know; M merges in order of rank.

    lefts, rights, merged   int32 [M]   ids of the two tokens and of what they become
    control, user_defined   text -> id  special tokens; the first are read as tokens only on request
    """

    tokens: list[str]
    lefts: npt.NDArray[np.int32]
    rights: npt.NDArray[np.int32]
    merged: npt.NDArray[np.int32]
    pre_tokenizer: str
    control: Mapping[str, int]
    user_defined: Mapping[str, int]
    bos_id: int | None
    eos_id: int | None
    add_bos: bool

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """Read the `tokenizer.ggml.*` keys of a GGUF's metadata.

        Raises UserError when a key is missing, the vocabulary is not byte-level BPE,
        the pre-tokenizer is unknown, or a merge names a token that is not there.
        """

        def need(key: str) -> Any:
            if (value := metadata.get(f"tokenizer.ggml.{key}")) is None:
                raise UserError(
                    f"The model file lacks `tokenizer.ggml.{key}`; expected a BPE model."
                )
            return value

        if (kind := need("model")) != "gpt2":
            raise UserError(
                f"The tokenizer model {kind!r} is not supported; expected 'gpt2' (BPE)."
            )
        pre_tokenizer = check_name(need("pre"))
        tokens: list[str] = list(need("tokens"))
        types = np.asarray(
            metadata.get("tokenizer.ggml.token_type", np.ones(len(tokens), np.int32))
        )
        if len(types) != len(tokens):
            raise UserError(
                f"The model file has {len(tokens)} tokens and {len(types)} token types; "
                "expected as many of each."
            )
        ids = {token: i for i, token in enumerate(tokens)}
        lefts, rights, merged = _merge_ids(need("merges"), ids)
        return cls(
            tokens=tokens,
            lefts=lefts,
            rights=rights,
            merged=merged,
            pre_tokenizer=pre_tokenizer,
            control={tokens[i]: int(i) for i in np.flatnonzero(types == CONTROL)},
            user_defined={tokens[i]: int(i) for i in np.flatnonzero(types == USER_DEFINED)},
            bos_id=metadata.get("tokenizer.ggml.bos_token_id"),
            eos_id=metadata.get("tokenizer.ggml.eos_token_id"),
            add_bos=bool(
                metadata.get("tokenizer.ggml.add_bos_token", pre_tokenizer == "llama-bpe")
            ),
        )

    @property
    def special(self) -> dict[str, int]:
        """Every special token, control or user defined."""
        return {**self.control, **self.user_defined}

    @cached_property
    def ids(self) -> dict[str, int]:
        """Token, in the byte alphabet, to id."""
        return {token: i for i, token in enumerate(self.tokens)}

    @cached_property
    def byte_ids(self) -> list[int]:
        """Id of each byte's own token, 256 of them; -1 where there is none."""
        return [self.ids.get(char, -1) for char in byte_alphabet()]

    @property
    def missing_bytes(self) -> tuple[int, ...]:
        """The bytes that no token stands for and that encoding drops."""
        return tuple(byte for byte, i in enumerate(self.byte_ids) if i < 0)

    @cached_property
    def pairs(self) -> Pairs:
        """(left id, right id) -> (rank, merged id)."""
        both = zip(self.lefts.tolist(), self.rights.tolist(), strict=True)
        return dict(zip(both, enumerate(self.merged.tolist()), strict=True))

    @cached_property
    def whole_words(self) -> Mapping[bytes, int]:
        """Words that are taken as they stand, without merging; empty for most pre-tokenizers."""
        if self.pre_tokenizer not in IGNORE_MERGES:
            return {}
        special = set(self.special.values())
        return {word: i for i, word in self.token_bytes.items() if i not in special}

    @cached_property
    def token_bytes(self) -> dict[int, bytes]:
        """The bytes of each token, by id."""
        alphabet = byte_alphabet()
        table = {ord(char): byte for byte, char in enumerate(alphabet)}
        foreign = set(self.special.values())
        if not set().union(*self.tokens) <= set(alphabet):
            foreign |= {i for i, token in enumerate(self.tokens) if not set(token) <= set(alphabet)}
        result = {
            i: (token if token.isascii() else token.translate(table)).encode("latin-1")
            for i, token in enumerate(self.tokens)
            if i not in foreign
        }
        return result | {i: self.tokens[i].encode() for i in foreign}


def _merge_ids(merges: list[str], ids: Mapping[str, int]) -> list[npt.NDArray[np.int32]]:
    """Ids of left tokens, right tokens and results, int32 [M] each."""
    if any(merge.count(" ") != 1 for merge in merges):
        raise UserError(
            "A merge of the model file is not two tokens with a space between; the file is damaged."
        )
    halves = " ".join(merges).split(" ") if merges else []
    results = [merge.replace(" ", "") for merge in merges]
    try:
        return [
            np.fromiter(map(ids.__getitem__, names), dtype=np.int32, count=len(merges))
            for names in (halves[::2], halves[1::2], results)
        ]
    except KeyError as error:
        raise UserError(
            f"A merge of the model file needs the token {error.args[0]!r}, which is not in its "
            "vocabulary; the file is damaged."
        ) from error
