"""Advice by measuring: a load driver, a search under uncertainty, and an answer with its risk."""
