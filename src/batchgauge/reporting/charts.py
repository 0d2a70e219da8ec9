"""Figures that can be asked: Vega-Lite specifications made from data frames.

One specification is the whole figure: `batchgauge.reporting.render` makes the still pictures
of it, a page and JupyterLab show it alive (hover, zoom, legend). Everything here draws what it
is given; nothing measures. Widths are those of the still picture, a page gives its own.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd
from pandas.api.types import is_numeric_dtype

from batchgauge.reporting.chart_parts import (
    DASHES,
    FADED,
    LEGEND,
    NEAREST,
    PLAIN,
    WIDTH,
    ZOOM,
    ZOOM_X,
    Axis,
    Chart,
    Line,
    Looks,
    Spec,
    facets,
    faded,
    nested,
    powers,
    records,
)
from batchgauge.reporting.palette import INK, MUTED
from batchgauge.reporting.tables import heading, number
from batchgauge.text import visible

__all__ = [
    "PLAIN",
    "Axis",
    "Chart",
    "Line",
    "Looks",
    "Spec",
    "bars",
    "crosses",
    "dots",
    "facets",
    "lines",
    "nested",
    "powers",
    "records",
    "scatter",
    "speedup",
    "stacked",
    "words",
]


def lines(
    frame: pd.DataFrame, title: str, x: Axis, y: Axis, looks: Looks = PLAIN,
    references: Sequence[Line] = (), *, more: Sequence[str] = (),
) -> Chart:  # fmt: skip
    """A line a series with its interval as a band.

    `frame` has the columns of both axes, `series` where there are several, and `low` and `high`
    where there are intervals; `more` columns are said on hover.
    """
    shown, looks = _among(_with_interval(frame, y.field), looks)
    place = _place(x, y, looks)
    banded = "low" in shown
    tips = [_tip("series", "")] if len(looks.names) > 1 else []
    tips += [_tip(axis.field, axis.title) for axis in (x, y) if axis.title]
    tips += [_tip("interval", y.interval)] if banded else []
    tips += _said(shown, more)
    line = {"type": "line", "strokeWidth": 2, "interpolate": looks.curve}
    layers = [
        *([_band(place, looks.curve)] if banded else []),
        {"mark": line, "encoding": place},
        _points(place, looks, tips, [ZOOM, NEAREST], looks.size),
    ]
    return _chart(shown, title, layers, references, height=300)


def _place(x: Axis, y: Axis, looks: Looks) -> Spec:
    """Where marks stand, in the colours of their series."""
    color = looks.channels()["color"]
    return {"x": x.encoding(), "y": y.encoding(), "color": color, "opacity": FADED}


def _points(
    place: Spec, looks: Looks, tips: Sequence[Spec], params: Sequence[Spec], size: int
) -> Spec:
    """The marks that have the values, and say them on hover."""
    return {
        "mark": {"type": "point", "filled": True, "size": size},
        "encoding": {**place, "shape": looks.channels()["shape"], "tooltip": tips},
        "params": list(params),
    }


def _band(place: Spec, curve: str) -> Spec:
    low = {**place["y"], "field": "low"}
    return {
        "mark": {"type": "area", "opacity": 0.16, "interpolate": curve},
        "encoding": {**place, "y": low, "y2": {"field": "high"}, "opacity": faded(0.16, 0.02)},
    }


def dots(
    frame: pd.DataFrame, title: str, x: Axis, looks: Looks = PLAIN,
    references: Sequence[Line] = (), *, more: Sequence[str] = (),
) -> Chart:  # fmt: skip
    """One row a `name`, top to bottom, a dot a `series` with its interval as a bar.

    `frame` has `name`, the column of `x`, `series` where there are several, and `low` and `high`
    where there are intervals; `more` columns are said on hover. Several series of one row stand
    below each other; a row without a value stays empty.
    """
    shown, looks = _among(_with_interval(frame, x.field), looks)
    worded = any(line.text for line in references)  # above the first row
    place, tips, height = _rows([""] * worded + list(frame["name"]), shown, x, looks)
    tips += _said(shown, more)
    low = {**x.encoding(), "field": "low"}
    rule = {**place, "x": low, "x2": {"field": "high"}, "opacity": faded(0.5, 0.06)}
    ranged = {"mark": {"type": "rule", "strokeWidth": 4}, "encoding": rule}
    layers = [
        *([ranged] if "low" in shown else []),
        _points({**place, "x": x.encoding()}, looks, tips, [ZOOM_X], 80),
    ]
    return _chart(shown, title, layers, references, height=height)


def bars(frame: pd.DataFrame, title: str, x: Axis, looks: Looks = PLAIN) -> Chart:
    """One row a `name`, top to bottom, a bar a `series` from 0 with its value at its end."""
    shown, looks = _among(frame, looks)
    place, tips, height = _rows(shown["name"], shown, x, looks)
    room = 1.1 * max(float(frame[x.field].max()), 1e-9) if len(frame) else 1.0
    ends = replace(x, ends=[0, room]).encoding()
    said = {"field": x.field, "format": ",.2~r", "type": "quantitative"}
    layers: list[Spec] = [
        {"mark": "bar", "encoding": {"x": ends, **place, "tooltip": tips}, "params": [ZOOM_X]},
        {
            "mark": {"type": "text", "align": "left", "dx": 4, "color": INK, "fontSize": 11.5},
            "encoding": {"x": ends, **place, "color": {"value": INK}, "text": said},
        },
    ]
    return _chart(shown, title, layers, height=height)


def _rows(
    names: Iterable[str], shown: pd.DataFrame, x: Axis, looks: Looks
) -> tuple[Spec, list[Spec], int]:
    """Where the marks of a row a name stand, what they say on hover, and the figure's height."""
    names = list(dict.fromkeys(names))
    y: Spec = {
        "field": "name", "type": "nominal", "sort": names, "scale": {"domain": names},
        "axis": {
            "title": None, "labelLimit": 260, "labelPadding": 6,
            **dict.fromkeys(("grid", "ticks", "domain"), False),
        },
    }  # fmt: skip
    crowded = bool(shown.groupby("name")["series"].nunique().max() > 1)
    beside = {"field": "series", "type": "nominal", "scale": {"domain": list(looks.names)}}
    offset = {"yOffset": beside} if crowded else {}
    place = {"y": y, **offset, "color": looks.channels()["color"], "opacity": FADED}
    tips = [_tip("name", "")]
    tips += [_tip("series", "")] if len(looks.names) > 1 else []
    tips += [_tip(x.field, x.title)]
    tips += [_tip("interval", x.interval)] if "low" in shown else []
    return place, tips, 40 + len(names) * (34 if crowded else 24)


