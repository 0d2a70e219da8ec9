"""The tour notebook's pictures."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.figure import Figure

from batchgauge.reporting import plots


def next_tokens(guesses: pd.DataFrame) -> Figure:
    """Bars of the next tokens' probabilities."""
    fig, ax = plt.subplots(figsize=(7, 0.35 * max(len(guesses), 2) + 1))
    ax.barh(range(len(guesses)), 100 * guesses["probability"], color=plots.colour("numpy"))
    ax.set_yticks(range(len(guesses)), guesses["text"])  # two tokens may read alike
    ax.invert_yaxis()
    ax.set(xlabel="probability of being next (%)", ylabel="token", title="What comes next?")
    return fig


def timeline(when_ms: npt.NDArray[np.float64]) -> Figure:
    """Tokens generated against the time of each, in milliseconds since the request began."""
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.step(when_ms, np.arange(1, when_ms.size + 1), where="post", color=plots.colour("numpy"))
    ax.axvline(when_ms[0], color="0.5", linestyle="--")
    ax.annotate(" TTFT", (when_ms[0], 1), va="top", color="0.4")
    ax.set(
        xlim=(0, None),
        xlabel="time since the request began (ms)",
        ylabel="tokens generated",
        title="First the prompt is read, then tokens come one by one",
    )
    return fig
