"""Figures that can be asked: Vega-Lite specifications made from data frames.

One specification is the whole figure: `batchgauge.reporting.render` makes the still pictures
of it, a page and JupyterLab show it alive (hover, zoom, legend). Everything here draws what it
is given; nothing measures. Widths are those of the still picture, a page gives its own.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import pandas as pd

from batchgauge.reporting.plots import GRID, INK, MUTED, colour, label, marker
from batchgauge.reporting.tables import heading, number
from batchgauge.text import visible

Spec = dict[str, Any]

SCHEMA = "https://vega.github.io/schema/vega-lite/v5.20.1.json"
MIME = "application/vnd.vegalite.v5+json"  # which JupyterLab shows by itself
WIDTH = 640  # pixels of the still picture
DOMAIN = "#8c959f"  # axis lines
_SHAPES = {"s": "square", "^": "triangle-up", "D": "diamond", "v": "triangle-down", "P": "cross"}
_DASHES = {"target": [6, 3], "floor": [1, 2], "ideal": [6, 3, 1, 3]}
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

    `base` makes it logarithmic; `ticks` are the values that are marked (empty: chosen).
    """

    field: str
    title: str
    base: int = 0
    ticks: Sequence[float] = ()
    zero: bool = True

    def encoding(self, domain: Sequence[float] = ()) -> Spec:
        """The axis as an encoding; `domain` are its ends where they are not the data's."""
        scale: Spec = {"type": "log", "base": self.base} if self.base else {"zero": self.zero}
        if domain:
            scale["domain"] = list(domain)
        else:  # room for the marks at the ends, which the zoomed frame would cut
            scale |= {"padding": 9, "nice": False}
        axis: Spec = {"title": self.title, "format": ",~r"}
        if self.ticks:
            axis["values"] = list(self.ticks)
        return {"field": self.field, "type": "quantitative", "scale": scale, "axis": axis}


@dataclass(frozen=True, slots=True)
class Line:
    """A reference line with its words: a target, a floor or an ideal."""

    value: float
    text: str
    axis: str = "y"
    kind: str = "target"


@dataclass(frozen=True, slots=True)
class Looks:
    """Colours and shapes by series name, in the legend's order."""

    names: Sequence[str]
    colours: Sequence[str]
    shapes: Sequence[str]

    @classmethod
    def of(cls, implementations: Iterable[str], names: Mapping[str, str] | None = None) -> Looks:
        """Those of implementations, as everywhere in the study; `names` say how they are called."""
        every = list(dict.fromkeys(implementations))
        called = [(names or {}).get(name) or label(name) for name in every]
        shapes = [_SHAPES.get(marker(name), "circle") for name in every]
        return cls(called, [colour(name) for name in every], shapes)

    def channels(self, *, legend: bool = True) -> Spec:
        """Colour and shape of a `series` column."""
        shown: Spec | None = {} if legend and len(self.names) > 1 else None
        scale = {"domain": list(self.names)}
        return {
            "color": _nominal({**scale, "range": list(self.colours)}, shown),
            "shape": _nominal({**scale, "range": list(self.shapes)}, shown),
        }


def _nominal(scale: Spec, legend: Spec | None) -> Spec:
    return {"field": "series", "type": "nominal", "scale": scale, "legend": legend}


def lines(
    frame: pd.DataFrame, title: str, x: Axis, y: Axis, looks: Looks,
    references: Sequence[Line] = (), *, extra: Sequence[Spec] = (),
) -> Chart:  # fmt: skip
    """A line a series with its 95 % interval as a band.

    `frame` has `series`, the columns of both axes, and `low` and `high` where there are intervals.
    """
    shown, channels = _with_interval(frame, y.field), looks.channels()
    place = {"x": x.encoding(), "y": y.encoding(), "color": channels["color"]}
    banded = "low" in shown
    band = [_band(place)] if banded else []
    tips = [_tip("series", "")] if len(looks.names) > 1 else []
    tips += [_tip(x.field, x.title), _tip(y.field, y.title)]
    tips += [{"field": "interval", "title": "95 % interval"}] if banded else []
    layers = [
        *extra,
        *band,
        {
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {**place, "opacity": _FADED},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70},
            "encoding": {**place, "shape": channels["shape"], "tooltip": tips, "opacity": _FADED},
            "params": [_ZOOM, _NEAREST],
        },
    ]
    return _chart(shown, title, layers, references, height=300)


