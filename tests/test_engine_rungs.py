"""The engine's ladder: every rung, alone and on top of the others, answers as the baseline does."""

from __future__ import annotations

import numpy as np
import pytest
from tests.tiny_model import write_tiny_model

from batchgauge.baseline.engine_rungs import RUNGS, baseline, engine_rungs
from batchgauge.request import BatchItem, InferenceBatchRequest

RNG = np.random.default_rng(0)
WORK = [
    BatchItem(
        str(i),
        InferenceBatchRequest(
            tuple(RNG.integers(3, 270, n).tolist()), max_tokens=6 + i, ignore_eos=True
        ),
    )
    for i, n in enumerate((3, 20, 1, 9))
]


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def path(request, tmp_path_factory):
    """A tiny model file."""
    return write_tiny_model(tmp_path_factory.mktemp("rungs") / "m.gguf", tied=request.param)


@pytest.mark.parametrize("place", range(len(RUNGS)), ids=[rung.name for rung in RUNGS])
def test_a_rung_changes_no_token(path, place):
    """Alone and cumulatively, the tokens are the baseline's; rounded weights have their own."""
    expected = baseline(path)(WORK)
    assert [len(tokens) for tokens in expected] == [6, 7, 8, 9]
    rung = engine_rungs(path)[place]
    found = rung.make_cumulative()(WORK)
    if rung.name == "bfloat16 weights":
        assert [len(tokens) for tokens in found] == [6, 7, 8, 9]
        return
    assert found == expected
    if rung.make_alone is not None:
        assert rung.make_alone()(WORK) == expected


def test_rungs_have_names_and_ideas_of_their_own():
    """At least six rungs, each told in one sentence."""
    assert len({rung.name for rung in RUNGS}) == len(RUNGS) >= 6
    assert all(rung.idea.endswith(".") for rung in RUNGS)
