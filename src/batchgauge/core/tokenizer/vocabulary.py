"""A BPE vocabulary as a GGUF's metadata carries it: tokens, merges, token types.

In the byte-level kind (`gpt2`) tokens are written in GPT-2's byte alphabet, where each of the
256 bytes has a printable character of its own (space is `Ġ`). In SentencePiece's (`llama`)
they are text with `▁` for space, a character that is no token is spelled by the 256 tokens
`<0x00>` to `<0xFF>`, and any two neighbours merge whose text together is a token, that with
the highest score first, unless the file lists merges. Special tokens (types `control`, which
`unknown` counts as, and `user defined`) are written as they are.

Of several ordinary tokens with one text the last counts, as in HF and llama.cpp; a
special token without text is never found in a text. What begins and ends a text is in
`edges`.

A byte without a token of its own cannot be encoded: as in HF `tokenizers` (no
unknown token) and llama.cpp it is dropped. SmolLM2 lacks the control characters
U+0004, U+0006, U+0013, U+0014, U+0016, U+001D and the bytes F1 and F2, which only
code points from U+40000 to U+BFFFF use, all unassigned; `missing_bytes` names them.

Left out: other kinds of vocabularies (Unigram, WordPiece, RWKV's), refused by name.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt
import regex

from batchgauge.core.tokenizer.edges import (
    BYTE,
    BYTES,
    CONTROL,
    PIECES,
    UNKNOWN,
    USER_DEFINED,
    Edges,
    special_ids,
    texts_of,
)
from batchgauge.core.tokenizer.normalise import AS_IS, SPACE, Normaliser
from batchgauge.core.tokenizer.pretokenize import (
    IGNORE_MERGES,
    Splitter,
    ascii_splitter,
    check_name,
    unicode_splitter,
)
from batchgauge.errors import UserError

KINDS = {
    "bert": "WordPiece", "t5": "SentencePiece's Unigram", "rwkv": "RWKV's", "plamo2": "PLaMo-2's",
    "none": "no vocabulary at all", "no_vocab": "no vocabulary at all",
}  # fmt: skip
WHOLE_KEY = "tokenizer.batchgauge.ignore_merges"  # no GGUF has it; a `tokenizer.json` says so


class ScoredPairs:
    """Neighbours whose text together is a token, the highest score first."""

    def __init__(
        self, tokens: list[str], ids: Mapping[str, int], scores: npt.NDArray[np.floating]
    ) -> None:
        _, ranks = np.unique(-scores, return_inverse=True)  # equal scores have one rank
        ranks[~np.isfinite(scores)] = -1  # no merge gives these tokens
        self._ranks = array("q", ranks.astype(np.int64).tobytes())  # a list takes five times that
        self._tokens, self._ids = tokens, ids

    def get(self, pair: tuple[int, int], /) -> tuple[int, int] | None:
        """(rank, merged id) of (left id, right id); None where they do not merge."""
        merged = self._ids.get(self._tokens[pair[0]] + self._tokens[pair[1]])
        if merged is None or (rank := self._ranks[merged]) < 0:
            return None
        return rank, merged


MergeTable = Mapping[tuple[int, int], tuple[int, int]] | ScoredPairs  # which neighbours merge


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
    whole: bool = False
    normaliser: Normaliser = AS_IS
    scores: npt.NDArray[np.floating] | None = None

    @classmethod
    def from_metadata(cls, metadata: Mapping[str, Any]) -> Vocabulary:
        """Read the `tokenizer.ggml.*` keys of a GGUF's metadata.

        Raises UserError when a key is missing, the vocabulary is of another kind,
        the pre-tokenizer is unknown, or a merge names a token that is not there.
        """

        def need(key: str) -> Any:
            if (value := metadata.get(f"tokenizer.ggml.{key}")) is None:
                raise UserError(
                    f"The model file lacks `tokenizer.ggml.{key}`; expected a BPE model."
                )
            return value

        if (kind := need("model")) not in {BYTES, PIECES}:
            named = f" ({KINDS[kind]})" if kind in KINDS else ""
            raise UserError(
                f"The tokenizer model {kind!r}{named} is not supported; expected {BYTES!r} "
                f"(byte-level BPE) or {PIECES!r} (SentencePiece's BPE)."
            )
        pieces = kind == PIECES
        pre = "" if pieces else check_name(metadata.get("tokenizer.ggml.pre"))
        tokens = texts_of(need("tokens"))
        types = _types(metadata.get("tokenizer.ggml.token_type"), len(tokens))
        ids = {token: i for i, token in enumerate(tokens)}
        control = _special(tokens, np.flatnonzero((types == CONTROL) | (types == UNKNOWN)), ids)
        user_defined = _special(tokens, np.flatnonzero(types == USER_DEFINED), ids)
        scored = pieces and "tokenizer.ggml.merges" not in metadata
        lefts, rights, merged = _merge_ids([] if scored else need("merges"), ids)
        bos, eos = (special_ids(metadata, key, len(tokens)) for key in ("bos", "eos"))
        vocabulary = cls(
            tokens=tokens,
            lefts=lefts,
            rights=rights,
            merged=merged,
            pre_tokenizer=pre,
            control=control,
            user_defined=user_defined,
            bos_id=bos[0] if bos else None,
            eos_id=eos[0] if eos else None,
            add_bos=bool(Edges.from_metadata(metadata).begin),
            whole=bool(metadata.get(WHOLE_KEY, pre in IGNORE_MERGES)),
            normaliser=Normaliser.from_metadata(metadata, spaces=pieces),
            scores=_scores(need("scores"), types) if scored else None,
        )
        if pieces and vocabulary.missing_bytes:
            first = vocabulary.missing_bytes[0]
            raise UserError(
                f"The model file's vocabulary lacks the token '<0x{first:02X}>'; expected one for "
                "each of the 256 bytes, as SentencePiece's byte fallback has them."
            )
        return vocabulary

    @property
    def pieces(self) -> bool:
        """Whether it is of SentencePiece's kind."""
        return self.normaliser.spaces

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
        names = [f"<0x{n:02X}>" for n in range(256)] if self.pieces else byte_alphabet()
        return [self.ids.get(name, -1) for name in names]

    @property
    def missing_bytes(self) -> tuple[int, ...]:
        """The bytes that no token stands for and that encoding drops."""
        return tuple(byte for byte, i in enumerate(self.byte_ids) if i < 0)

    @cached_property
    def splitters(self) -> tuple[Splitter, Splitter]:
        """What cuts a text into words: ASCII text, and any text.

        In SentencePiece's kind a whole text is one word. Where no token goes on with `▁` behind
        something else, none spans that place: the text is cut there, and the ids are the same.
        """
        if not self.pieces:
            return ascii_splitter(self.pre_tokenizer), unicode_splitter(self.pre_tokenizer)
        spans, special = regex.compile(f"[^{SPACE}]{SPACE}").search, self.special
        whole = any(spans(token) for token in self.tokens if token not in special)
        word = ".+" if whole else f"{SPACE}*[^{SPACE}]+|{SPACE}+"
        cut: Splitter = regex.compile(word, regex.DOTALL).findall
        return cut, cut

    def symbols(self, word: str) -> list[int]:
        """What merging begins with: ids of a word's bytes, or of its characters.

        A byte without a token is left out, a character without one is spelled by its bytes.
        """
        bytes_ = self.byte_ids
        if not self.pieces:
            return [i for i in map(bytes_.__getitem__, word.encode()) if i >= 0]
        symbols: list[int] = []
        for char in word:
            if (i := self._characters.get(char)) is None:
                symbols += map(bytes_.__getitem__, char.encode())
            else:
                symbols.append(i)
        return symbols

    @cached_property
    def _characters(self) -> dict[str, int]:
        special = self.special
        return {
            token: i for token, i in self.ids.items() if len(token) == 1 and token not in special
        }

    @cached_property
    def pairs(self) -> MergeTable:
        """(left id, right id) -> (rank, merged id)."""
        if self.scores is not None:
            return ScoredPairs(self.tokens, self.ids, self.scores)
        both = zip(self.lefts.tolist(), self.rights.tolist(), strict=True)
        return dict(zip(both, enumerate(self.merged.tolist()), strict=True))

    @cached_property
    def whole_words(self) -> Mapping[bytes, int]:
        """Words that are taken as they stand, without merging; empty for most pre-tokenizers."""
        if not self.whole:
            return {}
        alphabet = set(byte_alphabet())
        special = set(self.special.values())
        return {
            self.token_bytes[i]: i
            for token, i in self.ids.items()
            if alphabet.issuperset(token) and (i not in special or token.isascii())
        }

    @cached_property
    def token_bytes(self) -> dict[int, bytes]:
        """The bytes of each token, by id."""
        if self.pieces:
            special = set(self.special.values())
            bytes_ = {i: bytes([byte]) for byte, i in enumerate(self.byte_ids)}
            return {
                i: (token if i in special else token.replace(SPACE, " ")).encode()
                for i, token in enumerate(self.tokens)
            } | bytes_
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