def _band(place: Spec) -> Spec:
    low = {**place["y"], "field": "low"}
    return {
        "mark": {"type": "area", "opacity": 0.16},
        "encoding": {**place, "y": low, "y2": {"field": "high"}, "opacity": _faded(0.16, 0.02)},
    }


def dots(
    frame: pd.DataFrame, title: str, x: Axis, looks: Looks, references: Sequence[Line] = (), *,
    more: Sequence[str] = (), band: str = "",
) -> Chart:  # fmt: skip
    """One row a `name`, top to bottom, a dot a `series` with its interval as a bar.

    `frame` has `name`, `series`, the column of `x`, `low` and `high`; `more` columns are said on
    hover. Several series of one row stand below each other; a row without a value stays empty.
    The column `band`, if any, is drawn behind as a grey band from its negative to it.
    """
    shown, channels = _with_interval(frame, x.field), looks.channels()
    names = list(dict.fromkeys(frame["name"]))
    y: Spec = {
        "field": "name", "type": "nominal", "sort": names, "scale": {"domain": names},
        "axis": {"title": None, "labelLimit": 260, "grid": False, "ticks": False, "domain": False},
    }  # fmt: skip
    crowded = bool(shown.duplicated("name").any())
    beside = {"field": "series", "type": "nominal", "scale": {"domain": list(looks.names)}}
    offset = {"yOffset": beside} if crowded else {}
    place = {"y": y, **offset, "color": channels["color"], "opacity": _FADED}
    low = {**x.encoding(), "field": "low"}
    tips = [{"field": "name", "title": ""}]
    tips += [_tip("series", "")] if len(looks.names) > 1 else []
    tips += [_tip(x.field, x.title), {"field": "interval", "title": "95 % interval"}]
    tips += [_tip(column, column.replace("_", " ")) for column in more]
    rule = {"x": low, "x2": {"field": "high"}, **place, "opacity": _faded(0.5, 0.06)}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeWidth": 4}, "encoding": rule},
        {
            "mark": {"type": "point", "filled": True, "size": 80},
            "encoding": {"x": x.encoding(), **place, "shape": channels["shape"], "tooltip": tips},
            "params": [_ZOOM_X],
        },
    ]
    if band:
        ends = {"x": {**low, "field": f"-{band}"}, "x2": {"field": band}}
        shown = shown.assign(**{f"-{band}": -shown[band]})
        mark = {"type": "bar", "color": GRID, "height": {"band": 0.8}, "aria": False}
        layers.insert(0, {"mark": mark, "encoding": {**ends, "y": y}})
    height = 40 + len(names) * (34 if crowded else 24)
    return _chart(shown, title, layers, references, height=height)


def scatter(frame: pd.DataFrame, x: Axis, y: Axis, looks: Looks, tips: Sequence[str]) -> Spec:
    """A dot a row of `frame`, joined in their order by a thin line; `tips` are said on hover.

    The specification, for more layers and parameters: they must give each row its `series`.
    """
    place = {"x": x.encoding(), "y": y.encoding()}
    said = [_tip(column, heading(column)) for column in tips]
    joined = {"type": "line", "color": MUTED, "opacity": 0.5, "strokeWidth": 1.2}
    order = {"order": {"field": tips[0], "type": "quantitative"}}
    return _chart(
        frame, "", [
            {"mark": joined, "encoding": {**place, **order}},
            {
                "mark": {"type": "point", "filled": True, "size": 60},
                "encoding": {**place, **looks.channels(), "tooltip": said},
                "params": [_ZOOM, _NEAREST],
            },
        ],
        height=320,
    ).spec  # fmt: skip


