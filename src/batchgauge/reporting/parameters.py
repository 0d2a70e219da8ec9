"""A notebook's parameters: declared once in its tagged cell, typed again wherever they arrive.

papermill only warns about an unknown parameter and guesses types (`-p seed 007` becomes 7,
a commit hash can become a number). So the declarations `name: type = value  # help` are
read here, and values are held against them, by the study before a run and by
`Report.begin` inside every run.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Mapping, MutableMapping
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

from batchgauge.errors import UserError

if TYPE_CHECKING:  # not at run time: every kernel would wait two seconds for its schemas
    from nbformat import NotebookNode

_INJECTED = "# Parameters"  # how papermill begins the cell that it inserts
_TRUTH = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


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
    """Hold what papermill injected against the declarations, inside the kernel.

    `history` is the source of the cells run so far, `namespace` the kernel's variables;
    values of a wrong but convertible type are put right in place. Does nothing where
    papermill injected nothing. Raises UserError as `typed` does.
    """
    for before, cell in pairwise(history):
        if cell.startswith(_INJECTED):
            known = {p.name: p for p in declarations(before)}
            names = [
                target.id
                for node in ast.parse(cell).body
                if isinstance(node, ast.Assign)
                for target in node.targets
                if isinstance(target, ast.Name)
            ]
            namespace.update(typed({name: namespace[name] for name in names}, known))


def _typed(value: Any, parameter: Parameter) -> Any:
    kind = parameter.kind
    try:
        if kind == "str":
            return str(value)
        if kind == "bool":
            return value if isinstance(value, bool) else _TRUTH[str(value).lower()]
        if kind in {"int", "float"} and not isinstance(value, bool):
            number = float(value)
            if kind == "float":
                return number
            if number == int(number):
                return int(number)
        elif kind not in _KINDS:
            return ast.literal_eval(value) if isinstance(value, str) else value
    except (KeyError, OverflowError, SyntaxError, TypeError, ValueError):
        pass
    wanted = _KINDS.get(kind, kind)
    raise UserError(f"The parameter '{parameter.name}' is {value!r}; expected {wanted}.")
