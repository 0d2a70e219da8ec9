"""What lies where in the one array that the compiled kernel reads, and the limits of its tables.

`state` is int64: a header, whose positions are named here, then the sections that it
points to; `bpe_compiled` lays it out. One array, because each array argument costs a
call about 60 ns.

    classes    uint8: [2, 256] class of each byte, in the first row with NUL as the end of
               a text, in the second as a character; [2, 256] kind of each byte, likewise;
               [8, 8, 8] length of a word by the kinds of its first three bytes, 0 where
               they do not tell; [4352] block of each 256 code points; the blocks' classes
    byte ids   [256] id of each byte, -1 where it has none
    pairs      [slots, 2] open-addressed: left << 32 | right, then rank << 32 | merged id
    words      [WORD_SLOTS, 4] word table: eight bytes, eight bytes, two ids, two ids,
               the first in the lower half; -1 where a word has no more
    long words [LONG_SLOTS, 32] length << 8 | count, 128 bytes, 30 ids of 32 bits
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
# Kinds of bytes; UNCLEAR: an apostrophe, or not ASCII.
LETTERS, DIGIT, BLANK, LINE_END, TAB, SIGN, UNCLEAR, STOP = range(8)
KINDS, LENGTHS, BLOCKS = 512, 1024, 1536  # in `classes`
PLANES = 4352  # blocks of 256 code points in Unicode

WORD_SHIFT = 49
WORD_SLOTS = 1 << 64 - WORD_SHIFT  # of 32 bytes: 1 MiB
LONG_SHIFT, LONG, LONG_IDS = 53, 128, 30  # words of 17 to 128 bytes with up to 30 ids
LONG_SLOTS = 1 << 64 - LONG_SHIFT  # of 256 bytes: 512 KiB
PADDING = 17  # a separator, and what eight bytes at a time may read behind it
SHORT = 64  # symbols that are merged by scanning; more of them get a heap
