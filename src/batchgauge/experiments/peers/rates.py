"""Our rates and each peer's from the records of fresh processes, and what may be said of them.

A ratio is of neighbours in time within a process, its interval over processes, its verdict
adjusted over all of a table. A peer, or ours beside it, whose own blocks differ by more than
`UNSTABLE` has no ratio: it says that it is unstable, or who is faster where the blocks of the
two do not overlap.
"""

from __future__ import annotations

import math
from typing import Any

import pandas as pd

from batchgauge.experiments import fresh
from batchgauge.measuring.verdicts import Ratio, judged
from batchgauge.statistics import FEWEST

OURS = "numpy"
UNSTABLE = 0.15  # of the 90th over the 10th percentile of a block's times, less 1
RATIOS = ("ours_over_theirs_x", "ratio_low_x", "ratio_high_x", "ours_is")
_NO_RATIO = {
    "ours": "",
    "larger_spread": math.nan,
    **dict.fromkeys(RATIOS, math.nan),
    "ours_is": "",
}
_SHAPE = ["part", "state", "threads", "batch_size", "tokens", "characters"]


def table(samples: pd.DataFrame, value: str = "tokens") -> pd.DataFrame:
    """One row a shape, peer and implementation: its rate in `value` a second, and our rate ÷ its.

    `samples` have a column `pair`: the peer whose processes they are. Rows of ours are there
    once a pair; those of a peer once for each of ours beside it (`ours`), with the spread of
    whichever of the two has the larger.
    """
    keys = [key for key in [*_SHAPE, "pair"] if key in samples]
    rows: list[dict[str, Any]] = []
    ratios: list[Ratio] = []
    compared: list[dict[str, Any]] = []  # the row of each ratio
    for key, part in samples.groupby(keys, sort=False):
        place = dict(zip(keys, key, strict=True))
        amounts = part.assign(tokens=part[value])
        names = list(dict.fromkeys(part["implementation"]))
        for name in names:
            row = {**place, "implementation": name, **_rate(amounts, name), **_NO_RATIO}
            ours = [n for n in names if n != name and n.partition(":")[0] == OURS]
            if name != place["pair"] or not ours:
                rows.append(row)
                continue
            for mine in ours:
                spread = max(row["spread"], _rate(amounts, mine)["spread"])
                rows.append({**row, "ours": mine, "larger_spread": spread})
                sides = {"implementation": mine}, {"implementation": name}
                if spread > UNSTABLE:
                    ahead = fresh.ahead(amounts, *sides) if row["processes"] >= FEWEST else 0
                    rows[-1]["ours_is"] = ("unstable", "faster", "slower")[ahead]
                    continue
                found = fresh.gain(amounts, *sides)
                assert found is not None  # both have rows
                ratios.append(Ratio.of(found, name=mine, baseline=name))
                compared.append(rows[-1])
    for row, ratio in zip(compared, judged(ratios), strict=True):
        said = {"no significant difference": "not told apart"}.get(ratio.verdict, ratio.verdict)
        row.update(zip(RATIOS, (ratio.value, ratio.low, ratio.high, said), strict=True))
    return pd.DataFrame(rows)


def _rate(samples: pd.DataFrame, name: str) -> dict[str, Any]:
    wanted = {"implementation": name}
    found = fresh.rate(samples, wanted)
    assert found is not None
    rate = found.exp()
    low, high = (v if math.isfinite(v) and v > 0 else math.nan for v in (rate.low, rate.high))
    processes = len(set(samples["process"]))
    spread = fresh.spread(samples, wanted)
    return {
        "value": rate.value, "low": low, "high": high, "spread": spread, "processes": processes
    }  # fmt: skip
