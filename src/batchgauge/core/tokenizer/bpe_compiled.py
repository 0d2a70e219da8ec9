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

from batchgauge.core.kernels import team_kernel
from batchgauge.core.tokenizer import bpe_kernel
from batchgauge.core.tokenizer import bpe_layout as layout
from batchgauge.core.tokenizer.bpe_merge import fill_pairs, fill_wholes
from batchgauge.core.tokenizer.bpe_plain import ended_texts
from batchgauge.core.tokenizer.pretokenize import ascii_splitter, unicode_splitter
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError
from batchgauge.machine.limits import usable_cpus
from batchgauge.protocols import TokenBatch

# (style, most digits in a word; 0: any number); for all others `regex` cuts words
_STYLES = {
    "gpt-2": (layout.GPT2, 0),
    "smollm": (layout.GPT2, 1),
    "llama-bpe": (layout.LLAMA, 3),
    "qwen2": (layout.LLAMA, 1),
}
_PAD = "\0" * layout.PADDING
_PAD_BYTES = b"\xff" * layout.PADDING
_SCRATCH = 1 << 20  # ids, 4 MiB; longer batches get memory of their own for the call
_PARTS = 4  # of a batch for each thread: who is free takes the next one
_MOST_PARTS = 4 * 1024
_WORTH_SHARING = 3072  # bytes of text from which another thread saves more than it costs
_PART = 16_384  # bytes of text in a part, where there is much of it
_WORTH_A_PART = 192  # bytes of text: about a microsecond
_WORTH_WAKING = 16_384  # bytes of text for which threads are woken
_SOON_S = 0.001  # after another shared batch they are woken for any
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

    `threads` share a batch; ids are the same with any number of them. Making one loads the
    compiled kernel from Numba's cache, or compiles it (some seconds, once per machine and version).
    """

    _kernel = staticmethod(bpe_kernel.encode)

    def __init__(self, vocabulary: Vocabulary, threads: int = 1) -> None:
        self.threads = threads
        self._state = _lay_out(vocabulary)
        self._blocks = _aligned(threads * layout.OWN)  # untouched memory is not there yet
        self._ids = np.empty(_SCRATCH + _MOST_PARTS * 4 + 4, dtype=np.int32)
        for used_first in (self._blocks[: layout.OWN], self._ids[: _SCRATCH // 2]):
            used_first.fill(0)  # else the first texts wait for pages of 2 MiB to be cleared
        self._room = np.empty(_SCRATCH if threads > 1 else 0, dtype=np.int64)
        self._room_at = self._room.ctypes.data
        self._ends = np.empty(1, dtype=np.int64)
        self._at = tuple(a.ctypes.data for a in (self._state, self._blocks, self._ids))
        self._shared_at = 0.0
        self._lock = Lock()  # blocks and scratch space are shared by all callers
        self._splitters = None
        if vocabulary.pre_tokenizer not in _STYLES:
            name = vocabulary.pre_tokenizer
            self._splitters = ascii_splitter(name), unicode_splitter(name)
        _encoders.add(self)
        self.encode("")

    def encode(self, text: str) -> list[int]:
        """Ids of one text. Raises UnicodeEncodeError for a lone surrogate."""
        data = (text + _PAD).encode()
        if self._splitters or len(data) >= _SCRATCH:
            whole: list[int] = self.encode_many([text]).ids.tolist()
            return whole
        with self._lock:
            total: int = self._kernel(data, 1, 0, *self._at, self._ends)
            if total < 0:
                total = self._kernel(text.encode() + _PAD_BYTES, 1, 0xFF, *self._at, self._ends)
            ids: list[int] = self._ids[:total].tolist()
        return ids

    def encode_many(self, texts: Sequence[str]) -> TokenBatch:
        """Ids of many texts in one call. Raises UnicodeEncodeError for a lone surrogate."""
        if self._splitters:
            of_ascii, of_any = self._splitters
            rows = [of_ascii(text) if text.isascii() else of_any(text) for text in texts]
            words = self._encode_texts([word for row in rows for word in row])
            return TokenBatch(words.ids, words.offsets[np.cumsum([0, *map(len, rows)])])
        return self._encode_texts(texts)

    def _encode_texts(self, texts: Sequence[str]) -> TokenBatch:
        ends = np.empty(len(texts) + 1, dtype=np.int64)
        ends[0] = 0
        joined = "\0".join([*texts, _PAD[1:]] if texts else [_PAD[1:]]).encode()
        with self._lock:
            ids = self._encode(joined, len(texts), 0, ends[1:])
            if ids is None:
                joined = b"\xff".join([*(text.encode() for text in texts), _PAD_BYTES[1:]])
                ids = self._encode(joined, len(texts), 0xFF, ends[1:])
        assert ids is not None, "UTF-8 has no 0xFF"
        return TokenBatch(ids, ends)

    def encode_ended(self, data: bytes) -> TokenBatch:
        """Ids of texts that are UTF-8 already, each with 0xFF behind it.

        Where the kernel cuts words, Python's lock is free meanwhile; this thread works alone.
        Raises UnicodeError where a text is no UTF-8, or the last one has no end.
        """
        if self._splitters:
            return self.encode_many(ended_texts(data))
        ends = np.zeros(data.count(b"\xff") + 1, dtype=np.int64)
        out, ids = self._at[2], self._ids
        with self._lock:
            if len(data) >= _SCRATCH:  # memory of its own for the call
                ids = np.empty(len(data) + 4, dtype=np.int32)
                out = ids.ctypes.data
            padded = data + _PAD_BYTES[1:]
            total = bpe_kernel.encode_ended(padded, ends.size - 1, *self._at[:2], out, ends[1:])
            if total < 0:
                raise UnicodeError("expected texts of UTF-8 that 0xFF ends")
            return TokenBatch(ids[:total].copy(), ends)

    def _encode(
        self, data: bytes, texts: int, separator: int, ends: Int64s
    ) -> npt.NDArray[np.int32] | None:
        """Ids of texts with a separator after each; None if it is in a text. Fills `ends`."""
        state, blocks, out = self._at
        ids, room = self._ids, self._room_at
        parts = max(min(_PARTS * self.threads, len(data) // _WORTH_A_PART), len(data) // _PART)
        parts = min(parts, texts, _MOST_PARTS)
        if len(data) >= _SCRATCH:  # memory of its own for the call
            ids = np.empty(len(data) + _MOST_PARTS * 4 + 4, dtype=np.int32)
            out = ids.ctypes.data
        too_few = self.threads < 2 or parts < 2 or len(data) < _WORTH_SHARING
        if too_few or not (team := self._team(len(data))):
            total = self._kernel(data, texts, separator, state, blocks, out, ends)
        else:
            if len(data) >= _SCRATCH:
                longer = np.empty(len(data), dtype=np.int64)
                room = longer.ctypes.data
            try:
                shares = (self.threads, parts, room, team.numbers, bpe_kernel.PART)
                total = bpe_kernel.encode_shared(
                    data, texts, separator, state, blocks, out, ends, shares
                )
            finally:
                team.free.release()
        return None if total < 0 else ids[:total].copy()

    def _team(self, size: int) -> team_kernel.Team | None:
        """Threads to share a batch of so many bytes with, taken; None where it is not worth it."""
        now = perf_counter()
        soon, self._shared_at = now - self._shared_at < _SOON_S, now
        team = team_kernel.of(self.threads)
        if not team.free.acquire(blocking=False):
            return None
        if not team.processors:  # where its threads may go, should one be put on the caller's
            team.processors = set(usable_cpus())
        if soon or size >= _WORTH_WAKING:
            team.wake()
        return team

    def unlock(self) -> None:
        """For a forked child, where no thread is left that could hold the lock.

        What such a thread was about to write may be half there: that is forgotten.
        """
        if self._lock.locked():
            self._blocks[:] = 0
        self._lock = Lock()

    def forget(self) -> None:
        """Empty the word tables, as if no text had been seen."""
        self._blocks.reshape(-1, layout.OWN)[:, layout.LONG_WORDS :] = 0

    @property
    def counters(self) -> dict[str, int]:
        """Work since the start: words met, words that had to be merged, pairs looked up."""
        names = {"words": layout.N_WORDS, "merged": layout.N_MERGED, "lookups": layout.N_LOOKUPS}
        sums = self._blocks.reshape(-1, layout.OWN)[:, : layout.RANKS].sum(axis=0)
        return {name: int(sums[at]) for name, at in names.items()}


_encoders: WeakSet[KernelEncoder] = WeakSet()


def _unlock_all() -> None:
    for encoder in list(_encoders):
        encoder.unlock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_unlock_all)


class WithoutWordTable(KernelEncoder):
    """The kernel that merges every word anew: what the word tables buy shows against it."""

    _kernel = staticmethod(bpe_kernel.encode_without_tables)


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
    style, most_digits = _STYLES.get(vocabulary.pre_tokenizer, (layout.WORDS_ALONE, 0))
    header = np.zeros(layout.HEADER, dtype=np.int64)
    header[layout.STYLE], header[layout.DIGITS] = style, most_digits
    header[layout.PAIR_SHIFT], pairs = _empty_table(len(vocabulary.merged), columns=2)
    fill_pairs(
        vocabulary.lefts, vocabulary.rights, vocabulary.merged, pairs, header[layout.PAIR_SHIFT]
    )
    sections: list[tuple[int, Int64s]] = [
        (layout.CLASSES, _as_int64(character_classes(vocabulary.pre_tokenizer))),
        (layout.BYTE_IDS, np.array(vocabulary.byte_ids, dtype=np.int64)),
        (layout.PAIRS, pairs),
    ]
    if vocabulary.whole:
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
        ]
    begin = layout.HEADER
    for where, section in sections:
        header[where] = begin
        begin += section.size
    return np.concatenate([header, *(section for _, section in sections)])


def _aligned(count: int) -> Int64s:
    """So many zeros, at the begin of a page of memory."""
    room = np.zeros(count + 512, dtype=np.int64)
    first = -room.ctypes.data % 4096 // 8
    return room[first : first + count]


def _empty_table(entries: int, *, columns: int) -> tuple[int, Int64s]:
    """An open-addressed table that `entries` fill at most half, and 64 - log2 of its slots."""
    bits = max(2 * entries, 2).bit_length()
    return 64 - bits, np.full(columns << bits, -1, dtype=np.int64)


def _as_int64(data: npt.NDArray[np.uint8]) -> Int64s:
    return np.pad(data, (0, -data.size % 8)).view(np.int64)
