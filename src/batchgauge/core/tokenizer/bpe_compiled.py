"""Python's side of the compiled kernel: lay out its tables, hand it texts, take its ids.

`KernelEncoder` gives the same ids as `bpe.PlainEncoder`. Importing this module needs
Numba; `bpe_kernel` says
how the kernel works, `bpe_layout` how its tables lie. Memory: the word tables are 1.5 MiB, the
pairs 32 to 64 bytes a merge, scratch space for ids at most 1 MiB; none of it grows.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import cache
from itertools import product
from string import ascii_letters, digits
from threading import Lock
from time import perf_counter
from weakref import WeakSet

import numpy as np
import numpy.typing as npt
import regex

from batchgauge.core.tokenizer import bpe_layout as layout
from batchgauge.core.tokenizer.bpe_kernel import encode, encode_without_tables
from batchgauge.core.tokenizer.bpe_merge import fill_pairs, fill_wholes
from batchgauge.core.tokenizer.pretokenize import IGNORE_MERGES, unicode_splitter
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError
from batchgauge.protocols import TokenBatch

# (style, most digits in a word; 0: any number)
_STYLES = {
    "gpt-2": (layout.GPT2, 0),
    "smollm": (layout.GPT2, 1),
    "llama-bpe": (layout.LLAMA, 3),
    "qwen2": (layout.LLAMA, 1),
}
_PAD = "\0" * layout.PADDING
_PAD_BYTES = b"\xff" * layout.PADDING
_SCRATCH = 1 << 18  # ids, 1 MiB; longer batches get memory of their own for the call
_CODE_POINTS = 0x40000  # beyond these, Unicode has no letter, number or white space
_KINDS = {
    layout.LETTERS: ascii_letters,
    layout.DIGIT: digits,
    layout.BLANK: " ",
    layout.LINE_END: "\r\n",
    layout.TAB: "\t\v\f",
    layout.UNCLEAR: "'",
}
_STOP = "\0"
_EXAMPLES = ["s", "1", " ", "\n", "\t", ".", "'é²字\u3000", _STOP]  # by kind
_FOLLOWERS = "".join(_EXAMPLES)

Int64s = npt.NDArray[np.int64]


class KernelEncoder:
    """Text to ids by the compiled kernel; one call for a whole batch.

    `startup_ms` is what the first call took: loading the compiled kernel from Numba's
    cache, or compiling it (some seconds, once per machine and version).
    """

    _kernel = staticmethod(encode)

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._state = _lay_out(vocabulary)
        self._ids = np.empty(_SCRATCH, dtype=np.int32)
        self._ends = np.empty(1, dtype=np.int64)
        self._lock = Lock()  # the state and the scratch space are shared by all callers
        _encoders.add(self)
        started = perf_counter()
        self.encode("")
        self.startup_ms = (perf_counter() - started) * 1e3

    def encode(self, text: str) -> list[int]:
        """Ids of one text. Raises UnicodeEncodeError for a lone surrogate."""
        if "\0" in text:
            data, separator = text.encode() + _PAD_BYTES, 0xFF
        else:
            data, separator = (text + _PAD).encode(), 0
        with self._lock:
            out = self._ids if len(data) < _SCRATCH else np.empty(len(data), dtype=np.int32)
            total = self._kernel(data, 1, separator, self._state, out, self._ends)
            ids: list[int] = out[:total].tolist()
        return ids

    def encode_many(self, texts: Sequence[str]) -> TokenBatch:
        """Ids of many texts in one call. Raises UnicodeEncodeError for a lone surrogate."""
        joined = "\0".join([*texts, _PAD])
        if joined.count("\0") == len(texts) + layout.PADDING:
            data, separator = joined.encode(), 0
        else:
            data = b"\xff".join([*(text.encode() for text in texts), _PAD_BYTES])
            separator = 0xFF
        offsets = np.empty(len(texts) + 1, dtype=np.int64)
        offsets[0] = 0
        with self._lock:
            out = self._ids if len(data) < _SCRATCH else np.empty(len(data), dtype=np.int32)
            total = self._kernel(data, len(texts), separator, self._state, out, offsets[1:])
            ids = out[:total].copy()
        return TokenBatch(ids, offsets)

    def unlock(self) -> None:
        """For a forked child, where no thread is left that could hold the lock.

        The kernel keeps the interpreter's lock while it runs, so its state is whole.
        """
        self._lock = Lock()

    def forget(self) -> None:
        """Empty the word tables, as if no text had been seen."""
        for where, size in (
            (layout.WORDS, 4 * layout.WORD_SLOTS),
            (layout.LONG_WORDS, 32 * layout.LONG_SLOTS),
        ):
            begin = self._state[where]
            self._state[begin : begin + size] = 0

    @property
    def counters(self) -> dict[str, int]:
        """Work since the start: words met, words that had to be merged, pairs looked up."""
        names = {"words": layout.N_WORDS, "merged": layout.N_MERGED, "lookups": layout.N_LOOKUPS}
        return {name: int(self._state[at]) for name, at in names.items()}

    @property
    def table_bytes(self) -> int:
        """Memory of all tables and of the scratch space."""
        return self._state.nbytes + self._ids.nbytes


_encoders: WeakSet[KernelEncoder] = WeakSet()


def _unlock_all() -> None:
    for encoder in list(_encoders):
        encoder.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)


class WithoutWordTable(KernelEncoder):
    """The kernel that merges every word anew: what the word tables buy shows against it."""

    _kernel = staticmethod(encode_without_tables)


@cache
def character_classes(pre_tokenizer: str) -> npt.NDArray[np.uint8]:
    """Section `classes` of a pre-tokenizer, as `bpe_layout` describes it."""
    flat = _unicode_classes()
    blocks: dict[bytes, int] = {}
    index = [blocks.setdefault(block.tobytes(), len(blocks)) for block in flat.reshape(-1, 256)]
    classes = np.full((2, 256), layout.LEAD, dtype=np.uint8)
    classes[:, :0x80] = flat[:0x80]
    kinds = np.full((2, 256), layout.UNCLEAR, dtype=np.uint8)
    kinds[:, :0x80] = layout.SIGN
    for kind, chars in _KINDS.items():
        kinds[:, [ord(char) for char in chars]] = kind
    classes[0, 0] = classes[1, 0xFF] = layout.END
    kinds[0, 0] = kinds[1, 0xFF] = layout.STOP
    sections = (classes, kinds, _short_lengths(pre_tokenizer), np.array(index, np.uint8))
    return np.concatenate(
        [*(part.ravel() for part in sections), np.frombuffer(b"".join(blocks), np.uint8)]
    )


def _unicode_classes() -> npt.NDArray[np.uint8]:
    """Classes of all code points, as `regex` knows them."""
    everything = "".join(map(chr, range(_CODE_POINTS)))
    flat = np.full(0x110000, layout.OTHER, dtype=np.uint8)
    for kind, pattern in (
        (layout.LETTER, r"\p{L}+"),
        (layout.NUMBER, r"\p{N}+"),
        (layout.SPACE, r"\s+"),
    ):
        for match in regex.finditer(pattern, everything):
            flat[match.start() : match.end()] = kind
    return flat


def _short_lengths(pre_tokenizer: str) -> npt.NDArray[np.uint8]:
    """Length of a word by the kinds of its first three bytes, uint8 [8, 8, 8].

    Found by trying: the pattern cuts examples of the three kinds with everything that
    may follow them, and where the first word is always equally long and ends before the
    third byte, that is its length.
    """
    split = unicode_splitter(pre_tokenizer)
    lengths = np.zeros((8, 8, 8), dtype=np.uint8)
    for kinds in product(range(layout.UNCLEAR), range(8), range(8)):
        examples = map("".join, product(*(_EXAMPLES[kind] for kind in kinds), _FOLLOWERS))
        found = {len(split(text.partition(_STOP)[0])[0]) for text in examples}
        if len(found) == 1 and max(found) <= 2:
            lengths[kinds] = found.pop()
    return lengths


def _lay_out(vocabulary: Vocabulary) -> Int64s:
    """The `state` array of a vocabulary. Raises UserError for one beyond 2^24 ids."""
    if len(vocabulary.tokens) >= 1 << 24:
        raise UserError(
            f"The vocabulary has {len(vocabulary.tokens)} tokens; expected less than 2^24."
        )
    style, most_digits = _STYLES[vocabulary.pre_tokenizer]
    header = np.zeros(layout.HEADER, dtype=np.int64)
    header[layout.STYLE], header[layout.DIGITS] = style, most_digits
    header[layout.PAIR_SHIFT], pairs = _empty_table(len(vocabulary.merged), columns=2)
    fill_pairs(
        vocabulary.lefts, vocabulary.rights, vocabulary.merged, pairs, header[layout.PAIR_SHIFT]
    )
    sections: list[tuple[int, Int64s]] = [
        (layout.CLASSES, _as_int64(character_classes(vocabulary.pre_tokenizer))),
        (layout.CLASSES_END, np.empty(0, np.int64)),
        (layout.BYTE_IDS, np.array(vocabulary.byte_ids, dtype=np.int64)),
        (layout.RANKS, np.empty(layout.SHORT, dtype=np.int64)),
        (layout.PAIRS, pairs),
        (layout.LONG_WORDS, np.zeros(32 * layout.LONG_SLOTS, dtype=np.int64)),
        (layout.WORDS, np.zeros(4 * layout.WORD_SLOTS, dtype=np.int64)),
    ]
    if vocabulary.pre_tokenizer in IGNORE_MERGES:
        ids = np.array(list(vocabulary.whole_words.values()), dtype=np.int64)
        spelled = [vocabulary.token_bytes[i] for i in range(len(vocabulary.tokens))]
        offsets = np.concatenate([[0], np.cumsum([len(word) for word in spelled])])
        spelling = np.frombuffer(b"".join(spelled), np.uint8)
        header[layout.WHOLE_SHIFT], wholes = _empty_table(len(ids), columns=1)
        fill_wholes(ids, offsets, spelling, wholes, header[layout.WHOLE_SHIFT])
        sections += [
            (layout.WHOLES, wholes),
            (layout.SPELLING, offsets),
            (layout.SPELLING_BYTES, _as_int64(spelling)),
            (layout.SPELLING_END, np.empty(0, np.int64)),
        ]
    begin = layout.HEADER
    for where, section in sections:
        header[where] = begin
        begin += section.size
    return np.concatenate([header, *(section for _, section in sections)])


def _empty_table(entries: int, *, columns: int) -> tuple[int, Int64s]:
    """An open-addressed table that `entries` fill at most half, and 64 - log2 of its slots."""
    bits = max(2 * entries, 2).bit_length()
    return 64 - bits, np.full(columns << bits, -1, dtype=np.int64)


def _as_int64(data: npt.NDArray[np.uint8]) -> Int64s:
    return np.pad(data, (0, -data.size % 8)).view(np.int64)
