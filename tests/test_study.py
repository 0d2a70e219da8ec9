"""The study runner, on small notebooks: pages, resuming, failures, matrix; no real measuring."""

from __future__ import annotations

import errno
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import nbformat
import pandas as pd
import pytest
from tests.conftest import PROJECT
from tests.small_notebook import write_notebook

from batchgauge.errors import UserError
from batchgauge.files import write_csv, write_text
from batchgauge.lock import locked
from batchgauge.reporting import Report
from batchgauge.reporting import inputs as inputs_module
from batchgauge.reporting import matrix as matrix_module
from batchgauge.reporting import study as study_module
from batchgauge.reporting.index import write_index
from batchgauge.reporting.kernel import kernel_environment, results
from batchgauge.reporting.matrix import read_matrix, run_matrix, write_comparison
from batchgauge.reporting.matrix_rates import rates
from batchgauge.reporting.study import books, run_study, set_aside, write_pages

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project of two small notebooks, with its study done."""
    folder = tmp_path_factory.mktemp("project")
    write_notebook(folder)
    write_notebook(folder, "01_second.ipynb", "second")
    study(folder)
    return folder


def study(folder, profile="smoke", **more):
    """Run the study of the notebooks in `folder`, which its files go to as well."""
    return run_study(profile=profile, notebooks=folder / "notebooks", out_dir=folder, **more)


def test_a_study_writes_every_file(project):
    """Each report has HTML, Markdown, notebook, CSV, picture and facts; the index joins them."""
    for name in ("first", "second"):
        for file in (
            f"reports/{name}.html",
            f"reports/{name}.md",
            f"reports/notebooks/{name}.ipynb",
            f"reports/figures/{name}_chart.png",
            f"data/{name}_times.csv",
            f"data/{name}_facts.json",
        ):
            assert (project / file).stat().st_size > 0, file
    index = (project / "reports" / "index.html").read_text()
    assert 'href="first.html"' in index
    assert "second.html" in index


def test_the_answer_comes_first(project):
    """The answer, computed at the end, stands before the first cell, the score with it."""
    html = (project / "reports" / "first.html").read_text()
    assert html.index("<strong>2.25 ms</strong>") < html.index('<section class="prose"')
    assert html.index("6.50 [6.00, 7.00] ×") < html.index('<section class="prose"')
    markdown = (project / "reports" / "first.md").read_text()
    assert markdown.index("**2.25 ms**") < markdown.index("## How much?")


def test_the_page_requests_nothing(project):
    """No page names an address outside: scripts, styles and pictures are inside."""
    for page in (project / "reports").glob("*.html"):
        html = page.read_text()
        assert not re.search(r"(src|href)=[\"']https?:", html), page
        assert not re.search(r"@import|url\(\s*[\"']?http", html), page
        assert len(html) < 3_000_000


def test_headings_have_anchors_of_their_own(project):
    """Two headings of one text get two anchors, and code is not taken for a heading."""
    html = (project / "reports" / "first.html").read_text()
    assert '<h2 id="how-much">' in html
    assert '<h2 id="how-much-2">' in html
    assert '<a href="#how-much-2">' in html
    assert 'id="no-heading"' not in html


def test_links_between_notebooks_lead_to_their_reports(project):
    """A link to a notebook leads to its page, its Markdown or its executed notebook."""
    reports = project / "reports"
    assert 'href="second.html"' in (reports / "first.html").read_text()
    assert "(second.md)" in (reports / "first.md").read_text()
    executed = (reports / "notebooks" / "first.ipynb").read_text()
    assert "(second.ipynb)" in executed
    assert "(../../README.md)" in executed


def test_markdown_has_pictures_and_tables(project):
    """Markdown shows the figure with its alt text, its caption, and the table with units."""
    markdown = (project / "reports" / "first.md").read_text()
    assert "![A line that rises](figures/first_chart.png)" in markdown
    assert "*Wall time.*" in markdown
    assert "| batch size | wall (ms) |" in markdown


def test_text_is_escaped(project):
    """Captions are text: a tag in one is shown, not obeyed."""
    assert "&lt;b&gt;every&lt;/b&gt;" in (project / "reports" / "first.html").read_text()


def test_this_machine_is_not_in_the_executed_notebook(project):
    """The executed notebook has no kernel paths, no papermill paths and no widget states."""
    notebook = nbformat.read(project / "reports" / "notebooks" / "first.ipynb", as_version=4)
    assert "papermill" not in notebook.metadata
    assert "widgets" not in notebook.metadata
    assert str(Path.home()) + os.sep not in nbformat.writes(notebook)


def test_finished_notebooks_are_kept(project):
    """A second study runs nothing; with `again`, or with other parameters, it does."""
    outcome = study(project)
    assert (outcome.made, outcome.kept) == ([], ["first", "second"])
    (project / "reports" / "second.html").unlink()
    outcome = study(project)
    assert (outcome.made, outcome.kept) == (["second"], ["first"])


def test_pages_come_back_from_executed_notebooks(project):
    """`batchgauge report` writes the same pages from the executed notebooks alone."""
    page = project / "reports" / "first.html"
    before = page.read_text()
    page.unlink()
    write_pages(out_dir=project, notebooks=project / "notebooks")
    assert page.read_text() == before


def test_a_failing_notebook_is_kept_and_named(tmp_path):
    """A failure keeps the partial notebook as *.failed.ipynb, no page, and the others run."""
    write_notebook(tmp_path, only="1 / 0")
    write_notebook(tmp_path, "01_second.ipynb", "second")
    with pytest.raises(UserError, match="ZeroDivisionError in cell") as caught:
        study(tmp_path)
    assert caught.value.exit_code == 1
    reports = tmp_path / "reports"
    assert (reports / "notebooks" / "first.failed.ipynb").is_file()
    assert not (reports / "first.html").exists()
    assert (reports / "second.html").is_file()


def test_a_kernel_that_dies_is_one_sentence(tmp_path):
    """A kernel killed in the middle is not started again, and what ran is kept."""
    write_notebook(tmp_path, only="import os; os._exit(9)")
    with pytest.raises(UserError, match="its kernel died"):
        study(tmp_path)
    assert (tmp_path / "reports" / "notebooks" / "first.failed.ipynb").is_file()


def test_bad_input_stops_the_study(tmp_path):
    """A UserError of a notebook is the study's one sentence, exit code 2; nothing runs after."""
    extra = (
        "from batchgauge.errors import UserError\nraise UserError('No such model; try another.')"
    )
    write_notebook(tmp_path, only=extra)
    write_notebook(tmp_path, "01_second.ipynb", "second", only="pass")
    with pytest.raises(UserError, match=r"00_first.ipynb: No such model; try another\.") as caught:
        study(tmp_path, profile="default")
    assert caught.value.exit_code == 2
    assert not (tmp_path / "reports" / "notebooks" / "second.failed.ipynb").exists()


