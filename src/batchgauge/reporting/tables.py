"""Data frames as tables to read: rounded numbers, units in the headings, HTML and Markdown.

The HTML carries each cell's full value in `data-value`, which the page's script
sorts by. Leaves out styling: the page's style sheet has it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from html import escape
from numbers import Integral, Real
from typing import Any

import pandas as pd

from batchgauge.text import WIDE, Markdown, counted, escaped

# Column names end in their unit; headings show it in brackets. Longest match first.
_UNITS: Mapping[str, str] = {
    "_tokens_per_s": "tokens/s",
    "_items_per_s": "items/s",
    "_bytes_per_s": "bytes/s",
    "_per_s": "per s",
    "_percent": "%",
    "_bytes": "bytes",
    "_mib": "MiB",
    "_ms": "ms",
    "_us": "µs",
    "_s": "s",
    "_x": "×",
}
# What a figure may rest on: the column with the number of the one, or numbers of it.
_BASES = {
    "block": "blocks",
    "round": "rounds",
    "call": "calls",
    "seed": "seeds",
    "run": "runs",
    "process": "processes",
}
_ACRONYMS = {"kv": "KV", "ttft": "TTFT", "rss": "RSS", "cpu": "CPU", "blas": "BLAS", "url": "URL"}


def heading(column: object) -> str:
    """`wall_ms` becomes `wall (ms)`, `kv_cache_bytes` becomes `KV cache (bytes)`."""
    name = str(column)
    suffix = _suffix(name)
    words = name.removesuffix(suffix).split("_") if suffix else name.split("_")
    text = " ".join(_ACRONYMS.get(word, word) for word in words).strip()
    return f"{text} ({_UNITS[suffix]})" if suffix else text


def unit_of(column: str) -> str:
    """The unit that a column's name ends in; empty without one."""
    return _UNITS.get(_suffix(column), "")


def _suffix(name: str) -> str:
    return next((s for s in _UNITS if name.endswith(s) and name != s), "")


def number(value: object, digits: int = 3) -> str:
    """A value as it is shown: integers whole with thin groups, reals to `digits` figures.

    A missing or endless value is a dash; text stays as it is.
    """
    if isinstance(value, bool):
        return "yes" if value else "no"
    if value is None or value is pd.NA or value is pd.NaT:
        return "–"
    if isinstance(value, Integral):
        return f"{int(value):,}"
    if isinstance(value, Real):
        real = float(value)
        if not math.isfinite(real):
            return "–"
        if real == 0:
            return "0"
        size = math.floor(math.log10(abs(real)))
        if size < -4:
            return f"{real:.{digits - 1}e}"
        rounded = round(real, digits - 1 - size)
        return f"{rounded:,.{max(0, digits - 1 - size)}f}"
    return str(value)


