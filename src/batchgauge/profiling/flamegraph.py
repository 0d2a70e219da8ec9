"""Flame graphs of a `StackProfile`: a matplotlib figure, and one SVG file to explore.

Width is weight, a frame stands on its caller, colour is the class of code
(`stacks.KIND_LABELS`). Frames narrower than `smallest` of the whole are folded
into their caller. The SVG carries its own script and style and loads nothing:
click or press Enter on a frame to zoom in, on the bottom row to zoom out; type
to mark matching frames. Left-to-right order is alphabetical, not time.
"""

from __future__ import annotations

import html
from dataclasses import dataclass
from typing import TYPE_CHECKING

from batchgauge import extras
from batchgauge.profiling.stacks import KIND_LABELS, Kind, Node, StackProfile
from batchgauge.text import figures, percent

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Light tints of the Okabe-Ito palette: told apart with any colour vision, dark text on all.
COLOURS: dict[Kind, str] = {
    "python": "#9ccbea",
    "numpy": "#f5b95a",
    "native": "#7fcdb0",
    "waiting": "#cfcfcf",
}


@dataclass(frozen=True, slots=True)
class Box:
    """One rectangle: left edge and width as shares of the whole, row from the bottom."""

    node: Node
    left: float
    width: float
    row: int


def layout(profile: StackProfile, *, smallest: float = 0.004, rows: int = 60) -> list[Box]:
    """Boxes of the flame graph, bottom row first; narrower than `smallest` or higher: folded."""
    root = profile.tree()
    boxes: list[Box] = []
    if not root.weight:
        return boxes
    waiting = [(root, 0.0, 0)]
    while waiting:
        node, left, row = waiting.pop(0)
        boxes.append(Box(node, left, node.weight / root.weight, row))
        if row + 1 >= rows:
            continue
        for child in sorted(node.children.values(), key=lambda c: (c.frame.name, c.frame.file)):
            if child.weight / root.weight >= smallest:
                waiting.append((child, left, row + 1))
            left += child.weight / root.weight
    return boxes


def amount(weight: float, unit: str) -> str:
    """A weight for people: `1.24 s`, `3.1 ms`, `18 MB`."""
    steps: tuple[tuple[float, str], ...] = ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs"))
    if unit == "bytes":
        steps = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"), (1.0, "B"))
    scale, name = next((step for step in steps if weight >= step[0]), steps[-1])
    return f"{figures(weight / scale)} {name}"


def draw_flamegraph(profile: StackProfile, *, title: str, rows: int = 16) -> Figure:
    """The flame graph as a figure for a page: 9 inches wide, at most `rows` levels high."""
    extras.require("A flame graph as a figure", "study", "matplotlib")
    import matplotlib.pyplot as plt
    from matplotlib.patches import Patch

    boxes = layout(profile, smallest=0.008, rows=rows)
    levels = 1 + max((box.row for box in boxes), default=0)
    fig, ax = plt.subplots(figsize=(9.0, 0.27 * levels + 1.25), layout="constrained")
    for box in boxes:
        colour = "#eeeeee" if box.row == 0 else COLOURS[box.node.frame.kind]
        ax.barh(
            box.row, box.width, left=box.left, height=0.94, color=colour, edgecolor="white",
            linewidth=0.6,
        )  # fmt: skip
        text = _caption(box, profile, box.width * 8.5 * 72 - 4)
        ax.text(
            box.left + 0.003, box.row, text, va="center", ha="left", fontsize=8, color="#111111",
            clip_on=True,
        )  # fmt: skip
    ax.set(xlim=(0, 1), ylim=(-0.6, levels - 0.4), yticks=[])
    ax.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0 %", "25 %", "50 %", "75 %", "100 %"])
    what = "time" if profile.unit == "s" else "bytes allocated"
    ax.set_xlabel(f"share of {what} (width); a frame stands on its caller")
    ax.grid(visible=False)
    for side in ("top", "left", "right"):
        ax.spines[side].set_visible(False)
    shares = profile.by_kind()
    handles = [
        Patch(facecolor=COLOURS[kind], label=f"{label} {percent(shares[kind])}")
        for kind, label in KIND_LABELS.items()
        if shares[kind] >= 0.005 and profile.unit == "s"
    ]
    ax.set_title(title, loc="left", fontsize=11)
    if handles:
        fig.legend(handles=handles, loc="outside lower center", ncols=4, frameon=False, fontsize=9)
    return fig


def _caption(box: Box, profile: StackProfile, width_points: float) -> str:
    """Name and share; without the class, then without the share, where that is too long."""
    if box.row == 0:
        calls = f" in {profile.calls:,} calls" if profile.calls > 1 else ""
        return f"{amount(box.node.weight, profile.unit)}{calls}, {profile.tool}"
    name = box.node.frame.name
    short = name.replace(".<locals>", "").rpartition(".")[2]
    choices = (f"{name}  {percent(box.width)}", f"{short}  {percent(box.width)}", short)
    fits = (text for text in choices if text == _fit(text, width_points, points=8.0))
    return next(fits, _fit(short, width_points, points=8.0))