def test_an_unfinished_report_fails(tmp_path):
    """A notebook that never calls `finish` is a failure, not an old page with a new date."""
    write_notebook(tmp_path, only="pass")
    with pytest.raises(UserError, match="without finishing its report"):
        study(tmp_path)


def test_a_kernel_that_does_not_start_is_tried_twice(tmp_path, monkeypatch):
    """One failed start is retried in silence; two are one sentence."""
    import papermill

    write_notebook(tmp_path)
    tries = []

    def fail(*args, **_):
        tries.append(args)
        raise RuntimeError("Kernel died before replying to kernel_info")

    monkeypatch.setattr(papermill, "execute_notebook", fail)
    with pytest.raises(UserError, match="did not start in two tries"):
        study(tmp_path)
    assert len(tries) == 2


def test_papermill_alone_refuses_an_unknown_parameter(tmp_path):
    """Plain papermill only warns; the notebook itself fails with one sentence."""
    import papermill

    path = write_notebook(tmp_path)
    with pytest.raises(papermill.PapermillExecutionError) as caught:
        papermill.execute_notebook(
            str(path),
            str(tmp_path / "out.ipynb"),
            parameters={"profil": "smoke", "out_dir": str(tmp_path)},
            progress_bar=False,
        )
    assert caught.value.ename == "UserError"
    assert "'profil' is unknown" in caught.value.evalue
    executed = nbformat.read(tmp_path / "out.ipynb", as_version=4)
    (error,) = [o for c in executed.cells for o in c.get("outputs", []) if o.output_type == "error"]
    assert len("\n".join(error.traceback).splitlines()) == 1  # as JupyterLab shows it
    assert "'profil' is unknown" in error.traceback[0]


