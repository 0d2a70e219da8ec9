"""Byte pair merging as compiled code: the ids of one word.

The same order as `bpe.merge`: the lowest rank first, the leftmost of equals. Up to
`SHORT` symbols are merged by scanning for the lowest rank, which is quicker for the
words of a language; longer ones by a heap over a linked list, in O(n log n).
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit

from batchgauge.core.tokenizer.bpe_layout import (
    BYTE_IDS,
    N_LOOKUPS,
    N_MERGED,
    PAIR_SHIFT,
    PAIRS,
    RANKS,
    SHORT,
    SPELLING,
    SPELLING_BYTES,
    SPELLING_END,
    WHOLE_SHIFT,
    WHOLES,
)

NO_PAIR = np.int64(2**63 - 1)

# Multiplying by an odd constant with well-mixed bits is Fibonacci hashing (Knuth, TAOCP 3, 6.4).
_MIX = np.uint64(0x9E3779B97F4A7C15)


@njit(forceinline=True)
def slot_of(key, shift):
    """Where a key belongs in a table of 2^(64 - shift) slots."""
    return np.int64(np.uint64(key) * _MIX >> np.uint64(shift))


@njit
def _pair(left, right, state):
    """Gives rank << 32 | merged id of two neighbours; NO_PAIR where they do not merge."""
    state[N_LOOKUPS] += 1
    key = np.int64(left) << 32 | np.int64(right)
    shift = state[PAIR_SHIFT]
    mask = (np.int64(1) << 64 - shift) - 1
    slot = slot_of(key, shift)
    base = state[PAIRS]
    while True:
        there = state[base + 2 * slot]
        if there == key:
            return state[base + 2 * slot + 1]
        if there < 0:
            return NO_PAIR
        slot = slot + 1 & mask


# The signature makes Numba load its own machinery (half a second) when this module is imported.
@njit("void(int32[::1], int32[::1], int32[::1], int64[::1], int64)", cache=True)
def fill_pairs(lefts, rights, merged, table, shift):
    """Enter pairs [M] in order of rank into an empty table (-1); the later of equals counts."""
    mask = table.size // 2 - 1
    for rank in range(lefts.size):
        key = np.int64(lefts[rank]) << 32 | np.int64(rights[rank])
        slot = slot_of(key, shift)
        while table[2 * slot] >= 0 and table[2 * slot] != key:
            slot = slot + 1 & mask
        table[2 * slot] = key
        table[2 * slot + 1] = np.int64(rank) << 32 | np.int64(merged[rank])


@njit
def _merge_short(n, state, out, o):
    """Merge the n <= SHORT symbols out[o:o + n] in place; how many are left."""
    ranks = state[state[RANKS] : state[RANKS] + SHORT]
    for p in range(n - 1):
        ranks[p] = _pair(out[o + p], out[o + p + 1], state)
    while n > 1:
        lowest, at = NO_PAIR, 0
        for p in range(n - 1):
            if ranks[p] < lowest:
                lowest, at = ranks[p], p
        if lowest == NO_PAIR:
            break
        out[o + at] = lowest & 0xFFFFFFFF
        n -= 1
        for p in range(at + 1, n):
            out[o + p] = out[o + p + 1]
            ranks[p] = ranks[p + 1]
        if at > 0:
            ranks[at - 1] = _pair(out[o + at - 1], out[o + at], state)
        if at < n - 1:
            ranks[at] = _pair(out[o + at], out[o + at + 1], state)
    return n


@njit
def _merge_long(n, state, out, o):
    """The same for any n, with a heap over a linked list, as in `bpe.merge`."""
    after, before = np.arange(1, n + 1), np.arange(-1, n - 1)
    ranks = np.full(n, NO_PAIR)
    heap = [NO_PAIR]
    for p in range(n - 1):
        ranks[p] = _pair(out[o + p], out[o + p + 1], state)
        if ranks[p] != NO_PAIR:
            heappush(heap, (ranks[p] >> 32) << 40 | p)
    while True:
        lowest = heappop(heap)
        if lowest == NO_PAIR:
            break
        at = lowest & (1 << 40) - 1
        if ranks[at] == NO_PAIR or ranks[at] >> 32 != lowest >> 40:
            continue  # one of the two has been merged elsewhere since
        gone = after[at]
        out[o + at], out[o + gone] = ranks[at] & 0xFFFFFFFF, -1
        after[at] = after[gone]
        if after[at] < n:
            before[after[at]] = at
        ranks[at], ranks[gone] = NO_PAIR, NO_PAIR
        for left in (before[at], at):
            if left < 0 or after[left] == n:
                continue
            ranks[left] = _pair(out[o + left], out[o + after[left]], state)
            if ranks[left] != NO_PAIR:
                heappush(heap, (ranks[left] >> 32) << 40 | left)
    left = 0
    for p in range(n):
        if out[o + p] >= 0:
            out[o + left] = out[o + p]
            left += 1
    return left


@njit
def _whole_hash(data, start, end):
    """FNV-1a over the bytes."""
    h = np.uint64(0xCBF29CE484222325)
    for p in range(start, end):
        h = (h ^ np.uint64(data[p])) * np.uint64(0x100000001B3)
    return h


@njit(cache=True)
def fill_wholes(ids, offsets, spelling, table, shift):
    """Enter tokens that are taken whole into an empty table (-1), by their spelling."""
    for i in ids:
        slot = slot_of(_whole_hash(spelling, offsets[i], offsets[i + 1]), shift)
        while table[slot] >= 0:
            slot = slot + 1 & table.size - 1
        table[slot] = i


@njit
def _whole(data, start, end, state):
    """Id of the token that is spelled like this word; -1 where there is none."""
    shift = state[WHOLE_SHIFT]
    mask = (np.int64(1) << 64 - shift) - 1
    spelling = state[state[SPELLING_BYTES] : state[SPELLING_END]].view(np.uint8)
    slot = slot_of(_whole_hash(data, start, end), shift)
    while True:
        i = state[state[WHOLES] + slot]
        if i < 0:
            return i
        first = state[state[SPELLING] + i]
        if state[state[SPELLING] + i + 1] - first == end - start:
            same = True
            for p in range(end - start):
                same &= spelling[first + p] == data[start + p]
            if same:
                return i
        slot = slot + 1 & mask


@njit
def merge_word(data, start, end, state, out, o):
    """Write the ids of the word data[start:end] to `out` from o on; how many they are."""
    state[N_MERGED] += 1
    if state[WHOLE_SHIFT] > 0:
        whole = _whole(data, start, end, state)
        if whole >= 0:
            out[o] = whole
            return 1
    n = 0
    for p in range(start, end):
        out[o + n] = state[state[BYTE_IDS] + data[p]]
        n += out[o + n] >= 0
    if n <= SHORT:
        return _merge_short(n, state, out, o)
    return _merge_long(n, state, out, o)