def crosses(
    frame: pd.DataFrame, title: str, x: Axis, y: Axis, looks: Looks, *, more: Sequence[str] = ()
) -> Chart:
    """A mark a row of `frame` with its intervals along both axes: `low` to `high` of `y`, and
    `x_low` to `x_high`. `frame` has `series` too; `more` columns are said on hover.
    """
    shown = _with_interval(_with_interval(frame, x.field, "x_"), y.field)
    place = _place(x, y, looks)
    low, x_low = ({**place[axis], "field": field} for axis, field in (("y", "low"), ("x", "x_low")))
    tips = [_tip("series", ""), _tip(x.field, x.title), _tip("x_interval", x.interval)]
    tips += _said(shown, more)
    rule = {"type": "rule", "strokeWidth": 1.5}
    layers = [
        {"mark": rule, "encoding": {**place, "y": low, "y2": {"field": "high"}}},
        {"mark": rule, "encoding": {**place, "x": x_low, "x2": {"field": "x_high"}}},
        _points(place, looks, tips, [ZOOM], looks.size),
    ]
    return _chart(shown, title, layers, height=300)


def scatter(
    frame: pd.DataFrame, x: Axis, y: Axis, looks: Looks, tips: Sequence[str],
    references: Sequence[Line] = (), *, joined: bool = True,
) -> Spec:  # fmt: skip
    """A dot a row of `frame`, `joined` in their order by a thin line; `tips` are said on hover.

    The specification, for more layers and parameters: they must give each row its `series`.
    """
    line = {"type": "line", "color": MUTED, "opacity": 0.5, "strokeWidth": 1.2}
    order = {"field": tips[0], "type": "quantitative"}
    way = {"mark": line, "encoding": {"x": x.encoding(), "y": y.encoding(), "order": order}}
    dots = _points(_place(x, y, looks), looks, _said(frame, tips), [ZOOM, NEAREST], 60)
    return _chart(frame, "", [*([way] if joined else []), dots], references, height=320).spec


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
        "x": {**replace(x, ends=[0, 100]).encoding(), "stack": "zero"},
        "order": {"field": "place"},
    }  # fmt: skip
    channels = looks.channels()
    tips = [{"field": "name", "title": ""}, _tip("series", ""), _tip(x.field, x.title)]
    middle = {**place["x"], "stack": "zero", "bandPosition": 0.5}
    layers: list[Spec] = [
        {
            "mark": {"type": "bar", "size": 30},
            "encoding": {**place, "color": channels["color"], "tooltip": tips, "opacity": FADED},
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


def _chart(
    frame: pd.DataFrame, title: str, layers: Sequence[Spec], references: Sequence[Line] = (), *,
    height: int,
) -> Chart:  # fmt: skip
    if frame.empty:
        return Chart(visible(title), words(title))
    named = [at for at, layer in enumerate(layers) if "color" in layer.get("encoding", {})]
    if named and len(set(frame.get("series", ()))) > 1:
        # In the first layer that has the legend: of merged legends the first is asked.
        first = dict(layers[named[0]])
        first["params"] = [*first.get("params", []), LEGEND]
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
        "strokeDash": DASHES[line.kind],
        "strokeWidth": 1.3,
    }
    words: Spec = {
        "type": "text",
        "aria": False,
        "color": MUTED,
        "text": visible(line.text),
        "fontSize": 11.5,
    }
    left = line.flipped == (line.axis == "y")
    words |= {"align": "left", "dx": 4} if left else {"align": "right", "dx": -4}
    if line.axis == "y":
        words |= {"dy": -7, "x": 0 if left else "width"}
    else:
        words |= {"y": 0, "baseline": "top", "dy": 3}
    one: Spec = {"values": [{}]}
    return [
        {"data": one, "mark": rule, "encoding": at},
        {"data": one, "mark": words, "encoding": at},
    ]


def _among(frame: pd.DataFrame, looks: Looks) -> tuple[pd.DataFrame, Looks]:
    """`frame` with a `series`, and the looks of those that it has."""
    if "series" not in frame:
        frame = frame.assign(series=looks.names[0])
    return frame, looks.among(frame["series"])


def _said(frame: pd.DataFrame, columns: Sequence[str]) -> list[Spec]:
    return [
        _tip(column, heading(column), text=not is_numeric_dtype(frame[column]))
        for column in columns
    ]


def _tip(field: str, title: str, *, text: bool = False) -> Spec:
    """What is said on hover; numbers to three digits."""
    form = {"format": ",.3~r", "type": "quantitative"}
    return {"field": field, "title": title, **({} if text or field in _TEXT else form)}


_TEXT = {"name", "interval", "x_interval", "series"}


def _with_interval(frame: pd.DataFrame, value: str, along: str = "") -> pd.DataFrame:
    """`frame` with the interval in words; rows without a value are left out."""
    shown, ends = frame[frame[value].notna()], (f"{along}low", f"{along}high")
    if ends[0] not in shown:
        return shown
    words = [
        f"{number(low)} to {number(high)}" if pd.notna(low) and pd.notna(high) else "not known"
        for low, high in zip(*(shown[end] for end in ends), strict=True)
    ]
    return shown.assign(**{f"{along}interval": words})
