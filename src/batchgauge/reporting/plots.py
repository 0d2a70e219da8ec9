"""How figures look, and what is still drawn by matplotlib: theme, intervals, reference lines.

Everything here draws what it is given (numbers, names); nothing measures. The colours are Okabe
and Ito's (2008), told apart with any kind of colour vision, and each implementation has a marker
of its own too. Files are saved at 2x.
"""

from __future__ import annotations

import io
import textwrap
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib.pyplot as plt
import numpy as np
import numpy.typing as npt
import seaborn as sns
from cycler import cycler
from matplotlib.text import Text
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchgauge.files import atomic_path
from batchgauge.text import visible

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Numbers = Sequence[float] | npt.NDArray[np.float64] | npt.NDArray[np.int64]

INK = "#24292f"
MUTED = "#59636e"
GRID = "#e3e7eb"
# Figures are shown at half their pixels: 200 dpi of a figure laid out at 100.
DPI = 100
SCALE = 2

_LOOKS: Mapping[str, tuple[str, str]] = {
    "numpy": ("#0072B2", "o"),
    "numpy:file": ("#444444", "s"),  # beside numpy:float32 in one figure
    "numpy:bfloat16": ("#8C6D1F", "P"),
    "baseline": ("#D55E00", "s"),
    "hf": ("#009E73", "^"),
    "transformers": ("#009E73", "^"),
    "tiktoken": ("#CC79A7", "D"),
    "llama-cpp": ("#CC79A7", "D"),
    "sentencepiece": ("#56B4E9", "v"),
    "openai": ("#8C6D1F", "P"),
    "transformers:bfloat16": ("#56B4E9", "v"),  # beside transformers in one figure
    "llama-cpp:f32": ("#E69F00", "h"),
    "llama-cpp:tokenizer": ("#E69F00", "h"),  # beside tiktoken
}
_OTHERS = (("#56B4E9", "X"), ("#E69F00", "h"), ("#7F3C8D", "*"), ("#444444", "p"))
_LABELS: Mapping[str, str] = {
    "numpy": "batchgauge (NumPy)",
    "baseline": "baseline",
    "hf": "HF tokenizers",
    "transformers": "transformers",
    "llama-cpp": "llama.cpp",
    "llama-cpp:f32": "llama.cpp float32",
    "llama-cpp:tokenizer": "llama.cpp",
    "transformers:bfloat16": "transformers bfloat16",
    "openai": "OpenAI server",
}
# The stages of a request, in order, from cold to warm; fixed so that they compare across figures.
STAGES: Mapping[str, str] = {
    "tokenize": "#56B4E9",
    "pad": "#999999",
    "prefill": "#0072B2",
    "decode": "#009E73",
    "sample": "#E69F00",
    "detokenize": "#CC79A7",
    "bookkeeping": "#D55E00",
}


def use_theme() -> None:
    """Set seaborn's theme for this kernel: light grid, left titles, no frame, 2x pixels."""
    looks = (*_LOOKS.values(), *_OTHERS)
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


def colour(implementation: str) -> str:
    """The colour of an implementation (or a stage), the same everywhere; hex."""
    return STAGES.get(implementation) or _look(implementation)[0]


def marker(implementation: str) -> str:
    """The marker of an implementation, so that colour is never the only difference."""
    return _look(implementation)[1]


def label(implementation: str) -> str:
    """How an implementation is called in legends."""
    return _LABELS.get(implementation) or visible(implementation)


def _look(implementation: str) -> tuple[str, str]:
    name = implementation.partition(":")[0]
    known = _LOOKS.get(implementation) or _LOOKS.get(name)
    return known or _OTHERS[zlib.crc32(implementation.encode(errors="replace")) % len(_OTHERS)]


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


def in_few_colours(drawn: io.BytesIO, path: Path, alt: str) -> Path:
    """Save a drawn picture as a PNG in 256 colours, whole or not at all; `path`."""
    words = PngInfo()
    words.add_itxt("Description", alt)
    with Image.open(drawn) as full, atomic_path(path) as temporary:
        few = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(temporary, "PNG", optimize=True, pnginfo=words)
    return path


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
