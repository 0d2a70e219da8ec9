"""Which batch size to run: hardware, cost and memory models, the advisor and its online form."""
