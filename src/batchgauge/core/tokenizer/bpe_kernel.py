"""The compiled form of the tokenizer: functions over the bytes of a whole batch.

Texts lie one after the other, each ended by a separator byte: NUL, or 0xFF where a
text contains NUL. `encode` walks from word to word, looks each up in a table of words
seen before, and merges the bytes of those it does not know. Python touches no word;
what a call costs besides is shared by the batch. `encode_shared` has a team of threads do
the same: a part of the batch at a time, each with word tables of its own.

The word table keeps words of up to 16 bytes that give up to four ids, exactly; another
one, all others of up to 128 bytes. A word lives in one of the four (or two) slots of its
bucket and may push out another, so that the tables neither grow nor degrade, whatever the
text. One that is met again moves forward in its bucket, and a new one takes the last slot:
words that never return do not push out those that do.

Left out: special tokens (`bpe_tokenizer`), the same in plain Python (`bpe_plain`).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import cfunc, njit, types
from numba.extending import intrinsic

from batchgauge.core.kernels import team_kernel
from batchgauge.core.kernels.team_kernel import digest, lead, number, processor, swap
from batchgauge.core.tokenizer import bpe_layout as layout
from batchgauge.core.tokenizer import bpe_merge, bpe_words
from batchgauge.core.tokenizer.bpe_merge import merge_word, section, slot_of
from batchgauge.core.tokenizer.bpe_words import (
    byte_at,
    count_texts,
    id_at,
    load_eight,
    plain_word_length,
    put,
    put_id,
    word_end,
)

_MIX = np.uint64(0xC2B2AE3D27D4EB4F)
_LOW = np.array([(1 << 8 * min(n, 8)) - 1 for n in range(17)], dtype=np.uint64)
_LOW2 = np.array([(1 << 8 * max(n - 8, 0)) - 1 for n in range(17)], dtype=np.uint64)
_BYTE = np.uint64(0xFF)
_ALL = np.uint64(2**64 - 1)
# A shared job's numbers: texts' bytes and how many, the separator, `state`, the threads' own
# blocks and how many, where ids go and where texts end, parts, and three results for each part:
# its first byte, its ids, its texts.
DATA, SIZE, SEPARATOR, STATE, BLOCKS, THREADS, OUT, ENDS, PARTS, RESULTS = range(10)


@intrinsic
def _address(typing_context: Any, data: Any) -> Any:
    """Where the bytes of a bytes object begin."""

    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        start = context.make_array(signature.args[0])(context, builder, args[0]).data
        return builder.ptrtoint(start, ir.IntType(64))

    return types.int64(data), generate


@njit(nogil=True)
def _keep(bucket, one, two, count, out):
    """Enter a word into the first free slot of its bucket; if none is, the last one's goes."""
    for unused in range(count, 4):
        put_id(out, unused, -1)
    at = bucket
    while at < bucket + 96 and number(at, 0) != 0:
        at += 32
    put(at, 0, one)
    put(at, 1, two)
    put(at, 2, np.int64(load_eight(out)))
    put(at, 3, np.int64(load_eight(out + 8)))


@njit(nogil=True)
def _forward(at):
    """Exchange a word with the one in the slot before it."""
    for n in range(4):
        word = number(at, n)
        put(at, n, number(at - 32, n))
        put(at - 32, n, word)


@njit(nogil=True)
def _long_word(start, end, state, own, out):
    """Write the ids of a word of up to LONG bytes to `out`; how many they are.

    More than four, or of more than 16 bytes, it is kept in the table of long words.
    """
    length = end - start
    eights = (length + 7) // 8
    last = _LOW[length - 8 * (eights - 1)]
    key = np.uint64(length)
    for n in range(eights):
        key = (key ^ load_eight(start + 8 * n) & (last if n == eights - 1 else _ALL)) * _MIX
        key ^= key >> np.uint64(32)
    slot = slot_of(key, layout.LONG_SHIFT)
    for near in range(2):
        there = own + 8 * layout.LONG_WORDS + 256 * (slot ^ near)
        if number(there, 0) >> 8 != length:
            continue
        same = True
        for n in range(eights):
            eight = load_eight(start + 8 * n) & (last if n == eights - 1 else _ALL)
            same &= number(there, 1 + n) == np.int64(eight)
        if same:
            count = number(there, 0) & 0xFF
            for n in range(count):
                put_id(out, n, id_at(there + 136, n))
            return count
    count = merge_word(start, end, state, own, out)
    if count <= layout.LONG_IDS and (count > 4 or length > 16):
        at = own + 8 * layout.LONG_WORDS + 256 * (slot ^ number(own, layout.N_MERGED) & 1)
        put(at, 0, length << 8 | count)
        for n in range(eights):
            eight = load_eight(start + 8 * n) & (last if n == eights - 1 else _ALL)
            put(at, 1 + n, np.int64(eight))
        for n in range(count):
            put_id(at + 136, n, id_at(out, n))
    return count