def column(values: pd.Series[Any]) -> list[str]:
    """The values of one column as they are shown: reals with the same number of decimals.

    So many that the middle one of the sizes has three figures; what is not zero and would read as
    zero is `< 0.01`.
    """
    if not _is_numeric(values):
        return [number(value) for value in values]
    reals = pd.to_numeric(values, errors="coerce").astype(float)
    sizes = sorted(abs(v) for v in reals if math.isfinite(v) and v != 0)
    whole = all(v == int(v) for v in reals if math.isfinite(v)) and (not sizes or sizes[-1] < 1e15)
    places = 0
    if sizes and not whole:
        middle = sizes[len(sizes) // 2]
        places = min(max(2 - math.floor(math.log10(middle)), 0), 4)
    least = 0.5 * 10.0**-places
    small = f"< {10.0**-places:.{places}f}"
    shown = (small if 0 < v < least else f"{v:,.{places}f}" for v in reals)
    return [text if math.isfinite(v) else "–" for v, text in zip(reals, shown, strict=True)]


def to_html(frame: pd.DataFrame, caption: str) -> str:
    """`frame` as one `<figure class="table">` with a caption; numbers align right."""
    frame = _without_wide(frame)
    heads, cells = "", []
    for name in frame.columns:
        numeric = _is_numeric(frame[name])
        kind = ' class="number"' if numeric else ""
        heads += f'<th scope="col"{kind}>{escape(heading(name))}</th>'
        both = zip(frame[name], column(frame[name]), strict=True)
        cells.append([_cell(value, text, numeric) for value, text in both])
    body = (f"<tr>{''.join(row)}</tr>" for row in zip(*cells, strict=True))
    return (
        '<figure class="table"><div class="scroll" tabindex="0" role="group" '
        f'aria-label="{escape(caption, quote=True)}">'
        f"<table><thead><tr>{heads}</tr></thead><tbody>{''.join(body)}</tbody></table></div>"
        f"<figcaption>{escape(caption)}</figcaption></figure>"
    )


def to_markdown(frame: pd.DataFrame, caption: str) -> Markdown:
    """`frame` as a Markdown pipe table with its caption in italics below."""
    frame = _without_wide(frame)
    numeric = [_is_numeric(frame[c]) for c in frame.columns]
    heads = [escaped(heading(c)) for c in frame.columns]
    marks = [Markdown("--:") if n else Markdown(":--") for n in numeric]
    shown = [[escaped(text) for text in column(frame[c])] for c in frame.columns]
    rows = zip(*shown, strict=True)
    table = "\n".join(f"| {' | '.join(cells)} |" for cells in (heads, marks, *rows))
    return Markdown(f"{table}\n\n*{escaped(caption)}*")


def _without_wide(frame: pd.DataFrame) -> pd.DataFrame:
    """`frame` with dashes for the intervals of ratios that are no result, as in `text.ratio`."""
    shown = frame.copy()
    for low in (c for c in frame.columns if str(c).endswith("low_x")):
        high = f"{low.removesuffix('low_x')}high_x"
        if high in frame:
            ends = frame[[low, high]].apply(pd.to_numeric, errors="coerce")
            is_told = (ends[low] > 0.0) & (ends[high] <= WIDE * ends[low])
            shown[[low, high]] = ends.where(is_told)
    return shown


def basis(*frames: pd.DataFrame) -> str:
    """What frames rest on, as their columns say: `12 blocks, 3 processes`; else empty.

    What has neither processes nor runs nor seeds was measured in the notebook's own process.
    """
    said = {}
    for one, many in _BASES.items():
        counts: list[int] = []
        for frame in frames:
            if many in frame:
                counts += [int(n) for n in frame[many].dropna()]
            elif not counts and {one, "benchmark", "is_warmup"} <= set(frame):
                timed = frame[~frame["is_warmup"].astype(bool)]
                counts += timed.groupby("benchmark")[one].nunique().tolist()
            elif one == "seed" and not counts and len(drawn := set(frame.get(one, ()))) > 1:
                counts = [len(drawn)]
        if counts:
            low, high = f"{min(counts):,}", f"{max(counts):,}"
            few = f"{low} to {high} {many}" if low != high else counted(max(counts), one, many)
            said[one] = few
    if said and not said.keys() & {"process", "run", "seed"}:
        said["process"] = "1 process"
    return ", ".join(said.values())


def _is_numeric(column: pd.Series[Any]) -> bool:
    """Numbers, also where some are missing; truth values are words."""
    if pd.api.types.is_bool_dtype(column):
        return False
    if pd.api.types.is_numeric_dtype(column):
        return True
    known = [v for v in column if v is not None and v is not pd.NA]
    return bool(known) and all(isinstance(v, Real) and not isinstance(v, bool) for v in known)


def _cell(value: object, text: str, numeric: bool) -> str:
    exact = f' class="number" data-value="{escape(str(value))}"' if numeric else ""
    return f"<td{exact}>{escape(text)}</td>"
