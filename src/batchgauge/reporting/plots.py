"""What is drawn by matplotlib: flame graphs, and figures of a reader's own in a notebook.

Imported only where something is drawn, since matplotlib and seaborn are slow to load.
"""

from __future__ import annotations

import io
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import seaborn as sns
from cycler import cycler
from matplotlib.text import Text

from batchgauge.reporting.palette import GRID, INK, LOOKS, MUTED, OTHERS
from batchgauge.reporting.render import SCALE, in_few_colours
from batchgauge.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Figures are shown at half their pixels: 200 dpi of a figure laid out at 100.
DPI = 100


def use_theme() -> None:
    """Set seaborn's theme for this kernel: light grid, left titles, no frame, 2x pixels."""
    looks = (*LOOKS.values(), *OTHERS)
    sns.set_theme(
        context="notebook",
        style="whitegrid",
        rc={
            "figure.dpi": DPI,
            "savefig.dpi": DPI * SCALE,
            "figure.figsize": (7.6, 4.2),
            "figure.constrained_layout.use": True,
            "font.family": "DejaVu Sans",
            "font.size": 10.5,
            "axes.titlesize": 12.5,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.titlepad": 12,
            "axes.labelsize": 10.5,
            "axes.labelcolor": INK,
            "axes.edgecolor": "#8c959f",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.prop_cycle": cycler(color=list(dict.fromkeys(look[0] for look in looks))),
            "grid.color": GRID,
            "grid.linewidth": 0.8,
            "legend.frameon": False,
            "legend.fontsize": 9.5,
            "lines.linewidth": 1.8,
            "lines.markersize": 6,
            "text.color": INK,
            "xtick.color": MUTED,
            "ytick.color": MUTED,
            "xtick.labelsize": 9.5,
            "ytick.labelsize": 9.5,
            "svg.fonttype": "none",
            "text.parse_math": False,  # a `$` in a name is a dollar sign
        },
    )


def save(figure: Figure, path: Path, alt: str) -> Path:
    """Save `figure` as a PNG at 2x in 256 colours, whole or not at all, and close it; `path`.

    Lines and areas of few colours need no more, and a page a third of the bytes.
    """
    for text in figure.findobj(Text):
        text.set_text(visible(text.get_text()))
    wrap_titles(figure)
    drawn = io.BytesIO()
    figure.savefig(
        drawn,
        format="png",
        dpi=DPI * SCALE,
        facecolor="white",
        bbox_inches="tight",
        pad_inches=0.15,
    )
    plt.close(figure)
    return in_few_colours(drawn, path, alt)


def wrap_titles(figure: Figure) -> None:
    """Break titles that state a whole finding into lines that fit their axes."""
    per_inch = 9.5  # bold characters at the theme's title size
    specs = [spec for ax in figure.axes if (spec := ax.get_subplotspec())]
    columns = max((spec.get_gridspec().ncols for spec in specs), default=1)
    room = int(per_inch * figure.get_figwidth() / columns)
    for ax in figure.axes:
        for place in ("left", "center"):
            title = ax.get_title(loc=place)
            if len(title) > room and "\n" not in title:
                ax.set_title(textwrap.fill(title, room), loc=place)
