"""How large an experiment is for what a model costs: the rule on invented costs."""

from __future__ import annotations

from functools import partial
from itertools import cycle, pairwise
from types import SimpleNamespace

import pytest

from batchgauge import BatchResponse, BatchResult, InferenceBatchResponse
from batchgauge.errors import UserError
from batchgauge.experiments import scaling
from batchgauge.experiments.batch_sizing.bench import affordable, effort, effort_note, effort_s
from batchgauge.experiments.context import Context
from batchgauge.experiments.scaling import (
    LEAST_S,
    LEAST_TOKENS,
    MOST_TOKENS,
    SLACK,
    Cost,
    WorkSize,
    blocks_s,
    fitted,
    said,
    spread,
)
from batchgauge.experiments.traffic import LEAST_ANSWER, affordable_scale
from batchgauge.reporting import profile_named
from batchgauge.workload import MEAN_GENERATED

WANTED = WorkSize((1, 4, 8, 16), 40, 12)
SMALL = Cost(1.4e-3, 33e-3, 1.8e-3)  # as a model of 135 million weights on two cores
HALF = Cost(6.5e-3, 130e-3, 7e-3)  # half a billion
LARGE = Cost(40e-3, 800e-3, 45e-3)  # three billion
TINY = Cost(2e-5, 1e-4, 1e-6)


def done(cost, seconds=30.0, **options):
    """What becomes of the work that the default profile wants, in three blocks."""
    return fitted(WANTED, cost, seconds, block_s=partial(blocks_s, cost, 3), **options)


def test_what_fits_stays_as_it_was():
    """The model that the profile was made for, also on a machine that is somewhat slower."""
    assert done(SMALL) == WANTED
    assert said("Inference", WANTED, done(SMALL)) == ""


@pytest.mark.parametrize("cost", [HALF, LARGE])
def test_a_slow_model_does_less(cost):
    """Within its time, or with the least there is; and a reader is told."""
    work = done(cost)
    assert work.tokens < WANTED.tokens
    assert work.sizes == WANTED.sizes[: len(work.sizes)]
    assert work.sizes[-1] >= 4
    assert work.tokens >= LEAST_TOKENS
    least = work.sizes == (1, 4) and work.tokens == LEAST_TOKENS
    assert least or blocks_s(cost, 3, work) <= SLACK * 30.0
    assert f"answers of {work.tokens} tokens instead of 12" in said("Inference", WANTED, work)


def test_dearer_is_never_more():
    """Along rising costs neither answers nor batches grow, and answers go first."""
    works = [done(Cost(k * 1.4e-3, k * 33e-3, k * 1.8e-3)) for k in (1, 2, 2.5, 3, 5, 8, 13, 40)]
    for before, after in pairwise(works):
        assert after.tokens <= before.tokens
        assert after.sizes[-1] <= before.sizes[-1]
    assert any(w.tokens < WANTED.tokens and w.sizes == WANTED.sizes for w in works)


def test_a_quick_model_is_not_lost_in_noise():
    """Requests below the least time get longer answers, where single calls are timed."""
    work = done(TINY)
    assert work.tokens > WANTED.tokens
    assert work.tokens == MOST_TOKENS or TINY.batch_s(1, 40, 2 * work.tokens) > LEAST_S
    assert blocks_s(TINY, 3, work) <= 30.0
    assert done(TINY, lengthen=False) == WANTED


def test_the_context_bounds_answers():
    """Prompt and answer have room in it."""
    for cost in (TINY, SMALL):
        work = done(cost, room=48)
        assert work.prompt + work.tokens <= 48


def test_prompts_follow_cost_and_context():
    """A sixtieth of the time for one prompt, half of the context at most."""
    context = Context(profile_named("default"), engine_spec="some.of:mine")
    lengths = []
    for cost in (SMALL, HALF, LARGE):
        context.__dict__["cost"] = cost
        lengths.append((context.longest_prompt, context.positions(512)))
        assert context.longest_prompt * cost.position_s <= 1.0 or context.longest_prompt == 16
    assert lengths == sorted(lengths, reverse=True)
    assert lengths[0][1] == 512
    assert "Prefill" in context.scale().finding


