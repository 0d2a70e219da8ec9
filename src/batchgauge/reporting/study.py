"""The study: every notebook in order through papermill, its pages, the index. Resumes.

One kernel at a time (timings are never parallel; a smoke run, whose figures only show
that everything works, has more), each with single-thread BLAS and without this machine's
OpenBLAS overrides. A notebook is not run again while its key (parameters, content, code,
commit, and the contents of every input) and the files it wrote are as they were. One study
at a time writes to a folder. A notebook that fails is kept as
`reports/notebooks/<report>.failed.ipynb`, and the files of its last good run stay.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import nbformat
from nbformat import NotebookNode

from batchgauge.errors import UserError
from batchgauge.files import check_folders, write_text
from batchgauge.lock import locked
from batchgauge.machine.identity import versions
from batchgauge.machine.limits import usable_cores, usable_memory
from batchgauge.reporting.export import export, write_notebook
from batchgauge.reporting.index import facts_of, write_index
from batchgauge.reporting.inputs import digest_of, inputs
from batchgauge.reporting.kernel import execute, kernel_environment, results
from batchgauge.reporting.model import check_runs
from batchgauge.reporting.page import relinked
from batchgauge.reporting.parameters import Parameter, declared, typed
from batchgauge.reporting.profiles import profile_named
from batchgauge.reporting.project import kernel_folder, notebooks_folder, results_folder
from batchgauge.reporting.report import marks
from batchgauge.text import visible

_REPORT = re.compile(r"Report\.begin\(\s*[\"'](\w+)[\"']")
_ROOM_FOR_ONE = 4 * 2**30  # bytes of a kernel and of the processes that it starts
_MOST_AT_ONCE = 4


@dataclass(frozen=True, slots=True)
class Book:
    """One notebook of the study, with the report that it makes and its parameters."""

    path: Path
    report: str
    known: Mapping[str, Parameter]


@dataclass(slots=True)
class Outcome:
    """What a study did: reports made, reports that were still good, notebooks that failed."""

    made: list[str] = field(default_factory=list)
    kept: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def books(folder: Path, only: Sequence[str] = ()) -> list[Book]:
    """The numbered notebooks of `folder` in order; `only` picks by number, stem or report name.

    Raises UserError for a folder without notebooks, one that cannot be read, and a name
    that fits none.
    """
    found = []
    for path in sorted(folder.glob("[0-9][0-9]_*.ipynb")):
        notebook = _read(path, "expected the project's")
        named = next(filter(None, (_REPORT.search(c.source) for c in notebook.cells)), None)
        report = named[1] if named else path.stem[3:]
        try:
            found.append(Book(path, report, declared(notebook)))
        except SyntaxError as error:
            raise UserError(f"The parameters of '{path}' are no Python: {error}.") from None
    if not found:
        raise UserError(f"No notebooks (NN_name.ipynb) in '{folder}'; expected the project's.")
    called = [{b.path.stem, b.path.stem[:2], b.path.stem[3:], b.report} for b in found]
    wanted = [name.removesuffix(".ipynb").rpartition("/")[2] for name in only]
    for name in wanted:
        if not any(name in names for names in called):
            every = ", ".join(b.path.stem for b in found)
            raise UserError(f"No notebook is called '{name}'; expected one of {every}.")
    both = zip(found, called, strict=True)
    return [b for b, names in both if names & set(wanted)] if only else found


def run_study(
    *,
    profile: str = "default",
    out_dir: Path | None = None,
    parameters: Mapping[str, Any] | None = None,
    only: Sequence[str] = (),
    again: bool = False,
    notebooks: Path | None = None,
) -> Outcome:
    """Run the notebooks, write their pages under `out_dir` (None: `results_folder`), and the index.

    A parameter goes to each notebook that declares it. Bad input stops the study, any
    other failure of a notebook does not keep the rest from running. Progress is printed.

    Raises:
        UserError: an unknown profile, notebook or parameter, a model that cannot be run or
            does not fit in memory, a folder that cannot be written to or that another study
            writes to, before anything is run; at the end, when a notebook failed (exit code 1).
    """
    folder = notebooks or notebooks_folder()
    chosen = books(folder, only)
    given = checked(parameters or {}, profile, chosen)
    check_runs(given, kernel_folder(chosen[0].path))
    if named := given.pop("out_dir", ""):
        out_dir = out_dir or Path(named)
    out = out_folder(out_dir or results_folder())
    given["out_dir"] = str(out)
    with locked(out):
        _sweep(out)
        try:
            return _run(books(folder), chosen, given, out, again=again)
        finally:
            _sweep(out)  # a killed study's kernel may write for a second after it


def checked(given: Mapping[str, Any], profile: str, chosen: Sequence[Book]) -> dict[str, Any]:
    """The parameters of a study of `chosen`, each of its declared type. Raises UserError."""
    every = {name: p for book in chosen for name, p in book.known.items()}
    return typed({**given, "profile": profile_named(profile).name}, every)


def out_folder(out: Path) -> Path:
    """`out`, absolute, made and seen to be writable. Raises UserError."""
    try:
        out = out.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, up to Python 3.12
        raise UserError(f"Nothing can be written to the folder '{out}': {error}.") from None
    check_folders(out / "data", out / "reports" / "notebooks", out / ".cache" / "study")
    return out


def _run(
    every: Sequence[Book],
    chosen: Sequence[Book],
    given: Mapping[str, Any],
    out: Path,
    *,
    again: bool,
) -> Outcome:
    names = {book.path.name: book.report for book in every}
    outcome = Outcome()
    to_run: list[tuple[Book, Callable[[], _Problem | None]]] = []
    for book in chosen:
        own = {name: value for name, value in given.items() if name in book.known}
        key = _key(book, own)
        _put_back(out, _before(book, out))  # of a study that was killed
        if not again and _is_finished(book, key, out):
            say(f"{book.path.name}: finished before, kept.")
            outcome.kept.append(book.report)
            continue
        to_run.append((book, partial(_run_one, book, own, key, out, names)))
    with kernel_environment():
        problems = results([run for _, run in to_run], _at_once(given["profile"]))
        try:
            for (book, _), problem in zip(to_run, problems, strict=True):
                if problem is None:
                    outcome.made.append(book.report)
                    continue
                outcome.failed[book.path.name] = problem.text
                if problem.is_input:
                    problems.close()
                    raise UserError(f"{book.path.name}: {problem.text}")
        finally:
            _sweep(out)  # what still runs beside is abandoned; its parameters may hold a key
    index = write_index(out, [book.report for book in every])
    if outcome.failed:
        reasons = " ".join(f"{name}: {text}" for name, text in outcome.failed.items())
        raise UserError(
            f"{len(outcome.failed)} of {len(chosen)} notebooks failed. {reasons}", exit_code=1
        )
    say(f"Open {_short(index)}")
    return outcome


def write_pages(
    *, out_dir: Path | None = None, only: Sequence[str] = (), notebooks: Path | None = None
) -> list[Path]:
    """Write pages and index again from the executed notebooks under `out_dir`; nothing is run.

    Raises UserError when there is no executed notebook to write from, or it is no notebook.
    """
    folder = notebooks or notebooks_folder()
    out = out_folder(out_dir or results_folder())
    written = []
    with locked(out):
        every = books(folder)
        names = {name: b.report for b in every for name in (b.path.name, f"{b.report}.ipynb")}
        for book in books(folder, only):
            path = out / "reports" / "notebooks" / f"{book.report}.ipynb"
            if not path.is_file():
                continue
            executed = relinked(_read(path, "run the study again"), _one_folder_up)
            facts = facts_of(out, book.report)
            if facts is None:
                raise UserError(f"The facts of '{book.report}' are not there; run the study again.")
            written += export(executed, facts, out / "reports", names)
        if not written:
            raise UserError(f"No executed notebooks under '{_short(out)}'; run the study first.")
        return [*written, write_index(out, [book.report for book in every])]


def _one_folder_up(href: str) -> str:
    """A link of an executed notebook, from where the notebook stood: one folder less deep."""
    return href[3:] if href.startswith("../../") else href


@dataclass(frozen=True, slots=True)
class _Problem:
    text: str
    is_input: bool


def _run_one(
    book: Book, parameters: Mapping[str, Any], key: str, out: Path, names: Mapping[str, str]
) -> _Problem | None:
    from papermill.exceptions import PapermillExecutionError

    state, before = _state(book, out), _before(book, out)
    with suppress(OSError, ValueError, KeyError, TypeError):  # nothing was made before
        files = json.loads(state.read_text(encoding="utf-8"))["files"]
        set_aside([*files, str(state.relative_to(out))], out, before)
    state.unlink(missing_ok=True)
    working = state.with_suffix(".ipynb")
    working.parent.mkdir(parents=True, exist_ok=True)
    failed = out / "reports" / "notebooks" / f"{book.report}.failed.ipynb"
    try:
        executed = execute(book.path, parameters, working)
        facts = _facts(executed, out)
        pages = export(executed, facts, out / "reports", names)
        made = [str(page.relative_to(out)) for page in pages]
        made += [f"data/{facts['report']}_facts.json", *facts["files"]]
        digests = {file: digest_of(out / file) for file in made}
        write_text(json.dumps({"key": key, "files": digests}), state)
        shutil.rmtree(before, ignore_errors=True)  # the new run is good
    except (PapermillExecutionError, UserError, OSError) as error:
        problem = _problem(error)
        with suppress(UserError, OSError, ValueError):  # no room for it, or only half of it
            write_notebook(nbformat.read(working, as_version=4), failed, names)
            problem = replace(problem, text=f"{problem.text} (kept as {_short(failed)})")
        return problem
    finally:
        working.unlink(missing_ok=True)
        _put_back(out, before)
    failed.unlink(missing_ok=True)
    return None


def _problem(error: Exception) -> _Problem:
    """What went wrong in one sentence: the notebook's own where it raised a UserError."""
    if isinstance(error, OSError):
        where = f" ('{error.filename}')" if error.filename else ""
        return _Problem(f"the system refused: {error.strerror or error}{where}.", is_input=True)
    name = getattr(error, "ename", None)
    if name is None or name == "UserError":
        is_input = name is not None or isinstance(error.__cause__, OSError)
        return _Problem(getattr(error, "evalue", str(error)), is_input)
    cell = getattr(error, "exec_count", "?")
    return _Problem(f"{name} in cell {cell}: {getattr(error, 'evalue', '')}", is_input=False)


