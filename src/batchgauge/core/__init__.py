"""The core: a real tokenizer and a real Llama engine in NumPy, single-threaded by default."""
