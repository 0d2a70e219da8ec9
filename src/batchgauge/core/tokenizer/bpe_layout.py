"""What lies where in the arrays that the compiled kernel reads, and the limits of its tables.

`state` is int64 and never changes: a header, whose positions are named here, then the sections
that it points to; `bpe_compiled` lays it out. Each thread has a block of int64 of its own
besides, with its counters, word tables and scratch space.

    classes    uint8: [2, 256] class of each byte, in the first row with NUL as the end of
               a text, in the second as a character; [2, 256] kind of each byte, likewise;
               [8, 8, 8] length of a word by the kinds of its first three bytes, 0 where
               they do not tell; [4352] block of each 256 code points; the blocks' classes
    byte ids   [256] id of each byte, -1 where it has none
    pairs      [slots, 2] open-addressed: left << 32 | right, then rank << 32 | merged id
    wholes     [slots] ids of the tokens that are taken whole (`llama-bpe` only)
    spelling   [tokens + 1] offsets into the bytes of all tokens (`llama-bpe` only)

A thread's own block:

    words      [WORD_SLOTS, 4] word table, four slots a bucket: eight bytes, eight bytes, two
               ids, two ids, the first in the lower half; -1 where a word has no more
    long words [LONG_SLOTS, 32] length << 8 | count, 128 bytes, 30 ids of 32 bits
    ranks      [SHORT] scratch space
"""

# In `state`, in int64: where sections begin, shifts of open-addressed tables, the pre-tokenizer.
STYLE, DIGITS, CLASSES, BYTE_IDS, PAIRS, PAIR_SHIFT = range(6)
WHOLES, WHOLE_SHIFT, SPELLING, SPELLING_BYTES, HEADER = range(6, 11)
# In a thread's own block: counters of words met, words merged, pairs looked up; whether a thread
# works with it; where its sections begin.
N_WORDS, N_MERGED, N_LOOKUPS, TAKEN = range(4)
RANKS = 64

OTHER, LETTER, NUMBER, SPACE, END, LEAD = range(6)  # classes of characters; LEAD: not ASCII
GPT2, LLAMA, WORDS_ALONE = 0, 1, 2  # styles of pre-tokenizers; the last cuts elsewhere
# Kinds of bytes; UNCLEAR: an apostrophe, or not ASCII.
LETTERS, DIGIT, BLANK, LINE_END, TAB, SIGN, UNCLEAR, STOP = range(8)
KINDS, LENGTHS, BLOCKS = 512, 1024, 1536  # in `classes`
PLANES = 4352  # blocks of 256 code points in Unicode

BUCKET_SHIFT = 49
WORD_SLOTS = 4 << 64 - BUCKET_SHIFT  # of 32 bytes: 4 MiB
LONG_SHIFT, LONG, LONG_IDS = 51, 128, 30  # words of up to 128 bytes with up to 30 ids
LONG_SLOTS = 1 << 64 - LONG_SHIFT  # of 256 bytes: 2 MiB
SHORT = 64  # symbols that are merged by scanning; more of them get a heap
LONG_WORDS = RANKS + SHORT
WORDS = LONG_WORDS + 32 * LONG_SLOTS
OWN = WORDS + 4 * WORD_SLOTS  # int64 in a thread's own block, whole cache lines
PADDING = 17  # a separator, and what eight bytes at a time may read behind it