def _fit(text: str, width_points: float, points: float) -> str:
    """`text` cut to what fits (a letter is taken as 0.62 em wide), empty below five letters."""
    letters = int(width_points / (0.62 * points))
    if letters >= len(text):
        return text
    return text[: letters - 1] + "…" if letters >= 5 else ""


_WIDTH, _ROW, _TOP = 1200.0, 18.0, 58.0

_STYLE = """
text{font:12px system-ui,sans-serif;fill:#111;pointer-events:none}
g.f rect{stroke:#fff;stroke-width:.7;cursor:pointer} g.f:hover rect,g.f:focus rect{stroke:#000}
g.f:focus{outline:none} g.hit rect{fill:#d55e9a} #t{font-size:15px;font-weight:600}
@media (prefers-color-scheme:dark){#bg{fill:#f4f4f4}}
"""

# `data-l` and `data-w` are left edge and width as shares: zooming maps them to the full width.
_SCRIPT = """
const W=%(width)s,S=document.documentElement,F=[...document.querySelectorAll('g.f')];
const info=document.getElementById('i');let word='';
function place(l,w){for(const g of F){const a=(+g.dataset.l-l)/w*W,b=+g.dataset.w/w*W;
const out=a+b<0.01||a>W-0.01,r=g.querySelector('rect'),t=g.querySelector('text');
g.style.display=out||b<0.3?'none':'';const x=Math.max(a,0),v=Math.min(a+b,W)-x;
r.setAttribute('x',x);r.setAttribute('width',Math.max(v-.3,.1));t.setAttribute('x',x+4);
const n=Math.floor((v-6)/6.8),s=g.dataset.n;
t.textContent=n>=s.length?s:n>2?s.slice(0,n-1)+'\\u2026':'';}}
function zoom(g){place(+g.dataset.l,+g.dataset.w)}
for(const g of F){g.addEventListener('click',()=>zoom(g));
const say=()=>{info.textContent=g.querySelector('title').textContent};
g.addEventListener('mouseenter',say);g.addEventListener('focus',say);
g.addEventListener('keydown',e=>{if(e.key==='Enter'){zoom(g);e.stopPropagation()}})}
S.addEventListener('keydown',e=>{if(e.ctrlKey||e.metaKey||e.altKey)return;
if(e.key==='Escape'){word='';place(0,1)}else if(e.key==='Backspace')word=word.slice(0,-1);
else if(e.key.length===1&&e.key!==' ')word+=e.key;else return;
let k=0;for(const g of F){const h=word&&g.dataset.n.toLowerCase().includes(word.toLowerCase());
g.classList.toggle('hit',!!h);if(h)k++}
info.textContent=word?'\\u201c'+word+'\\u201d: '+k+' frames':''});
place(0,1);
"""


def render_svg(profile: StackProfile, *, title: str) -> str:
    """The flame graph as the text of one self-contained, interactive SVG file."""
    boxes = layout(profile, smallest=0.0005)
    levels = 1 + max((box.row for box in boxes), default=0)
    height = _TOP + levels * _ROW + 34
    parts = [
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH:.0f} {height:.0f}" '
            f'role="img" aria-label="{html.escape(title)}">'
        ),
        f"<style>{_STYLE}</style>",
        f'<rect id="bg" width="{_WIDTH:.0f}" height="{height:.0f}" fill="#fff"/>',
        f'<text id="t" x="4" y="20">{html.escape(title)}</text>',
    ]
    shares = profile.by_kind()
    for i, (kind, label) in enumerate(KIND_LABELS.items()):
        at = 4 + 200 * i
        parts.append(f'<rect x="{at}" y="32" width="12" height="12" fill="{COLOURS[kind]}"/>')
        parts.append(f'<text x="{at + 17}" y="42">{label} {percent(shares[kind])}</text>')
    for box in boxes:
        frame, weight = box.node.frame, amount(box.node.weight, profile.unit)
        name = frame.label if box.row else f"all, {profile.tool}"
        tip = html.escape(f"{name}: {weight}, {percent(box.width, 2)}", quote=True)
        colour = COLOURS[frame.kind] if box.row else "#eeeeee"
        y = _TOP + (levels - 1 - box.row) * _ROW
        x, width = box.left * _WIDTH, box.width * _WIDTH
        short = frame.name if box.row else name
        parts.append(
            f'<g class="f" tabindex="0" data-l="{box.left:.6f}" data-w="{box.width:.6f}" '
            f'data-n="{html.escape(short, quote=True)}"><title>{tip}</title>'
            f'<rect x="{x:.2f}" y="{y:.1f}" width="{max(width - 0.3, 0.1):.2f}" '
            f'height="{_ROW - 1:.0f}" fill="{colour}"/><text x="{x + 4:.2f}" y="{y + 13:.1f}">'
            f"{html.escape(_fit(short, width - 6, points=12.0))}</text></g>"
        )
    hint = "Click or Enter: zoom; Escape: whole; type to search."
    parts.append(f'<text id="i" x="4" y="{height - 12:.0f}">{hint}</text>')
    script = _SCRIPT % {"width": f"{_WIDTH:.0f}"}
    parts.append(f"<script>//<![CDATA[{script}//]]></script></svg>\n")
    return "\n".join(parts)
