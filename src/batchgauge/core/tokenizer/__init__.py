"""Byte-level BPE: vocabulary, pre-tokenizers, plain and compiled encoders, and the tokenizer."""

from batchgauge.core.tokenizer.bpe_tokenizer import BPETokenizer

__all__ = ["BPETokenizer"]
