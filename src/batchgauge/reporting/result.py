"""The one shape of an experiment's outcome: frames, a table, a picture, a sentence, scores.

What measures gives a `Section`, and `Report.show` does the rest in one call:

    report.show(Section("speedup", {"speedup": frame}, "Batches of 8 do 3.1 × the work."))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from batchgauge.reporting.charts import Chart
    from batchgauge.reporting.score import Score


@dataclass(frozen=True, slots=True)
class Section:
    """An outcome, made from plain values; its name is the stem of the picture's file.

    `picture` draws and `document` renders (an SVG) with no argument, so that nothing is
    drawn before it is shown. An empty finding says nothing. `csv` names the frame that the
    picture is of where another section writes it, `rests_on` what it rests on
    (`12 batches, 1 process`) where the frames do not say.
    """

    name: str
    data: Mapping[str, pd.DataFrame]
    finding: str = ""
    shown: pd.DataFrame | None = None
    shown_caption: str = ""
    picture: Callable[[], Figure | Chart] | None = None
    picture_caption: str = ""
    targets: Sequence[Score] = ()
    document: Callable[[], str] | None = None
    csv: str = ""
    rests_on: str = ""

    @property
    def frame(self) -> pd.DataFrame:
        """The first of the frames: what a reader would plot otherwise."""
        return next(iter(self.data.values()))

    def frames(self) -> Mapping[str, pd.DataFrame]:
        """What is written, by the name of its CSV."""
        return self.data

    def table(self) -> tuple[pd.DataFrame, str] | None:
        """The frame that readers see, with its caption."""
        return None if self.shown is None else (self.shown, self.shown_caption)

    def draw(self) -> tuple[Figure | Chart, str] | None:
        """The picture with its caption; drawn anew at every call. A `Chart` can be asked."""
        return (self.picture(), self.picture_caption) if self.picture else None

    def sentence(self) -> str:
        """The finding: text or `Markdown`, also what the picture says to who cannot see it."""
        return self.finding

    def svg(self) -> str | None:
        """The picture once more, as an SVG document to explore in a browser."""
        return self.document() if self.document else None

    def scores(self) -> Sequence[Score]:
        """The rows that it gives the scorecard."""
        return self.targets
