"""Foreign tokenizers and engines behind the two protocols, each imported only when asked for."""
