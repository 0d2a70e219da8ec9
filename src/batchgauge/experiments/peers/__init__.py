"""Notebook 06: how does it stand beside what people use?"""