def test_papermill_alone_keeps_the_types(tmp_path):
    """A list from one value, a text with an equals sign; None for a number is one sentence."""
    import papermill

    sizes = "assert isinstance(name, str) and name == 'a = b', name"
    path = write_notebook(tmp_path, extra=sizes)
    for given, said in (
        ({"name": "a = b", "seed": 3}, ""),
        ({"seed": None}, "'seed' is None; expected a whole number"),
    ):
        out = str(tmp_path / "out.ipynb")
        every = {**given, "profile": "smoke", "out_dir": str(tmp_path)}
        if not said:
            papermill.execute_notebook(str(path), out, parameters=every, progress_bar=False)
            continue
        with pytest.raises(papermill.PapermillExecutionError) as caught:
            papermill.execute_notebook(str(path), out, parameters=every, progress_bar=False)
        assert said in caught.value.evalue


def test_a_killed_study_leaves_whole_files_and_resumes(tmp_path):
    """After kill -9 there is no half file, and the next study keeps what was finished."""
    write_notebook(tmp_path)
    write_notebook(tmp_path, "01_second.ipynb", "second", extra="import time; time.sleep(60)")
    code = (
        "from pathlib import Path; from batchgauge.reporting.study import run_study; "
        f"run_study(profile='default', notebooks=Path({str(tmp_path / 'notebooks')!r}), "
        f"out_dir=Path({str(tmp_path)!r}))"
    )
    running = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    table = tmp_path / "data" / "second_times.csv"
    deadline = time.monotonic() + 120
    while not table.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert table.exists()
    assert table.read_text().endswith("\n")
    assert not (tmp_path / "reports" / "second.html").exists()
    write_notebook(tmp_path, "01_second.ipynb", "second")
    outcome = study(tmp_path, profile="default")
    assert (outcome.kept, outcome.made) == (["first"], ["second"])
    assert not list(tmp_path.rglob("*.partial"))


def test_a_matrix_keeps_its_runs_apart(tmp_path):
    """Two runs from one file: two folders, and one page that has both."""
    write_notebook(tmp_path)
    matrix = tmp_path / "runs.toml"
    matrix.write_text('profile = "smoke"\n[runs.one]\nseed = 1\n[runs.two]\nseed = 2\n')
    page = run_matrix(matrix, notebooks=tmp_path / "notebooks", out_dir=tmp_path)
    for seed, name in enumerate(("one", "two"), start=1):
        facts = page.parent / name / "data" / "first_facts.json"
        assert json.loads(facts.read_text())["seed"] == seed
        assert f"{name}/reports/index.html" in page.read_text()


