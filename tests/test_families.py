"""Every family by its own rules: against `transformers`, ragged as alone, each weights mode."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tests.reference_llama import reference_logits
from tests.tiny_families import CASES, transformers_logits, transformers_model, write_family
from tests.tiny_model import TOKENS
from threadpoolctl import threadpool_limits

from batchgauge.baseline.engine_rungs import baseline, engine_rungs
from batchgauge.baseline.model import BaselineModel
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.kernels import activations, attention, products
from batchgauge.core.kernels.attention import CompiledAttention
from batchgauge.core.model import LlamaModel
from batchgauge.errors import UserError
from batchgauge.request import BatchItem, InferenceBatchRequest

RNG = np.random.default_rng(11)
PROMPTS = [RNG.integers(0, len(TOKENS), n).tolist() for n in (5, 1, 17, 40, 70)]


@pytest.fixture(autouse=True)
def one_thread():
    """Products this small wait longer for a second thread than it computes."""
    with threadpool_limits(1, user_api="blas"):
        yield


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A case and its file."""
    folder = tmp_path_factory.mktemp("family")
    return CASES[request.param], write_family(folder / "m.gguf", CASES[request.param])


def greedy(model, prompts, count):
    """Scores of prompts and steps [steps, B, V], and the greedy tokens [steps, B]."""
    cache = model.new_cache([len(prompt) + count for prompt in prompts])
    scores = [model.prefill(prompts, cache)]
    for _ in range(count):
        scores.append(model.decode(scores[-1].argmax(axis=1), cache))
    return np.array(scores), np.array(scores).argmax(axis=2)


def test_a_ragged_batch_gives_what_each_prompt_gives_alone(case):
    """To the last bit; and both as the baseline computes it."""
    _, path = case
    model, baseline = LlamaModel.load(path), BaselineModel.load(path)
    together, _ = greedy(model, PROMPTS, 4)
    for row, prompt in enumerate(PROMPTS):
        alone, tokens = greedy(model, [prompt], 4)
        if isinstance(model.attention, CompiledAttention):
            np.testing.assert_array_equal(together[:, row], alone[:, 0])
        np.testing.assert_allclose(together[:, row], alone[:, 0], rtol=0, atol=1e-4)
        cache = baseline.new_cache()
        expected = [baseline.forward(prompt, cache)[-1]]
        expected += [baseline.forward([token], cache)[0] for token in tokens[:4, 0]]
        np.testing.assert_allclose(alone[:, 0], expected, rtol=0, atol=3e-4)


@pytest.mark.parametrize("name", ["gemma3", "qwen2", "olmo2"])
@pytest.mark.parametrize("weights", ["float32", "file"])
def test_threads_change_no_bit(tmp_path, monkeypatch, name, weights):
    """However much of the work they share."""
    monkeypatch.setattr(products, "WORTH_SHARING", 0)
    path = write_family(tmp_path / "m.gguf", CASES[name], quantisation="Q8_0")
    found = []
    for threads in (1, 2):
        with threadpool_limits(threads, user_api="blas"):
            found.append(greedy(LlamaModel.load(path, weights), PROMPTS, 3)[0])
    np.testing.assert_array_equal(*found)


@pytest.mark.parametrize(
    ("weights", "way"), [("float32", "numpy"), ("file", "compiled"), ("bfloat16", "compiled")]
)
def test_scores_are_those_of_the_formulas(case, weights, way, monkeypatch, tmp_path):
    """In float64, for every way to keep weights and to compute; quantised ones as stored."""
    what, path = case
    if weights == "file":
        path = write_family(tmp_path / "m.gguf", what, quantisation="Q8_0")
    if way == "numpy":
        for module in (attention, activations, products):
            monkeypatch.setattr(module, "import_module", no_module)
        monkeypatch.setattr(activations, "compiled", lambda: None)
        monkeypatch.setattr(products, "compiled", lambda: None)
    model = LlamaModel.load(path, weights)
    for prompt in PROMPTS[2:4]:
        found = model.prefill([prompt], model.new_cache([len(prompt)]))[0]
        expected = reference_logits(path, prompt)
        size = np.abs(expected).max()
        close = 0.1 if weights == "bfloat16" else 5e-5
        np.testing.assert_allclose(found, expected, rtol=0, atol=close * size)


