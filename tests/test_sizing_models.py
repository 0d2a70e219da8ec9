"""Cost and memory models: invented machines are recovered, wrong models are noticed."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tiny_families import CASES, write_family
from tests.tiny_model import write_tiny_model

from batchgauge.core.counts import held_bytes
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.kernels import products
from batchgauge.core.kernels.attention import PlainAttention
from batchgauge.core.model import LlamaModel
from batchgauge.errors import UserError
from batchgauge.experiments.batch_sizing.peaks import fit_memory, measure_peaks
from batchgauge.machine.hardware import HardwareProfile
from batchgauge.sizing import calibration
from batchgauge.sizing.calibration import (
    Extent,
    beside_best,
    calibrate_engine,
    calibrate_tokenizer,
    most_telling,
    stated_error,
)
from batchgauge.sizing.cost_model import CostModel, HeldOut, Identity, batch_times
from batchgauge.sizing.curve import Curve, fit_ripple, roofline_curve
from batchgauge.sizing.drift import check_drift
from batchgauge.sizing.lengths import BatchWork, Lengths
from batchgauge.sizing.memory_model import MemoryModel, ModelShape, Peak

SHAPE = ModelShape(30, 576, 9, 3, 64, 1536, 49152, 2048, 538_000_000)


class InventedMachine:
    """A probe whose costs are known: matrix-vector at one row, packing, tiles, context."""

    def __init__(self, noise: float = 0.0, slower: float = 1.0, ripple: float = 8.0) -> None:
        self.rng = np.random.default_rng(1)
        self.noise, self.slower, self.ripple, self.calls = noise, slower, ripple, 0

    def step_ms(self, rows: float, context: float) -> float:
        """The true time of a decode step."""
        base = 18.0 if rows == 1 else 50.0 + 1.2 * rows
        tail = self.ripple if rows > 4 and rows % 4 else 0.0
        return base + tail + 0.003 * context

    def prefill_ms(self, positions: float, squares: float) -> float:
        """The true time of a prefill."""
        return 5.0 + max(20.0, 1.3 * positions) + 1e-4 * squares

    def __call__(self, rows: int, prompt: int, steps: int) -> tuple[float, float]:
        """One noisy run, as a probe gives it."""
        self.calls += 1
        context = rows * (prompt + (steps + 1) / 2.0)
        jitter = self.slower * np.exp(self.noise * self.rng.standard_normal(2))
        prefill = self.prefill_ms(rows * prompt, rows * prompt**2)
        return float(prefill * jitter[0]), float(self.step_ms(rows, context) * jitter[1])


def test_calibration_recovers_invented_costs():
    """Sizes never calibrated on, off-tile ones too, are predicted within one percent."""
    machine = InventedMachine()
    model = calibrate_engine(machine)
    for rows in range(1, 65):
        predicted = float(model.decode_ms(rows, rows * 40.0))
        assert predicted == pytest.approx(machine.step_ms(rows, rows * 40.0), rel=0.01), rows
    assert model.context_ms == pytest.approx(0.003, rel=0.05)
    assert model.square_ms == pytest.approx(1e-4, rel=0.05)
    for rows, length in ((3, 50), (10, 30), (20, 60)):
        truth = machine.prefill_ms(rows * length, rows * length**2)
        said = float(model.prefill_ms(rows * length, rows * length**2))
        assert said == pytest.approx(truth, rel=0.03)


def test_small_batches_are_known_each_for_itself():
    """A kernel that likes 13 to 15 rows is no riddle; ragged batches up to there are known too."""

    class Odd(InventedMachine):
        def step_ms(self, rows, context):
            return super().step_ms(rows, context) * (0.8 if 13 <= rows <= 15 else 1.0)

    machine = Odd()
    model = calibrate_engine(machine)
    for rows in range(1, 17):
        said = float(model.decode_ms(rows, rows * 40.0))
        assert said == pytest.approx(machine.step_ms(rows, rows * 40.0), rel=0.01), rows
    ragged = Lengths((4, 9, 30), (3, 8, 5))
    model = replace(model, noise=0.02, error=0.05)
    assert model.half_width_at(16, ragged) < model.half_width_at(17, ragged)
    assert model.half_width_at(16, ragged) == model.half_width_at(16, Lengths.uniform(8, 8))


def test_calibration_states_its_error_under_noise():
    """With 3 % noise the stated error is of that order, and the model stays within it."""
    machine = InventedMachine(noise=0.03)
    model = calibrate_engine(machine)
    assert 0.01 <= model.error <= 0.08
    assert len(model.held_out) >= 8
    sizes = np.arange(1, 65)
    truth = np.array([machine.step_ms(b, 0.0) for b in sizes.tolist()])
    inside = np.abs(model.decode_ms(sizes, 0.0 * sizes) / truth - 1.0) <= model.half_width
    assert inside.mean() >= 0.9


def test_calibration_needs_few_runs(monkeypatch):
    """A calibration runs a fraction of the sizes that it predicts."""
    monkeypatch.setattr(calibration, "WARM_UP_S", 0.0)
    machine = InventedMachine()
    model = calibrate_engine(machine, Extent(128, repeats=1))
    assert machine.calls < 50
    assert len(model.decode.knots) <= 25


def test_tokenizer_calibration_recovers_a_line():
    """A cost of overhead plus so much per byte is found from a few sizes."""
    model = calibrate_tokenizer(lambda size: (100 * size, 0.05 + 0.002 * size), max_batch_size=500)
    for size in (1, 7, 33, 250, 500):
        said = float(model.prefill_ms(100 * size, 0))
        assert said == pytest.approx(0.05 + 0.002 * size, rel=0.02)


@pytest.mark.parametrize("slower", [0.92, 1.08])
def test_a_model_eight_percent_off_is_noticed_and_said(slower):
    """Fresh times 8 % away from the model raise the alarm, in a sentence that says so."""
    model = calibrate_engine(InventedMachine(noise=0.01))
    fresh = InventedMachine(noise=0.02, slower=slower)
    sizes = (1, 4, 8, 12, 20, 32, 48, 64)
    measured = [fresh(b, 16, 4)[1] for b in sizes]
    predicted = [float(model.decode_ms(b, b * 18.5)) for b in sizes]
    drift = check_drift(predicted, measured)
    assert drift.noticed
    assert "wrong" in drift.sentence
    assert drift.low <= slower <= drift.high or abs(drift.ratio - slower) < 0.03


def test_a_good_model_raises_no_alarm():
    """Over many noisy rechecks of a right model, false alarms are rare."""
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        measured = 50.0 * np.exp(0.03 * rng.standard_normal(8))
        alarms += check_drift([50.0] * 8, measured.tolist()).noticed
    assert alarms <= 3


@pytest.mark.parametrize(
    ("predicted", "measured"), [([1.0], [1.0]), ([1.0] * 3, [1.0] * 4), ([1.0] * 3, [1, 0, 1])]
)
def test_drift_check_refuses_bad_input(predicted, measured):
    """Too few sizes, unequal lists and times that are not positive are user errors."""
    with pytest.raises(UserError):
        check_drift(predicted, measured)


def test_saved_model_comes_back_equal(tmp_path):
    """JSON round trip keeps everything, the held-out checks included."""
    machine = InventedMachine(noise=0.01)
    model = calibrate_engine(machine, Extent(32), identity=Identity("m", "x", 2))
    path = model.save(tmp_path / "costs.json")
    assert CostModel.load(path, Identity("m", "x", 2)) == model == CostModel.load(path)


@pytest.mark.parametrize(
    ("wanted", "word"),
    [({"machine": "other"}, "machine"), ({"model": "y"}, "model"), ({"threads": 1}, "thread")],
)
def test_calibration_of_another_machine_or_model_is_refused(tmp_path, wanted, word):
    """A file from elsewhere is refused in a sentence that names the difference."""
    model = CostModel(Curve((1.0,), (1.0,)), machine="m", model="x", threads=2)
    path = model.save(tmp_path / "costs.json")
    with pytest.raises(UserError, match=f"another {word}"):
        CostModel.load(path, model.identity._replace(**wanted))


@pytest.mark.parametrize("text", ["", "{", "[]", '{"schema": 9}', '{"schema": 1, "prefill": {}}'])
def test_broken_calibration_files_are_user_errors(tmp_path, text):
    """Empty, truncated and foreign files give one sentence, no traceback."""
    path = tmp_path / "costs.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        CostModel.load(path)
    with pytest.raises(UserError, match="read"):
        CostModel.load(tmp_path / "missing.json")


def test_prior_is_the_roofline():
    """Without calibration: memory time below the knee, compute time above, wide intervals."""
    machine = HardwareProfile("x", 4, 1 << 34, 1 << 34, 20e9, 100e9, step_overhead_ms=0.0)
    model = CostModel.prior(SHAPE, machine)
    memory_ms = 1e3 * SHAPE.weight_bytes / 20e9
    row_ms = 1e3 * SHAPE.flops_per_token / 100e9
    assert float(model.decode_ms(1, 0)) == pytest.approx(memory_ms)
    assert float(model.decode_ms(200, 0)) == pytest.approx(200 * row_ms)
    assert model.half_width > 1.0
    with pytest.raises(UserError, match="measure"):
        CostModel.prior(SHAPE, replace(machine, flops_per_s=0.0))


@given(
    bandwidth=st.floats(1e9, 1e12),
    rate=st.floats(1e10, 1e14),
    gain=st.floats(1.0, 10.0),
    rows=st.integers(1, 300),
)
@settings(max_examples=60, deadline=None)
def test_a_faster_machine_is_never_predicted_slower(bandwidth, rate, gain, rows):
    """More bandwidth or more flops never lengthen a predicted batch."""
    lengths = Lengths.uniform(32, 8)

    def total(b: float, f: float) -> float:
        machine = HardwareProfile("x", 1, 1, 1, b, f)
        return batch_times(CostModel.prior(SHAPE, machine), lengths, rows).request_ms

    slow = total(bandwidth, rate)
    assert total(bandwidth * gain, rate) <= slow * (1 + 1e-9)
    assert total(bandwidth, rate * gain) <= slow * (1 + 1e-9)


@given(
    points=st.lists(st.tuples(st.integers(1, 500), st.floats(0.0, 1e4)), min_size=1, max_size=8),
    x=st.floats(0, 2000),
)
@settings(deadline=None)
def test_a_curve_is_finite_and_goes_through_its_knots(points, x):
    """Any curve predicts finite times >= 0 and is exact where it was measured."""
    known = dict(points)
    knots = tuple(float(k) for k in sorted(known))
    curve = Curve(knots, tuple(known[int(k)] for k in knots), (0.0, 3.0, 2.0, 1.0))
    assert np.isfinite(curve(x))
    assert float(curve(x)) >= 0.0
    for knot in knots:
        assert float(curve(knot)) == pytest.approx(known[int(knot)])


@pytest.mark.parametrize(
    ("knots", "ms"), [((), ()), ((2.0, 1.0), (1.0, 1.0)), ((1.0,), (-1.0,)), ((1.0,), (np.nan,))]
)
def test_curves_that_make_no_sense_are_refused(knots, ms):
    """No knots, falling sizes, negative times and NaN are user errors."""
    with pytest.raises(UserError):
        Curve(knots, ms)


def test_beyond_its_knots_a_curve_goes_on_as_most_pairs_of_them():
    """Not as its last segment, whose slope is mostly noise where it is short; never falling."""
    short = Curve((1.0, 64.0, 128.0, 240.0, 256.0), (9.0, 64.0, 128.0, 240.0, 268.8))
    slope = (1.0 + 204.8 / 192.0) / 2.0  # 1.8 by the last segment
    assert float(short(1024.0)) == pytest.approx(268.8 + slope * 768.0)
    assert float(Curve((4.0, 8.0), (20.0, 10.0))(80.0)) == 10.0
    assert Curve((8.0,), (16.0,))([4.0, 80.0]).tolist() == [16.0, 160.0]


def test_ripple_is_found_and_never_a_gain():
    """Extra cost by remainder is fitted; a remainder cheaper than the line counts as none."""
    line = Curve((4.0, 40.0), (4.0, 40.0))
    fitted = fit_ripple(line, [5, 6, 7], [8.0, 5.0, 9.0])
    assert fitted.ripple_ms == pytest.approx((0.0, 3.0, 0.0, 2.0))
    assert float(fitted(9)) == pytest.approx(12.0)
    assert float(fitted(8)) == pytest.approx(8.0)


def test_next_size_is_where_the_curve_bends():
    """The bend is measured before the straight parts; a full grid leaves nothing to ask."""
    bent = Curve((1.0, 8.0, 40.0, 80.0), (10.0, 10.0, 10.0, 400.0))
    assert 8 < (most_telling(bent, 4) or 0) < 80
    assert most_telling(Curve((4.0, 8.0, 12.0), (1.0, 2.0, 3.0)), 4) is None


def test_sizes_beside_the_best_are_measured_too():
    """The wider gap next to the size with the most rows per millisecond comes first."""
    curve = Curve((1.0, 8.0, 24.0, 64.0), (10.0, 12.0, 20.0, 120.0))
    assert beside_best(curve, 4) == 44
    assert beside_best(Curve((4.0, 8.0), (1.0, 1.0)), 4) is None


def test_roofline_curve_has_its_knee():
    """Flat below the knee, rising at the compute rate above."""
    curve = roofline_curve(
        overhead_ms=1.0,
        fixed_bytes=1e6,
        flops_per_unit=1e6,
        bandwidth_bytes_per_s=1e9,
        flops_per_s=1e10,
        largest=100,
    )
    assert float(curve(5)) == pytest.approx(2.0)
    assert float(curve(50)) == pytest.approx(6.0)


def test_stated_error_of_nothing_held_out_is_the_least():
    """Nothing held out: the error is the least that is ever claimed."""
    assert calibration.stated_error([]) == calibration.LEAST_ERROR
    assert calibration.stated_error([HeldOut("decode", 1, 1.0, 1.2)]) > 0.2


def test_batches_add_up_as_rows_finish():
    """A ragged batch costs its prefill and each step at the rows that are still there."""
    lengths = Lengths((4, 4), (2, 4))
    model = CostModel(Curve((1.0,), (1.0,)), Curve((1.0, 2.0), (10.0, 15.0)), error=0.0)
    drawn = lengths.batches(2)
    rows, context = drawn.steps(compacts=True)  # [K, S]
    by_tokens = {
        tuple(sorted(new)): (r, c)
        for new, r, c in zip(
            drawn.new_tokens.tolist(), rows.tolist(), context.tolist(), strict=True
        )
    }
    assert by_tokens[2, 4] == ([2, 1, 1], [10, 6, 7])
    assert by_tokens[2, 2] == ([2, 0, 0], [10, 0, 0])
    late = batch_times(model, lengths, 2).latency_ms("request", "p95")
    assert late == pytest.approx(8.0 + 3 * 15.0)
    alone = batch_times(model, Lengths.uniform(4, 3), 2)
    assert alone.request_ms == pytest.approx(8.0 + 2 * 15.0)
    assert alone.throughput_per_s == pytest.approx(6 / 0.038)
    kept, held = BatchWork.one([4, 4], [2, 4]).steps(compacts=False)
    assert (kept.tolist(), held.tolist()) == ([[2, 2, 2]], [[10, 12, 14]])


@pytest.mark.parametrize(("inputs", "new"), [((), ()), ((-1,), ()), ((4, 5), (1,)), ((4,), (0,))])
def test_workloads_that_make_no_sense_are_refused(inputs, new):
    """Empty workloads, negative lengths, and unequal or empty generations are user errors."""
    with pytest.raises(UserError):
        Lengths(inputs, new)


def test_a_request_beyond_the_context_is_refused():
    """The sentence names what is needed and what there is."""
    with pytest.raises(UserError, match=r"2100 tokens.*2048"):
        Lengths((10, 2000), (10, 100)).check_context(2048)


def test_memory_fit_recovers_invented_terms():
    """Peaks made from known terms are predicted within one percent on lengths not fitted to."""
    truth = MemoryModel(
        10**9, 46_080.0, 2e5, (5e4, 2e4, 1.4e4, 6e4), (3e4, 4e5), part=256, tile=64, group=8
    )
    blank = replace(truth, activation_terms=(0.0,) * 4, decode_terms=(0.0,) * 2)

    def peak(rows: int, prompt: int, new: int) -> Peak:
        found = Peak(rows, prompt, new, 0.0)
        return replace(found, peak_bytes=truth.batch_bytes(found.plan()))

    prefill = [peak(b, t, 1) for b, t in ((1, 16), (6, 10), (4, 64), (2, 150), (1, 90))]
    decode = [peak(b, 1, n) for b, n in ((1, 64), (8, 96), (32, 4))]
    model = blank.fitted_to(prefill, decode)
    for b, t, n in ((24, 48, 1), (40, 8, 4), (12, 4, 300), (3, 100, 100), (60, 2, 2)):
        test = peak(b, t, n)
        assert model.batch_bytes(test.plan()) == pytest.approx(test.peak_bytes, rel=0.01)
    assert model.error == pytest.approx(0.01)


def test_neighbours_get_room_for_the_longest_of_their_group():
    """With groups of two, tokens held are those of the longer neighbour in order of length."""
    model = MemoryModel(0, 1.0, 0.0, (0.0,) * 4, (0.0,) * 2, group=2)
    plan = BatchWork.one([9, 1, 5, 2], [2, 2, 2, 2])
    assert model.batch_bytes(plan) == 2 * 3 + 2 * 10


@pytest.mark.skipif(products.compiled() is None, reason="no compiled tiles here")
def test_many_short_prompts_take_what_is_predicted(tmp_path):
    """Each brings room for its keys, however short it is: fitted to few, right for many."""
    path = tmp_path / "m.gguf"
    write_tiny_model(path, d_model=256, heads=4, kv_heads=2, d_ff=512, context_length=1024)
    engine = BatchInferenceEngine.from_gguf(path)
    model, _ = fit_memory(engine, ModelShape.of(engine.model.config, engine.model.weights_bytes))
    assert model.activation_terms[3] > 4 * 64 * 2 * 16  # APART, on any processor
    assert model.worst_error(measure_peaks(engine, [(size, 4, 4) for size in (16, 48)])) < 0.05


def test_rooms_that_are_alike_are_counted_so(tmp_path, monkeypatch):
    """Attention by NumPy has neighbours' rooms as long as the longest."""
    path = write_tiny_model(tmp_path / "m.gguf", context_length=1024)
    engine = BatchInferenceEngine.from_gguf(path)
    monkeypatch.setattr(engine.model, "attention", PlainAttention(engine.model.config.windows))
    shape = ModelShape.of(engine.model.config, engine.model.weights_bytes)
    model, _ = fit_memory(engine, shape)
    work = BatchWork.one([4] * 7 + [20, 90, 90], [2] * 10)
    cache = engine.model.new_cache((work.inputs[0] + 1).tolist())
    none = {"activation_terms": (0.0,) * 4, "decode_terms": (0.0,) * 2}
    bare = replace(model, scores_bytes_per_row=0.0, **none)  # type: ignore[arg-type]
    assert bare.batch_bytes(work) == cache.nbytes == (8 * 21 + 2 * 91) * shape.kv_bytes_per_token


