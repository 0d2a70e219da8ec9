"""Measuring callables on a noisy machine: samples, paired ratios, memory, counters."""
