"""The built wheel, installed on its own: complete, its core small, its study at work anywhere.

Each environment is a fresh one with the wheel in it and, in place of a download, links to
what is installed here. The project's sources are never on the path.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import sysconfig
import venv
import zipfile
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from tests.tiny_model import write_tiny_model

import batchgauge

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "batchgauge"
BASE_LAYERS = ("core", "baseline", "machine", "measuring", "sizing", "simulate", "profiling")
# What a user does with nothing but `pip install batchgauge`; {model} is a tiny GGUF.
CORE_AT_WORK = """
import importlib, pkgutil, sys
import batchgauge.core.engine, batchgauge.core.tokenizer.bpe_tokenizer
assert "pandas" not in sys.modules, "the core alone imports pandas"
for layer in {layers}:
    package = importlib.import_module("batchgauge." + layer)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        importlib.import_module(found.name)
import batchgauge.suite
from batchgauge import BatchItem, InferenceBatchRequest
from batchgauge.measuring import measure
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.workload import load_prompts
engine = open_engine("baseline", {model!r})
done = engine.infer_batch([BatchItem("a", InferenceBatchRequest("Why?", max_tokens=2))])
tokenizer = open_tokenizer("baseline", {model!r})
assert tokenizer.decode(tokenizer.encode("Why?")) == "Why?"
print(len(done.responses), len(load_prompts()), batchgauge.__file__)
"""

# Every function that needs an extra, with what it needs; prints what each says without it.
PROFILERS = """
from batchgauge.errors import UserError
from batchgauge.profiling import allocations, calls, flamegraph, lines
def work():
    return sum(range(9))
for package, call in [
    ("line_profiler", lambda: lines.profile_lines(work, [work])),
    ("memory_profiler", lambda: allocations.memory_lines(work, work)),
    ("memory_profiler", lambda: allocations.memory_timeline(work)),
    ("memray", lambda: allocations.track_allocations(work, tool="memray")),
    ("pyinstrument", lambda: calls.sample_calls(work, seconds=0.01, tool="pyinstrument")),
    ("matplotlib", lambda: flamegraph.draw_flamegraph(None, title="")),
]:
    try:
        call()
    except UserError as error:
        print(f"{package}: {error}")
"""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel, built by the build backend that pyproject.toml names."""
    folder: Path = tmp_path_factory.mktemp("dist")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=PROJECT, check=True, capture_output=True)
    (path,) = folder.glob("*.whl")
    return path


def environment(folder: Path, wheel: Path) -> Path:
    """A fresh environment with the wheel and nothing else; its site-packages."""
    venv.create(folder, symlinks=True)
    python = folder / "bin" / "python"
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", str(python)]
    install = ["install", "--quiet", "--no-deps", "--no-index", str(wheel)]
    subprocess.run([*command, *install], check=True)
    (site,) = folder.glob("lib/python*/site-packages")
    return site


@pytest.fixture(scope="module")
def with_study(tmp_path_factory, wheel):
    """An environment of the wheel and all that is installed here, as `[study]` would have it."""
    folder: Path = tmp_path_factory.mktemp("study")
    site = environment(folder, wheel)
    # A folder that is named in a .pth file has its own .pth files left alone: an editable
    # install of this project stays out.
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site / "here.pth").write_text("\n".join(here), encoding="utf-8")
    (folder / "share").symlink_to(Path(sys.prefix) / "share")  # nbconvert's templates
    return folder


@pytest.fixture(scope="module")
def core_only(tmp_path_factory, wheel):
    """An environment of the wheel and the dependencies that it names without an extra."""
    folder: Path = tmp_path_factory.mktemp("core")
    site = environment(folder, wheel)
    (own,) = metadata.distributions(path=[str(site)])
    for name in closure([Requirement(line) for line in own.requires or []]):
        distribution = metadata.distribution(name)
        for top in {Path(file).parts[0] for file in distribution.files or []} - {".."}:
            if not (site / top).exists() and top != "__pycache__":
                (site / top).symlink_to(Path(str(distribution.locate_file(top))))
    return folder


def closure(wanted: list[Requirement]) -> set[str]:
    """The names of what `wanted` needs here, without extras, and of what that needs."""
    names: set[str] = set()
    while wanted:
        one = wanted.pop()
        if one.name not in names and (not one.marker or one.marker.evaluate({"extra": ""})):
            names.add(one.name)
            wanted += [Requirement(line) for line in metadata.requires(one.name) or []]
    return names


