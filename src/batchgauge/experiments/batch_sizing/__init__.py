"""Notebook 04: which batch size should I run?"""
