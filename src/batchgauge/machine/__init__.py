"""The computer: what it may use, what it is, how fast it is, which one it is."""