def stacked(frame: pd.DataFrame, title: str, x: Axis, looks: Looks) -> Chart:
    """One bar a `name`, made of its `series`, with the share written on what is wide enough.

    The column of `x` is in percent; series stand in the order of `looks`.
    """
    order = {name: place for place, name in enumerate(looks.names)}
    shown = frame.assign(place=[order[name] for name in frame["series"]])
    shown = shown.sort_values("place", kind="stable")
    place: Spec = {
        "y": {
            "field": "name", "type": "nominal", "sort": None,
            "axis": {"title": None, "grid": False, "ticks": False, "domain": False},
        },
        "x": {**x.encoding([0, 100]), "stack": "zero"},
        "order": {"field": "place"},
    }  # fmt: skip
    channels = looks.channels()
    tips = [{"field": "name", "title": ""}, _tip("series", ""), _tip(x.field, x.title)]
    middle = {**place["x"], "stack": "zero", "bandPosition": 0.5}
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "size": 30},
            "encoding": {**place, "color": channels["color"], "tooltip": tips, "opacity": _FADED},
        },
        {
            "transform": [{"filter": f"datum['{x.field}'] >= 6"}],
            "mark": {"type": "text", "color": "white", "fontWeight": "bold", "fontSize": 12},
            "encoding": {
                **place, "x": middle, "detail": {"field": "series"},
                "text": {"field": x.field, "format": ".0f", "type": "quantitative"},
            },
        },
    ]  # fmt: skip
    names = shown["name"].nunique()
    return _chart(shown, title, layers, height=int(44 * names + 20))


def words(text: str) -> Spec:
    """A figure that only says something: there was nothing to draw."""
    mark = {"type": "text", "text": visible(text), "color": MUTED, "fontSize": 13}
    return {"width": WIDTH, "height": 60, "data": {"values": [{}]}, "mark": mark}


def speedup(frame: pd.DataFrame, *, title: str, y: str, references: Sequence[Line] = ()) -> Chart:
    """Batch speedup against batch size, a line an implementation; both axes logarithmic.

    `frame` has `batch_size`, `value`, `low` and `high` (×) and `implementation`.
    """
    looks = Looks.of(str(name) for name in frame["implementation"])
    called = dict(zip(dict.fromkeys(frame["implementation"]), looks.names, strict=True))
    shown = frame.assign(series=frame["implementation"].map(called))
    sizes = sorted({int(size) for size in frame["batch_size"]})
    x = Axis("batch_size", "batch size", 2, sizes)
    ticks = powers(*(frame[c] for c in ("low", "high", "value")))
    floor = Line(1.0, "no gain", kind="floor")
    return lines(shown, title, x, Axis("value", y, 2, ticks), looks, [floor, *references])


def powers(*columns: pd.Series[Any]) -> list[float]:
    """Marks of a logarithmic axis: powers of 2 around all values, of 10 where it is long."""
    every = [float(v) for column in columns for v in column if math.isfinite(v) and v > 0]
    low, high = (min(every), max(every)) if every else (1.0, 2.0)
    base = 2 if high / low < 100 else 10
    first, last = (math.floor(math.log(v, base) + 1e-9) for v in (low, high))
    whole = [float(base) ** e for e in range(first, last + 2)]
    return whole if high / low > 8 else sorted([*whole, *(1.5 * v for v in whole)])


def config() -> Spec:
    """The looks of every figure, those of `plots.use_theme`."""
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
            "titlePadding": 8,
        },
        "legend": {
            "labelColor": INK,
            "title": None,
            "orient": "top",
            "columns": 3,
            "labelFontSize": 12.5,
            "symbolSize": 100,
            "labelLimit": 260,
        },
        "title": {"anchor": "start", "color": INK, "fontSize": 15, "offset": 12},
        "view": {"stroke": None},
        "point": {"opacity": 1},
        # Read out are the marks that have the values, not what stands around them.
        **{kind: {"aria": False} for kind in ("rule", "line", "area", "text")},
    }


