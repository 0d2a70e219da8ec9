"""Several studies from one file, kept apart, and one page that compares them.

    profile = "smoke"                     # anything here holds for every run

    [runs.one_thread]
    threads = 1

    [runs.two_threads]
    threads = 2

(or the same in YAML). Each run writes its own `reports/matrix/<run>/{data,reports}`. With the
address of a Dask scheduler, each is run on a worker machine that it has to itself.
`price_per_hour`, of a run or of all, is what its machine costs, for the page alone.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from batchgauge import extras
from batchgauge.errors import UserError
from batchgauge.files import write_csv, write_text
from batchgauge.lock import locked
from batchgauge.redaction import redacted
from batchgauge.reporting import charts, tables
from batchgauge.reporting.export import one_blank_line, with_bundle
from batchgauge.reporting.index import Row, read_facts, render, scorecard
from batchgauge.reporting.matrix_rates import answer, rates
from batchgauge.reporting.project import notebooks_folder, results_folder
from batchgauge.reporting.render import save_png
from batchgauge.reporting.report import METADATA_KEY
from batchgauge.reporting.study import books, checked, out_folder, run_study, say
from batchgauge.text import counted

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")


@dataclass(frozen=True, slots=True)
class Run:
    """One study of the matrix: its name and its parameters, profile included."""

    name: str
    parameters: Mapping[str, Any]
    price_per_hour: float | None = None


def read_matrix(path: Path) -> list[Run]:
    """The runs of a TOML or YAML file.

    Raises UserError for a file that cannot be read, has no `runs`, or a run whose name
    is no folder name.
    """
    try:
        text = path.read_text(encoding="utf-8")
        found = tomllib.loads(text) if path.suffix == ".toml" else yaml.safe_load(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"The matrix '{path}' cannot be read: {reason}.") from None
    runs = found.get("runs") if isinstance(found, dict) else None
    if not isinstance(runs, dict) or not runs:
        raise UserError(f"The matrix '{path}' has no runs; expected [runs.NAME] with parameters.")
    common = {name: value for name, value in found.items() if name != "runs"}
    for name, own in runs.items():
        if not _NAME.fullmatch(str(name)) or not isinstance(own, dict | None):
            raise UserError(
                f"The run '{name}' of '{path}' is amiss; expected a name of letters, digits, "
                "'-', '_' and '.', with parameters below it."
            )
    return [_run(str(name), {**common, **(own or {})}) for name, own in runs.items()]


def _run(name: str, parameters: dict[str, Any]) -> Run:
    price = parameters.pop("price_per_hour", None)
    number = isinstance(price, int | float) and not isinstance(price, bool)
    if price is not None and not (number and 0 <= price < float("inf")):
        raise UserError(f"Run {name}: price_per_hour is {price!r}; expected a number from 0.")
    return Run(name, parameters, price)


def run_matrix(  # noqa: PLR0913 - each is an option of the command
    path: Path,
    *,
    profile: str = "default",
    out_dir: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    again: bool = False,
    notebooks: Path | None = None,
    dask: str = "",
) -> Path:
    """Run every study of the matrix, one after the other; the path of the comparison page.

    With `dask`, a scheduler's address, they run on its workers instead, one a machine at a
    time; their files come back, and those of an earlier run are replaced. What the file says
    about a run goes before `profile` and `parameters`. Raises UserError for bad input, and
    with exit code 1 at the end when a run had failures.
    """
    folder = notebooks or notebooks_folder()
    runs = read_matrix(path)
    chosen = books(folder, only)
    wanted: dict[str, tuple[str, dict[str, Any]]] = {}  # profile and parameters
    for run in runs:  # before the first is run
        own = {"profile": profile, **(parameters or {}), **run.parameters}
        wanted[run.name] = str(own.pop("profile")), own
        try:
            checked(own, wanted[run.name][0], chosen)
        except UserError as error:
            raise UserError(f"Run {run.name}: {error}") from None
    out = out_folder(out_dir or results_folder())
    base = out / "reports" / "matrix"
    failures: list[tuple[str, int]] = []
    with locked(out):
        if dask:
            failures += _elsewhere(wanted, dask, base, only)
        for name, (its_profile, own) in () if dask else wanted.items():
            say(f"Run {name}:")
            try:
                run_study(
                    profile=its_profile, out_dir=base / name, parameters=own, only=only,
                    again=again, notebooks=folder,
                )  # fmt: skip
            except UserError as error:
                failures.append((f"{name}: {error}", error.exit_code))
        page = write_comparison(base, runs, [book.report for book in books(folder)])
    if failures:
        raise UserError(
            f"{len(failures)} of {len(runs)} runs failed. "
            + " ".join(text for text, _ in failures),
            exit_code=max(code for _, code in failures),
        )
    say(f"Open {page}")
    return page


def _elsewhere(
    wanted: Mapping[str, tuple[str, Mapping[str, Any]]],
    address: str,
    base: Path,
    only: Sequence[str],
) -> list[tuple[str, int]]:
    """Run the studies on the workers of a Dask scheduler; what failed, with its exit code."""
    extras.require("A study on other machines", "distributed", "distributed")
    from batchgauge.reporting.matrix_dask import studies_elsewhere

    arguments = {
        run: [*only, "--profile", profile, *(w for n, v in own.items() for w in ("-p", n, str(v)))]
        for run, (profile, own) in wanted.items()
    }
    failures = []
    for done in studies_elsewhere(address, arguments):
        say(f"Run {done.name}: {done.last_line or 'done'}")
        if done.archive:
            done.unpack(base / done.name)
        if done.exit_code:
            failures.append((f"{done.name}: {done.last_line}", done.exit_code))
    return failures


def write_comparison(base: Path, runs: Sequence[Run], order: Sequence[str]) -> Path:
    """Write `index.html` and `index.md` under `base`: who is faster, every score of every run."""
    facts = {run.name: read_facts(base / run.name, order) for run in runs}
    cards = {name: scorecard(found) for name, found in facts.items()}
    scores = _frame(cards)
    given = pd.DataFrame(
        [{"run": r.name, **{n: redacted(str(v)) for n, v in r.parameters.items()}} for r in runs]
    ).fillna("–")
    machines = _machines(runs, facts, base)
    done = [run.name for run in runs if facts[run.name]]
    throughput = rates(base, done) if done else pd.DataFrame()
    picture = _picture(throughput, base)
    first = done[0] if done else ""
    ratios = f"Throughput of every run, and its ratio to '{first}' with a 95 % interval"
    shown = [
        (throughput, f"{ratios}; the machine's drift between the runs is in it."),
        (machines, "Each run's machine, its quickest batch size, and what tokens cost there."),
        (scores, "Every score of every run, with its 95 % interval."),
        (given, "What each run was given."),
    ]
    about = {
        "runs": done,
        "missing": [run.name for run in runs if run.name not in done],
        "answer": answer(throughput),
        "picture": picture,
        "key": METADATA_KEY,
        "tables": [(frame, caption) for frame, caption in shown if len(frame)],
        "to_html": tables.to_html,
        "to_markdown": tables.to_markdown,
        "counted": counted,
    }
    write_text(one_blank_line(render("comparison.md.j2", about)), base / "index.md")
    page = render("comparison.html.j2", about, alive=picture is not None)
    return write_text(with_bundle(page), base / "index.html")


def _machines(
    runs: Sequence[Run], facts: Mapping[str, Sequence[Mapping[str, Any]]], base: Path
) -> pd.DataFrame:
    """One row a run: machine and threads; where 04 ran the best batch size and what tokens cost;
    where 02 ran how far a decode step at batch 1 is from its roofline.

    Cost per million tokens = price per hour / (tokens per second x 3600) x 1,000,000.
    """
    rows = []
    for run in runs:
        said = next(iter(facts[run.name]), {})
        row: dict[str, Any] = {
            "run": run.name,
            "machine": said.get("machine", "–"),
            "threads": said.get("parameters", {}).get("threads", "–"),
        }
        sweep = base / run.name / "data" / "batch_sizing_dense_sweep.csv"
        if sweep.is_file():
            swept = pd.read_csv(sweep)
            first = "prompts" if "prompts" in set(swept["workload"]) else swept["workload"].iloc[0]
            swept = swept[swept["workload"] == first]
            best = swept.iloc[int(swept["fresh_tokens_per_s"].to_numpy().argmax())]
            rate, size = float(best["fresh_tokens_per_s"]), int(best["batch_size"])
            row |= {"workload": first, "best_batch_size": size, "tokens_per_s": round(rate, 1)}
            if run.price_per_hour is not None:
                cost = run.price_per_hour / (rate * 3600) * 1e6
                row["price_per_million_tokens"] = round(cost, 4)
        roofline = base / run.name / "data" / "bottleneck_analysis_roofline.csv"
        if roofline.is_file():
            kernels = pd.read_csv(roofline)
            steps = kernels[(kernels["kernel"] == "decode") & (kernels["batch_size"] == 1)]
            if len(steps):
                row["decode_floor_ms"] = round(float(steps["floor_ms"].iloc[0]), 2)
                row["decode_over_floor_x"] = round(float(steps["ratio"].iloc[0]), 2)
        rows.append(row)
    return pd.DataFrame(rows)


def _frame(cards: Mapping[str, Sequence[Row]]) -> pd.DataFrame:
    """One row a score, one column a run, cells with value and interval."""
    rows: dict[str, dict[str, str]] = {}
    for name, card in cards.items():
        for row in card:
            cells = rows.setdefault(row.score.key, {"target": row.score.label})
            cells[name] = row.score.measured()
    return pd.DataFrame(list(rows.values()), columns=["target", *cards]).fillna("–")


def _picture(throughput: pd.DataFrame, base: Path) -> dict[str, Any] | None:
    """The ratios to the first run, a row a kind of work, a dot a run; None without another run.

    Written as `figures/comparison.png` and `throughput.csv` under `base`.
    """
    if not len(throughput):
        return None
    write_csv(throughput, base / "throughput.csv")
    first = throughput["run"].iloc[0]
    others = throughput[throughput["run"] != first].dropna(subset=["over_first_x"])
    if others.empty:
        return None
    names = {"work": "name", "run": "series", "low_x": "low", "high_x": "high"}
    shown = others.rename(columns=names)
    ends = charts.powers(*(shown[c].dropna() for c in ("low", "high", "over_first_x")))
    x = charts.Axis("over_first_x", f"throughput ÷ that of {first} (×)", 2, ends)
    looks = charts.Looks.of(shown["series"])
    even = charts.Line(1.0, f"as fast as {first}", "x", "floor")
    title = answer(throughput).rstrip(".")
    chart = charts.dots(shown, title, x, looks, [even], more=["verdict"])
    alt = f"{title}. A dot is a run, its bar the 95 % interval."
    about = {
        "file": "figures/comparison.png", "title": title, "alt": alt,
        "caption": "Throughput over that of the first run, with 95 % intervals.",
        "csv": "matrix/throughput.csv", "basis": "",
    }  # fmt: skip
    spec = {**chart.full(alt), "usermeta": {METADATA_KEY: about}}
    save_png(spec, base / about["file"], alt)
    return spec
