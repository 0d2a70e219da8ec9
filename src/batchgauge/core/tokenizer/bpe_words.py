"""The pre-tokenizers as compiled code: where a word in UTF-8 bytes ends.

`word_end` gives the words of the patterns in `pretokenize`, one at a time and without
backtracking. Texts end with a separator byte of class END, so that nothing here checks
bounds; the caller keeps `PADDING` bytes behind the last text. Words and hashes are in
uint64, which wraps; Numba leaves the overflow of int64 undefined.

`count_texts` checks bytes that Python's encoder did not make: they may be no UTF-8.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir
from numba import njit, types

from batchgauge.core.kernels.team_kernel import BYTE, INT, INT32, instructions, pointer
from batchgauge.core.tokenizer.bpe_layout import (
    BLOCKS,
    END,
    GPT2,
    LEAD,
    LETTER,
    LLAMA,
    NUMBER,
    OTHER,
    PLANES,
    SPACE,
    WORDS_ALONE,
)

_HIGH, _FOLD = np.uint64(0x8080808080808080), np.uint64(0x2020202020202020)
_TO_A, _BEYOND_Z = np.uint64(0x1F1F1F1F1F1F1F1F), np.uint64(0x0505050505050505)


@instructions()
def byte_at(builder: Any, address: Any) -> Any:
    """The byte at an address, as int64."""
    return builder.zext(builder.load(pointer(builder, address, BYTE)), INT)


@instructions(types.uint64)
def load_eight(builder: Any, address: Any) -> Any:
    """Eight bytes from an address on, which need not be aligned, as one uint64."""
    return builder.load(pointer(builder, address), align=1)


@instructions(types.void)
def put(builder: Any, address: Any, index: Any, value: Any) -> None:
    """Write the int64 number at an index from an address on."""
    builder.store(value, builder.gep(pointer(builder, address), [index]), align=4)


@instructions()
def id_at(builder: Any, address: Any, index: Any) -> Any:
    """The int32 number at an index from an address on, as int64."""
    return builder.sext(builder.load(builder.gep(pointer(builder, address, INT32), [index])), INT)


@instructions(types.void)
def put_id(builder: Any, address: Any, index: Any, value: Any) -> None:
    """Write the int32 number at an index from an address on."""
    place = builder.gep(pointer(builder, address, INT32), [index])
    builder.store(builder.trunc(value, INT32), place)


@instructions()
def _first_byte(builder: Any, flags: Any) -> Any:
    """Index of the lowest byte with its high bit set; 8 if there is none."""
    return builder.lshr(builder.cttz(flags, ir.Constant(ir.IntType(1), 0)), INT(3))


@njit(nogil=True)
def count_texts(at, stop):
    """How many texts, ended by 0xFF each, the bytes are; -1 where one of them is no UTF-8.

    Unicode's table 3-7 of well-formed byte sequences: of the second byte of a character, the
    first one narrows what there may be. The byte behind the last one is no continuation.
    """
    texts = 0
    while at < stop:
        while at + 8 <= stop and load_eight(at) & _HIGH == 0:
            at += 8
        lead = byte_at(at)
        at += 1
        if lead < 0x80:
            continue
        if lead == 0xFF:
            texts += 1
            continue
        if lead < 0xC2 or lead > 0xF4:
            return -1
        low = 0xA0 if lead == 0xE0 else 0x90 if lead == 0xF0 else 0x80
        high = 0x9F if lead == 0xED else 0x8F if lead == 0xF4 else 0xBF
        if not low <= byte_at(at) <= high:
            return -1
        at += 1
        for _ in range((lead >= 0xE0) + (lead >= 0xF0)):
            if byte_at(at) & 0xC0 != 0x80:
                return -1
            at += 1
    return texts


@njit(forceinline=True)
def _not_letters(eight):
    """High bits of those of eight bytes that are no ASCII letters."""
    folded = eight | _FOLD
    seven = folded & ~_HIGH
    from_a, beyond_z = seven + _TO_A, seven + _BEYOND_Z  # in the high bits
    return ~(from_a & ~beyond_z & ~folded) & _HIGH


@njit(forceinline=True)
def plain_word_length(at, low, high):
    """Length of a word of ASCII letters, or a space and letters; 0 if it is no such word.

    `low` and `high` are the 16 bytes from `at` on; a word that does not end within them,
    or ends before a character that is not ASCII, gives 0 too. No branch depends on the
    length, which a processor could not predict.
    """
    space = np.uint64((low & np.uint64(0xFF)) == np.uint64(0x20))
    length = _first_byte(_not_letters(low) & ~(np.uint64(0x80) * space))
    beyond = 8 + _first_byte(_not_letters(high))
    length = beyond if length == 8 else length
    return length if space < length < 16 and byte_at(at + length) < 0x80 else 0


@njit(forceinline=True)
def _class_at(at, classes, first):
    """Class of the character at `at`, and where the next one begins."""
    lead = byte_at(at)
    kind = byte_at(classes + first + lead)
    if kind != LEAD:
        return kind, at + 1
    if lead < 0xE0:
        point, after = (lead & 0x1F) << 6 | byte_at(at + 1) & 0x3F, at + 2
    elif lead < 0xF0:
        point = (lead & 0x0F) << 12 | (byte_at(at + 1) & 0x3F) << 6 | byte_at(at + 2) & 0x3F
        after = at + 3
    else:
        point = (lead & 0x07) << 18 | (byte_at(at + 1) & 0x3F) << 12
        point, after = point | (byte_at(at + 2) & 0x3F) << 6 | byte_at(at + 3) & 0x3F, at + 4
    block = byte_at(classes + BLOCKS + (point >> 8))
    return byte_at(classes + BLOCKS + PLANES + (block << 8) + (point & 255)), after


@njit(forceinline=True)
def _letters_end(at, classes, first):
    """End of the run of letters from `at` on; eight ASCII letters at a time."""
    while True:
        others = _not_letters(load_eight(at))
        at += _first_byte(others)
        if others == 0:
            continue
        if byte_at(at) < 0x80:
            return at
        kind, after = _class_at(at, classes, first)
        if kind != LETTER:
            return at
        at = after


@njit(forceinline=True)
def _run_end(at, kind, classes, first):
    """End of the run of characters of one class from `at` on."""
    while True:
        here, after = _class_at(at, classes, first)
        if here != kind:
            return at
        at = after


@njit(forceinline=True)
def _contraction_end(at, style):
    """End of 's 't 're 've 'm 'll 'd at the apostrophe `at`; `at` itself where there is none."""
    fold = 0x20 if style == LLAMA else 0
    one, two = byte_at(at + 1) | fold, byte_at(at + 2) | fold
    if one == 0x73 or one == 0x74 or one == 0x6D or one == 0x64:
        return at + 2
    if (two == 0x65 and (one == 0x72 or one == 0x76)) or (one == 0x6C and two == 0x6C):
        return at + 3
    if style == LLAMA and byte_at(at + 1) == 0xC5 and byte_at(at + 2) == 0xBF:
        return at + 3  # the long s, U+017F, is an s where case does not count
    return at


