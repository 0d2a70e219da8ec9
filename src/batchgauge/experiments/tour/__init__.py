"""Notebook 00: what happens between a prompt and its answer?"""
