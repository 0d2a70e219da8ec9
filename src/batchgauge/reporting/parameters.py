"""A notebook's parameters: declared once in its tagged cell, typed again wherever they arrive.

papermill only warns about an unknown parameter and guesses types (`-p seed 007` becomes 7,
a commit hash can become a number). So the declarations `name: type = value  # help` are
read here, and values are held against them, by the study before a run and by
`Report.begin` inside every run, in papermill and JupyterLab alike.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

from batchgauge.errors import UserError

if TYPE_CHECKING:  # not at run time: every kernel would wait two seconds for its schemas
    from nbformat import NotebookNode

_WHOLE = re.compile(r"[+-]?\d(?:_?\d)*")
_INJECTED = "# Parameters"  # how papermill begins the cell that it inserts
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}
_ITEMS = {"int": "whole numbers", "float": "numbers", "bool": "true or false", "str": "texts"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One line of the cell tagged `parameters`."""

    name: str
    kind: str
    default: str
    help: str


def declared(notebook: NotebookNode) -> dict[str, Parameter]:
    """The parameters that `notebook` declares; empty without a cell tagged so."""
    for cell in notebook.cells:
        if "parameters" in cell.metadata.get("tags", []):
            return {p.name: p for p in declarations(cell.source)}
    return {}


def declarations(source: str) -> Iterable[Parameter]:
    """Each annotated assignment of a parameters cell, with the comment behind it as help."""
    lines = source.splitlines()
    for node in ast.parse(source).body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name) and node.value:
            tail = lines[(node.end_lineno or 1) - 1][node.end_col_offset or 0 :]
            comment = tail.partition("#")[2].strip()
            kind, default = ast.unparse(node.annotation), ast.unparse(node.value)
            yield Parameter(node.target.id, kind, default, comment)


def typed(given: Mapping[str, Any], known: Mapping[str, Parameter]) -> dict[str, Any]:
    """`given` with every value of its declared type. Raises UserError for a name or value amiss."""
    unknown = [name for name in given if name not in known]
    if unknown:
        raise UserError(
            f"The parameter '{unknown[0]}' is unknown; expected one of {', '.join(sorted(known))}."
        )
    return {name: _typed(value, known[name]) for name, value in given.items()}


def check_injected(namespace: MutableMapping[str, Any], history: Iterable[str]) -> None:
    """Hold a notebook's parameters against their declarations, inside the kernel.

    `history` is the source of the cells run so far, `namespace` the kernel's variables;
    values of a wrong but convertible type are put right in place. The parameters are those of
    the cell before the one that papermill injected, and of a cell of declarations that names
    `profile`, which somebody may have edited in JupyterLab. Raises UserError as `typed` does.
    """
    known: dict[str, Parameter] = {}
    before = ""
    for cell in history:
        if cell.startswith(_INJECTED):
            known |= {p.name: p for p in declarations(before)}
            typed({name: namespace[name] for name in _assigned(cell)}, known)
        elif _is_parameters(cell):
            known |= {p.name: p for p in declarations(cell)}
        before = cell
    given = {name: namespace[name] for name in known if name in namespace}
    namespace.update(typed(given, known))


def _assigned(cell: str) -> list[str]:
    """The names that papermill's cell sets."""
    assigned = [node for node in ast.parse(cell).body if isinstance(node, ast.Assign)]
    return [t.id for node in assigned for t in node.targets if isinstance(t, ast.Name)]


def _is_parameters(cell: str) -> bool:
    try:
        body = ast.parse(cell).body
    except (SyntaxError, ValueError):  # magics, an interrupted edit
        return False
    targets = [node.target for node in body if isinstance(node, ast.AnnAssign)]
    names = [target.id for target in targets if isinstance(target, ast.Name)]
    return "profile" in names and len(names) == len(body)


def _typed(value: Any, parameter: Parameter) -> Any:
    kind, _, items = parameter.kind.partition("[")
    of = items.rstrip("]") or _kind_of_items(parameter.default)
    try:
        if kind == "list":
            return _list(value, of, parameter)
        if kind in _KINDS:
            return _scalar(value, kind)
        return ast.literal_eval(value) if isinstance(value, str) else value
    except (KeyError, MemoryError, OverflowError, RecursionError, SyntaxError, TypeError,
            ValueError):  # fmt: skip
        wanted = _KINDS.get(kind, parameter.kind)
    if kind == "list":
        wanted = f"a list of {_ITEMS.get(of, 'values')}"
        wanted += " of at least 1, such as [1, 8]" if _is_sizes(parameter) else ""
    shown = repr(value)
    shown = shown if len(shown) <= 80 else f"{shown[:79]}…"
    raise UserError(f"The parameter '{parameter.name}' is {shown}; expected {wanted}.")


def _scalar(value: Any, kind: str) -> Any:
    """`value` as `kind`; KeyError, OverflowError, TypeError or ValueError where it is none."""
    if kind == "str":
        if not isinstance(value, str | int | float | PurePath):
            raise TypeError
        text = str(value)
        text.encode()  # a lone surrogate is no text
        if "\0" in text:
            raise ValueError
        return text
    if kind == "bool":
        return value if isinstance(value, bool) else _TRUTH[str(value).lower()]
    if isinstance(value, bool):
        raise TypeError
    if kind == "int":
        if isinstance(value, int):
            return value
        if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
            return int(value)
    number = float(value)
    if not math.isfinite(number) or (kind == "int" and number != int(number)):
        raise ValueError
    return int(number) if kind == "int" else number


def _list(value: Any, kind: str, parameter: Parameter) -> list[Any]:
    """A list of `kind` from one, from a single value, or from text: `[1, 2]`, `1, 2` or `1`."""
    if isinstance(value, str):
        value = _read(value, kind)
    if isinstance(value, Mapping):
        raise TypeError
    items = list(value) if isinstance(value, Iterable) and not isinstance(value, str) else [value]
    found = [_scalar(item, kind) if kind in _KINDS else item for item in items]
    if _is_sizes(parameter) and (not found or min(found) < 1):
        raise ValueError
    return found


def _read(text: str, kind: str) -> Any:
    try:
        found = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        bare = text.strip().removeprefix("[").removesuffix("]")
        return [part.strip().strip("'\"") for part in bare.split(",") if part.strip()]
    return text if kind == "str" and not isinstance(found, list | tuple | set | str) else found


def _is_sizes(parameter: Parameter) -> bool:
    return parameter.name.endswith("sizes")


def _kind_of_items(default: str) -> str:
    """What the list of a declaration holds, from its default; empty where that does not say."""
    try:
        items = ast.literal_eval(default)
    except (SyntaxError, ValueError):
        return ""
    items = items if isinstance(items, list | tuple) else [items]
    kinds = {type(item).__name__ for item in items}
    return kinds.pop() if len(kinds) == 1 else ""
