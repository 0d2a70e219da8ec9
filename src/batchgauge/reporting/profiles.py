"""How long a study may take: three profiles, typed, and nothing else that a notebook must guess.

`smoke` shows that everything works (the tests run it), `default` is the study that
the reports are made from, `thorough` buys narrower intervals.

    >>> profile_named("smoke").choose(smoke=1, default=2, thorough=3)
    1
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

from batchgauge.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Profile:
    """What one notebook may spend.

    `seconds` is wall time for all its measurements together, `min_blocks` the fewest interleaved
    blocks of one comparison, `processes` how many fresh processes repeat what a page answers
    with: processes differ by more than calls.
    """

    name: str
    seconds: float
    min_blocks: int
    processes: int

    def share(self, fraction: float) -> float:
        """Seconds for a part of the notebook: `fraction` of the whole."""
        return self.seconds * fraction

    def choose(self, *, smoke: T, default: T, thorough: T) -> T:
        """The value that belongs to this profile."""
        return {"smoke": smoke, "default": default, "thorough": thorough}[self.name]


PROFILES = {
    p.name: p
    for p in (
        Profile("smoke", seconds=4.0, min_blocks=4, processes=1),
        Profile("default", seconds=60.0, min_blocks=8, processes=5),
        Profile("thorough", seconds=900.0, min_blocks=20, processes=10),
    )
}


def profile_named(name: str | Profile) -> Profile:
    """The profile called `name`. Raises UserError for a name that is none."""
    if isinstance(name, Profile):
        return name
    try:
        return PROFILES[name]
    except (KeyError, TypeError):
        raise UserError(
            f"The profile '{name}' is unknown; expected one of {', '.join(PROFILES)}."
        ) from None