def test_a_matrix_of_a_report_without_scores_has_its_runs(tmp_path):
    """The tour has no score: its runs are there, with what each got done in a second."""
    write_notebook(tmp_path)
    (tmp_path / "runs.yaml").write_text("runs: {one: {profile: smoke}, two: {profile: smoke}}")
    page = run_matrix(tmp_path / "runs.yaml", notebooks=tmp_path / "notebooks", out_dir=tmp_path)
    base = page.parent
    samples = {"part": "decode", "batch_size": 8, "implementation": "numpy", "process": 0}
    for name, speed in (("one", 1.0), ("two", 2.0)):
        data = base / name / "data"
        facts = json.loads((data / "first_facts.json").read_text())
        (data / "first_facts.json").write_text(json.dumps({**facts, "scores": []}))
        walls = [(100 + 2 * block) / speed for block in range(6)]
        frame = pd.DataFrame({**samples, "block": range(6), "wall_ms": walls, "is_warmup": False})
        write_csv(
            frame.assign(tokens=80, items=8), data / "baseline_performance_inference_samples.csv"
        )
        tour = pd.DataFrame({"batch_size": [1], "throughput_tokens_per_s": [10.0 * speed]})
        write_csv(tour, data / "tour_timings.csv")
    text = write_comparison(base, read_matrix(tmp_path / "runs.yaml"), ["first"]).read_text()
    assert "2 runs" in text
    assert "Not finished" not in text
    found = {
        (row["work"], row["run"]): row for row in rates(base, ["one", "two"]).to_dict("records")
    }
    ours = found["decode, batch 8, numpy, tokens/s", "two"]
    assert ours["over_first_x"] == pytest.approx(2.0)
    assert 1.8 < ours["low_x"] < 2.0 < ours["high_x"] < 2.2
    assert ours["verdict"] == "faster"
    single = found["tour, batch 1, tokens/s", "two"]
    assert single["over_first_x"] == pytest.approx(2.0)
    assert single["verdict"] == "too few observations"
    assert "Throughput of every run" in text
    said = "two is faster than one in 1 and slower in 0 of 2 kinds of work, most in decode, batch 8"
    assert said in text
    assert 'figure class="picture chart" id="comparison"' in text
    assert (base / "throughput.csv").is_file()
    assert (base / "figures" / "comparison.png").stat().st_size > 1000
    walls = [100.0, 101.0, 99.0, 50.0, 50.5, 49.5]  # the second process has luck with its memory
    frame = pd.DataFrame({**samples, "wall_ms": walls, "is_warmup": False, "tokens": 80})
    frame = frame.assign(process=[0] * 3 + [1] * 3, block=[0, 1, 2] * 2, items=8)
    for name in ("one", "two"):
        write_csv(frame, base / name / "data" / "baseline_performance_inference_samples.csv")
    again = rates(base, ["one", "two"]).query("run == 'two'").iloc[0]
    assert again["observations"] == 2  # the processes, not six blocks
    assert again["low_x"] < 0.2
    assert again["high_x"] > 5
    assert again["throughput_per_s"] == pytest.approx(800 * 2**0.5, rel=0.01)


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("a.toml", "runs = [", "cannot be read"),
        ("a.yaml", "runs: {a: [", "cannot be read"),
        ("a.yaml", "seed: 1", "has no runs"),
        ("a.toml", '[runs."../x"]\nseed = 1', "'../x'"),
        ("a.yaml", "runs: {a: 3}", "'a'"),
    ],
)
def test_a_bad_matrix_is_one_sentence(tmp_path, name, text, said):
    """What is wrong with the file is said before anything runs."""
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError, match=re.escape(said)):
        read_matrix(path)


def test_a_matrix_reads_yaml_like_toml(tmp_path):
    """The two notations of one matrix are the same runs; what is common goes to each."""
    (tmp_path / "a.toml").write_text("threads = 2\n[runs.x]\nseed = 1\n[runs.y]\n")
    (tmp_path / "a.yaml").write_text("threads: 2\nruns: {x: {seed: 1}, y: }\n")
    runs = read_matrix(tmp_path / "a.toml")
    assert runs == read_matrix(tmp_path / "a.yaml")
    assert runs[0].parameters == {"threads": 2, "seed": 1}


def test_notebooks_are_picked_by_any_of_their_names(project):
    """Number, stem, name and report all pick; an unknown one is refused with the known ones."""
    folder = project / "notebooks"
    for name in ("01", "01_second", "second", "notebooks/01_second.ipynb"):
        assert [b.report for b in books(folder, [name])] == ["second"]
    with pytest.raises(UserError, match="expected one of 00_first, 01_second"):
        books(folder, ["third"])
    with pytest.raises(UserError, match="No notebooks"):
        books(project)


def test_kernels_inherit_a_quiet_environment(monkeypatch):
    """One BLAS thread, a fixed hash seed, no pinned core type; all restored afterwards."""
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("BATCHGAUGE_MODEL", os.path.relpath(__file__))
    with kernel_environment():
        assert os.environ["BATCHGAUGE_MODEL"] == str(Path(__file__).resolve())
        assert "OPENBLAS_CORETYPE" not in os.environ
        assert os.environ["OMP_NUM_THREADS"] == os.environ["OPENBLAS_NUM_THREADS"] == "1"
        assert os.environ["PYTHONHASHSEED"] == "0"
    assert os.environ["OPENBLAS_CORETYPE"] == "Haswell"
    assert os.environ["OMP_NUM_THREADS"] == "7"


def test_the_key_follows_what_decides(project):
    """Other parameters or another commit make a finished notebook unfinished."""
    book = books(project / "notebooks")[0]
    assert study_module._key(book, {"seed": 1}) != study_module._key(book, {"seed": 2})


