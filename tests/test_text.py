"""Text that is not ours: shown literally in Markdown, visible on a terminal, whatever it is."""

from __future__ import annotations

import html
import math
import re
import unicodedata

import mistune
import numpy as np
import pytest
from nbconvert.filters.markdown_mistune import markdown2html_mistune
from tests import hostile

from batchgauge.errors import UserError
from batchgauge.text import Markdown, code, escaped, fenced, figures, one_line, visible

CASES = [
    *hostile.ALL.values(),
    hostile.EVERYTHING,
    hostile.FILE_NAME,
    *("# x", "- a", "+ a", "1. a", "1) a", "12", "---", "===", "> q", "    code", "```", "~~~"),
    *("a_b", "__init__", "_x_", "-_x_", "*b*", "**c**", "a|b", "[1, 2.5] ×", "[1](x)", "[x]: y"),
    *("[^1]: note", "![x](attachment:a.png)", "- [ ] x", "<!-- x -->", "&#60;b&#62;", "&lt;", "\\"),
    *("1 \\* 2", "$x$ $$y$$", "\\(a\\) \\[b\\]", "\\\\(a\\\\) \\\\[b\\\\]", "\\begin{a}x\\end{a}"),
    *("https://a.b www.a.b HTTP://x", "<https://a.b>", "Term\n: def", "a  \nb", "\ud800", "-2.5"),
]  # fmt: skip
READERS = {
    "nbconvert": markdown2html_mistune,
    "mistune": mistune.create_markdown(
        escape=False, plugins=["table", "strikethrough", "url", "footnotes", "task_lists"]
    ),
}


def shown(page: str) -> str:
    """The text of one paragraph without a single element inside; else what there was."""
    paragraph = re.fullmatch(r"<p>([^<]*)</p>\s*", page)
    return html.unescape(paragraph[1]) if paragraph else page


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("text", CASES, ids=range(len(CASES)))
def test_escaped_text_is_shown_as_it_is(reader, text):
    """One paragraph that reads like the text, alone and in a cell; and back again."""
    assert shown(reader(escaped(text))) == one_line(text)
    table = reader(f"| a | b |\n| --- | --- |\n| {escaped(text)} | y |\n")
    cells = re.findall(r"<td>([^<]*)</td>", table)
    assert [html.unescape(cell) for cell in cells] == [one_line(text), "y"]
    assert escaped(text).plain == one_line(text)


def test_no_text_becomes_an_element():
    """Random strings of what Markdown and HTML are made of: still only text."""
    pieces = [*"<>&|`*_~[]()!#+-=:.\\$\"'/ \n\t1ab;^", "http://", "www.", "<b>", "&lt;", "__"]
    for seed in range(400):
        rng = np.random.default_rng(seed)
        text = "".join(rng.choice(pieces, size=int(rng.integers(1, 25))))
        for name, reader in READERS.items():
            if one_line(text):
                assert shown(reader(escaped(text))) == one_line(text), (seed, name, text)


def test_nothing_unseen_is_left():
    """Every control, surrogate, separator and override of Unicode gets a glyph; letters stay."""
    every = "".join(map(chr, range(0x3000)))
    seen = visible(every + "\ud800\udfff\ufffe")
    kept = {c for c in seen if unicodedata.category(c) in {"Cc", "Cs", "Zl", "Zp"}}
    assert kept == {"\n", "\t"}
    assert not {unicodedata.bidirectional(c) for c in seen} & {"RLO", "LRO", "RLE", "LRE", "RLI"}
    assert visible("a\r\nb\rc\u2028d\x85e") == "a\nb\nc\nd\ne"
    for text in (
        "👩‍👩‍👧 हिन्दी مرحبا",
        "tab\there",
        "\u200fשלום",
    ):  # joiners and marks of real scripts
        assert visible(text) == text


def test_markdown_escapes_what_is_put_into_it():
    """Formatting, adding and joining escape text and leave Markdown; numbers keep their format."""
    bold = Markdown("**{}**").format("<b>")
    assert bold == "**&lt;b&gt;**"
    assert Markdown("{} has {:.0%}: {}").format(bold, 0.5, "a|b") == f"{bold} has 50%: a\\|b"
    assert bold + " <i>" == f"{bold} &lt;i&gt;"
    assert "<i> " + bold == f"&lt;i&gt; {bold}"
    assert Markdown("; ").join(["<", bold]) == f"&lt;; {bold}"
    assert all(isinstance(m, Markdown) for m in (bold + "x", "x" + bold, Markdown("").join([])))
    assert escaped(bold) is bold


def test_code_spans_cannot_be_left():
    """A Python name is set as code; what could end the span, or begin a tag, is plain text."""
    assert code("Blocked.<locals>.<lambda>:3") == "`Blocked.<locals>.<lambda>:3`"
    for text in (hostile.TAG, "a`b", "$x$", "\\"):
        assert code(text) == escaped(text)
    block = fenced("a\n```\n<b>\n````")
    assert markdown2html_mistune(block).count("<pre") == 1
    assert "&lt;b&gt;" in markdown2html_mistune(block)


def test_error_sentences_are_one_visible_line():
    """Whatever a sentence quotes, a terminal is not told anything by it."""
    said = str(UserError(f"No such file: '{hostile.EVERYTHING}'"))
    assert said == visible(said)
    assert "\n" not in said
    assert "␛[31mevil" in said


@pytest.mark.parametrize(
    ("value", "digits", "said"),
    [(3.94e-06, 2, "0.0000039"), (-4e-06, 2, "-0.000004"), (0.0, 2, "0"), (0.47, 2, "0.47"),
     (9.996e-05, 3, "0.0001"), (1239.6, 3, "1,240"), (math.nan, 3, "nan"), (math.inf, 3, "inf")],
)  # fmt: skip
def test_figures_have_no_exponent(value, digits, said):
    """However small: a page is read, not parsed."""
    assert figures(value, digits) == said