@njit(forceinline=True)
def _short_word_length(classes, first, low):
    """Length of a word by the kinds of its first three bytes; 0 where they do not tell."""
    kinds = classes + layout.KINDS + first
    kind = byte_at(kinds + np.int64(low & _BYTE))
    kind2 = byte_at(kinds + np.int64(low >> np.uint64(8) & _BYTE))
    kind3 = byte_at(kinds + np.int64(low >> np.uint64(16) & _BYTE))
    return byte_at(classes + layout.LENGTHS + (kind << 6 | kind2 << 3 | kind3))


@njit(nogil=True)
def _encode(at, stop, separator, state, own, out, ends, most):
    """Tokenize the texts from `at` to `stop`; how many ids, how many texts, where the next begins.

    Texts are at most `most`; at `ends` stands, for each, how many ids there are up to its end.
    """
    classes, first = section(state, layout.CLASSES), 256 * (separator != 0)
    style, digits = number(state, layout.STYLE), number(state, layout.DIGITS)
    words = own + 8 * layout.WORDS
    begin = out
    text, n_words = 0, 0
    while at < stop and text < most:
        while True:
            low, high = load_eight(at), load_eight(at + 8)
            length = 0
            if style != layout.WORDS_ALONE:
                length = plain_word_length(at, low, high)
            if length == 0 and style != layout.WORDS_ALONE:
                length = _short_word_length(classes, first, low)
            if length == 0:
                end = word_end(at, style, digits, classes, first)
                length = end - at
                if length == 0:
                    break
                if length > 16:
                    if length > layout.LONG:
                        out += 4 * merge_word(at, end, state, own, out)
                    else:
                        out += 4 * _long_word(at, end, state, own, out)
                    n_words += 1
                    at = end
                    continue
            n_words += 1
            if separator != 0 and byte_at(at + length - 1) == 0:
                out += 4 * merge_word(at, at + length, state, own, out)
                at += length  # in the table, a NUL at the end is no different from none
                continue
            low &= _LOW[np.uint64(length)]
            high &= _LOW2[np.uint64(length)]
            one, two = np.int64(low), np.int64(high)
            bucket = words + 128 * slot_of(low ^ high * _MIX, layout.BUCKET_SHIFT)
            count = 0
            for near in range(4):
                there = bucket + 32 * near
                if number(there, 0) == one and number(there, 1) == two:
                    ids, more = number(there, 2), number(there, 3)
                    put(out, 0, ids)
                    put(out, 1, more)
                    count = 4 + (ids >> 63) + (more >> 63) + (more << 32 >> 63)
                    if near > 0:
                        _forward(there)
                    break
            if count == 0:
                count = _long_word(at, at + length, state, own, out)
                if 0 < count <= 4:
                    _keep(bucket, one, two, count, out)
            out += 4 * count
            at += length
        put(ends, text, (out - begin) >> 2)
        text += 1
        at += 1
    put(own, layout.N_WORDS, number(own, layout.N_WORDS) + n_words)
    return (out - begin) >> 2, text, at


@njit(nogil=True)
def _part_begin(data, size, separator, part, parts):
    """Where a part begins: behind the first separator that is not before its even share."""
    at = size * part // parts
    while 0 < at < size and byte_at(data + at - 1) != separator:
        at += 1
    return at