def no_module(_name):
    """As on a machine without Numba."""
    raise ImportError


@pytest.mark.peers
def test_logits_and_greedy_ids_are_those_of_transformers(case):
    """Within 1e-4 of the library's float32, every prompt; longer than windows and contexts."""
    what, path = case
    if "none" in what.theirs:
        pytest.skip("the library has no such model")
    model, theirs = LlamaModel.load(path), transformers_model(path, what)
    for prompt in PROMPTS:
        ours, tokens = greedy(model, [prompt], 4)
        logits = transformers_logits(theirs, prompt)
        np.testing.assert_allclose(
            ours[0, 0], logits, rtol=0, atol=1e-4 * max(1, np.abs(logits).max())
        )
        if model.config.rotaries[0].scaling not in {"dynamic", "longrope"}:
            for step in range(4):
                logits = transformers_logits(theirs, [*prompt, *tokens[: step + 1, 0].tolist()])
                assert logits.argmax() == tokens[step + 1, 0]


# What llama.cpp leaves out or decides by itself: see `batchgauge.core.families`.
OTHERWISE = {
    *("llama dynamic", "mistral", "phi3", "gemma2", "llama uneven"),
    *("llama yarn magnitude", "llama partial", "phi3 longrope"),
}


@pytest.mark.peers
def test_llama_cpp_reads_the_same_from_the_file(case):
    """Its scores are ours, as far as its products in half precision go."""
    pytest.importorskip("llama_cpp")
    from batchgauge.adapters.llama_cpp_adapter import LlamaCppStepper

    what, path = case
    if any(what is CASES[name] for name in OTHERWISE):
        pytest.skip("llama.cpp has another rule there")
    model = LlamaModel.load(path)
    for prompt in PROMPTS[3:]:  # longer than any original context, which decides there
        theirs = LlamaCppStepper(path).prefill([prompt], 1)[0]
        ours = model.prefill([prompt], model.new_cache([len(prompt)]))[0]
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=0.03 * np.abs(theirs).max())


@pytest.mark.peers
@pytest.mark.parametrize(
    "name", ["llama biases", "llama yarn magnitude", "qwen2", "qwen3", "gemma2", "mistral"]
)
def test_the_adapter_of_transformers_runs_it_or_says_why_not(tmp_path, name):
    """On the same weights; one sentence for what it does not do."""
    pytest.importorskip("transformers")
    from batchgauge.adapters.transformers_adapter import TransformersStepper, load_model

    path = write_family(tmp_path / "m.gguf", CASES[name])
    if name in {"gemma2", "mistral"}:
        with pytest.raises(UserError, match="'transformers' cannot run"):
            load_model(GGUFFile.open(path))
        return
    model = LlamaModel.load(path)
    theirs = TransformersStepper(load_model(GGUFFile.open(path)), 1).prefill(PROMPTS, 1)
    ours = model.prefill(PROMPTS, model.new_cache([len(prompt) for prompt in PROMPTS]))
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=5e-4)


@pytest.mark.parametrize("name", ["gemma3", "phi3", "qwen2", "olmo2", "granite", "llama uneven"])
def test_every_rung_gives_the_same_tokens(tmp_path, name):
    """The ladder from the baseline to the core's model, on other families too."""
    path = write_family(tmp_path / "m.gguf", CASES[name])
    request = InferenceBatchRequest("and the world in", max_tokens=12, ignore_eos=True)
    items = [BatchItem("a", request), BatchItem("b", replace(request, prompt="hello"))]
    expected = baseline(path)(items)
    assert all(len(tokens) == 12 for tokens in expected)
    for rung in engine_rungs(path):
        if rung.name == "bfloat16 weights":  # lossy: random scores lie close together
            continue
        assert rung.make_cumulative()(items) == expected, rung.name
