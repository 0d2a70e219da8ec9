"""From scores to the next token: greedy, temperature, top-p; one seeded generator a request.

A request draws only from its own generator, one number a token, so that what it gets
does not depend on its neighbours. V is the size of the vocabulary.
"""

from __future__ import annotations

import numpy as np

from batchgauge.core.ops import Floats, softmax
from batchgauge.errors import UserError
from batchgauge.request import InferenceBatchRequest


class Sampler:
    """The next token of one request, again and again."""

    def __init__(self, request: InferenceBatchRequest) -> None:
        self.temperature = request.temperature
        self.top_p = request.top_p
        self._generator = np.random.default_rng(request.seed)

    def __call__(self, logits: Floats) -> int:
        """Choose one of V tokens by their scores [V].

        Temperature 0 takes the best (the first of equals). Otherwise a number drawn
        uniformly picks from the cumulative distribution of softmax(logits / temperature),
        cut to its nucleus (Holtzman et al. 2020): the most probable tokens that together
        reach `top_p`. Raises UserError when a score is NaN or infinite, or none is above
        minus infinity.
        """
        best = int(logits.argmax())  # of a NaN, if there is one
        if not np.isfinite(logits[best]):
            raise UserError(
                f"The model gave no finite score for the next token but {logits[best]}; expected "
                "weights that do not overflow."
            )
        if self.temperature < np.finfo(np.float32).tiny:
            return best
        with np.errstate(over="ignore"):
            probabilities = (logits - logits[best]) / np.float32(self.temperature)  # [V]
        softmax(probabilities)
        ids = None
        if self.top_p < 1.0:
            ids = nucleus(probabilities, self.top_p)
            probabilities = probabilities[ids]
        cumulative = np.cumsum(probabilities, dtype=np.float64)
        drawn = self._generator.random() * cumulative[-1]
        place = min(int(np.searchsorted(cumulative, drawn, side="right")), cumulative.size - 1)
        return place if ids is None else int(ids[place])


def nucleus(probabilities: Floats, top_p: float) -> np.ndarray[tuple[int], np.dtype[np.intp]]:
    """Ids of the most probable tokens, best first, that together just reach `top_p`.

    Tokens below (1 - top_p) / V are left out before sorting: all of them together
    weigh less than what the nucleus does without.
    """
    candidates = np.flatnonzero(probabilities >= (1.0 - top_p) / probabilities.size)
    order = candidates[np.argsort(-probabilities[candidates], kind="stable")]
    reached = np.cumsum(probabilities[order], dtype=np.float64)
    count = int(np.searchsorted(reached, top_p)) + 1
    return order[:count]
