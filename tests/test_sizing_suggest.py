"""The suggestion: what must hold for any machine and budget, and every bad input."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, reject, settings
from hypothesis import strategies as st

from batchgauge.errors import UserError
from batchgauge.machine.hardware import simulated_profiles
from batchgauge.sizing import traffic_lengths
from batchgauge.sizing.cost_model import CostModel
from batchgauge.sizing.curve import Curve
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.memory_model import MemoryModel, ModelShape
from batchgauge.sizing.suggest import suggest_batch_size
from batchgauge.sizing.suggestion import BatchSizeSuggestion, SizingConfig

SHAPE = ModelShape(30, 576, 9, 3, 64, 1536, 49152, 2048, 538_000_000)
MEMORY = MemoryModel.from_shape(SHAPE)
WORK = Lengths.uniform(16, 16)


def machine(ms: list[float], error: float = 0.02, ripple: float = 0.0) -> CostModel:
    """A cost model with decode times at 1, 2, 8, 32 and 64 rows."""
    decode = Curve((1.0, 2.0, 8.0, 32.0, 64.0), tuple(ms), (0.0, ripple, ripple / 2, ripple))
    return CostModel(Curve((1.0, 512.0), (5.0, 400.0)), decode, context_ms=0.001, error=error)


USUAL = machine([20.0, 50.0, 60.0, 90.0, 125.0], ripple=8.0)
# Any five times, falling or rising: nothing below may rest on a curve being well behaved.
machines = st.builds(
    machine,
    st.lists(st.floats(1.0, 500.0), min_size=5, max_size=5),
    error=st.floats(0.0, 0.3),
    ripple=st.floats(0.0, 50.0),
)


def suggest(cost=USUAL, memory=None, *, work=WORK, hardware=None, **config) -> BatchSizeSuggestion:
    """The suggestion under a configuration of these fields."""
    wanted = SizingConfig(**config)
    return suggest_batch_size(work, cost, wanted, memory_model=memory, hardware=hardware)


def answer(cost, memory=None, **config) -> BatchSizeSuggestion:
    """The suggestion; an example for which no size fits is not a case of the property."""
    try:
        return suggest(cost, memory, max_batch_size=48, **config)
    except UserError:
        return reject()


@given(model=machines, budget=st.floats(10.0, 20_000.0), looser=st.floats(1.0, 5.0))
@settings(max_examples=80, deadline=None)
def test_a_looser_latency_budget_never_lowers_throughput(model, budget, looser):
    """Whatever the cost curve, more time allowed never means fewer tokens a second."""
    # Both budgets must be met in the same sense: with the whole interval.
    tight = answer(model, latency_budget_ms=budget)
    assume(tight.latency_ms.high <= budget)
    loose = answer(model, latency_budget_ms=budget * looser)
    assert loose.throughput_per_s.value >= tight.throughput_per_s.value * (1 - 1e-12)


@given(model=machines, first=st.floats(5.4e8, 9e8), more=st.floats(1.0, 3.0))
@settings(max_examples=60, deadline=None)
def test_more_memory_never_lowers_the_largest_size_that_fits(model, first, more):
    """Sizes rejected for memory only become fewer as the budget grows."""

    def largest(budget: float) -> int:
        found = answer(model, MEMORY, memory_budget_bytes=budget)
        return max(c.size for c in found.candidates if "memory" not in c.rejected)

    assert largest(first * more) >= largest(first)


@given(model=machines, memory=st.floats(5.4e8, 2e9), budget=st.floats(10.0, 20_000.0))
@settings(max_examples=80, deadline=None)
def test_a_suggestion_keeps_its_budgets(model, memory, budget):
    """Point predictions of a suggested size are within both budgets, whatever the machine."""
    found = answer(model, MEMORY, memory_budget_bytes=memory, latency_budget_ms=budget)
    assert found.latency_ms.value <= budget
    assert found.memory_bytes.value <= memory
    assert 1 <= found.size <= 48
    assert found.throughput_per_s.low <= found.throughput_per_s.value <= found.throughput_per_s.high


def slowed(model, factor):
    """The same machine after it became `factor` times as slow."""
    curves = {
        name: replace(
            curve, ms=tuple(m * factor for m in curve.ms),
            ripple_ms=tuple(r * factor for r in curve.ripple_ms),
        )
        for name, curve in (("prefill", model.prefill), ("decode", model.decode))
    }  # fmt: skip
    times = {"square_ms": model.square_ms * factor, "context_ms": model.context_ms * factor}
    return replace(model, **curves, **times)


@given(model=machines, factor=st.floats(1.0, 4.0))
@settings(max_examples=40, deadline=None)
def test_a_uniformly_faster_machine_keeps_its_size_and_gains(model, factor):
    """Without budgets, scaling all times changes the throughput, not the size."""
    before, after = (answer(m) for m in (model, slowed(model, 1.0 / factor)))
    assert before.size == after.size
    gain = after.throughput_per_s.value / before.throughput_per_s.value
    assert gain == pytest.approx(factor)


@given(model=machines)
@settings(max_examples=40, deadline=None)
def test_every_candidate_is_the_answer_or_has_a_reason(model):
    """Nothing is dropped silently, and the Pareto front rises in both directions."""
    found = answer(model, latency_budget_ms=1e9)
    assert [c.size for c in found.candidates] == list(range(1, 49))
    assert {c.size for c in found.candidates if not c.rejected} == {found.size}
    front = sorted(found.front, key=lambda c: c.latency_ms.value)
    rates = [c.throughput_per_s.value for c in front]
    assert rates == sorted(rates)
    assert found.size in {c.size for c in front}


def test_objectives_pull_in_their_directions():
    """Latency picks the soonest, throughput the fastest, balanced lies between."""
    sizes = {
        objective: suggest(objective=objective, max_batch_size=64).size
        for objective in ("latency", "balanced", "throughput")
    }
    assert sizes["latency"] == 1
    assert sizes["latency"] <= sizes["balanced"] <= sizes["throughput"]
    assert sizes["throughput"] >= 56


def test_sizes_off_the_tile_are_beaten():
    """With a ripple, 7 rows take longer than 8 and do less: the reason names the better size."""
    found = suggest(max_batch_size=64)
    reasons = {c.size: c.rejected for c in found.candidates}
    assert "beaten by 8" in reasons[7]
    assert found.size % 4 == 0


def test_binding_constraints_are_named():
    """Each constraint is named when it is the one that stops the throughput."""
    free = suggest(max_batch_size=64)
    assert free.binding == "largest batch size"
    late = suggest(max_batch_size=64, latency_budget_ms=1300.0)
    assert late.binding == "latency budget"
    assert late.size < free.size
    room = MEMORY.peak_bytes(WORK, 20) * 1.01
    full = suggest(memory=MEMORY, memory_budget_bytes=room, max_batch_size=64)
    assert full.binding == "memory budget"
    assert full.size < 20
    level = machine([20.0, 40.0, 160.0, 640.0, 1280.0])
    assert suggest(level, max_batch_size=64).binding == "none"


def test_trust_follows_the_evidence():
    """A roofline guess is low, a tight calibration high, a budget within the error low."""
    prior = CostModel.prior(SHAPE, simulated_profiles()[0])
    assert suggest(prior).trust == "low"
    assert suggest().trust == "high"
    vague = machine([20.0, 50.0, 60.0, 90.0, 125.0], error=0.1)
    assert suggest(vague).trust == "fair"
    one = suggest(max_batch_size=1)
    edge = suggest(latency_budget_ms=one.latency_ms.value * 1.001)
    assert edge.trust == "low"
    assert "error" in edge.trust_reason


def test_impossible_latency_names_the_budget_and_the_need():
    """The sentence says which budget fails at 1 and what would do."""
    with pytest.raises(UserError, match=r"latency budget of 50 ms.*give at least"):
        suggest(latency_budget_ms=50.0)


def test_impossible_memory_names_the_budget_and_the_need():
    """Memory below the weights fails at a batch of 1, and says how much that takes."""
    with pytest.raises(UserError, match=r"memory budget of 100 MiB.*batch of 1.*give at least"):
        suggest(memory=MEMORY, memory_budget_bytes=100 * 2**20)


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency_budget_ms": 0.0},
        {"latency_budget_ms": -5.0},
        {"latency_budget_ms": math.nan},
        {"memory_budget_bytes": 0},
        {"max_batch_size": 0},
        {"objective": "speed"},
        {"latency_metric": "p99"},
    ],
)
def test_bad_budgets_and_names_are_refused(wrong):
    """Zero, negative and NaN budgets and unknown names are user errors in one sentence."""
    with pytest.raises(UserError):
        SizingConfig(**wrong)


def test_a_request_beyond_the_context_is_an_error_at_any_size():
    """One request that is too long is named before any size is considered."""
    with pytest.raises(UserError, match="context"):
        Lengths((8, 3000), (8, 8)).check_context(2048)


def test_simulated_machines_move_the_right_way():
    """More bandwidth and flops mean more tokens; more memory never a smaller size that fits."""
    work = traffic_lengths()
    rates, sizes = [], []
    for profile in simulated_profiles():
        prior = CostModel.prior(SHAPE, profile)
        found = suggest(prior, MEMORY, work=work, hardware=profile, max_batch_size=128)
        rates.append(found.throughput_per_s.value)
        fits = [c.size for c in found.candidates if "memory" not in c.rejected]
        sizes.append(max(fits))
    laptop, server, small_gpu, large_gpu = rates
    assert laptop < server < large_gpu
    assert small_gpu < large_gpu
    assert sizes[3] >= sizes[2]


def test_free_memory_bounds_the_size_when_no_budget_is_given():
    """Hardware with little free memory makes memory the binding constraint."""
    from dataclasses import replace

    small = replace(simulated_profiles()[0], memory_available_bytes=560_000_000)
    found = suggest(memory=MEMORY, hardware=small, max_batch_size=64)
    assert found.binding == "memory budget"


def test_the_sentence_has_size_intervals_and_trust():
    """The words carry the numbers, in the unit of the work."""
    found = suggest(max_batch_size=64)
    text = found.sentence()
    assert f"batches of {found.size}" in text
    assert "tokens/s" in text
    assert "Trust: high" in text
    texts = suggest(CostModel(Curve((1.0, 9.0), (1.0, 2.0))), work=Lengths.uniform(100))
    assert texts.unit == "texts"
    assert np.isfinite(texts.throughput_per_s.value)


def test_config_from_keywords_and_parameters():
    """Both ways in give the same typed object; 0 is no budget in notebooks."""
    wanted = SizingConfig("balanced", 500.0, max_batch_size=32)
    assert wanted == SizingConfig.from_parameters(
        {
            "objective": "balanced",
            "latency_budget_ms": 500,
            "memory_budget_bytes": 0,
            "max_batch_size": 32,
        }
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"latency": 5},
        {"latency_budget_ms": "soon"},
        {"latency_budget_ms": -1},
        {"max_batch_size": 2.5},
        {"max_batch_size": True},
        {"objective": 3},
        {"objective": "speed"},
        {"threads": 0},
    ],
)
def test_bad_settings_are_refused(wrong):
    """Unknown names, wrong types and impossible values are user errors."""
    with pytest.raises(UserError):
        SizingConfig.from_parameters(wrong)
