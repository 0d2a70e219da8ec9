"""Text that does harm wherever it is not escaped: tags, Markdown, terminal escapes, odd marks.

Each tag would set the page's title, ask the network for something, or leave an element
behind; each is told by its `evil`.
"""

from __future__ import annotations

from pathlib import Path

TAG = "<img src=x class=evil onerror=\"document.title='evil'\">"
SCRIPT = "</script></style></title></textarea><script class=evil>document.title='evil'</script>"
LINK = "[evil](javascript:document.title='evil') ![evil](https://evil.invalid/x.png)"
MARKDOWN = "**evil** `evil` ~~evil~~ | evil | $evil$ \\(evil\\) https://evil.invalid/ &lt;evil&gt;"
BLOCKS = "\n\n# evil\n\n- evil\n\n```\nevil\n```\n\n<div class=evil>\n\n| a |\n|---|\n\n[x]: evil\n"
CONTROLS = "\x1b[31mevil\x1b]0;evil\x07 \u202eevil\u2066 \x00\x85\u2028\x9bevil\r"
ATTRIBUTE = "\" onmouseover=\"document.title='evil'\" autofocus onfocus='document.title=1' x='"
SVG = "]]><svg class=evil onload=\"document.title='evil'\"><style>@import 'evil'</style>"
ALL = {
    "tag": TAG, "script": SCRIPT, "link": LINK, "markdown": MARKDOWN, "blocks": BLOCKS,
    "controls": CONTROLS, "attribute": ATTRIBUTE, "svg": SVG,
}  # fmt: skip
EVERYTHING = " ".join(ALL.values())
# As a name of a file: without a slash, and as long as a name may be.
FILE_NAME = "<img src=x class=evil onerror=document.title=1>`|$x$*_[a](b)"


def workload(folder: Path, count: int = 12) -> Path:
    """A workload file of hostile prompts, ids and kinds, in `folder`, itself with such a name."""
    import json

    rows = [
        {"id": f"{i} {text}", "kind": TAG, "prompt": f"{text} Why?"[:140]}
        for i, text in enumerate(list(ALL.values()) * 2)
    ][:count]
    path = folder / f"{FILE_NAME}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def renamed_model(source: Path, folder: Path) -> Path:
    """A copy of a GGUF in a file with a hostile name, that calls itself a tag."""
    data = bytearray(source.read_bytes())
    key = b"general.name"
    at = data.index(key) + len(key) + 4  # behind the value's type: its length, then its bytes
    length = int.from_bytes(data[at : at + 8], "little")
    data[at + 8 : at + 8 + length] = b"<b class=evil onclick=1>`|$".ljust(length)[:length]
    path = folder / f"{FILE_NAME}.gguf"
    path.write_bytes(data)
    return path