@pytest.mark.parametrize(
    ("profile", "cores", "gigabytes", "kernels"),
    [("smoke", 2, 24, 3), ("smoke", 1, 24, 2), ("smoke", 64, 512, 4), ("smoke", 8, 6, 1),
     ("smoke", 2, 1, 1), ("default", 8, 64, 1), ("thorough", 8, 64, 1)],
)  # fmt: skip
def test_only_a_smoke_run_has_kernels_side_by_side(monkeypatch, profile, cores, gigabytes, kernels):
    """As many as cores and memory allow; timings are never parallel."""
    monkeypatch.setattr(study_module, "usable_cores", lambda: cores)
    monkeypatch.setattr(study_module, "usable_memory", lambda: (2**50, gigabytes * 2**30))
    assert study_module._at_once(profile) == kernels


@pytest.mark.parametrize("at_once", [1, 2, 5])
def test_results_come_in_order_however_many_jobs_run_at_once(at_once):
    """Slow jobs first or last: their results keep their places; all jobs are done once."""
    done: list[int] = []

    def job(number):
        time.sleep(0.01 * (4 - number))
        done.append(number)
        return number

    assert list(results([partial(job, n) for n in range(5)], at_once)) == [0, 1, 2, 3, 4]
    assert sorted(done) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("at_once", [1, 2])
def test_a_job_that_raises_ends_the_rest(at_once):
    """Its error comes where its result was due, and jobs not yet begun never begin."""
    begun: list[int] = []

    def job(number):
        begun.append(number)
        time.sleep(0.05)
        if number == 1:
            raise ValueError("one")
        return number

    with pytest.raises(ValueError, match="one"):
        list(results([partial(job, n) for n in range(20)], at_once))
    time.sleep(0.2)
    assert len(begun) < 8


def test_the_key_follows_contents(tmp_path, monkeypatch):
    """Another file at the same path, size and time is another input; a mere touch is none."""
    write_notebook(tmp_path)
    book = books(tmp_path / "notebooks")[0]

    def key(**parameters: str) -> str:
        return study_module._key(book, parameters)

    file, module = tmp_path / "model.gguf", tmp_path / "mine.py"
    file.write_text("one")
    module.write_text("x = 1")
    for named in (str(file), f"hf:{file}", "model.gguf"):  # absolute, in a spec, from the project
        file.write_text("one")
        state = file.stat()
        before = key(name=named)
        os.utime(file, ns=(1, 1))
        assert key(name=named) == before
        file.write_text("two")
        os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns + 1))
        assert key(name=named) != before
        file.unlink()
        assert key(name=named) not in {before, key(name="another.gguf")}
    before = key(name="mine:make")
    module.write_text("x = 2")
    assert key(name="mine:make") != before
    before = key()
    monkeypatch.setattr(inputs_module, "_packages", lambda: ("torch 99",))
    assert key() != before


def test_the_key_follows_what_is_used_when_nothing_is_named(tmp_path, monkeypatch):
    """The default model, what BATCHGAUGE_MODEL names, the own prompts and stored runs count."""
    every = {book.report: book for book in books(PROJECT / "notebooks")}

    def keys() -> set[str]:
        return {study_module._key(every[report], {}) for report in ("tour", "regression")}

    seen = [keys()]
    model = tmp_path / "own.gguf"
    for text in ("one", "two, longer"):
        model.write_text(text)
        monkeypatch.setenv("BATCHGAUGE_MODEL", str(model))
        seen.append(keys())
    monkeypatch.setattr(inputs_module, "load_prompts", lambda: ["another prompt"])
    changed = keys()
    assert not seen[0] & seen[1]
    assert not seen[1] & seen[2]
    assert len(seen[2] & changed) == 1  # only the tour takes prompts
    folder = tmp_path / "stored"
    folder.mkdir()
    before = study_module._key(every["regression"], {"baseline_dir": str(folder)})
    (folder / "run.csv").write_text("x")
    assert study_module._key(every["regression"], {"baseline_dir": str(folder)}) != before


def test_outputs_changed_by_hand_are_made_again(project):
    """Emptied, cut or missing: a report with such a file is not finished."""
    study(project)
    book = books(project / "notebooks")[0]
    key = study_module._key(book, {"profile": "smoke"})
    state = json.loads(study_module._state(book, project).read_text())
    assert {"reports/first.html", "data/first_facts.json", "data/first_times.csv"} < {
        *state["files"]
    }
    assert study_module._is_finished(book, key, project)
    for file in map(project.joinpath, state["files"]):
        content = file.read_bytes()
        for changed in (b"", content[:-1], content + b" "):
            file.write_bytes(changed)
            assert not study_module._is_finished(book, key, project), file
        file.unlink()
        assert not study_module._is_finished(book, key, project), file
        file.write_bytes(content)
    assert study_module._is_finished(book, key, project)
    for broken in ("", "[]", "{}", '{"key": 1}'):
        study_module._state(book, project).write_text(broken)
        assert not study_module._is_finished(book, key, project)
    study_module._state(book, project).write_text(json.dumps(state))


