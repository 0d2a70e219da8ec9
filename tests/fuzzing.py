"""Seeded fuzzing within a time budget: half a minute over all areas, more by hand.

`BATCHGAUGE_FUZZ_SECONDS` is the budget of all areas together (30 by default). A slow
machine tries fewer cases and never fails for it. A failing case names its seed, and
`BATCHGAUGE_FUZZ_SEED` begins there.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from time import monotonic

AREAS = ("gguf", "folders", "event streams", "requests", "workload files", "templates")
FEWEST = 20  # cases that even the slowest machine tries


def seeds(area: str) -> Iterator[int]:
    """Seeds one after the other, until this area's share of the budget is spent."""
    assert area in AREAS, f"'{area}' is not among {AREAS}"
    share_s = float(os.environ.get("BATCHGAUGE_FUZZ_SECONDS", "30")) / len(AREAS)
    first = int(os.environ.get("BATCHGAUGE_FUZZ_SEED", "0"))
    end = monotonic() + share_s
    seed = first
    while seed < first + FEWEST or monotonic() < end:
        yield seed
        seed += 1


def check_sentence(text):
    """One plain sentence."""
    assert "\n" not in text
    assert text.isprintable()
    assert 20 < len(text) < 500
    assert text.endswith(".")
