"""A rung of an ablation ladder: one named optimisation, alone and on top of those before it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

Work = Callable[[Any], Any]  # work -> output, comparable with ==


@dataclass(frozen=True, slots=True)
class Rung:
    """One optimisation of a ladder.

    `make_alone` builds the baseline with only this idea, `make_cumulative` the
    baseline with this idea and those of all rungs before it; each is called once,
    outside of any timing, and gives a callable from work to output. None where an
    idea cannot stand alone. All callables of one ladder give equal outputs for equal
    work; one that does not is broken, however fast.
    """

    name: str
    idea: str
    make_alone: Callable[[], Work] | None
    make_cumulative: Callable[[], Work]
    weights: str = ""  # how a model's are kept; empty where there is none, or as in float32
    threads: int = 1
