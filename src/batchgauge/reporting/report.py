"""What a notebook says about itself: answer, findings, figures, tables, CSV, scores.

A notebook begins one `Report`, hands it data frames and figures, and finishes it.
Each call shows something in the notebook, marked in the output's metadata, from
which `batchgauge.reporting.export` makes the page; the numbers and sentences also
go to `data/<name>_facts.json`, from which `batchgauge.reporting.index` makes the
scorecard. Leaves out measuring (it takes data frames) and HTML.

    report = Report.begin("tour", title="A tour", question="What happens to a prompt?")
    report.csv(frame, "tokens")
    report.figure(fig, "tokens_chart", alt="…", caption="…")
    report.answer(f"{len(frame)} tokens went in.")
    report.finish()
"""

from __future__ import annotations

import base64
import json
import math
import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from batchgauge.errors import UserError
from batchgauge.files import check_folders, write_csv, write_text
from batchgauge.machine.identity import Machine, git_commit, versions
from batchgauge.redaction import redacted
from batchgauge.reporting import render, tables
from batchgauge.reporting.chart_parts import MIME, Chart
from batchgauge.reporting.model import is_reference, named, served
from batchgauge.reporting.parameters import check_injected
from batchgauge.reporting.profiles import Profile, profile_named
from batchgauge.reporting.project import project_root, results_folder
from batchgauge.reporting.score import Answer, Score
from batchgauge.text import Markdown, escaped, one_line, sentences, visible

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

    from batchgauge.reporting.result import Section

# Under this key an output's metadata says what it is: {"kind": "figure", "alt": …, …}.
METADATA_KEY = "batchgauge"
# Rows of a table that is folded, and of one whose figure shows the same.
_LONG, _LONG_BEHIND = 24, 6
_ALT_MOST = 300  # characters of an alternative text, about
_NAME = re.compile(r"[a-z][a-z0-9_]*")


def marks(output: Mapping[str, Any]) -> Mapping[str, Any]:
    """What a notebook's output says that it is; empty for one that no report made."""
    said: Mapping[str, Any] = output.get("metadata", {}).get(METADATA_KEY, {})
    return said


