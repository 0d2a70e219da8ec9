"""The progress bar of measurements: green at a whole number, whenever they are enough."""

from __future__ import annotations

import math
from types import TracebackType

from tqdm.auto import tqdm


class Bar(tqdm):  # type: ignore[type-arg]  # nothing is iterated over
    """A bar of seconds or pieces that may be done before its total is reached.

    What ends without an error is complete: the total becomes what was done, rounded up. What
    raised stays as it was, and red.
    """

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None and not self.disable:
            self.total = max(1, math.ceil(self.n))
            self.n = self.total
            self.refresh()
        super().__exit__(kind, error, trace)
