"""Which model a report is about: its facts from the file's head, and a line that names it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchgauge.core.memory_need import check_memory, mode_of
from batchgauge.core.model_facts import NOT_STATED, REFERENCE, ModelFacts
from batchgauge.errors import UserError
from batchgauge.text import one_line


def is_ours(spec: object) -> bool:
    """Whether the spec of an engine or tokenizer (empty: the default) is of the project's own."""
    return str(spec or "numpy").partition(":")[0] in {"numpy", "baseline"}


def named(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """What a report's facts say of the model that its `parameters` name; empty without one.

    `model` is a line, `model_facts` has the parts. Raises UserError for a model that was
    named and cannot be opened.
    """
    engine, path = str(parameters.get("engine") or "numpy"), str(parameters.get("model") or "")
    how = mode_of(engine)
    if how is None:  # a server, or the user's own: only they know
        file = f"; its tokenizer is that of {Path(path).name}" if path else ""
        return {"model": f"the engine's own{file}", "model_facts": {"name": "the engine's own"}}
    try:
        facts = ModelFacts.read(path or None)
    except UserError:
        if path:
            raise
        return {}  # not installed: who needs it says so
    weights = str(parameters.get("weights") or how[0]) if engine == "numpy" else how[0]
    return {
        "model": f"{facts}, weights {weights}",
        "model_facts": {
            "name": facts.title,
            "architecture": facts.architecture,
            "parameters": facts.parameters,
            "quantisation": facts.quantisation,
            "weights": weights,
            "context_length": facts.context_length,
            "licence": facts.licence or NOT_STATED,
            "form": facts.form,
            "file": facts.path.name,
            "digest": facts.digest,
        },
    }


def check_runs(parameters: Mapping[str, Any], root: Path) -> None:
    """Raise UserError where `model` is named and cannot be run, or needs more memory than is free.

    Paths start at `root`. Of servers and users' own engines nothing is known.
    """
    engine, path = str(parameters.get("engine") or "numpy"), str(parameters.get("model") or "")
    if path and (how := mode_of(engine)):
        weights = str(parameters.get("weights") or how[0]) if engine == "numpy" else how[0]
        facts = ModelFacts.read(root / Path(path).expanduser())
        check_memory(facts, weights, factor=how[1])


def served(name: str) -> dict[str, Any]:
    """The same of the model that a server says it runs."""
    return {"model": f"{one_line(name)}, on a server", "model_facts": {"name": one_line(name)}}


def is_reference(facts: Mapping[str, Any], engine: object = "") -> bool:
    """Whether the project's goals are about this model (or an unknown one) on this engine."""
    return is_ours(engine) and bool(
        facts.get("model_facts", {}).get("digest", REFERENCE) == REFERENCE
    )


def short(facts: Mapping[str, Any]) -> str:
    """The model's name with what tells two files of it apart; empty when it is not known."""
    parts = facts.get("model_facts", {})
    told = [parts[key] for key in ("quantisation", "weights") if parts.get(key)]
    name = str(parts.get("name", ""))
    return f"{name} ({', weights '.join(told)})" if told else name
