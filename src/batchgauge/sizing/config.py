"""What to size for, as one checked object: from keywords, a TOML file or notebook parameters."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, get_type_hints

from batchgauge.errors import UserError
from batchgauge.machine.hardware import HardwareProfile
from batchgauge.sizing.cost_model import CostModel, Metric
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.memory_model import MemoryModel
from batchgauge.sizing.suggest import check_request, suggest_batch_size
from batchgauge.sizing.suggestion import BatchSizeSuggestion, Objective


@dataclass(frozen=True, slots=True)
class SizingConfig:
    """Objective and budgets of a suggestion.

    Numbers of 0 in notebook parameters and TOML mean "no budget", since neither has a
    None; in Python, leave a budget None. Raises UserError for anything that makes no sense.
    """

    objective: Objective = "throughput"
    latency_budget_ms: float | None = None
    latency_metric: Metric = "request"
    memory_budget_bytes: float | None = None
    max_batch_size: int = 64
    threads: int = 1

    def __post_init__(self) -> None:
        check_request(
            self.objective,
            self.latency_metric,
            self.latency_budget_ms,
            self.memory_budget_bytes,
            self.max_batch_size,
        )
        if self.threads < 1:
            raise UserError(f"threads is {self.threads}; expected at least 1.")

    @classmethod
    def from_parameters(cls, parameters: Mapping[str, Any]) -> SizingConfig:
        """From a mapping such as a notebook's parameters; 0 as a budget means none.

        Raises UserError for a name that is no setting or a value of the wrong type.
        """
        known = {field.name for field in fields(cls)}
        unknown = sorted(set(parameters) - known)
        if unknown:
            names = ", ".join(sorted(known))
            raise UserError(f"Unknown sizing setting {unknown[0]!r}; expected some of {names}.")
        values = {name: _typed(name, value) for name, value in parameters.items()}
        return cls(**values)

    @classmethod
    def from_toml(cls, path: Path | str) -> SizingConfig:
        """From the `[sizing]` table of a TOML file, or the file itself when it has none.

        Raises UserError for a file that is missing or no TOML, and as `from_parameters`.
        """
        try:
            data = tomllib.loads(Path(path).read_text(encoding="utf-8"))
        except OSError as error:
            raise UserError(f"No configuration can be read at {path}: {error.strerror}.") from error
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise UserError(f"{path} is no TOML: {error}.") from error
        table = data.get("sizing", data)
        if not isinstance(table, dict):
            raise UserError(f"'sizing' in {path} is no table; expected [sizing].")
        return cls.from_parameters(table)

    def suggest(
        self,
        workload: Lengths,
        cost_model: CostModel,
        memory_model: MemoryModel | None = None,
        hardware: HardwareProfile | None = None,
    ) -> BatchSizeSuggestion:
        """`suggest_batch_size` with this objective and these budgets."""
        return suggest_batch_size(
            workload=workload,
            cost_model=cost_model,
            memory_model=memory_model,
            hardware=hardware,
            objective=self.objective,
            latency_budget_ms=self.latency_budget_ms,
            latency_metric=self.latency_metric,
            memory_budget_bytes=self.memory_budget_bytes,
            max_batch_size=self.max_batch_size,
        )


def _typed(name: str, value: Any) -> Any:
    """The value as its field wants it; 0 for a budget becomes None."""
    expected = str(get_type_hints(SizingConfig)[name])
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if name.endswith(("_ms", "_bytes")):
        if value is None or (number and value == 0):
            return None
        if number:
            return float(value)
    elif "int" in expected:
        if number and float(value).is_integer():
            return int(value)
    elif isinstance(value, str):
        return value
    raise UserError(f"The sizing setting {name} is {value!r}; expected a {_words(expected)}.")


def _words(expected: str) -> str:
    if "float" in expected:
        return "number (0: no budget)"
    return "whole number" if "int" in expected else "name"
