"""Figures that can be asked: Vega-Lite specifications made from data frames.

One specification is the whole figure: `batchgauge.reporting.render` makes the still pictures
of it, a page and JupyterLab show it alive (hover, zoom, legend). Everything here draws what it
is given; nothing measures. Widths are those of the still picture, a page gives its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from batchgauge.reporting.chart_parts import (
    DASHES,
    FADED,
    LEGEND,
    MIME,
    NEAREST,
    WIDTH,
    ZOOM,
    ZOOM_X,
    Axis,
    Chart,
    Line,
    Looks,
    Spec,
    faded,
    powers,
    records,
)
from batchgauge.reporting.plots import MUTED
from batchgauge.reporting.tables import heading, number
from batchgauge.text import visible

__all__ = [
    "MIME",
    "Axis",
    "Chart",
    "Line",
    "Looks",
    "Spec",
    "dots",
    "facets",
    "lines",
    "powers",
    "scatter",
    "speedup",
    "stacked",
    "words",
]


def lines(
    frame: pd.DataFrame, title: str, x: Axis, y: Axis, looks: Looks,
    references: Sequence[Line] = (), *, more: Sequence[str] = (),
) -> Chart:  # fmt: skip
    """A line a series with its 95 % interval as a band.

    `frame` has `series`, the columns of both axes, and `low` and `high` where there are intervals;
    `more` columns are said on hover.
    """
    shown = _with_interval(frame, y.field)
    looks = looks.among(shown["series"])
    channels = looks.channels()
    place = {"x": x.encoding(), "y": y.encoding(), "color": channels["color"]}
    banded = "low" in shown
    band = [_band(place)] if banded else []
    tips = [_tip("series", "")] if len(looks.names) > 1 else []
    tips += [_tip(x.field, x.title), _tip(y.field, y.title)]
    tips += [{"field": "interval", "title": "95 % interval"}] if banded else []
    tips += [_tip(column, heading(column)) for column in more]
    layers = [
        *band,
        {
            "mark": {"type": "line", "strokeWidth": 2},
            "encoding": {**place, "opacity": FADED},
        },
        {
            "mark": {"type": "point", "filled": True, "size": 70},
            "encoding": {**place, "shape": channels["shape"], "tooltip": tips, "opacity": FADED},
            "params": [ZOOM, NEAREST],
        },
    ]
    return _chart(shown, title, layers, references, height=300)


def _band(place: Spec) -> Spec:
    low = {**place["y"], "field": "low"}
    return {
        "mark": {"type": "area", "opacity": 0.16},
        "encoding": {**place, "y": low, "y2": {"field": "high"}, "opacity": faded(0.16, 0.02)},
    }


def dots(
    frame: pd.DataFrame, title: str, x: Axis, looks: Looks, references: Sequence[Line] = (), *,
    more: Sequence[str] = (),
) -> Chart:  # fmt: skip
    """One row a `name`, top to bottom, a dot a `series` with its interval as a bar.

    `frame` has `name`, `series`, the column of `x`, `low` and `high`; `more` columns are said on
    hover. Several series of one row stand below each other; a row without a value stays empty.
    """
    shown = _with_interval(frame, x.field)
    looks = looks.among(shown["series"])
    channels = looks.channels()
    names = list(dict.fromkeys(frame["name"]))
    y: Spec = {
        "field": "name", "type": "nominal", "sort": names, "scale": {"domain": names},
        "axis": {"title": None, "labelLimit": 260, "grid": False, "ticks": False, "domain": False},
    }  # fmt: skip
    crowded = bool(shown.duplicated("name").any())
    beside = {"field": "series", "type": "nominal", "scale": {"domain": list(looks.names)}}
    offset = {"yOffset": beside} if crowded else {}
    place = {"y": y, **offset, "color": channels["color"], "opacity": FADED}
    low = {**x.encoding(), "field": "low"}
    tips = [{"field": "name", "title": ""}]
    tips += [_tip("series", "")] if len(looks.names) > 1 else []
    tips += [_tip(x.field, x.title), {"field": "interval", "title": "95 % interval"}]
    tips += [_tip(column, column.replace("_", " ")) for column in more]
    rule = {"x": low, "x2": {"field": "high"}, **place, "opacity": faded(0.5, 0.06)}
    layers: list[Spec] = [
        {"mark": {"type": "rule", "strokeWidth": 4}, "encoding": rule},
        {
            "mark": {"type": "point", "filled": True, "size": 80},
            "encoding": {"x": x.encoding(), **place, "shape": channels["shape"], "tooltip": tips},
            "params": [ZOOM_X],
        },
    ]
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
                "params": [ZOOM, NEAREST],
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


def facets(
    chart: Chart, by: str, columns: int, *, own: Sequence[str] = (), height: int = 190
) -> Chart:
    """`chart` as small multiples: a panel for each value of the column `by`, in their order.

    `columns` panels stand beside each other, on a narrow page one. Axes named in `own` ("x", "y")
    have a scale of each panel's own and are not zoomed. A line break in a value begins a new line.
    """
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