def test_memory_fit_needs_enough_peaks():
    """Fewer peaks than terms are refused."""
    with pytest.raises(UserError):
        MemoryModel.from_shape(SHAPE).fitted_to([], [])


@given(rows=st.integers(1, 60), more=st.integers(0, 60), prompt=st.integers(1, 200))
@settings(max_examples=50, deadline=None)
def test_memory_grows_with_the_batch(rows, more, prompt):
    """A larger batch or a longer prompt never needs less memory."""
    model = MemoryModel.from_shape(SHAPE)
    small = model.peak_bytes(Lengths.uniform(prompt, 8), rows)
    assert model.peak_bytes(Lengths.uniform(prompt, 8), rows + more) >= small
    assert model.peak_bytes(Lengths.uniform(prompt + more, 8), rows) >= small


def test_shape_reads_a_config():
    """Names of a model's config become a shape; weights and KV bytes follow from it."""
    names = {"layers": 2, "d_model": 8, "heads": 2, "kv_heads": 1, "head_dim": 4}
    config = type("C", (), names | {"d_ff": 16, "vocab_size": 32, "context_length": 64})
    shape = ModelShape.of(config, weight_bytes=100)
    assert shape.kv_bytes_per_token == 2 * 2 * 1 * 4 * 4
    assert shape.matrix_weights == 2 * (8 * 4 * (4 + 2) + 3 * 8 * 16) + 32 * 8
    assert json.dumps(shape.flops_per_token)


