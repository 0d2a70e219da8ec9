"""Notebook 02: where do time and memory go?"""
