"""Notebook 03: what was each optimisation worth?"""
