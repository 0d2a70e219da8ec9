"""HF `tokenizers` as a tokenizer: from a model's vocabulary, a `tokenizer.json`, or an object.

Built from the vocabulary and merges of a GGUF it gives the ids of the model's own
`tokenizer.json`. Left out: chat templates, padding, truncation.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers

from batchgauge.core.tokenizer.bpe_tokenizer import read_metadata
from batchgauge.core.tokenizer.normalise import SPACE, Normaliser
from batchgauge.core.tokenizer.pretokenize import STEPS
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError
from batchgauge.protocols import TokenBatch


def open_tokenizer(argument: str, model: Path | None) -> HFTokenizer:
    """From the `tokenizer.json` that `argument` names, else from `model`'s vocabulary."""
    if argument:
        return HFTokenizer.from_file(Path(argument))
    return HFTokenizer(from_vocabulary(Vocabulary.from_metadata(read_metadata(model))))


class HFTokenizer:
    """Any `tokenizers.Tokenizer`; batches go through `encode_batch_fast`, its fastest way.

    `threads` above 1 lets the library use its thread pool, whose size it fixes at
    its first use in the process; 1 keeps it to one thread.
    """

    name = "hf"

    def __init__(self, tokenizer: tokenizers.Tokenizer, *, threads: int = 1) -> None:
        self.raw = tokenizer
        self.threads = threads

    @classmethod
    def from_file(cls, path: Path) -> HFTokenizer:
        """Read a `tokenizer.json`. Raises UserError when it is missing or damaged."""
        try:
            return cls(tokenizers.Tokenizer.from_file(str(path)))
        except Exception as error:  # noqa: BLE001 - the library raises plain Exception
            raise UserError(f"'{path}' cannot be read as a tokenizer.json: {error}.") from None

    @property
    def vocab_size(self) -> int:
        """How many ids there are, added tokens included."""
        return int(self.raw.get_vocab_size(with_added_tokens=True))

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """The ids of one text; no begin or end token is added. Raises UserError as below."""
        self._set(allow_special)
        try:
            ids: list[int] = self.raw.encode(text, add_special_tokens=False).ids
        except TypeError:
            raise _not_text() from None
        return ids

    def encode_many(self, texts: Sequence[str], *, allow_special: bool = False) -> TokenBatch:
        """The ids of many texts, by one call of the library.

        Raises UserError for what is not a str, or holds a lone surrogate.
        """
        self._set(allow_special)
        try:
            rows = self.raw.encode_batch_fast(list(texts), add_special_tokens=False)
        except TypeError:
            raise _not_text() from None
        return TokenBatch.from_lists([row.ids for row in rows])

    def decode(self, ids: Sequence[int]) -> str:
        """The text of ids, special tokens included. Raises UserError for an unknown id."""
        (text,) = self.decode_many([ids])
        return text

    def decode_many(self, rows: Sequence[Sequence[int]]) -> list[str]:
        """The texts of many id sequences, by one call of the library.

        Raises UserError for an unknown id, which the library would leave out.
        """
        size = self.vocab_size
        if not all(0 <= i < size for row in rows for i in row):
            raise UserError(f"An id is not in the vocabulary; expected 0 to {size - 1}.")
        texts: list[str] = self.raw.decode_batch(
            [list(row) for row in rows], skip_special_tokens=False
        )
        return texts

    def _set(self, allow_special: bool) -> None:
        self.raw.encode_special_tokens = not allow_special
        if self.threads > 1:
            os.environ["RAYON_NUM_THREADS"] = str(self.threads)
        os.environ["TOKENIZERS_PARALLELISM"] = "true" if self.threads > 1 else "false"


def from_vocabulary(vocabulary: Vocabulary) -> tokenizers.Tokenizer:
    """The library's own BPE with this vocabulary and these merges."""
    tokenizer = tokenizers.Tokenizer(
        models.BPE(
            vocabulary.ids,
            _merges(vocabulary),
            ignore_merges=vocabulary.whole,
            byte_fallback=vocabulary.pieces,
        )
    )
    if vocabulary.pieces:
        _with_spaces(tokenizer, vocabulary.normaliser)
    else:
        _with_words(tokenizer, vocabulary)
    for special, group in ((True, vocabulary.control), (False, vocabulary.user_defined)):
        tokenizer.add_tokens([AddedToken(t, special=special, normalized=False) for t in group])
    return tokenizer


def _merges(vocabulary: Vocabulary) -> list[tuple[str, str]]:
    """Pairs of tokens in order of rank; of a vocabulary with scores every one that merges."""
    tokens, scores = vocabulary.tokens, vocabulary.scores
    if scores is None:
        both = zip(vocabulary.lefts.tolist(), vocabulary.rights.tolist(), strict=True)
        return [(tokens[left], tokens[right]) for left, right in both]
    ids = vocabulary.ids
    return [
        (token[:at], token[at:])
        for token in (tokens[i] for i in np.argsort(-scores, kind="stable").tolist())
        if np.isfinite(scores[ids[token]])
        for at in range(1, len(token))
        if token[:at] in ids and token[at:] in ids
    ]


def _with_spaces(tokenizer: tokenizers.Tokenizer, normaliser: Normaliser) -> None:
    """SentencePiece's way with spaces, before and after."""
    steps = [getattr(normalizers, normaliser.form)()] if normaliser.form else []
    if normaliser.prefix == "every":
        steps.append(normalizers.Prepend(SPACE))
    if scheme := {"missing": "always", "first": "first"}.get(normaliser.prefix):
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(SPACE, scheme, split=False)
    else:
        steps.append(normalizers.Replace(" ", SPACE))
    tokenizer.normalizer = normalizers.Sequence(steps)
    behind = [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse()]
    if normaliser.prefix:
        behind.append(decoders.Strip(" ", 1, 0))
    tokenizer.decoder = decoders.Sequence(behind)


def _with_words(tokenizer: tokenizers.Tokenizer, vocabulary: Vocabulary) -> None:
    """The pre-tokenizer of a byte-level vocabulary."""
    kind = vocabulary.pre_tokenizer
    if form := vocabulary.normaliser.form:
        tokenizer.normalizer = getattr(normalizers, form)()
    words = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)  # GPT-2's pattern
    if kind == "smollm":
        digits = pre_tokenizers.Digits(individual_digits=True)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([digits, words])
    elif kind == "gpt-2":
        tokenizer.pre_tokenizer = words
    else:
        steps = [pre_tokenizers.Split(Regex(step), "isolated") for step in STEPS[kind]]
        bytes_only = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_only])
    tokenizer.decoder = decoders.ByteLevel()


def _not_text() -> UserError:
    return UserError("A text is no str, or has a lone surrogate; expected text UTF-8 can hold.")
