"""Findings from data: what to mend first, what that can give at most, and how.

A hotspot is a share of a run's time in one place. If it vanished the run would
be 1 / (1 - share) times as fast (Amdahl 1967); if it only reached its floor,
1 / (1 - share * (1 - 1 / ratio)). Findings are ranked by what they can save.
Every sentence here is made from the numbers it names.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from batchgauge.profiling.allocations import AllocationProfile
from batchgauge.profiling.flamegraph import amount
from batchgauge.profiling.stacks import KIND_LABELS, Kind
from batchgauge.text import Markdown, code, escaped, percent

AT_LIMIT = 1.5  # measured over floor: within this, only less work helps


@dataclass(frozen=True, slots=True)
class Hotspot:
    """A place where time goes.

    `share` of the time of `part` (0 to 1); `ratio` is measured over floor time (NaN
    where no floor is known); `bound` is `memory`, `compute` or empty.
    """

    part: str
    where: str
    share: float
    kind: Kind
    ratio: float = math.nan
    bound: str = ""


def amdahl_bound(share: float) -> float:
    """How much faster the whole gets at most when this share of it vanishes."""
    return math.inf if share >= 1.0 else 1.0 / (1.0 - share)


def reachable_speedup(share: float, ratio: float) -> float:
    """How much faster the whole gets when this share comes down to its floor."""
    saved = share if math.isnan(ratio) else share * max(0.0, 1.0 - 1.0 / ratio)
    return amdahl_bound(saved)


def recommendation(spot: Hotspot) -> str:
    """What to do about a hotspot, from its class, its distance from the floor and its bound."""
    if spot.kind == "waiting":
        return "Nothing is computed here: overlap the wait with work, or shorten it."
    if not math.isnan(spot.ratio) and spot.ratio < AT_LIMIT:
        if spot.bound == "memory":
            return (
                "At the memory limit: only fewer bytes help (narrower weights, or a larger batch "
                "that shares each byte read)."
            )
        return "At the arithmetic limit: only fewer operations or more threads help."
    if not math.isnan(spot.ratio):
        return (
            f"{spot.ratio:.1f} times its floor: look for copies, conversions and calls on "
            "small arrays; write into buffers that are already there."
        )
    if spot.kind == "python":
        return "Interpreter work: do it once a batch in NumPy, compile it, or cache its result."
    if spot.kind == "numpy":
        return "Already compiled: fuse passes over the same array and reuse output buffers."
    return "Compiled already: call it less often, on larger inputs, or give it less to do."


def rank_findings(
    spots: Sequence[Hotspot], *, smallest: float = 0.02, per_part: int = 3
) -> pd.DataFrame:
    """Hotspots of at least `smallest` share, the largest saving first, `per_part` of each part.

    Columns rank, part, where, class, share, floor_ratio, bound, amdahl_bound,
    reachable_speedup, recommendation.
    """
    rows = [
        {
            "part": spot.part,
            "where": spot.where,
            "class": KIND_LABELS[spot.kind],
            "share": spot.share,
            "floor_ratio": spot.ratio,
            "bound": spot.bound,
            "amdahl_bound": amdahl_bound(spot.share),
            "reachable_speedup": reachable_speedup(spot.share, spot.ratio),
            "recommendation": recommendation(spot),
        }
        for spot in spots
        if spot.share >= smallest
    ]
    ordered = sorted(rows, key=lambda row: (-float(row["reachable_speedup"]), -float(row["share"])))  # type: ignore[arg-type]  # these two are numbers
    columns = [
        "part", "where", "class", "share", "floor_ratio", "bound", "amdahl_bound",
        "reachable_speedup", "recommendation",
    ]  # fmt: skip
    frame = pd.DataFrame(ordered, columns=columns)
    frame = frame.groupby("part", sort=False).head(per_part).reset_index(drop=True)
    frame.insert(0, "rank", range(1, len(frame) + 1))
    return frame


def finding_sentence(row: pd.Series) -> Markdown:
    """One ranked finding as a sentence of prose."""
    text = Markdown("{} takes {} of {}").format(
        code(row["where"]), percent(row["share"]), row["part"]
    )
    if not math.isnan(row["floor_ratio"]):
        text += f" and runs at {row['floor_ratio']:.1f} times its floor"
    gain = row["amdahl_bound"]
    most = "without it nothing is left" if math.isinf(gain) else f"at most {gain:.2f} times faster"
    if not math.isnan(row["floor_ratio"]):
        most += f", {row['reachable_speedup']:.2f} times at its floor"
    return text + f" ({most}). {row['recommendation']}"


def memory_findings(
    profile: AllocationProfile, part: str, *, leak_bytes_per_call: float = 4096.0, top: int = 3
) -> pd.DataFrame:
    """What grows, then what is only temporary: columns part, where, finding, bytes_per_call.

    A site counts as growing from `leak_bytes_per_call` bytes kept by each call on average;
    the largest first. Temporary sites are those with the most bytes given back.
    """
    rows: list[tuple[str, str, str, float]] = []
    for site in profile.growth().to_dict("records")[:top]:
        kept = float(site["kept_bytes_per_call"])
        if kept >= leak_bytes_per_call:
            rows.append((part, _at(site), "grows with every call", kept))
    sites = profile.sites
    temporary = (sites["allocated_bytes"] - sites["kept_bytes"]) / profile.calls
    for index in temporary.nlargest(top).index:
        if temporary[index] > 0:
            site = sites.loc[index].to_dict()
            rows.append((part, _at(site), "temporary: reuse a buffer", float(temporary[index])))
    return pd.DataFrame(rows, columns=["part", "where", "finding", "bytes_per_call"])


def _at(site: Mapping[Hashable, Any]) -> str:
    file = str(site["file"]).replace("\\", "/").rsplit("/", 1)[-1]
    return f"{site['function']} ({file}:{site['line']})"


def memory_sentence(profile: AllocationProfile, part: str) -> Markdown:
    """Growth and temporary bytes of one part in words."""
    growth = memory_findings(profile, part)
    grows = growth[growth["finding"].str.startswith("grows")]
    if grows.empty:
        text = escaped(f"{part}: no site grows with the calls")
    else:
        first = grows.iloc[0]
        size = amount(float(first["bytes_per_call"]), "bytes")
        text = Markdown("{}: {} keeps {} more after every call").format(
            part, code(first["where"]), size
        )
    if not math.isnan(profile.allocated_bytes):
        each = amount(profile.temporary_bytes_per_call, "bytes")
        text += f"; {each} are allocated and given back in each call"
    return text + f" ({profile.tool})."