def test_the_effort_of_sizing_follows_the_cost():
    """The sweep of the default profile is whole for a small model, and fits for a large one."""
    wanted = effort("default", 1)
    assert affordable(wanted, SMALL, 90.0) == wanted
    assert effort_note(wanted, wanted) == ""
    for cost in (HALF, LARGE):
        found = affordable(wanted, cost, 90.0)
        assert effort_s(found, cost) < 0.6 * effort_s(wanted, cost)
        assert found.passes >= 2  # scores need both halves
        assert "instead of" in effort_note(wanted, found)
    assert effort_s(affordable(wanted, HALF, 90.0), HALF) <= SLACK * 90.0


def test_traffic_becomes_shorter_and_not_less():
    """A slow model serves as many requests, shorter ones: percentiles keep their samples."""
    context = Context(profile_named("default"), engine_spec="some.of:mine")
    context.__dict__["cost"] = SMALL
    assert affordable_scale(context, 1 / 16, 144, 0.5) == 1 / 16
    context.__dict__["cost"] = HALF
    assert affordable_scale(context, 1 / 16, 144, 0.5) < 1 / 16
    assert "Lengths of requests" in context.scale().finding
    context.__dict__["cost"] = Cost(10.0, 100.0, 1.0)
    least = affordable_scale(context, 1 / 16, 144, 0.5)
    assert least * MEAN_GENERATED == pytest.approx(LEAST_ANSWER)  # or nothing would be decoded


def test_steps_that_take_no_time_are_no_figure():
    """A quick engine's decode step is said to be too short to tell, not to take 0 µs."""
    said = Cost(1e-6, 0.0).sentence()
    assert "too little" in said
    assert "0 µs" not in said
    said = Cost(1e-6, 1e-3).sentence()
    assert "further requests too little" in said
    assert "0 µs" not in said


def test_an_engine_that_generates_nothing_is_not_measured():
    """Its empty answers are quick; that is no speed."""
    answers = [InferenceBatchResponse("", 0)]
    silent = SimpleNamespace(
        name="silent",
        max_batch_size=lambda: 1,
        infer_batch=lambda items: BatchResult.of(
            [BatchResponse(items[0].id, answers[-1], 1.0)], 1.0
        ),
    )
    context = Context(profile_named("smoke"), engine_spec="some.of:mine")
    context.__dict__["engine"] = silent
    with pytest.raises(UserError, match="'silent' was empty"):
        context.cost  # noqa: B018  # asked for, it runs
    answers.append(InferenceBatchResponse("", 1))  # half of a letter is a token
    assert context.cost.step_s >= 0.0


def test_spread_keeps_order_and_floor():
    """Equal numbers become one."""
    assert spread((50, 200, 500), 0.1, 10) == (10, 20, 50)
    assert spread((50, 200, 500), 1.0, 4) == (50, 200, 500)


def test_a_loaded_machine_costs_no_more(monkeypatch):
    """What other processes add to most of the probes is not the engine's cost."""
    busy = cycle([9.0, 4.0, 30.0, 1.0, 7.0])
    monkeypatch.setattr(
        scaling,
        "engine_probe",
        lambda _engine: (
            lambda rows, prompt, steps: (  # noqa: ARG005
                1.4 * rows * prompt * next(busy),
                (33 + 1.8 * (rows - 1)) * next(busy),
            )
        ),
    )
    found = scaling.pilot(SimpleNamespace(max_batch_size=lambda: 16))
    assert found.position_s == pytest.approx(SMALL.position_s)
    assert found.step_s == pytest.approx(SMALL.step_s)
    assert found.row_s == pytest.approx(SMALL.row_s)
