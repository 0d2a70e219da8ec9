"""Byte pair merging as compiled code: the ids of one word.

The same order as `bpe.merge`: the lowest rank first, the leftmost of equals. Up to
`SHORT` symbols are merged by scanning for the lowest rank, which is quicker for the
words of a language; longer ones by a heap over a linked list, in O(n log n).
"""

from __future__ import annotations

from heapq import heappop, heappush

import numpy as np
from numba import njit

from batchgauge.core.kernels.team_kernel import number
from batchgauge.core.tokenizer import bpe_layout as layout
from batchgauge.core.tokenizer.bpe_words import byte_at, id_at, put, put_id

NO_PAIR = np.int64(2**63 - 1)

# Multiplying by an odd constant with well-mixed bits is Fibonacci hashing (Knuth, TAOCP 3, 6.4).
_MIX = np.uint64(0x9E3779B97F4A7C15)


@njit(forceinline=True)
def slot_of(key, shift):
    """Where a key belongs in a table of 2^(64 - shift) slots."""
    return np.int64(np.uint64(key) * _MIX >> np.uint64(shift))


@njit(forceinline=True)
def section(state, where):
    """Address of a section of `state`."""
    return state + 8 * number(state, where)


@njit(nogil=True)
def _pair(left, right, pairs, shift):
    """Gives rank << 32 | merged id of two neighbours; NO_PAIR where they do not merge."""
    key = left << 32 | right
    mask = (np.int64(1) << 64 - shift) - 1
    slot = slot_of(key, shift)
    while True:
        there = number(pairs, 2 * slot)
        if there == key:
            return number(pairs, 2 * slot + 1)
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


@njit(nogil=True)
def _merge_short(n, state, own, out):
    """Merge the n <= SHORT symbols at `out` in place; how many are left."""
    pairs, shift = section(state, layout.PAIRS), number(state, layout.PAIR_SHIFT)
    ranks, lookups = own + 8 * layout.RANKS, n - 1
    for p in range(n - 1):
        put(ranks, p, _pair(id_at(out, p), id_at(out, p + 1), pairs, shift))
    while n > 1:
        lowest, at = NO_PAIR, 0
        for p in range(n - 1):
            rank = number(ranks, p)
            if rank < lowest:
                lowest, at = rank, p
        if lowest == NO_PAIR:
            break
        merged = lowest & 0xFFFFFFFF
        put_id(out, at, merged)
        n -= 1
        for p in range(at + 1, n):
            put_id(out, p, id_at(out, p + 1))
            put(ranks, p, number(ranks, p + 1))
        if at > 0:
            put(ranks, at - 1, _pair(id_at(out, at - 1), merged, pairs, shift))
            lookups += 1
        if at < n - 1:
            put(ranks, at, _pair(merged, id_at(out, at + 1), pairs, shift))
            lookups += 1
    put(own, layout.N_LOOKUPS, number(own, layout.N_LOOKUPS) + lookups)
    return n


@njit(nogil=True)
def _merge_long(n, state, own, out):
    """The same for any n, with a heap over a linked list, as in `bpe_plain.merge`."""
    pairs, shift = section(state, layout.PAIRS), number(state, layout.PAIR_SHIFT)
    after, before = np.arange(1, n + 1), np.arange(-1, n - 1)
    ranks = np.full(n, NO_PAIR)
    heap = [NO_PAIR]
    lookups = n - 1
    for p in range(n - 1):
        ranks[p] = _pair(id_at(out, p), id_at(out, p + 1), pairs, shift)
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
        put_id(out, at, ranks[at] & 0xFFFFFFFF)
        put_id(out, gone, -1)
        after[at] = after[gone]
        if after[at] < n:
            before[after[at]] = at
        ranks[at], ranks[gone] = NO_PAIR, NO_PAIR
        for left in (before[at], at):
            if left < 0 or after[left] == n:
                continue
            ranks[left] = _pair(id_at(out, left), id_at(out, after[left]), pairs, shift)
            lookups += 1
            if ranks[left] != NO_PAIR:
                heappush(heap, (ranks[left] >> 32) << 40 | left)
    left = 0
    for p in range(n):
        if id_at(out, p) >= 0:
            put_id(out, left, id_at(out, p))
            left += 1
    put(own, layout.N_LOOKUPS, number(own, layout.N_LOOKUPS) + lookups)
    return left


@njit(nogil=True)
def _whole_hash(start, end):
    """FNV-1a over the bytes."""
    h = np.uint64(0xCBF29CE484222325)
    for p in range(start, end):
        h = (h ^ np.uint64(byte_at(p))) * np.uint64(0x100000001B3)
    return h


@njit(cache=True)
def fill_wholes(ids, offsets, spelling, table, shift):
    """Enter tokens that are taken whole into an empty table (-1), by their spelling."""
    first = spelling.ctypes.data
    for i in ids:
        slot = slot_of(_whole_hash(first + offsets[i], first + offsets[i + 1]), shift)
        while table[slot] >= 0:
            slot = slot + 1 & table.size - 1
        table[slot] = i


@njit(nogil=True)
def _whole(start, end, state):
    """Id of the token that is spelled like this word; -1 where there is none."""
    shift, wholes = number(state, layout.WHOLE_SHIFT), section(state, layout.WHOLES)
    offsets, spelling = section(state, layout.SPELLING), section(state, layout.SPELLING_BYTES)
    mask = (np.int64(1) << 64 - shift) - 1
    slot = slot_of(_whole_hash(start, end), shift)
    while True:
        i = number(wholes, slot)
        if i < 0:
            return i
        first = number(offsets, i)
        if number(offsets, i + 1) - first == end - start:
            same = True
            for p in range(end - start):
                same &= byte_at(spelling + first + p) == byte_at(start + p)
            if same:
                return i
        slot = slot + 1 & mask


@njit(nogil=True)
def merge_word(start, end, state, own, out):
    """Write the ids of the word from `start` to `end` to `out`; how many they are."""
    put(own, layout.N_MERGED, number(own, layout.N_MERGED) + 1)
    if number(state, layout.WHOLE_SHIFT) > 0:
        whole = _whole(start, end, state)
        if whole >= 0:
            put_id(out, 0, whole)
            return 1
    byte_ids = section(state, layout.BYTE_IDS)
    n = 0
    for p in range(start, end):
        symbol = number(byte_ids, byte_at(p))
        put_id(out, n, symbol)
        n += symbol >= 0
    if n <= layout.SHORT:
        return _merge_short(n, state, own, out)
    return _merge_long(n, state, own, out)