def _compile(source: int) -> tuple[Any, Any, Any, Any, int]:
    """The entries, compiled for these sources (see `digest`), and the address of shared work."""

    @njit(cache=True)
    def encode(data, texts, separator, state, own, out, ends):
        """Tokenize `texts` texts; how many ids there are in all, -1 if the separator is in a text.

        data    bytes             texts, a separator after each, PADDING - 1 bytes more
        state   address           what `bpe_layout` describes
        own     address           the thread's own block; its counters and word tables change
        out     address           room for int32 [bytes + 4]: ids, text after text
        ends    int64 [texts]     where each text's ids end
        """
        if source < 0:
            return source
        at = _address(data)
        stop = at + len(data) - layout.PADDING + 1
        ids, _, end = _encode(at, stop, separator, state, own, out, ends.ctypes.data, texts)
        return ids if end == stop else -1

    @njit(cache=True, nogil=True)
    def encode_ended(data, texts, state, own, out, ends):
        """The same for texts that 0xFF ends; -1 where they are not so many, or not UTF-8."""
        if source < 0:
            return source
        at = _address(data)
        stop = at + len(data) - layout.PADDING + 1
        if count_texts(at, stop) != texts:
            return -1
        ids, _, end = _encode(at, stop, 0xFF, state, own, out, ends.ctypes.data, texts)
        return ids if end == stop else -1

    @njit(cache=True, nogil=True)
    def encode_without_tables(data, texts, separator, state, own, out, ends):
        """The same as `encode`, merging every word anew."""
        if source < 0:
            return source
        classes, first = section(state, layout.CLASSES), 256 * (separator != 0)
        style, digits = number(state, layout.STYLE), number(state, layout.DIGITS)
        at, o = _address(data), 0
        stop = at + len(data) - layout.PADDING + 1
        for text in range(texts):
            while True:
                end = word_end(at, style, digits, classes, first)
                if end == at:
                    break
                o += merge_word(at, end, state, own, out + 4 * o)
                at = end
            ends[text] = o
            at += 1
        return o if at == stop else -1

    @cfunc("void(int64, int64)", cache=True)
    def part(job, which):
        """Tokenize one part of a shared job, with a block that no other thread works with."""
        if source < 0:
            return
        data, size, parts = number(job, DATA), number(job, SIZE), number(job, PARTS)
        separator, threads = number(job, SEPARATOR), number(job, THREADS)
        begin = _part_begin(data, size, separator, which, parts)
        stop = _part_begin(data, size, separator, which + 1, parts)
        mine = max(0, np.int64(processor())) % threads
        while swap(number(job, BLOCKS) + 8 * (layout.OWN * mine + layout.TAKEN), 1) != 0:
            mine = (mine + 1) % threads
        own = number(job, BLOCKS) + 8 * layout.OWN * mine
        out, ends = number(job, OUT) + 4 * (begin + 4 * which), number(job, ENDS) + 8 * begin
        ids, texts, _ = _encode(
            data + begin, data + stop, separator, number(job, STATE), own, out, ends, stop - begin
        )
        swap(own + 8 * layout.TAKEN, 0)
        put(job, RESULTS + 3 * which, begin)
        put(job, RESULTS + 3 * which + 1, ids)
        put(job, RESULTS + 3 * which + 2, texts)

    @njit(cache=True, nogil=True)
    def encode_shared(data, texts, separator, state, blocks, out, ends, shares):
        """The same as `encode` by several threads.

        blocks   address        own blocks of `threads` threads, one after the other
        out      address        room for int32 [bytes + 4 * parts + 4]
        ends     int64 [texts]  where each text's ids end
        shares   (threads, parts, room for int64 [bytes], a team's numbers, address of `part`)
        """
        if source < 0:
            return source
        threads, parts, room, team, work = shares
        job = np.empty(RESULTS + 3 * parts, np.int64)
        job[DATA], job[SIZE] = _address(data), len(data) - layout.PADDING + 1
        job[SEPARATOR] = separator
        job[STATE], job[BLOCKS], job[THREADS] = state, blocks, threads
        job[OUT], job[ENDS], job[PARTS] = out, room, parts
        lead(team, work, job, parts)
        o, text = 0, 0
        for which in range(parts):
            begin, ids, found = job[RESULTS + 3 * which : RESULTS + 3 * which + 3]
            if text + found > texts:
                return -1
            here = out + 4 * (begin + 4 * which)
            for n in range(0, ids, 2):  # one too many at most, before the next part's begin
                put(out + 4 * (o + n), 0, np.int64(load_eight(here + 4 * n)))
            for n in range(found):
                ends[text + n] = o + number(room + 8 * begin, n)
            o += ids
            text += found
        return o

    return encode, encode_ended, encode_shared, encode_without_tables, part.address


encode, encode_ended, encode_shared, encode_without_tables, PART = _compile(
    digest(layout, bpe_merge, bpe_words, team_kernel)
)
