"""The tour on invented answers: what its sections show, draw, write and say."""

from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest

mpl.use("agg")

from tests.conftest import chart_of, rows_of

from batchgauge.errors import UserError
from batchgauge.experiments.context import Context
from batchgauge.experiments.scaling import Cost
from batchgauge.experiments.tour import sections as tour
from batchgauge.files import write_csv
from batchgauge.reporting import profile_named
from batchgauge.request import BatchResponse, BatchResult, InferenceBatchResponse


class Engine:
    """Answers in 10 ms a request, one word a token, the first of them after 4 ms."""

    tokenizer = SimpleNamespace(decode=lambda ids: f"word {ids[0]}")

    def __init__(self):
        self.seen = []

    def next_token_logits(self, request):
        """Of four tokens, the third being the most probable and the first never."""
        assert request.chat
        return [-np.inf, 0.0, np.log(2.0), 0.0]

    def infer_batch(self, items):
        """The same answer to everybody."""
        self.seen.append(items)
        answer = InferenceBatchResponse(
            "one two three", 3, (7, 8, 9), prompt_tokens=5, ttft_ms=4.0, inter_token_ms=(2.0, 3.0)
        )
        rows = [BatchResponse(item.id, answer, 10.0) for item in items]
        return BatchResult.of(rows, 10.0 * len(items))


@pytest.fixture
def context():
    """A context whose engine and tokenizer are invented."""
    context = Context(profile_named("smoke"), seed=3)
    tokenizer = SimpleNamespace(
        encode=lambda text: [*text.encode()],
        decode=lambda ids: chr(*ids),
        encode_many=lambda texts: SimpleNamespace(counts=np.array([len(t) for t in texts])),
    )
    invented = {"engine": Engine(), "tokenizer": tokenizer, "cost": Cost(1e-6, 1e-3), "facts": None}
    context.__dict__.update(invented)
    return context


def test_tokens_show_their_white_space(context):
    """One row a token; spaces and line ends can be seen, and what each stands for is said."""
    section = tour.tokens(context, "a \n")
    assert section.shown is not None
    assert section.shown["text"].tolist() == ["a", "␣", "↵"]
    assert section.shown["length_bytes"].tolist() == [1, 1, 1]
    assert section.sentence() == "3 characters became 3 tokens, 1.0 characters each."
    assert "0 characters became 0 tokens" in tour.tokens(context, "").sentence()


def test_next_tokens_are_the_most_probable(context):
    """Probabilities are those of all tokens, of which the first few are drawn."""
    section = tour.next_tokens(context, "p", count=2)
    assert section.sentence().startswith(
        "The favourite is “word␣2” with 50 %; the 2 shown hold 75 %"
    )
    assert rows_of(chart_of(section))["percent"].tolist() == pytest.approx([50.0, 25.0], rel=1e-5)
    context.__dict__["engine"] = object()
    unseen = tour.next_tokens(context, "p", count=2)
    assert "does not show its logits" in unseen.sentence()
    assert "does not show its logits" in chart_of(unseen).title


def test_a_batch_is_the_prompt_and_its_neighbours(context, tmp_path):
    """The prompt comes first; timings are read back equal; the answers are compared."""
    alone = tour.ask(context, "p", batch_size=1, max_tokens=9)
    together = tour.ask(context, "p", batch_size=4, max_tokens=9)
    one, four = context.engine.seen
    assert [len(one), len({item.id for item in four})] == [1, 4]
    assert all(items[0].data.prompt == "p" and items[0].data.seed == 3 for items in (one, four))
    section = tour.batch(alone, together)
    assert section.shown is not None
    assert section.shown["answer"].tolist() == ["one two three"] * 4
    frame = section.frames()["timings"]
    assert frame["throughput_tokens_per_s"].tolist() == [300.0, 300.0]
    write_csv(frame, tmp_path / "timings.csv")
    pd.testing.assert_frame_equal(pd.read_csv(tmp_path / "timings.csv"), frame)
    said = section.sentence()
    assert said.startswith("Alone: 300 tokens/s. 4 together: 300 tokens/s.")
    assert said.endswith("the same, token for token in both.")
    assert tour.summary(tour.tokens(context, "ab"), alone, together).text.startswith(
        "The prompt is 2 tokens, 5 in the model's chat format; the first token came after 4 ms, "
        "each further one"
    )
    assert tour.answer_text(alone, "p*").sentence() == r"**p\*** one two three"


def test_the_timeline_has_every_token(context):
    """Each token at its time; an engine that says no times, or only the first, has that said."""
    alone = tour.ask(context, "p", batch_size=1, max_tokens=9)
    drawn = rows_of(chart_of(tour.timeline(alone)))
    assert drawn[["time_ms", "tokens"]].to_numpy().tolist() == [[4, 1], [6, 2], [9, 3]]
    for times, said in (
        ({"ttft_ms": float("nan")}, "3 tokens came; this engine does not say when."),
        ({"ttft_ms": 4.0}, "when the others came is not known one by one (3 tokens in all)"),
        ({"ttft_ms": 4.0, "reasoning": "hm", "first_answer_ms": 9.0}, "began after 9 ms"),
    ):
        answer = InferenceBatchResponse("x", 3, **times)
        result = BatchResult.of([BatchResponse("a", answer, 9)], 9)
        assert said in tour.timeline_sentence(result)
        assert said.rstrip(".") in chart_of(tour.timeline(result)).title


def test_an_engine_that_cannot_answer_is_said(context):
    """The first error of a batch is the notebook's."""
    failed: BatchResult[InferenceBatchResponse] = BatchResult.of(
        [BatchResponse("tour", None, 1.0, "no such model")], 1.0
    )
    context.engine.infer_batch = lambda _: failed
    with pytest.raises(UserError, match="could not answer 'tour': no such model"):
        tour.ask(context, "p", batch_size=1, max_tokens=9)
