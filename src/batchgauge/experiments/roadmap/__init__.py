"""Notebook 07: what is worth building next?"""
