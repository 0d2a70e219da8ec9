"""The tour notebook's pictures; `title` says what each shows."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge.reporting import charts
from batchgauge.reporting.charts import Chart


def next_tokens(guesses: pd.DataFrame, title: str) -> Chart:
    """Bars of the next tokens' probabilities, by rank: two tokens may read alike."""
    names = [f"{rank}.  {text}" for rank, text in enumerate(guesses["text"], 1)]
    percent = 100 * guesses["probability"].astype(float)
    x = charts.Axis("percent", "probability of being next (%)")
    frame = pd.DataFrame({"name": names, "percent": percent})
    return charts.bars(frame, title, x)


def timeline(when_ms: npt.NDArray[np.float64], title: str) -> Chart:
    """Tokens generated against the time of each, in milliseconds since the request began."""
    tokens = range(1, when_ms.size + 1)
    frame = pd.DataFrame({"time_ms": when_ms, "tokens": tokens})
    first = charts.Line(float(when_ms[0]), "TTFT", "x")
    return charts.lines(
        frame.dropna(), title,
        charts.Axis("time_ms", "time since the request began (ms)"),
        charts.Axis("tokens", "tokens generated"),
        replace(charts.PLAIN, size=30, curve="step-after"), [first],
    )  # fmt: skip