def _types(types: object, count: int) -> npt.NDArray[np.integer]:
    """Types [count] of the tokens, all normal if the file has none. Raises UserError."""
    try:
        found = np.ones(count, np.int32) if types is None else np.asarray(types)
    except ValueError:  # arrays of several lengths in one
        found = np.array(["?"] * count)
    if found.shape != (count,):
        raise UserError(
            f"The model file has {count} tokens and {found.size} token types; "
            "expected as many of each."
        )
    if count and not (
        np.issubdtype(found.dtype, np.integer) and found.min() >= 0 and found.max() <= BYTE
    ):
        raise UserError("A token type of the model file is unknown; expected 1 to 6.")
    return found


def _scores(scores: Any, types: npt.NDArray[np.integer]) -> npt.NDArray[np.floating]:
    """Scores [V], -inf for tokens that no merge gives. Raises UserError."""
    found = np.asarray(scores)
    if found.shape != types.shape or not np.issubdtype(found.dtype, np.floating):
        raise UserError(
            f"The model file has {types.size} tokens and {found.size} scores; "
            "expected a number for each."
        )
    never = np.isin(types, (UNKNOWN, CONTROL, BYTE)) | np.isnan(found)
    return np.where(never, -np.inf, found)


def _special(
    tokens: list[str], which: npt.NDArray[np.intp], ids: Mapping[str, int]
) -> dict[str, int]:
    """Text to id of special tokens with a text. Raises UserError where two have the same."""
    special = {}
    for i in which.tolist():
        if not (text := tokens[i]):
            continue
        if ids[text] != i:
            raise UserError(
                f"The special token {text!r} stands twice in the model file's vocabulary, as "
                f"{i} and {ids[text]}; expected one id."
            )
        special[text] = i
    return special


def _merge_ids(merges: Iterable[object], ids: Mapping[str, int]) -> list[npt.NDArray[np.int32]]:
    """Ids of left tokens, right tokens and results, int32 [M] each.

    A merge is two tokens with a space between, or an array of the two.
    """
    if not isinstance(merges, Iterable) or isinstance(merges, str):
        merges = [merges]
    rows = [
        " ".join(map(str, merge)) if isinstance(merge, list | tuple) else merge for merge in merges
    ]
    if any(not isinstance(row, str) or row.count(" ") != 1 for row in rows):
        raise UserError(
            "A merge of the model file is not two tokens with a space between; the file is damaged."
        )
    texts: list[str] = rows  # type: ignore[assignment]  # as has just been seen
    halves = " ".join(texts).split(" ") if texts else []
    results = [text.replace(" ", "") for text in texts]
    try:
        return [
            np.fromiter(map(ids.__getitem__, names), dtype=np.int32, count=len(texts))
            for names in (halves[::2], halves[1::2], results)
        ]
    except KeyError as error:
        raise UserError(
            f"A merge of the model file needs the token {error.args[0]!r}, which is not in its "
            "vocabulary; the file is damaged."
        ) from error