def _at_once(profile: str) -> int:
    """Kernels side by side: one; in a smoke run one more than cores, as far as memory has room.

    A notebook at times waits: for requests to come, for a process that it started or killed.
    """
    if profile != "smoke":
        return 1
    room = int(usable_memory()[1] // _ROOM_FOR_ONE)
    return max(1, min(usable_cores() + 1, room, _MOST_AT_ONCE))


def _facts(executed: NotebookNode, out: Path) -> dict[str, Any]:
    """What the report that an executed notebook began says of itself; UserError without one."""
    said = [marks(output) for cell in executed.cells for output in cell.get("outputs", [])]
    begun = next((about["name"] for about in said if about.get("kind") == "header"), "")
    facts = facts_of(out, begun)
    if facts is None:
        raise UserError("it ran to its end without finishing its report")
    return facts


def _read(path: Path, remedy: str) -> NotebookNode:
    try:
        return nbformat.read(path, as_version=4)
    except (OSError, ValueError, AttributeError, nbformat.ValidationError):
        raise UserError(f"'{_short(path)}' is no notebook; {remedy}.") from None


def _state(book: Book, out: Path) -> Path:
    return out / ".cache" / "study" / f"{book.path.stem}.json"


def _before(book: Book, out: Path) -> Path:
    """Where the files of the last good run are kept while the notebook runs again."""
    return _state(book, out).with_suffix(".before")


def set_aside(files: Iterable[str], out: Path, folder: Path) -> None:
    """Link `files` (relative to `out`) into `folder`; without hard links nothing is kept.

    Every file is written under another name and then renamed, so a link keeps the old content and
    takes no room; putting it back is a rename, which a full disk allows.
    """
    with suppress(OSError):
        for file in files:
            kept = folder / file
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.hardlink_to(out / file)


def _put_back(out: Path, folder: Path) -> None:
    """Make the files under `out` again what `set_aside` kept in `folder`, if it kept any."""
    for kept in sorted(folder.rglob("*")):
        if kept.is_file():
            with suppress(OSError):
                kept.replace(out / kept.relative_to(folder))
    shutil.rmtree(folder, ignore_errors=True)


def _is_finished(book: Book, key: str, out: Path) -> bool:
    """Whether the report was made from just this, and its files are still what was written."""
    try:
        state = json.loads(_state(book, out).read_text(encoding="utf-8"))
        if state["key"] != key:
            return False
        return all(digest and digest_of(out / f) == digest for f, digest in state["files"].items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _key(book: Book, parameters: Mapping[str, Any]) -> str:
    """A digest of what decides about the report: notebook, code, parameters, inputs, versions."""
    digest = hashlib.sha256()
    package = Path(__file__).parents[1]
    for path in [book.path, *sorted(package.rglob("*.py"))]:
        digest.update(path.read_bytes())
    rest = {
        "parameters": {n: v for n, v in parameters.items() if n != "out_dir"},
        "inputs": inputs(parameters, book.known, kernel_folder(book.path)),
        "versions": versions(),
    }
    digest.update(json.dumps(rest, sort_keys=True, default=str).encode())
    return digest.hexdigest()


def _sweep(out: Path) -> None:
    """Remove what a study that ended early left: temporary files and working notebooks."""
    cache = out / ".cache" / "study"
    for folder in (out / "data", out / "reports", cache):
        for leftover in folder.rglob(".*.partial"):
            leftover.unlink(missing_ok=True)
    for working in cache.glob("*.ipynb"):
        working.unlink(missing_ok=True)


def say(text: str) -> None:
    """Print `text`, with what cannot be seen in it made visible."""
    click.echo(visible(text))


def _short(path: Path) -> str:
    """`path` as it is called from here."""
    here = Path.cwd().resolve()
    return str(path.relative_to(here)) if path.is_relative_to(here) else str(path)
