"""Still pictures of a Vega-Lite specification, and the script that brings it to life on a page.

All by `vl-convert-python`, which has the whole of Vega inside and asks nobody: PNG for Markdown
and notebooks, SVG in the page's own colours for what stands there without JavaScript, and one
bundle of vega, vega-lite and vega-embed for the page that does run it.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from batchgauge.files import atomic_path
from batchgauge.reporting.chart_parts import DOMAIN, Spec
from batchgauge.reporting.palette import GRID, INK, MUTED

# Pixels of a picture for each one that it takes on a page.
SCALE = 2
# The version whose Vega is the bundle's. JupyterLab shows version 5 by itself, which the charts
# name; everything they use is the same in both.
VEGA_LITE = "6.4"
_SCHEMA = f"https://vega.github.io/schema/vega-lite/v{VEGA_LITE}.json"
# What a page calls these colours, in light and in dark (`page.css`).
_THEMED: Mapping[str, str] = {
    INK: "var(--ink)",
    MUTED: "var(--soft)",
    DOMAIN: "var(--soft)",
    GRID: "var(--line)",
    "#0072B2": "var(--blue)",
    "#D55E00": "var(--vermilion)",
    "#009E73": "var(--green)",
    "#CC79A7": "var(--pink)",
    "#56B4E9": "var(--sky)",
    "#E69F00": "var(--orange)",
    "#8C6D1F": "var(--ochre)",
    "#7F3C8D": "var(--purple)",
    "#444444": "var(--grey)",
    "#999999": "var(--grey)",
}
_COLOUR = re.compile("|".join(map(re.escape, _THEMED)), re.IGNORECASE)
_BY_LOWER = {name.lower(): variable for name, variable in _THEMED.items()}
_ID = re.compile(r'(?<=id=")(?=clip|gradient)|(?<=url\(#)')
_SIZE = re.compile(r'(<svg[^>]*?) width="[\d.]+" height="[\d.]+"')


def save_png(spec: Spec, path: Path, alt: str) -> Path:
    """Save `spec` as a PNG at 2x on white, in 256 colours, whole or not at all; `path`."""
    import vl_convert

    drawn = vl_convert.vegalite_to_png(
        {**spec, "$schema": _SCHEMA, "background": "white", "padding": 12},
        vl_version=VEGA_LITE,
        scale=SCALE,
    )
    return in_few_colours(io.BytesIO(drawn), path, alt)


def in_few_colours(drawn: io.BytesIO, path: Path, alt: str) -> Path:
    """Save a drawn picture as a PNG in 256 colours, whole or not at all; `path`."""
    words = PngInfo()
    words.add_itxt("Description", alt)
    with Image.open(drawn) as full, atomic_path(path) as temporary:
        few = full.convert("RGB").quantize(256, dither=Image.Dither.NONE)
        few.save(temporary, "PNG", optimize=True, pnginfo=words)
    return path


def svg(spec: Mapping[str, Any], name: str) -> str:
    """The still picture as an SVG element for a page, without a title, in the page's colours.

    `name` keeps the ids of one page's pictures apart.
    """
    import vl_convert

    drawn = vl_convert.vegalite_to_svg(dict(for_page(spec)), vl_version=VEGA_LITE)
    return _SIZE.sub(r"\1", _ID.sub(f"{name}-", drawn), count=1)


def for_page(spec: Mapping[str, Any]) -> Spec:
    """`spec` in the page's colours, its title left to the page."""
    kept = {key: value for key, value in deepcopy(dict(spec)).items() if key != "title"}
    kept["$schema"] = _SCHEMA
    text = _COLOUR.sub(lambda match: _BY_LOWER[match[0].lower()], json.dumps(kept))
    themed: Spec = json.loads(text)
    return themed


def json_block(spec: Mapping[str, Any]) -> str:
    """`spec` as the content of a script element: nothing in it ends the element."""
    text = json.dumps(for_page(spec), ensure_ascii=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")


@cache
def bundle() -> str:
    """vega, vega-lite and vega-embed as one script that sets `vegaEmbed`; about 0.9 MB."""
    import vl_convert

    script: str = vl_convert.javascript_bundle(
        "window.vegaEmbed = vegaEmbed;", vl_version=VEGA_LITE
    )
    return script