def test_broken_facts_do_not_stop_the_index(project):
    """A report whose facts were emptied is left out of the index."""
    facts = project / "data" / "first_facts.json"
    kept = facts.read_text()
    for broken in ("", "[]", '{"report": "first"}', kept[:-9]):
        facts.write_text(broken)
        index = write_index(project, ["first", "second"]).read_text()
        assert 'href="first.html"' not in index
        assert 'href="second.html"' in index
    facts.write_text(kept)


def test_one_study_at_a_time_writes_to_a_folder(tmp_path):
    """The second says who holds the folder and runs nothing; a killed one holds nothing."""
    write_notebook(tmp_path, only="raise SystemError('ran')")
    code = (
        "import sys, time; from pathlib import Path; from batchgauge.lock import locked\n"
        f"with locked(Path({str(tmp_path)!r})):\n    print('held', flush=True); time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    for start in (
        partial(study, tmp_path),
        partial(write_pages, out_dir=tmp_path, notebooks=tmp_path / "notebooks"),
    ):
        with pytest.raises(UserError, match=rf"process {other.pid} on \S+, since 2") as caught:
            start()
        assert caught.value.exit_code == 2
    other.kill()
    other.communicate()
    with locked(tmp_path), pytest.raises(UserError, match=f"process {os.getpid()} "):
        study(tmp_path)
    with locked(tmp_path):
        pass
    assert not (tmp_path / "reports").exists() or not list((tmp_path / "reports").rglob("*.ipynb"))


def refuse(number: int):
    """What a system call does that the system refuses with this error number."""

    def refused(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number))

    return refused


@pytest.mark.parametrize("way", ["file", "data", "loop", "parent", "ENOSPC", "EROFS", "EACCES"])
def test_a_folder_that_cannot_be_written_is_said_before_anything_runs(tmp_path, monkeypatch, way):
    """A file in its place, links in a circle, no room, no right: one sentence, nothing made."""
    import papermill

    write_notebook(tmp_path)
    out = tmp_path / "out"
    said = "is a file, expected a folder"
    if way == "file":
        out.write_text("mine")
    elif way == "data":
        out.mkdir()
        (out / "data").write_text("mine")
    elif way == "parent":
        out.write_text("mine")
        out /= "deeper"
    elif way == "loop":
        out.symlink_to(out)
        said = "loop|symbolic links"
    else:
        monkeypatch.setattr(tempfile, "TemporaryFile", refuse(getattr(errno, way)))
        said = os.strerror(getattr(errno, way))
    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: pytest.fail("it ran"))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError, match=said) as caught:
        run_study(profile="smoke", notebooks=tmp_path / "notebooks", out_dir=out)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match=said):  # papermill alone: where the report begins
        Report.begin("a", title="T", question="Q?", out_dir=out)


def test_a_disk_that_fills_up_midway_is_one_sentence(project, monkeypatch):
    """In the notebook or in papermill: said once, no half file, the results before are there."""
    import papermill

    files = [p for p in project.rglob("*") if p.is_file() and ".cache" not in p.parts]
    before = {p: p.read_bytes() for p in files if p.parent.name != "notebooks"}
    full = (
        "import errno, os, tempfile\ndef full(*_, **__):\n"
        "    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))\ntempfile.mkstemp = full"
    )
    write_notebook(project, extra=full)
    with pytest.raises(UserError, match="No space left on device") as caught:
        study(project, only=["00"])
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(papermill, "execute_notebook", refuse(errno.ENOSPC))
    write_notebook(project)
    with pytest.raises(UserError, match=r"00_first\.ipynb: the system refused: No space left"):
        study(project, only=["00"], again=True)
    assert {p: p.read_bytes() for p in before} == before
    assert not list(project.rglob("*.partial"))
    assert study(project).made == []  # they are still good


