"""What a report does to the notebook it stands in: checks its parameters, says errors shortly.

Nothing happens where there is no notebook.
"""

from __future__ import annotations

from types import TracebackType
from typing import Any

from batchgauge.errors import UserError
from batchgauge.reporting.parameters import check_injected


def check_parameters() -> None:
    """Hold what was injected or assigned against the parameters cell. Raises UserError."""
    shell = _shell()
    if shell is not None:
        check_injected(shell.user_ns, shell.user_ns.get("In", []))


def say_errors_short() -> None:
    """From now on a `UserError` of this kernel is its one sentence, without a traceback.

    It is an error still: the cell fails, and with it whoever runs the notebook.
    """
    shell = _shell()
    if shell is not None:
        shell.set_custom_exc((UserError,), _say)


def _say(
    shell: Any, kind: type[BaseException], error: BaseException, trace: TracebackType | None,
    tb_offset: int | None = None,
) -> list[str]:  # fmt: skip
    del trace, tb_offset  # IPython hands them over; the sentence says it all
    said = [f"{kind.__name__}: {error}"]
    shell._showtraceback(kind, error, said)  # noqa: SLF001 - how IPython has a handler show its own
    return said


def _shell() -> Any:
    from IPython.core.getipython import get_ipython

    return get_ipython()
