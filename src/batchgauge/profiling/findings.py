"""Findings from data: what to mend first, what that can give at most, and how.

A hotspot is a share of a run's time in one place. If it vanished the run would
be 1 / (1 - share) times as fast (Amdahl 1967); if it only reached its floor,
1 / (1 - share * (1 - 1 / ratio)). Findings are ranked by their share of a whole request.
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
from batchgauge.text import Markdown, code, percent

AT_LIMIT = 1.5  # measured over floor: within this, only less work helps
SMALLEST, MOST = 0.02, 3  # share of a part that is a finding, and findings of a part
WORTH = 1.01  # times as fast that a request must become for a sentence
LEAK_BYTES = 4096.0


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
    spots: Sequence[Hotspot], parts: Mapping[str, float] | None = None
) -> pd.DataFrame:
    """Hotspots of at least `SMALLEST` of their part, the largest share of a request first.

    `parts` says what share of a whole request each part is; of a part that is none of it the
    request's columns are NaN and it comes last. At most `MOST` rows of each part. Columns rank,
    part, where, class, share, request_share, floor_ratio, bound, amdahl_bound, reachable_speedup,
    recommendation; the two speed-ups are the request's where it is known, else the part's, and NaN
    where nothing would be left.
    """
    rows = []
    for spot in (s for s in spots if s.share >= SMALLEST):
        whole = (parts or {}).get(spot.part, math.nan)
        share = spot.share if math.isnan(whole) else whole * spot.share
        bounds = (amdahl_bound(share), reachable_speedup(share, spot.ratio))
        rows.append(
            (
                spot.part, spot.where, KIND_LABELS[spot.kind], spot.share, whole * spot.share,
                spot.ratio, spot.bound, *(b if math.isfinite(b) else math.nan for b in bounds),
                recommendation(spot),
            )
        )  # fmt: skip
    columns = [
        "part", "where", "class", "share", "request_share", "floor_ratio", "bound", "amdahl_bound",
        "reachable_speedup", "recommendation",
    ]  # fmt: skip
    frame = pd.DataFrame(rows, columns=columns)
    frame = frame.sort_values(["request_share", "share"], ascending=False, kind="stable")
    frame = frame.groupby("part", sort=False).head(MOST).reset_index(drop=True)
    frame.insert(0, "rank", range(1, len(frame) + 1))
    return frame


def worth_a_sentence(findings: pd.DataFrame) -> pd.DataFrame:
    """The findings that can make a request `WORTH` times as fast; of no request, the largest."""
    gain = findings["reachable_speedup"].where(
        findings["floor_ratio"].notna(), findings["amdahl_bound"]
    )
    moves = findings["request_share"].notna() & (gain.isna() | (gain >= WORTH))
    return findings[moves] if moves.any() else findings.head(MOST)


def finding_sentence(row: pd.Series) -> Markdown:
    """One ranked finding as a sentence of prose."""
    text = Markdown("{} takes {} of {}").format(
        code(row["where"]), percent(row["share"]), row["part"]
    )
    known = not math.isnan(row["request_share"])
    if known and row["request_share"] < row["share"]:
        text += f", {percent(row['request_share'], 1)} of a whole request"
    whole = "a request" if known else "it"
    if not math.isnan(row["floor_ratio"]):
        text += f", and runs at {row['floor_ratio']:.1f} times its floor"
        gain, when = row["reachable_speedup"], "at its floor"
    else:
        gain, when = row["amdahl_bound"], "without it"
    if math.isnan(gain):
        return text + f" (without it nothing is left). {row['recommendation']}"
    return text + f" ({when} {whole} would be {gain:.2f} times as fast). {row['recommendation']}"


def memory_findings(profile: AllocationProfile, part: str) -> pd.DataFrame:
    """What grows, then what is only temporary: columns part, where, finding, bytes_per_call.

    A site counts as growing from `LEAK_BYTES` kept by each call on average; the largest first.
    Temporary sites are those with the most bytes given back.
    """
    rows: list[tuple[str, str, str, float]] = []
    for site in profile.growth().to_dict("records")[:MOST]:
        kept = float(site["kept_bytes_per_call"])
        if kept >= LEAK_BYTES:
            rows.append((part, _at(site), "grows with every call", kept))
    sites = profile.sites
    temporary = (sites["allocated_bytes"] - sites["kept_bytes"]) / profile.calls
    for index in temporary.nlargest(MOST).index:
        if temporary[index] > 0:
            site = sites.loc[index].to_dict()
            rows.append((part, _at(site), "temporary: reuse a buffer", float(temporary[index])))
    return pd.DataFrame(rows, columns=["part", "where", "finding", "bytes_per_call"])


def _at(site: Mapping[Hashable, Any]) -> str:
    file = str(site["file"]).replace("\\", "/").rsplit("/", 1)[-1]
    return f"{site['function']} ({file}:{site['line']})"


def growth_sentence(profile: AllocationProfile, part: str) -> Markdown:
    """The site of a part that keeps most memory; empty where none grows."""
    growth = memory_findings(profile, part)
    grows = growth[growth["finding"].str.startswith("grows")]
    if grows.empty:
        return Markdown("")
    first = grows.iloc[0]
    size = amount(float(first["bytes_per_call"]), "bytes")
    return Markdown("In {}, {} keeps {} more after every call.").format(
        part, code(first["where"]), size
    )


def temporary_sentence(profile: AllocationProfile, part: str) -> str:
    """The bytes that one part gives back, with the tool that says so."""
    if math.isnan(profile.allocated_bytes):
        return f"What is given back at once was not seen ({profile.tool})."
    each = amount(profile.temporary_bytes_per_call, "bytes")
    return f"Most is allocated and given back in {part}: {each} a call ({profile.tool})."