def test_the_held_out_check_does_not_count_its_own_noise():
    """What the measurements scatter is taken off; the rest is the model's error."""
    held_out = [HeldOut("decode", float(size), 100.0, 105.0) for size in (5, 9, 13)]
    seen = stated_error(held_out)
    assert seen == pytest.approx(1.4826 * math.log(1.05))
    assert stated_error(held_out, noise=0.6 * seen) == pytest.approx(0.8 * seen)
    assert stated_error(held_out, noise=2 * seen) == 2 * seen


@pytest.mark.parametrize("name", ["mistral", "gemma3", "llama uneven"])
def test_the_cache_is_counted_as_it_is_held(tmp_path, name):
    """A layer with a window keeps every position all the same, and one of few heads their room."""
    model = LlamaModel.load(write_family(tmp_path / "m.gguf", CASES[name]))
    lengths = [40, 40, 40]
    cache = model.new_cache(lengths)
    memory = MemoryModel.from_shape(ModelShape.of(model.config, model.weights_bytes))
    assert memory.kv_bytes_per_token == model.config.kv_bytes_per_token
    held = held_bytes(model.config, 0, lengths, [1, 1, 1])["kv_cache"]
    assert held == sum(lengths) * memory.kv_bytes_per_token
    assert held == cache.nbytes
