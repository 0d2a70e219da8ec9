"""The compiled form of the tokenizer: one Numba function over the bytes of a whole batch.

Texts lie one after the other, each ended by a separator byte: NUL, or 0xFF where a
text contains NUL. `encode` walks from word to word, looks each up in a table of words
seen before, and merges the bytes of those it does not know. Python touches no word;
what a call costs besides is shared by the batch.

The word table keeps words of up to 16 bytes that give up to four ids, exactly. A word
lives in one of four neighbouring slots and may push out another, so that the table
neither grows nor degrades, whatever the text.

Left out: special tokens (`tokenizer`), the same in plain Python (`bpe`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np
from numba import njit

from batchgauge.core import bpe_layout, bpe_merge, bpe_words
from batchgauge.core.bpe_layout import (
    CLASSES,
    CLASSES_END,
    DIGITS,
    N_MERGED,
    N_WORDS,
    STYLE,
    WORD_SHIFT,
    WORDS,
)
from batchgauge.core.bpe_merge import merge_word, slot_of
from batchgauge.core.bpe_words import load_eight, word_end

_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
_LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(17)], dtype=np.uint64)
_LOW2 = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(17)], dtype=np.uint64)


@njit
def _keep(slot, one, two, length, count, state, out, o):
    """Enter a word into its slot or one of the three beside it; if all are taken, one goes."""
    at = state[WORDS] + 4 * (slot ^ state[N_MERGED] & 3)
    for near in range(4):
        free = state[WORDS] + 4 * (slot ^ near)
        if state[free + 2] == 0:
            at = free
            break
    for unused in range(count, 4):
        out[o + unused] = 0
    state[at], state[at + 1] = one, two
    state[at + 2] = length << 56 | count << 48 | np.int64(out[o]) << 24 | np.int64(out[o + 1])
    state[at + 3] = np.int64(out[o + 2]) << 32 | np.int64(out[o + 3])


def _compile(source: int) -> Any:
    """`encode`, compiled for these sources.

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
                end = word_end(data, at, style, digits, classes, first)
                length = end - at
                if length == 0:
                    break
                n_words += 1
                if length > 16:
                    o += merge_word(data, at, end, state, out, o)
                    at = end
                    continue
                key, key2 = (
                    load_eight(data, at) & _LOW[length],
                    load_eight(data, at + 8) & _LOW2[length],
                )
                one, two = np.int64(key), np.int64(key2)
                slot = slot_of(key ^ key2 * _MIX, WORD_SHIFT)
                count = 0
                for near in range(4):
                    there = words + 4 * (slot ^ near)
                    ids = state[there + 2]
                    if state[there] == one and state[there + 1] == two and ids >> 56 == length:
                        more = state[there + 3]
                        out[o], out[o + 1] = ids >> 24 & 0xFFFFFF, ids & 0xFFFFFF
                        out[o + 2], out[o + 3] = more >> 32, more & 0xFFFFFFFF
                        count = ids >> 48 & 0xFF
                        break
                if count == 0:
                    count = merge_word(data, at, end, state, out, o)
                    if 0 < count <= 4:
                        _keep(slot, one, two, length, count, state, out, o)
                o += count
                at = end
            ends[text] = o
            at += 1
        state[N_WORDS] += n_words
        return o

    return encode


encode = _compile(
    crc32(b"".join(Path(str(m.__file__)).read_bytes() for m in (bpe_layout, bpe_merge, bpe_words)))
)