def run(environment: Path, cwd: Path, *command: str) -> subprocess.CompletedProcess[str]:
    """Run a program of `environment` in `cwd`, as from a shell that knows nothing of us."""
    ours = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME", "OPENBLAS_CORETYPE", "BATCHGAUGE_MODEL"}
    clean = {name: value for name, value in os.environ.items() if name not in ours}
    program = str(environment / "bin" / command[0])
    return subprocess.run(
        [program, *command[1:]], cwd=cwd, env=clean, capture_output=True, text=True, timeout=300
    )


def test_the_wheel_is_complete(wheel):
    """Modules, prompts, notebooks and templates are inside; tests and the reference run are not."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        prompts = archive.read("batchgauge/data/prompts.jsonl")
    assert wheel.name.split("-")[1] == batchgauge.__version__
    assert prompts == (PROJECT / "data" / "prompts.jsonl").read_bytes()
    wanted = {f"batchgauge/notebooks/{p.name}" for p in PROJECT.glob("notebooks/*.ipynb")}
    for path in PACKAGE.rglob("*"):
        if path.is_file() and "__pycache__" not in path.parts:
            wanted.add(f"batchgauge/{path.relative_to(PACKAGE).as_posix()}")
    inside = {name for name in names if not re.match(r"batchgauge-[^/]+\.dist-info/", name)}
    assert inside == wanted | {"batchgauge/data/prompts.jsonl"}


@pytest.mark.slow
def test_the_core_needs_only_what_the_wheel_names(core_only, tmp_path):
    """Without any extra: every package but notebooks and reports imports, an engine answers."""
    code = CORE_AT_WORK.format(
        layers=BASE_LAYERS, model=str(write_tiny_model(tmp_path / "tiny.gguf"))
    )
    done = run(core_only, tmp_path, "python", "-c", code)
    assert done.returncode == 0, done.stderr
    answers, prompts, file = done.stdout.split()
    assert (answers, int(prompts) > 100) == ("1", True)
    assert Path(file).is_relative_to(core_only)
    done = run(core_only, tmp_path, "batchgauge", "bench", "-k", "statistics/*", "--seconds", "0.1")
    assert done.returncode == 0, done.stderr
    assert "statistics/" in done.stdout
    assert not (tmp_path / "batchgauge-results").exists()


@pytest.mark.slow
@pytest.mark.parametrize("command", ["study", "report", "list"])
def test_a_missing_extra_is_one_sentence(core_only, tmp_path, command):
    """Without `[study]` its commands say what to install: one line, exit code 2."""
    done = run(core_only, tmp_path, "batchgauge", command)
    assert done.returncode == 2
    assert re.fullmatch(
        r"batchgauge: The study needs IPython, .* and vl_convert, not installed here; "
        r"install it with: pip install 'batchgauge\[study\]'\.\n",
        done.stderr,
    )


@pytest.mark.slow
def test_each_profiler_names_its_extra(core_only, tmp_path):
    """Functions that need an extra raise one sentence with the command for it."""
    (tmp_path / "ask.py").write_text(PROFILERS, encoding="utf-8")
    done = run(core_only, tmp_path, "python", "ask.py")
    assert done.returncode == 0, done.stderr
    said = done.stdout.splitlines()
    assert len(said) == 6
    for line in said:
        name, _, sentence = line.partition(": ")
        extra = "study" if name == "matplotlib" else "profile"
        assert sentence.count(name) == 1
        assert sentence.endswith(f"install it with: pip install 'batchgauge[{extra}]'."), line


@pytest.mark.slow
def test_a_study_runs_in_an_empty_folder(with_study, tmp_path):
    """The installed notebooks are listed and run; results lie in ./batchgauge-results alone."""
    listed = run(with_study, tmp_path, "batchgauge", "list")
    assert [line.split()[0] for line in listed.stdout.splitlines() if "->" in line] == [
        path.stem for path in sorted(PROJECT.glob("notebooks/*.ipynb"))
    ]
    words = ("study", "00", "--profile", "smoke", "--engine", "baseline", "--tokenizer", "baseline")
    done = run(with_study, tmp_path, "batchgauge", *words, "-p", "max_tokens", "2")
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["batchgauge-results"]
    results = tmp_path / "batchgauge-results"
    assert f"Open {Path('batchgauge-results', 'reports', 'index.html')}" in done.stdout
    facts = json.loads((results / "data" / "tour_facts.json").read_text(encoding="utf-8"))
    assert facts["git_commit"] == "unknown"  # so it was not the sources of this checkout that ran
    for file in (*facts["files"], "reports/tour.html", "reports/tour.md", "reports/index.html"):
        assert (results / file).stat().st_size > 0, file
    for path in results.rglob("*.ipynb"):
        assert str(tmp_path) not in path.read_text(encoding="utf-8")
