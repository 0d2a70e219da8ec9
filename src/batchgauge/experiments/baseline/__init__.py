"""Notebook 01: what does batching buy?"""
