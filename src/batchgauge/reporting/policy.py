"""What a page may do: run the one script of its own, show pictures that are inside, nothing else.

A second wall behind escaping: were a tag of somebody else's to reach a page, the browser
would still run no script of it, load nothing and send nothing.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path

SCRIPT = (Path(__file__).parent / "template" / "report" / "page.js").read_text(encoding="utf-8")


def content_policy() -> str:
    """The value of a page's Content-Security-Policy: `SCRIPT` by its digest, and no other."""
    digest = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode("ascii")
    return (
        f"default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
        "img-src data:; base-uri 'none'; form-action 'none'"
    )
