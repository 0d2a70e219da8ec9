"""The ladder of the tokenizer: every rung gives the baseline's output."""

import pytest
from tests.tokenizer_cases import TEXTS

from batchgauge.baseline.tokenizer_rungs import RUNGS, baseline

WORK = [text for kind, text in TEXTS.items() if kind != "unsplittable"]
WANT = baseline()(WORK)


@pytest.mark.parametrize("rung", RUNGS, ids=lambda rung: rung.name)
def test_rung_gives_the_output_of_the_baseline(rung):
    """Alone and with all before it, cold and warm."""
    for make in (rung.make_alone, rung.make_cumulative):
        if make is not None:
            encode = make()
            assert encode(WORK) == WANT
            assert encode(WORK) == WANT, "the second time"


def test_ladder_has_names_and_ideas():
    """At least six rungs, each with a name of its own and one sentence."""
    assert len({rung.name for rung in RUNGS}) == len(RUNGS) >= 6
    assert all(rung.idea.endswith(".") for rung in RUNGS)