@njit(forceinline=True)
def word_end(at, style, digits, classes, first):
    """End of the word that begins at `at`; `at` itself at the end of the text.

    `digits` is the most that a word may have: 0 for no limit, as in GPT-2's pattern.
    """
    kind, after = _class_at(at, classes, first)
    if kind == END:
        return at
    if style == WORDS_ALONE:
        while kind != END:
            at = after
            kind, after = _class_at(at, classes, first)
        return at
    if byte_at(at) == 0x27:
        end = _contraction_end(at, style)
        if end > at:
            return end
    line_end = byte_at(at) == 0x0A or byte_at(at) == 0x0D
    spaced = byte_at(at) == 0x20 or (style == LLAMA and kind != NUMBER and not line_end)
    next_kind, beyond = kind, after
    if spaced and kind != LETTER:
        next_kind, beyond = _class_at(after, classes, first)
        if next_kind == LETTER:
            return _letters_end(beyond, classes, first)
    if kind == LETTER:
        return _letters_end(after, classes, first)
    if byte_at(at) == 0x20 and (next_kind == OTHER or (next_kind == NUMBER and digits == 0)):
        kind, after = next_kind, beyond
    if kind == NUMBER:
        if digits == 0:
            return _run_end(after, NUMBER, classes, first)
        for _ in range(digits - 1):
            next_kind, beyond = _class_at(after, classes, first)
            if next_kind != NUMBER:
                break
            after = beyond
        return after
    if kind == OTHER:
        after = _run_end(after, OTHER, classes, first)
        if style == LLAMA:
            while byte_at(after) == 0x0A or byte_at(after) == 0x0D:
                after += 1
        return after
    last, newline = at, at  # white space: where its last character begins, behind its last newline
    if line_end:
        newline = after
    while True:
        kind, beyond = _class_at(after, classes, first)
        if kind != SPACE:
            break
        last = after
        if byte_at(after) == 0x0A or byte_at(after) == 0x0D:
            newline = beyond
        after = beyond
    if style == LLAMA and newline > at:
        return newline
    if last == at or kind == END or (style == GPT2 and digits == 1 and kind == NUMBER):
        return after
    return last  # leave one for the word that follows
