"""Annotated source listings: each line of a `LineProfile` with its hits, share and heat colour.

A listing shows itself as HTML in a notebook and as a code block in Markdown.
"""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import Any

import pandas as pd

from batchgauge.profiling.lines import LineProfile
from batchgauge.text import escaped, fenced, percent

_COLUMNS = (("share", "right"), ("hits", "right"), ("line", "right"), ("source", "left"))


class Listing:
    """An annotated source listing: shows itself as HTML, and as a code block in Markdown."""

    def __init__(self, profile: LineProfile, functions: Sequence[str]) -> None:
        """The listing of `functions` (qualified names); cold stretches are folded away."""
        frame = profile.frame
        self._parts = [(name, _fold(frame[frame["function"] == name])) for name in functions]

    def _repr_html_(self) -> str:
        out = ["<div class='listing' style='overflow-x:auto'>"]
        for name, rows in self._parts:
            share = sum(row.share for row in rows if row is not None)
            out.append(
                f"<table style='border-collapse:collapse;font:12px/1.45 monospace;width:100%;"
                f"color:#1a1a1a;background:#fff;margin:0 0 1em'><caption style='text-align:left;"
                f"font-weight:bold;caption-side:top'>{html.escape(name)}: {percent(share, 1)} of "
                f"the lines' time</caption><thead><tr>"
                + "".join(
                    f"<th scope='col' style='text-align:{side};padding:0 .8em 0 .3em'>{title}</th>"
                    for title, side in _COLUMNS
                )
                + "</tr></thead><tbody>"
            )
            for row in rows:
                if row is None:
                    out.append("<tr><td></td><td></td><td></td><td>⋮</td></tr>")
                    continue
                cells = (percent(row.share, 1), f"{row.hits:,}") if row.hits else ("", "")
                numbers = "".join(
                    f"<td style='text-align:right;padding:0 .8em 0 .3em'>{cell}</td>"
                    for cell in (*cells, row.line)
                )
                out.append(
                    f"<tr style='background:{heat_colour(row.share)}'>{numbers}<td style='"
                    f"text-align:left;white-space:pre;padding:0 .3em'>"
                    f"{html.escape(row.source)}</td></tr>"
                )
            out.append("</tbody></table>")
        return "".join([*out, "</div>"])

    def _repr_markdown_(self) -> str:
        out = []
        for name, rows in self._parts:
            out += [f"**{escaped(name)}**", ""]
            lines = ["  share       hits  line  source"]
            for row in rows:
                if row is None:
                    lines.append("                       ⋮")
                elif row.hits:
                    lines.append(
                        f"{percent(row.share, 1):>7} {row.hits:10,d} {row.line:5d}  {row.source}"
                    )
                else:
                    lines.append(f"{'':7} {'':10} {row.line:5d}  {row.source}")
            out += [fenced("\n".join(lines)), ""]
        return "\n".join(out)


def _fold(frame: pd.DataFrame) -> list[Any]:
    """The first row, and those with 0.5 % of the run and two around each; None marks a gap."""
    warm = [i for i, share in enumerate(frame["share"]) if share >= 0.005]
    keep = {0} | {j for i in warm for j in range(i - 2, i + 3)}
    rows: list[Any] = []
    last = -1
    for i, row in enumerate(frame.itertuples()):
        if i not in keep:
            continue
        if i != last + 1:
            rows.append(None)
        rows.append(row)
        last = i
    if last != len(frame) - 1:
        rows.append(None)
    return rows


def heat_colour(share: float) -> str:
    """White to orange with the square root of the share; dark text stays legible on all of it."""
    strength = min(1.0, max(0.0, share)) ** 0.5
    red, green, blue = (round(255 + strength * (end - 255)) for end in (244, 140, 60))
    return f"#{red:02x}{green:02x}{blue:02x}"
