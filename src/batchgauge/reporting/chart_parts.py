"""What charts are made of: axes, looks, reference lines, parameters, and the data as JSON.

`batchgauge.reporting.charts` puts them together.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from numbers import Integral, Real
from typing import Any

import pandas as pd

from batchgauge.reporting.palette import GRID, INK, MUTED, colour, label, marker
from batchgauge.text import visible

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.20.1.json"
MIME = "application/vnd.vegalite.v5+json"  # which JupyterLab shows by itself
WIDTH = 640  # pixels of the still picture
DOMAIN = "#8c959f"  # axis lines
_SHAPES = {"s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"}
DASHES = {"target": [6, 3], "floor": [1, 2], "ideal": [6, 3, 1, 3]}
_PER_LINE = 66  # characters of a still picture's title


@dataclass(frozen=True, slots=True)
class Chart:
    """A figure: what it found, and the Vega-Lite specification that draws it."""

    title: str
    spec: Spec

    def full(self, alt: str) -> Spec:
        """The specification as it stands alone: with title, description and looks."""
        words = textwrap.wrap(self.title, _PER_LINE)
        about = {"$schema": SCHEMA, "description": alt, "config": config()}
        return {**about, **({"title": {"text": words}} if words else {}), **self.spec}


@dataclass(frozen=True, slots=True)
class Axis:
    """One axis: the column it shows, its words, and its scale.

    `base` makes it logarithmic; `ticks` are the values that are marked and `ends` where it begins
    and ends (empty: as the data have it); `interval` is what `low` and `high` along it are.
    """

    field: str
    title: str
    base: int = 0
    ticks: Sequence[float] = ()
    zero: bool = True
    interval: str = "95 % interval"
    ends: Sequence[float] = ()

    def encoding(self) -> Spec:
        """The axis as an encoding."""
        scale: Spec = {"type": "log", "base": self.base} if self.base else {"zero": self.zero}
        if self.ends:
            scale["domain"] = list(self.ends)
        else:  # room for the marks at the ends, which the zoomed frame would cut
            scale |= {"padding": 9, "nice": False}
        axis: Spec = {"title": self.title, "format": ",~r"}
        if self.ticks:
            axis["values"] = list(self.ticks)
        return {"field": self.field, "type": "quantitative", "scale": scale, "axis": axis}


@dataclass(frozen=True, slots=True)
class Line:
    """A reference line with its words: a target, a floor or an ideal.

    They stand above the right end of a level line and right of an upright one, or `flipped`.
    """

    value: float
    text: str
    axis: str = "y"
    kind: str = "target"
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class Looks:
    """Colours and shapes by series name, in the legend's order.

    `size` is that of a line's marks (pixels²), `curve` how it goes from one to the next.
    """

    names: Sequence[str]
    colours: Sequence[str]
    shapes: Sequence[str]
    size: int = 70
    curve: str = "linear"

    @classmethod
    def of(cls, implementations: Iterable[str]) -> Looks:
        """Those of implementations, as everywhere in the study."""
        every = list(dict.fromkeys(implementations))
        shapes = [_SHAPES.get(marker(name), "circle") for name in every]
        return cls([label(n) for n in every], [colour(n) for n in every], shapes)

    def among(self, series: Iterable[object]) -> Looks:
        """Those of the series that there are: a legend has no name without a mark."""
        known, there = zip(self.names, self.colours, self.shapes, strict=True), set(series)
        kept = [one for one in known if one[0] in there]
        names, colours, shapes = ([one[part] for one in kept] for part in range(3))
        return replace(self, names=names, colours=colours, shapes=shapes)

    def channels(self) -> Spec:
        """Colour and shape of a `series` column."""
        shown: Spec | None = {} if len(self.names) > 1 else None
        scale = {"domain": list(self.names)}
        return {
            "color": _nominal({**scale, "range": list(self.colours)}, shown),
            "shape": _nominal({**scale, "range": list(self.shapes)}, shown),
        }


PLAIN = Looks(["value"], [colour("numpy")], ["circle"])  # of a single series without a name


def _nominal(scale: Spec, legend: Spec | None) -> Spec:
    return {"field": "series", "type": "nominal", "scale": scale, "legend": legend}


def powers(*columns: pd.Series[Any]) -> list[float]:
    """Marks of a logarithmic axis around all values: powers of 2, of 10 where it is long.

    Less than a doubling has about five round numbers.
    """
    every = [float(v) for column in columns for v in column if math.isfinite(v) and v > 0]
    low, high = (min(every), max(every)) if every else (1.0, 2.0)
    if 1.0 < high / low < 2.0:
        size = 10.0 ** math.floor(math.log10((high - low) / 5))
        step = next(n * size for n in (1, 2, 5, 10) if n * size >= (high - low) / 5)
        ends = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
        return [round(step * n, 12) for n in range(ends[0], ends[1] + 1) if n > 0]
    base = 2 if high / low < 100 else 10
    first, last = (math.floor(math.log(v, base) + 1e-9) for v in (low, high))
    whole = [float(base) ** e for e in range(first, last + 2)]
    return whole if high / low > 8 else sorted([*whole, *(1.5 * v for v in whole)])


def config() -> Spec:
    """The looks of every figure, which `plots.use_theme` gives to matplotlib."""
    text = {"labelColor": MUTED, "titleColor": INK, "labelFontSize": 12, "titleFontSize": 12.5}
    return {
        "background": None,
        "font": "system-ui, 'DejaVu Sans', sans-serif",
        "axis": {
            **text,
            "gridColor": GRID,
            "domainColor": DOMAIN,
            "tickColor": DOMAIN,
            "titleFontWeight": "normal",
            "labelLimit": 260,
            "labelSeparation": 8,
            "tickCount": 8,
            "titlePadding": 8,
        },
        "legend": {
            "labelColor": INK,
            "title": None,
            "orient": "top",
            "columns": 3,
            "labelFontSize": 12.5,
            "symbolSize": 100,
            "symbolOpacity": 1,
            "labelLimit": 260,
        },
        "header": {
            "labelAnchor": "start",
            "labelColor": INK,
            "labelFontSize": 12.5,
            "labelFontWeight": 600,
            "labelLimit": 320,
        },
        "title": {"anchor": "start", "color": INK, "fontSize": 15, "offset": 12},
        "view": {"stroke": None},
        "point": {"opacity": 1},
        # Read out are the marks that have the values, not what stands around them.
        **{kind: {"aria": False} for kind in ("rule", "line", "area", "text")},
    }


def faded(on: float = 1.0, off: float = 0.1) -> Spec:
    """Opacity by the legend: one click on a name leaves it alone, another brings all back."""
    return {"condition": {"param": "shown", "value": on, "empty": True}, "value": off}


FADED = faded()
# By the mouse only: a finger drags the page. The wheel scrolls the page unless Ctrl is held.
ZOOM: Spec = {
    "name": "zoomed",
    "select": {
        "type": "interval",
        "translate": "[mousedown, window:mouseup] > window:mousemove!",
        "zoom": "wheel![event.ctrlKey]",
    },
    "bind": "scales",
}
ZOOM_X: Spec = {**ZOOM, "select": {**ZOOM["select"], "encodings": ["x"]}}
LEGEND: Spec = {
    "name": "shown",
    "select": {"type": "point", "fields": ["series"], "toggle": "true"},
    "bind": "legend",
}
NEAREST: Spec = {
    "name": "near",
    "select": {"type": "point", "on": "mouseover", "clear": "mouseout", "nearest": True},
}


def records(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """The rows as JSON has them: four significant digits and more, text made visible."""
    return [
        {str(name): _plain(value) for name, value in row.items()}
        for row in frame.to_dict("records")
    ]


def _plain(value: object) -> object:
    if value is None or value is pd.NA:
        return None
    if isinstance(value, bool) or type(value).__name__ == "bool":
        return bool(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        real = float(value)
        return float(f"{real:.6g}") if math.isfinite(real) else None
    return visible(str(value))


def facets(
    chart: Chart, by: str, columns: int, *, own: Sequence[str] = (), height: int = 190
) -> Chart:
    """`chart` as small multiples: a panel for each value of the column `by`, in their order.

    `columns` panels stand beside each other, on a narrow page one. Axes named in `own` ("x", "y")
    have a scale of each panel's own and are not zoomed. A line break in a value begins a new line.
    """
    if "layer" not in chart.spec:  # words alone
        return chart
    data = chart.spec["data"]
    names = list(dict.fromkeys(row[by] for row in data["values"]))
    shared = [axis for axis in "xy" if axis not in own]
    layers = [_zoomed_along(layer, shared) for layer in chart.spec["layer"]]
    header = {"title": None, "labelExpr": r"split(datum.label, '\n')"}
    spec = {
        "data": data,
        "facet": {"field": by, "type": "nominal", "sort": names, "header": header},
        "columns": min(columns, len(names)),
        "spec": {"width": WIDTH // columns - 40, "height": height, "layer": layers},
        "resolve": {
            "scale": dict.fromkeys(own, "independent"),
            "axis": {"x": "independent", "y": "independent" if "y" in own else "shared"},
        },
    }
    return Chart(chart.title, spec)


def _zoomed_along(layer: Spec, axes: Sequence[str]) -> Spec:
    """`layer` zoomed along those of `axes` alone: panels zoom together or not at all."""
    params = []
    for param in layer.get("params", []):
        select = dict(param["select"])
        if param["name"] == ZOOM["name"]:
            select["encodings"] = [a for a in select.get("encodings", "xy") if a in axes]
        if select.get("encodings", True):
            params.append({**param, "select": select})
    return {**layer, "params": params}


def nested(spec: Spec, by: str) -> Spec:
    """`spec` with its data as one row a value of the column `by`: a quarter of the bytes."""
    groups: dict[str, list[Spec]] = {}
    for row in spec["data"]["values"]:
        groups.setdefault(row.pop(by), []).append(row)
    values = [
        {by: name, **{column: [row[column] for row in rows] for column in rows[0]}}
        for name, rows in groups.items()
    ]
    columns = [column for column in values[0] if column != by]
    steps = [{"flatten": columns}, *spec.get("transform", ())]
    return {**spec, "data": {"values": values}, "transform": steps}