def test_a_failure_leaves_the_last_good_run(project):
    """Whatever a notebook wrote before it failed or was killed, the files agree afterwards."""
    files = [p for p in project.rglob("*") if p.is_file() and "notebooks" not in p.parts]
    before = {p: p.read_bytes() for p in files if p.name != "study.lock"}
    write_notebook(project, extra='report.csv(frame * 2, "times")\n1 / 0')
    with pytest.raises(UserError, match="ZeroDivisionError"):
        study(project, only=["00"])
    assert {p: p.read_bytes() for p in before} == before
    book = books(project / "notebooks")[0]
    kept = study_module._before(book, project)
    set_aside(["data/first_times.csv"], project, kept)  # as a killed study left it
    write_text("other", project / "data" / "first_times.csv")
    write_notebook(project)
    assert study(project).made == []
    assert {p: p.read_bytes() for p in before} == before
    assert not kept.exists()


def test_a_matrix_is_checked_before_its_first_run(tmp_path, monkeypatch):
    """A parameter amiss in the last run is said at once, with the run's name."""
    write_notebook(tmp_path)
    matrix = tmp_path / "runs.toml"
    matrix.write_text("[runs.one]\nseed = 1\n[runs.two]\nseed = true\n")
    monkeypatch.setattr(
        "batchgauge.reporting.matrix.run_study", lambda *_, **__: pytest.fail("it ran")
    )
    with pytest.raises(UserError, match=r"Run two: The parameter 'seed' is True"):
        run_matrix(matrix, notebooks=tmp_path / "notebooks", out_dir=tmp_path)


def test_a_matrix_on_other_machines_gives_each_run_one_to_itself(tmp_path):
    """Files come back apart, and the page has both."""
    from distributed import LocalCluster

    matrix = tmp_path / "runs.toml"
    runs = ["profile = 'smoke'", "[runs.one]", "threads = 1", "[runs.two]", "threads = 2"]
    matrix.write_text("\n".join(runs))
    out = tmp_path / "out"
    alone = {"n_workers": 1, "threads_per_worker": 1, "dashboard_address": None}
    with (
        LocalCluster(**alone, processes=False) as cluster,
        pytest.raises(UserError, match=r"No Dask worker of .* has a machine to itself"),
    ):
        run_matrix(matrix, out_dir=out, only=["00"], dask=cluster.scheduler_address)
    with LocalCluster(**alone, resources={"machine": 1}) as cluster:
        page = run_matrix(matrix, out_dir=out, only=["00"], dask=cluster.scheduler_address)
    for name, threads in (("one", 1), ("two", 2)):
        folder = out / "reports" / "matrix" / name
        assert (folder / "reports" / "tour.html").is_file()
        facts = json.loads((folder / "data" / "tour_facts.json").read_text("utf-8"))
        assert facts["parameters"]["threads"] == threads
    assert "Each run" in page.read_text(encoding="utf-8")


def test_a_price_that_is_none_is_one_sentence(tmp_path):
    """Before anything runs."""
    path = tmp_path / "bad.toml"
    path.write_text('[runs.a]\nprice_per_hour = "free"\n')
    with pytest.raises(UserError, match="price_per_hour is 'free'"):
        read_matrix(path)


def test_tokens_cost_what_the_machine_costs_in_the_time(tmp_path):
    """0.36 an hour at 100 tokens a second: a million tokens take 2.78 hours, so 1.0."""
    folder = tmp_path / "a" / "data"
    folder.mkdir(parents=True)
    (folder / "batch_sizing_dense_sweep.csv").write_text(
        "workload,batch_size,fresh_tokens_per_s\nother,9,900\nprompts,1,40\nprompts,8,100\n"
    )
    said = {"a": [{"machine": "M", "parameters": {"threads": 1}}]}
    row = matrix_module._machines([matrix_module.Run("a", {}, 0.36)], said, tmp_path).iloc[0]
    assert (row["best_batch_size"], row["tokens_per_s"]) == (8, 100.0)
    assert row["price_per_million_tokens"] == pytest.approx(1.0)
    assert "decode_over_floor_x" not in row
    (folder / "bottleneck_analysis_roofline.csv").write_text(
        "kernel,batch_size,floor_ms,ratio\nMLP,1,9,9\ndecode,1,20,1.5\ndecode,8,30,1.7\n"
    )
    row = matrix_module._machines([matrix_module.Run("a", {}, 0.36)], said, tmp_path).iloc[0]
    assert (row["decode_floor_ms"], row["decode_over_floor_x"]) == (20.0, 1.5)