def _faded(on: float = 1.0, off: float = 0.1) -> Spec:
    """Opacity by the legend: a click on a name leaves it alone."""
    return {"condition": {"param": "shown", "value": on, "empty": True}, "value": off}


_FADED = _faded()
# By the mouse only: a finger drags the page. The wheel scrolls the page unless Ctrl is held.
_ZOOM: Spec = {
    "name": "zoomed",
    "select": {
        "type": "interval",
        "translate": "[mousedown, window:mouseup] > window:mousemove!",
        "zoom": "wheel![event.ctrlKey]",
    },
    "bind": "scales",
}
_ZOOM_X: Spec = {**_ZOOM, "select": {**_ZOOM["select"], "encodings": ["x"]}}
_LEGEND: Spec = {
    "name": "shown",
    "select": {"type": "point", "fields": ["series"]},
    "bind": "legend",
}
_NEAREST: Spec = {
    "name": "near",
    "select": {"type": "point", "on": "mouseover", "clear": "mouseout", "nearest": True},
}


def _chart(
    frame: pd.DataFrame, title: str, layers: Sequence[Spec], references: Sequence[Line] = (), *,
    height: int,
) -> Chart:  # fmt: skip
    named = [at for at, layer in enumerate(layers) if "color" in layer.get("encoding", {})]
    if named and len(set(frame.get("series", ()))) > 1:
        # In the first layer that has the legend: of merged legends the first is asked.
        first = dict(layers[named[0]])
        first["params"] = [*first.get("params", []), _LEGEND]
        layers = [*layers[: named[0]], first, *layers[named[0] + 1 :]]
    else:
        layers = [_without_fading(layer) for layer in layers]
    spec = {
        "width": WIDTH,
        "height": height,
        "autosize": {"type": "fit-x", "contains": "padding"},
        "data": {"values": records(frame)},
        "layer": [*layers, *(part for line in references for part in _reference(line))],
    }
    return Chart(visible(title), spec)


def _without_fading(layer: Spec) -> Spec:
    encoding = dict(layer.get("encoding", {}))
    faded = encoding.get("opacity", {}).get("condition")
    if faded:
        encoding["opacity"] = {"value": faded["value"]}
    return {**layer, "encoding": encoding} if encoding else layer


def _reference(line: Line) -> list[Spec]:
    at = {line.axis: {"datum": line.value, "type": "quantitative"}}
    rule = {
        "type": "rule",
        "aria": False,
        "color": MUTED,
        "strokeDash": _DASHES[line.kind],
        "strokeWidth": 1.3,
    }
    words: Spec = {
        "type": "text",
        "aria": False,
        "color": MUTED,
        "text": visible(line.text),
        "fontSize": 11.5,
    }
    if line.axis == "y":
        words |= {"align": "right", "dy": -7, "x": "width"}
    else:
        words |= {"align": "left", "dx": 4, "y": 0, "baseline": "top", "dy": 3}
    one: Spec = {"values": [{}]}
    return [
        {"data": one, "mark": rule, "encoding": at},
        {"data": one, "mark": words, "encoding": at},
    ]


def _tip(field: str, title: str) -> Spec:
    """What is said on hover; numbers to three digits."""
    form = {} if field in _TEXT else {"format": ",.3~r", "type": "quantitative"}
    return {"field": field, "title": title, **form}


_TEXT = {"name", "interval", "series"}


def _with_interval(frame: pd.DataFrame, value: str) -> pd.DataFrame:
    """`frame` with the interval in words; rows without a value are left out."""
    shown = frame[frame[value].notna()]
    if "low" not in shown:
        return shown
    words = [
        f"{number(low)} to {number(high)}" if pd.notna(low) and pd.notna(high) else "not known"
        for low, high in zip(shown["low"], shown["high"], strict=True)
    ]
    return shown.assign(interval=words)


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
