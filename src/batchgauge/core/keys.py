"""The keys of one architecture in a model's metadata, each of the right kind or named in an error.

What a key means is `config`'s business; which keys a family has, that of `families`.
"""

from __future__ import annotations

from typing import Any, NoReturn

import numpy as np

from batchgauge.core.families import FAMILIES, MIXTURES, NEUTRAL, NOTHING
from batchgauge.core.gguf_head import one_apart
from batchgauge.core.model_file import ModelFile, shown
from batchgauge.errors import UserError

LARGEST = (1 << 31) - 1  # of the counts
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class Keys:
    """The keys of one architecture, each of the right kind or a UserError that names it."""

    def __init__(self, file: ModelFile) -> None:
        self.file = file
        name = file.metadata.get("general.architecture")
        *names, last = map(repr, FAMILIES)
        supported = f"{', '.join(names)} or {last}"
        experts = file.metadata.get(f"{name}.expert_count", 0)
        if name in MIXTURES or (isinstance(experts, int) and experts):
            raise UserError(
                f"The model '{file.path}' is a mixture of experts (architecture {_shown(name)}, "
                f"expert_count {experts or 'not said'}), which is not supported; expected a dense "
                f"model: {supported}."
            )
        if not isinstance(name, str) or name not in FAMILIES:
            raise UserError(
                f"The model '{file.path}' has the architecture {_shown(name)}; "
                f"expected {supported}."
            )
        self.architecture = str(name)
        self.family = FAMILIES[self.architecture]

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is. Raises UserError where there is none, nor a default."""
        value = self.file.metadata.get(f"{self.architecture}.{key}", default)
        if value is None:
            raise UserError(
                f"The model '{self.file.path}' lacks `{self.architecture}.{key}`; expected a "
                f"{self.architecture.capitalize()}."
            )
        return value

    def count(self, key: str, default: int | None = None, *, layers: int = 0) -> int:
        """A whole number above 0; of an array with one for each of `layers`, their one value."""
        if not layers:
            return self._whole(key, self.get(key, default))
        values = self.counts(key, default, layers=layers)
        if len(set(values)) > 1:
            self.refuse(key, "differs from layer to layer", f"one number, or {layers} equal ones")
        return values[0]

    def counts(self, key: str, default: int | None = None, *, layers: int) -> tuple[int, ...]:
        """A whole number above 0 for each layer, of an array or one for all."""
        value = self.get(key, default)
        if not isinstance(value, np.ndarray):
            return (self._whole(key, value),) * layers
        if len(value) != layers:
            self.refuse(key, described(value), f"one number, or {layers} of them")
        return tuple(self._whole(key, one) for one in value.tolist())

    def _whole(self, key: str, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
            self.refuse(key, described(value), f"a whole number from 1 to {LARGEST}")
        return int(value)

    def number(self, key: str, default: float | None = None, *, zero: float | None = None) -> float:
        """A finite float32 above 0; `zero`, if given, is what 0 stands for."""
        value = self.get(key, default)
        if isinstance(value, float) and value == 0.0 and zero is not None:
            return zero
        if not isinstance(value, float) or not _LEAST <= value <= _MOST:
            self.refuse(key, described(value), "a float above 0, within float32")
        return value

    def factor(self, key: str) -> float:
        """A number as above, 1 where there is none, or where the family does not apply it."""
        return self.number(key, 0.0, zero=1.0) if key in self.family.more else 1.0

    def cap(self, key: str, default: float) -> float:
        """A soft limit; 0 where there is none, or where the family does not apply it."""
        if key not in self.family.more or self.get(key, default) == 0.0:
            return 0.0
        return self.number(key, default)

    def refuse(self, key: str, found: str, expected: str) -> NoReturn:
        """Raise UserError for a key."""
        raise UserError(
            f"The model '{self.file.path}' has a `{self.architecture}.{key}` that {found}; "
            f"expected {expected}."
        )

    def refuse_unknown(self) -> None:
        """Raise UserError for a key that would change the result and that nothing applies."""
        known = self.family.applied | NEUTRAL.keys()
        ours = [f"{self.architecture}.{key}" for key in known]
        for name, value in self.file.metadata.items():
            owner, _, key = name.partition(".")
            if owner != self.architecture:
                if key in known or any(one_apart(name, other) for other in ours):
                    raise UserError(
                        f"The model '{self.file.path}' has the key {shown(name)}; expected one of "
                        f"the architecture {self.architecture!r}."
                    )
                continue
            allowed = NEUTRAL.get(key, NOTHING)
            if key not in self.family.applied and not all_in(value, allowed):
                raise UserError(
                    f"The model '{self.file.path}' has the key {shown(name)}, which "
                    f"{described(value)}: it would change the result and is not supported; "
                    "expected a model without it."
                )


def described(value: Any) -> str:
    """What an error says of a value."""
    if isinstance(value, list | np.ndarray):
        return f"is an array of {len(value)}"
    return f"is {_shown(value)}"


def _shown(value: Any) -> str:
    return shown(value) if isinstance(value, str) else repr(value)


def all_in(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Whether a value, or each of an array, is one of those allowed."""
    values = value.tolist() if isinstance(value, np.ndarray) else value
    return all(one in allowed for one in (values if isinstance(values, list) else [values]))
