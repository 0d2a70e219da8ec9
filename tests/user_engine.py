"""An engine of one's own in 20 lines: a bigram model. `-p engine user_engine:make_engine`."""

from collections import Counter
from itertools import pairwise
from time import perf_counter

from batchgauge import BatchResponse, BatchResult, InferenceBatchResponse
from batchgauge.workload import corpus


class BigramEngine:
    """The word that most often follows the last one, again and again."""

    name = "bigram"

    def __init__(self):
        pairs = Counter(pairwise(corpus("prose").split()))
        self.follows = {a: b for (a, b), _ in reversed(pairs.most_common())}

    def max_batch_size(self):
        """The largest batch taken."""
        return 64

    def infer_batch(self, items):
        """Answer every item under its own id, in order."""
        begin, responses = perf_counter(), []
        for item in items:
            words = [str(item.data.prompt).split()[-1]]
            while len(words) <= item.data.max_tokens:
                words.append(self.follows.get(words[-1], "the"))
            answer = InferenceBatchResponse(" ".join(words[1:]), len(words) - 1)
            responses.append(BatchResponse(item.id, answer, 1e3 * (perf_counter() - begin)))
        return BatchResult.of(responses, 1e3 * (perf_counter() - begin))


def make_engine():
    """What `user_engine:make_engine` names; it may take `model` and `threads`."""
    return BigramEngine()
