"""What lies where in the one array that the compiled kernel reads, and the limits of its tables.

`state` is int64: a header, whose positions are named here, then the sections that it
points to; `bpe_compiled` lays it out. One array, because each array argument costs a
call about 60 ns.

    classes    uint8: class by byte with NUL as the end of a text, class by byte with
               NUL as a character, [4352] block of each 256 code points, the blocks
    byte ids   [256] id of each byte, -1 where it has none
    pairs      [slots, 2] open-addressed: left << 32 | right, then rank << 32 | merged id
    words      [WORD_SLOTS, 4] word table: eight bytes, eight bytes,
               length << 56 | count << 48 | id << 24 | id, then id << 32 | id
    long words [LONG_SLOTS, 16] length << 8 | count, 64 bytes, 14 ids of 32 bits
    wholes     [slots] ids of the tokens that are taken whole (`llama-bpe` only)
    spelling   [tokens + 1] offsets into the bytes of all tokens (`llama-bpe` only)
    ranks      [SHORT] scratch space
"""

# Where sections begin (in int64), shifts of open-addressed tables, the pre-tokenizer.
STYLE, DIGITS, CLASSES, CLASSES_END, BYTE_IDS, PAIRS, PAIR_SHIFT, WORDS = range(8)
WHOLES, WHOLE_SHIFT, SPELLING, SPELLING_BYTES, SPELLING_END, RANKS, LONG_WORDS = range(8, 15)
# Counters of work done: words met, words merged, pairs looked up.
N_WORDS, N_MERGED, N_LOOKUPS, HEADER = range(15, 19)

OTHER, LETTER, NUMBER, SPACE, END, LEAD = range(6)  # classes of characters; LEAD: not ASCII
GPT2, LLAMA = 0, 1  # styles of pre-tokenizers
BLOCKS = 512  # in `classes`, where the block numbers begin
PLANES = 4352  # blocks of 256 code points in Unicode

WORD_SHIFT = 49
WORD_SLOTS = 1 << 64 - WORD_SHIFT  # of 32 bytes: 1 MiB
LONG_SHIFT, LONG = 52, 64  # words of 17 to 64 bytes
LONG_SLOTS = 1 << 64 - LONG_SHIFT  # of 128 bytes: 512 KiB
PADDING = 17  # a separator, and what eight bytes at a time may read behind it
SHORT = 64  # symbols that are merged by scanning; more of them get a heap