@dataclass(slots=True)
class Report:
    """One notebook's report; made by `begin`, closed by `finish`.

    `columns` are conditions of the whole run; a CSV has those that its frame does not say itself.
    """

    name: str
    title: str
    question: str
    budget: Profile
    out_dir: Path
    seed: int
    parameters: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    columns: Mapping[str, Any] = field(default_factory=dict)
    _started: float = field(default_factory=time.monotonic)
    _answer: Answer = field(default_factory=lambda: Answer(""))
    _findings: list[str] = field(default_factory=list)
    _scores: dict[str, Score] = field(default_factory=dict)
    _files: list[str] = field(default_factory=list)

    @classmethod
    def begin(
        cls,
        name: str,
        *,
        title: str,
        question: str,
        profile: str | Profile = "default",
        out_dir: str | Path = "",
        seed: int = 0,
        parameters: Mapping[str, Any] | None = None,
    ) -> Report:
        """Start the report `name`, the stem of its files, under `out_dir` (empty: the default).

        Holds what papermill injected against the parameters cell. Raises UserError for an
        unknown profile or parameter, a seed that is no whole number >= 0, a name that is no file
        stem, or a folder that cannot be written to.
        """
        _prepare_notebook()
        if not _NAME.fullmatch(name):
            raise UserError(
                f"The report name '{name}' is no file stem; expected lower case letters, "
                "digits and underscores."
            )
        if isinstance(seed, bool) or not isinstance(seed, int) or seed < 0:
            raise UserError(f"The seed is {seed!r}; expected a whole number of at least 0.")
        title, question = one_line(title), one_line(question)
        folder = Path(str(out_dir)) if str(out_dir) else results_folder()
        budget = profile_named(profile)
        check_folders(folder / "data", folder / "reports")
        given = dict(parameters or {})
        model = named(given) if "model" in given else {}
        if given.get("model"):
            given["model"] = Path(given["model"]).name  # folders are nobody's business
        report = cls(name, title, question, budget, folder, seed, redacted(given), model)
        said = f"{title} · profile {budget.name}, {_time_it_takes(folder, name, budget)}"
        _show({"text/plain": said}, kind="header", title=title, question=question, name=name)
        return report

    def csv(self, frame: pd.DataFrame, name: str) -> Path:
        """Write `frame` to `data/<report>_<name>.csv`, whole or not at all; its path.

        Values are written as they are, so that they can be read back: a text that begins
        with `=` stays one, and a spreadsheet should import such columns as text. What has no end
        is missing.
        """
        path = self.path("data", f"{self.name}_{name}.csv")
        more = {name: value for name, value in self.columns.items() if name not in frame}
        frame = frame.replace([math.inf, -math.inf], math.nan)
        write_csv(frame.assign(**more) if more else frame, path)
        return path

    def figure(
        self, figure: Figure | Chart, name: str, *, alt: str, caption: str,
        frames: Mapping[str, pd.DataFrame] | None = None, csv: str = "", rests_on: str = "",
    ) -> Path:  # fmt: skip
        """Save `figure` as `reports/figures/<name>.png` at 2x, show it, close it; its path.

        `alt` says what the picture shows to one who cannot see it, `caption` stands below, and
        with it the CSV (`csv`, else the first of `frames`) and what it rests on (`rests_on`, else
        what the frames say). A `Chart` is alive in JupyterLab and on the page, and written as
        `<name>.vl.json` too; matplotlib's figures get their looks from `plots.use_theme()`.
        """
        alt, caption = _plain(alt), _plain(caption)
        path = self.path("reports", "figures", f"{name}.png")
        about = {
            "file": f"figures/{path.name}",
            "title": figure.title if isinstance(figure, Chart) else "",
            "caption": caption,
            "csv": next((f"data/{self.name}_{n}.csv" for n in (csv, *(frames or ())) if n), ""),
            "basis": rests_on or tables.basis(*(frames or {}).values()),
            "alt": alt,
        }
        data: dict[str, Any] = {"text/plain": alt}
        if isinstance(figure, Chart):
            spec = {**figure.full(alt), "usermeta": {METADATA_KEY: about}}
            render.save_png(spec, path, alt)
            text = json.dumps(spec, separators=(",", ":"))
            write_text(text, self.path("reports", "figures", f"{name}.vl.json"))
            data[MIME] = spec
        else:
            from batchgauge.reporting import plots  # slow to load, and most figures are charts

            plots.save(figure, path, alt)
        png = path.read_bytes()
        data["image/png"] = base64.b64encode(png).decode("ascii")
        width = int.from_bytes(png[16:20], "big") // render.SCALE
        shown = {"image/png": {"alt": alt, "width": width}}
        _show(data, shown=shown, kind="figure", width=width, **about)
        _show({"text/markdown": f"*{escaped(caption)}*", "text/plain": caption}, kind="caption")
        return path

    def table(self, frame: pd.DataFrame, *, caption: str, folded: bool = False) -> None:
        """Show `frame`: sortable in HTML, a pipe table in Markdown. Units go to the headings.

        A `folded` one opens on a click on its caption.
        """
        caption = _plain(caption)
        markdown = tables.to_markdown(frame, caption)
        data = {"text/plain": markdown, "text/markdown": markdown}
        html = tables.to_html(frame, caption)
        _show({**data, "text/html": html}, kind="table", caption=caption, folded=folded)

    def finding(self, sentence: str) -> None:
        """Say what the figure or table above shows; a sentence generated from its data.

        Shown as it is, whatever it quotes; emphasis, code and links of our own come as
        `batchgauge.text.Markdown`.
        """
        said = escaped(sentence)
        self._findings.append(said)
        _show({"text/plain": said.plain, "text/markdown": said}, kind="finding")

    def answer(self, answer: str | Answer) -> None:
        """The answer to the question, for the first screen: text or `Markdown`, as in `finding`."""
        if not isinstance(answer, Answer):
            answer = Answer(answer)
        said = escaped(answer.text)
        self._answer = replace(answer, text=said)
        data = {"text/plain": f"Answer. {said.plain}", "text/markdown": f"**Answer.** {said}"}
        _show(data, kind="answer", text=said)

    def score(self, score: Score) -> None:
        """Put one measured target on the scorecard; others' goals are not comparable."""
        is_ours = is_reference(self.model, self.parameters.get("engine"))
        score = replace(score, comparable=not score.of_model or is_ours)
        self._scores[score.key] = score
        text, label = score.sentence(), one_line(score.label)
        data = {"text/plain": text, "text/markdown": escaped(text)}
        about: dict[str, Any] = {"verdict": score.verdict, "aim": score.aim()}
        _show(data, kind="score", label=label, measured=score.measured(), **about)

    def show(self, *results: Section) -> None:
        """All of each result: CSV files, figure with alt text, table, finding, scores."""
        for result in results:
            for name, frame in result.frames().items():
                self.csv(frame, name)
            drawn = result.draw()
            if drawn:
                figure, caption = drawn
                alt = alt_text(figure, result.sentence())
                self.figure(
                    figure, result.name, alt=alt, caption=caption, frames=result.frames(),
                    csv=result.csv, rests_on=result.rests_on,
                )  # fmt: skip
            if shown := result.table():
                frame, caption = shown
                long = len(frame) > (_LONG_BEHIND if drawn else _LONG)
                self.table(frame, caption=caption, folded=long)
            sentence = result.sentence()
            if document := result.svg():
                path = self.path("reports", "figures", f"{result.name}.svg")
                write_text(visible(document), path)
                sentence = escaped(sentence) + Markdown(f" [Explore it](figures/{path.name}).")
            if sentence:
                self.finding(sentence)
            for score in result.scores():
                self.score(score)

    def finish(self, engine: object = None) -> Path:
        """Write `data/<report>_facts.json`; its path. Raises UserError when no answer was given.

        An `engine` that has `conditions` (how a server was asked) has them written too.
        """
        if not self._answer.text:
            raise UserError(
                f"The report '{self.name}' has no answer yet; call report.answer first."
            )
        path = self.out_dir / "data" / f"{self.name}_facts.json"
        facts = {
            "report": self.name,
            "title": self.title,
            "question": self.question,
            "answer": self._answer.text,
            "figure": self._answer.figure,
            "tiles": [asdict(tile) for tile in self._answer.tiles],
            "findings": self._findings,
            "scores": [{**asdict(s), "verdict": s.verdict} for s in self._scores.values()],
            "files": self._files,
            "profile": self.budget.name,
            "seed": self.seed,
            "parameters": self.parameters,
            **self.model,
            "seconds": round(time.monotonic() - self._started, 1),
            "git_commit": git_commit(),
            "machine": Machine.here().describe(),
            "versions": versions(),
            "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        told = getattr(engine, "conditions", None)
        if told is not None:
            facts["conditions"] = told()
            if name := facts["conditions"].get("model served"):
                facts |= served(name)
        facts = redacted(facts)
        write_text(json.dumps(facts, indent=2, ensure_ascii=False, default=str) + "\n", path)
        _show({"text/plain": f"Wrote {path.name}."}, kind="footer")
        return path

    def path(self, *parts: str) -> Path:
        """Where a file of this report goes under its folder; noted in the facts."""
        name = "/".join(parts)
        if name not in self._files:
            self._files.append(name)
        return self.out_dir.joinpath(*parts)


def _prepare_notebook() -> None:
    """Hold what was injected or assigned against the parameters cell, where there is a notebook.

    From now on a `UserError` of its kernel is one sentence without a traceback; an error still, so
    that the cell fails, and with it whoever runs the notebook. Raises UserError.
    """
    from IPython.core.getipython import get_ipython

    shell: Any = get_ipython()
    if shell is not None:
        shell.set_custom_exc((UserError,), _say)
        check_injected(shell.user_ns, shell.user_ns.get("In", []))


def _say(
    shell: Any, kind: type[BaseException], error: BaseException, trace: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:  # fmt: skip
    del trace, tb_offset  # IPython hands them over; the sentence says it all
    said = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, said)  # noqa: SLF001 - how IPython has a handler show its own
    return said


def alt_text(figure: Figure | Chart, sentence: str) -> str:
    """What a picture says to who cannot see it: its title and finding, at most two sentences."""
    title = figure.title if isinstance(figure, Chart) else _title(figure)
    said = _plain(sentence)
    title = "" if not title or title.rstrip(".") in said else f"{title.rstrip('.')}. "
    if isinstance(sentence, Markdown) and "\n" in sentence:  # a list: its parts are text already
        return title.strip() or one_line(said.splitlines()[0].removeprefix("- "))
    first, *more = [part for part in (title.strip(), *sentences(said)) if part][:2] or [""]
    # A long second one lists values: the figure says them itself.
    return " ".join([first, *(part for part in more if len(first) + len(part) < _ALT_MOST)])


def _title(figure: Figure) -> str:
    drawn = [figure.get_suptitle(), *(ax.get_title(loc="left") for ax in figure.axes)]
    return one_line(next(filter(None, drawn), ""))


def _plain(text: str) -> str:
    return text.plain if isinstance(text, Markdown) else one_line(text)


def _time_it_takes(folder: Path, name: str, budget: Profile) -> str:
    """How long the report `name` will take: as long as the last time, here or in the reference."""
    for place in (folder, project_root()):
        try:
            facts = json.loads((place / "data" / f"{name}_facts.json").read_text(encoding="utf-8"))
            if facts["profile"] == budget.name:
                return f"which took {_rounded(float(facts['seconds']))} the last time"
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return f"{_rounded(budget.seconds)} of measuring, and as long again to prepare it"


def _rounded(seconds: float) -> str:
    """`40 s`, `3 minutes`."""
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} minutes"


def _show(
    data: dict[str, Any], *, kind: str, shown: dict[str, Any] | None = None, **said: Any
) -> None:
    """Display a bundle marked with what it is; plain text where there is no notebook."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.display import display

    if not InteractiveShell.initialized():
        return
    marks = {METADATA_KEY: {"kind": kind, **said}}
    data = {m: visible(value) if isinstance(value, str) else value for m, value in data.items()}
    metadata = redacted({**marks, **(shown or {})})
    display(data, raw=True, metadata=metadata)  # type: ignore[no-untyped-call]  # IPython's
