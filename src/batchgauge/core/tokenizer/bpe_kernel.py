"""The compiled form of the tokenizer: one Numba function over the bytes of a whole batch.

Texts lie one after the other, each ended by a separator byte: NUL, or 0xFF where a
text contains NUL. `encode` walks from word to word, looks each up in a table of words
seen before, and merges the bytes of those it does not know. Python touches no word;
what a call costs besides is shared by the batch.

The word table keeps words of up to 16 bytes that give up to four ids, exactly; another
one, longer words of up to 64 bytes. A word lives in one of four (or two) neighbouring
slots and may push out another, so that the tables neither grow nor degrade, whatever
the text.

Left out: special tokens (`tokenizer`), the same in plain Python (`bpe`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numba import njit

from batchgauge.core.tokenizer import bpe_layout, bpe_merge, bpe_words
from batchgauge.core.tokenizer.bpe_layout import (
    CLASSES,
    CLASSES_END,
    DIGITS,
    KINDS,
    LENGTHS,
    LONG,
    LONG_IDS,
    LONG_SHIFT,
    LONG_WORDS,
    N_MERGED,
    N_WORDS,
    STYLE,
    WORD_SHIFT,
    WORDS,
)
from batchgauge.core.tokenizer.bpe_merge import merge_word, slot_of
from batchgauge.core.tokenizer.bpe_words import (
    load_eight,
    peek,
    plain_word_length,
    store_two,
    word_end,
)

_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
_LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(17)], dtype=np.uint64)
_BYTE = np.uint64(0xFF)
_ALL = np.uint64(2**64 - 1)
_LOW2 = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(17)], dtype=np.uint64)


@njit
def _keep(slot, one, two, count, state, out, o):
    """Enter a word into its slot or one of the three beside it; if all are taken, one goes."""
    for unused in range(count, 4):
        out[o + unused] = -1
    at = state[WORDS] + 4 * (slot ^ state[N_MERGED] & 3)
    for near in range(4):
        free = state[WORDS] + 4 * (slot ^ near)
        if state[free] == 0:
            at = free
            break
    state[at], state[at + 1] = one, two
    for half in range(2):
        first = np.int64(out[o + 2 * half]) & 0xFFFFFFFF
        state[at + 2 + half] = np.int64(out[o + 2 * half + 1]) << 32 | first


@njit
def _long_word(data, start, end, state, out, o):
    """Write the ids of a word of 17 to LONG bytes to `out` from o on; how many they are."""
    length = end - start
    eights = (length + 7) // 8
    last = _LOW[length - 8 * (eights - 1)]
    key = np.uint64(length)
    for n in range(eights):
        key = (key ^ load_eight(data, start + 8 * n) & (last if n == eights - 1 else _ALL)) * _MIX
        key ^= key >> np.uint64(32)
    slot = slot_of(key, LONG_SHIFT)
    for near in range(2):
        there = state[LONG_WORDS] + 32 * (slot ^ near)
        if state[there] >> 8 != length:
            continue
        same = True
        for n in range(eights):
            eight = load_eight(data, start + 8 * n) & (last if n == eights - 1 else _ALL)
            same &= state[there + 1 + n] == np.int64(eight)
        if same:
            count = state[there] & 0xFF
            for n in range(count):
                out[o + n] = state[there + 17 + n // 2] >> 32 * (n & 1) & 0xFFFFFFFF
            return count
    count = merge_word(data, start, end, state, out, o)
    if count <= LONG_IDS:
        at = state[LONG_WORDS] + 32 * (slot ^ state[N_MERGED] & 1)
        state[at] = length << 8 | count
        for n in range(eights):
            eight = load_eight(data, start + 8 * n) & (last if n == eights - 1 else _ALL)
            state[at + 1 + n] = np.int64(eight)
        for n in range(0, count, 2):
            second = np.int64(out[o + n + 1]) if n + 1 < count else 0
            state[at + 17 + n // 2] = second << 32 | np.int64(out[o + n])
    return count


@njit(forceinline=True)
def _short_word_length(classes, first, low):
    """Length of a word by the kinds of its first three bytes; 0 where they do not tell."""
    kind = peek(classes, KINDS + first + np.int64(low & _BYTE))
    kind2 = peek(classes, KINDS + first + np.int64(low >> np.uint64(8) & _BYTE))
    kind3 = peek(classes, KINDS + first + np.int64(low >> np.uint64(16) & _BYTE))
    return peek(classes, LENGTHS + (kind << 6 | kind2 << 3 | kind3))


def _compile(source: int) -> tuple[Any, Any]:
    """`encode` and `encode_without_tables`, compiled for these sources.

    Numba's cache looks at this file alone to see whether it still fits; a constant made
    of the other files makes it see those too.
    """

    @njit(cache=True)
    def encode(data, texts, separator, state, out, ends):
        """Tokenize `texts` texts in `data`; how many ids there are in all.

        data    uint8 [bytes + PADDING]   texts, a separator after each, padding
        state   int64 [...]               see `bpe_layout`; counters and word table change
        out     int32 [>= bytes + 4]      ids, text after text
        ends    int64 [>= texts]          where each text's ids end
        """
        if source < 0:
            return source
        classes = state[state[CLASSES] : state[CLASSES_END]].view(np.uint8)
        first = 256 * (separator != 0)
        style, digits, words = state[STYLE], state[DIGITS], state[WORDS]
        at, o, n_words = 0, 0, 0
        for text in range(texts):
            while True:
                low, high = load_eight(data, at), load_eight(data, at + 8)
                length = plain_word_length(data, at, low, high)
                if length == 0:
                    length = _short_word_length(classes, first, low)
                if length == 0:
                    end = word_end(data, at, style, digits, classes, first)
                    length = end - at
                    if length == 0:
                        break
                    if length > 16:
                        if length > LONG:
                            o += merge_word(data, at, end, state, out, o)
                        else:
                            o += _long_word(data, at, end, state, out, o)
                        n_words += 1
                        at = end
                        continue
                n_words += 1
                if separator != 0 and data[at + length - 1] == 0:
                    o += merge_word(data, at, at + length, state, out, o)
                    at += length  # in the table, a NUL at the end is no different from none
                    continue
                low &= load_eight(_LOW, length)
                high &= load_eight(_LOW2, length)
                one, two = np.int64(low), np.int64(high)
                slot = slot_of(low ^ high * _MIX, WORD_SHIFT)
                count = 0
                for near in range(4):
                    there = words + 4 * (slot ^ near)
                    if peek(state, there) == one and peek(state, there + 1) == two:
                        ids, more = peek(state, there + 2), peek(state, there + 3)
                        store_two(out, o, ids)
                        store_two(out, o + 2, more)
                        count = 4 + (ids >> 63) + (more >> 63) + (more << 32 >> 63)
                        break
                if count == 0:
                    count = merge_word(data, at, at + length, state, out, o)
                    if 0 < count <= 4:
                        _keep(slot, one, two, count, state, out, o)
                o += count
                at += length
            ends[text] = o
            at += 1
        state[N_WORDS] += n_words
        return o

    @njit(cache=True)
    def encode_without_tables(data, texts, separator, state, out, ends):
        """The same as `encode`, merging every word anew."""
        if source < 0:
            return source
        classes = state[state[CLASSES] : state[CLASSES_END]].view(np.uint8)
        first = 256 * (separator != 0)
        at, o = 0, 0
        for text in range(texts):
            while True:
                end = word_end(data, at, state[STYLE], state[DIGITS], classes, first)
                if end == at:
                    break
                o += merge_word(data, at, end, state, out, o)
                at = end
            ends[text] = o
            at += 1
        return o

    return encode, encode_without_tables


encode, encode_without_tables = _compile(
    crc32(b"".join(Path(str(m.__file__)).read_bytes() for m in (bpe_layout, bpe_merge, bpe_words)))
)
