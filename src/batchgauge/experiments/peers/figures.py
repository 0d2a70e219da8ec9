"""The peers notebook's pictures, made from its tables."""

from __future__ import annotations

import pandas as pd

from batchgauge.reporting import charts, palette
from batchgauge.reporting.charts import Chart
from batchgauge.reporting.tables import number
from batchgauge.text import counted

TOLD_APART = ("faster", "slower")
_OPEN = {  # verdicts that say neither, in words
    "not told apart": "the two are not told apart",
    "inconclusive": "the interval is too wide to say",
    "too few": "there are too few processes to say",
    "unstable": "a side is too unstable to say",
}
NOBODY = "No other engine is installed"


def tokenizing(table: pd.DataFrame, title: str, state: str) -> Chart:
    """MB/s against batch size, one panel a text length; `table` is of one thread."""
    table = table.drop_duplicates(["implementation", "characters", "batch_size"])
    table = table.sort_values(["characters", "batch_size"], kind="stable")
    names = table["implementation"].replace("llama-cpp", "llama-cpp:tokenizer")
    shown = table[["batch_size", "value", "low", "high"]].assign(
        series=[palette.label(name) for name in names],
        panel=[f"{length:,} characters" for length in table["characters"]],
    )
    x = charts.Axis("batch_size", "batch size (texts)", 2, sorted(set(table["batch_size"])))
    ticks = charts.powers(*(shown[c] for c in ("low", "high", "value")))
    y = charts.Axis("value", f"MB/s, {state} (logarithmic)", 10, ticks)
    return charts.facets(charts.lines(shown, title, x, y, charts.Looks.of(names)), "panel", 3)


def decode(table: pd.DataFrame) -> Chart:
    """Decode tokens a second against batch size, a line an engine; `table` is of one thread."""
    every = table[table["part"] == "decode"]
    table = every.drop_duplicates(["implementation", "batch_size"])
    looks = charts.Looks.of(table["implementation"])
    columns = ["batch_size", "value", "low", "high"]
    shown = table[columns].assign(series=[palette.label(n) for n in table["implementation"]])
    x = charts.Axis("batch_size", "batch size (requests)", 2, sorted(set(table["batch_size"])))
    y = charts.Axis("value", "decode throughput, one thread (tokens/s)")
    return charts.lines(shown, _headline(every), x, y, looks)


def ratios(every: pd.DataFrame) -> Chart:
    """Our throughput over each peer's, a row a shape, a dot a peer, with intervals.

    `every` has all comparisons; those without a ratio are only counted, in the title.
    """
    order = ["part", "ours", "threads", "batch_size", "tokens"]
    table = every.dropna(subset=["ours_over_theirs_x"]).sort_values(order, kind="stable")
    rows = table.to_dict("records")
    bare = int(_counts(every).sum()) - len(rows)
    title = _headline(every) + (f" ({bare} unstable, not drawn)" if bare else "")
    if not rows:
        return Chart(title, charts.words(title))
    names = [
        f"{r['part']} {r['batch_size']}"
        + (f" × {r['tokens']}" if r["part"] == "prefill" else "")
        + f" · {r['ours'].partition(':')[2]}, {r['threads']} thr."
        for r in rows
    ]
    looks = charts.Looks.of(table["implementation"])
    series = [palette.label(str(r["implementation"])) for r in rows]
    shown = table.drop(columns=["low", "high"]).assign(name=names, series=series)
    shown = shown.rename(columns={"ratio_low_x": "low", "ratio_high_x": "high"})
    ticks = charts.powers(shown["low"], shown["high"])
    x = charts.Axis(
        "ours_over_theirs_x", "our throughput ÷ theirs (×); right of 1 we are faster",
        2, ticks,
    )  # fmt: skip
    even = charts.Line(1.0, "as fast as ours", "x", "floor")
    return charts.dots(shown, title, x, looks, [even], more=["ours_is"])


def _headline(table: pd.DataFrame) -> str:
    """How often we win and lose, and the worst: the page's answer has the rest."""
    is_ = _counts(table)
    if is_.empty:
        return NOBODY
    said = (
        f"Faster than other engines in {is_.get('faster', 0)} of {is_.sum()}, "
        f"slower in {is_.get('slower', 0)}"
    )
    return said + _worst(table)


def _counts(table: pd.DataFrame) -> pd.Series[int]:
    return table.loc[table["ours_is"] != "", "ours_is"].value_counts()


def _worst(table: pd.DataFrame) -> str:
    lost = told_apart(table).sort_values("ours_over_theirs_x").query("ours_is == 'slower'")
    return f"; at worst {_one(lost.iloc[0])}" if len(lost) else ""


def verdicts(table: pd.DataFrame, what: str = "engines") -> str:
    """How many comparisons we win and lose, how many have no verdict and why, and the worst."""
    return tally(table, what) + _worst(table)


def losses_without_ratio(table: pd.DataFrame) -> str:
    """`; slower without a ratio: tiktoken (batch 1, 32 characters, cold)`; empty for none."""
    lost = table[(table["ours_is"] == "slower") & table["ours_over_theirs_x"].isna()]
    said = [_one(row).partition("× ")[2] for _, row in lost.iterrows()]
    return f"; slower without a ratio: {', '.join(said)}" if said else ""


def tally(table: pd.DataFrame, what: str = "engines") -> str:
    """`Of 9 comparisons with other engines we are faster in 8 and slower in 0; in 1 …`."""
    is_ = _counts(table)
    said = (
        f"Of {counted(int(is_.sum()), 'comparison')} with other {what} we are faster in "
        f"{is_.get('faster', 0)} and slower in {is_.get('slower', 0)}"
    )
    bare = int((table["ours_is"].isin(TOLD_APART) & table["ours_over_theirs_x"].isna()).sum())
    said += f" (in {bare} of these without a ratio, since a side is unstable)" if bare else ""
    return said + "".join(f"; in {is_[n]} {words}" for n, words in _OPEN.items() if n in is_)


def told_apart(table: pd.DataFrame) -> pd.DataFrame:
    """The comparisons with a ratio in which somebody is surely faster: the best and the worst."""
    return table[table["ours_is"].isin(TOLD_APART) & table["ours_over_theirs_x"].notna()]


def extremes(table: pd.DataFrame, what: str = "engines") -> str:
    """The best and the worst comparison of those that are told apart."""
    ordered = told_apart(table).sort_values("ours_over_theirs_x")
    if ordered.empty:
        return f"{tally(table, what)}."
    best, worst = ordered.iloc[-1], ordered.iloc[0]
    if len(ordered) == 1:
        return f"The only ratio that could be told from 1: {_one(best)}."
    return f"At best {_one(best)}, at worst {_one(worst)}."


def _one(row: pd.Series) -> str:
    """`0.48 × llama.cpp (decode, batch 1)`."""
    ratio, peer = number(row["ours_over_theirs_x"], 2), palette.label(str(row["implementation"]))
    said = [str(row["part"])] if "part" in row else []
    said.append(f"batch {row['batch_size']}")
    if row.get("characters"):
        said.append(f"{row['characters']:,} characters")
    said += [str(row[key]) for key in ("state",) if key in row]
    if mode := str(row.get("ours", "")).partition(":")[2]:
        said.append(mode)
    if "threads" in row:
        said.append(f"{row['threads']} thr.")
    return f"{ratio} × {peer} ({', '.join(said)})"
