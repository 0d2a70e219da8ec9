"""Notebook 05: did it get slower?"""
