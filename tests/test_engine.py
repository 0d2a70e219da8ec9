"""The engines: limits, stops, sampling, bad items, and neighbours that do not matter."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from tests.tiny_model import write_tiny_model

from batchgauge.baseline.engine import BaselineEngine
from batchgauge.baseline.model import BaselineModel
from batchgauge.core.chat import ChatTemplate
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.generation import Stages
from batchgauge.core.kernels.attention import PlainAttention
from batchgauge.core.model import LlamaModel
from batchgauge.core.sampling import Sampler, nucleus
from batchgauge.errors import UserError
from batchgauge.protocols import Engine
from batchgauge.request import BatchItem, InferenceBatchRequest

CONTEXT = 128
PROMPTS = ["hello world", "the and the", "a", "hello " * 9, "ünï😀", "In 2023, they said: no!"]


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    """A tiny model file."""
    return write_tiny_model(tmp_path_factory.mktemp("engine") / "tiny.gguf", context_length=CONTEXT)


@pytest.fixture(scope="module")
def engine(path):
    """The core's engine."""
    return BatchInferenceEngine.from_gguf(path)


@pytest.fixture(scope="module", params=[BatchInferenceEngine, BaselineEngine])
def either(request, path):
    """Each engine in turn: what holds here holds for both."""
    return request.param.from_gguf(path)


def items(*requests):
    """Batch items with ids of their own."""
    return [BatchItem(f"r{i}", request) for i, request in enumerate(requests)]


def ask(engine, *requests):
    """The responses' data; fails when one carries an error."""
    result = engine.infer_batch(items(*requests))
    assert result.all_succeeded(), [row.error for row in result.responses]
    return [row.data for row in result.responses]


def test_the_engines_satisfy_the_protocol(either):
    """Both can stand wherever an Engine is expected."""
    assert isinstance(either, Engine)
    assert either.max_batch_size() == 100


MODES: dict[str, dict[str, Any]] = {
    "greedy": {},
    "temperature": {"temperature": 0.9},
    "top-p": {"temperature": 1.3, "top_p": 0.7},
}


@pytest.mark.parametrize("mode", MODES)
def test_a_batch_gives_what_each_request_gives_alone(engine, mode):
    """For every way of sampling, the neighbours in the batch do not matter."""
    requests = [
        InferenceBatchRequest(p, max_tokens=5 + 3 * i, seed=i, ignore_eos=True, **MODES[mode])
        for i, p in enumerate(PROMPTS)
    ]
    together = ask(engine, *requests)
    alone = [ask(engine, request)[0] for request in requests]
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert [a.text for a in together] == [a.text for a in alone]


def test_the_optimised_engine_gives_the_baselines_tokens(engine, path):
    """Greedy and seeded sampling agree token for token between the implementations."""
    requests = [
        InferenceBatchRequest(p, max_tokens=16, temperature=t, top_p=0.9, seed=5, chat=chat)
        for p in PROMPTS
        for t in (0.0, 0.8)
        for chat in (False, True)
    ]
    ours = ask(engine, *requests)
    theirs = ask(BaselineEngine.from_gguf(path), *requests)
    assert [a.token_ids for a in ours] == [a.token_ids for a in theirs]
    assert [a.finish_reason for a in ours] == [a.finish_reason for a in theirs]


def test_max_tokens_is_exact(either):
    """A request gets as many tokens as it asked for, and says that it wanted more."""
    for count in (1, 2, 7):
        (answer,) = ask(either, InferenceBatchRequest("hello", max_tokens=count, ignore_eos=True))
        assert answer.tokens_generated == count == len(answer.token_ids)
        assert answer.finish_reason == "length"
        assert len(answer.inter_token_ms) == count - 1
        assert answer.text == either.tokenizer.decode(answer.token_ids)


def test_an_end_token_ends_and_is_not_kept(either):
    """What the model would say next being an end token, the answer is over."""
    request = InferenceBatchRequest("hello world", max_tokens=10, ignore_eos=True)
    (free,) = ask(either, request)
    third = free.token_ids[2]
    first = free.token_ids.index(third)
    edges = either.reader.edges
    either.reader.edges = dataclasses.replace(edges, ends=frozenset({third}))
    try:
        (ended,) = ask(either, dataclasses.replace(request, ignore_eos=False))
        (ignored,) = ask(either, request)
    finally:
        either.reader.edges = edges
    assert ended.token_ids == free.token_ids[:first]
    assert ended.finish_reason == "stop"
    assert ignored.token_ids == free.token_ids


def test_end_tokens_come_from_the_metadata_and_by_name(engine):
    """<|im_end|> is the eos token, <|endoftext|> is known by its name; <|im_start|> is none."""
    assert engine.reader.edges.ends == {0, 2}


def test_a_stop_text_ends_and_is_cut_off(either):
    """Also one that spans tokens; what comes before it stays."""
    request = InferenceBatchRequest("hello", max_tokens=30, ignore_eos=True, temperature=1.0)
    (free,) = ask(either, request)
    middle = len(free.text) // 2
    stop = free.text[middle : middle + 3]
    assert len(stop) == 3
    (stopped,) = ask(either, dataclasses.replace(request, stop=("\x00nothing", stop)))
    assert stopped.text == free.text[: free.text.index(stop)]
    assert stopped.finish_reason == "stop"
    assert stopped.tokens_generated < 30


def test_the_context_limits_what_is_generated(either):
    """The last token may lie one beyond the context, since it is never read."""
    prompt = (5,) * (CONTEXT - 3)
    (answer,) = ask(either, InferenceBatchRequest(prompt, max_tokens=50, ignore_eos=True))
    assert (answer.tokens_generated, answer.finish_reason) == (4, "context")
    full = (5,) * CONTEXT
    (answer,) = ask(either, InferenceBatchRequest(full, max_tokens=50, ignore_eos=True))
    assert (answer.tokens_generated, answer.finish_reason) == (1, "context")
    (answer,) = ask(either, InferenceBatchRequest(full, max_tokens=1, ignore_eos=True))
    assert answer.finish_reason == "length"


BAD = {
    "": "The prompt is empty; expected at least one token.",
    (): "The prompt is empty; expected at least one token.",
    (5,) * (CONTEXT + 1): "The prompt has 129 tokens; expected at most the model's context of 128",
    (5, 9999): "unknown token id; expected 0 to 278",
    (5, -1): "unknown token id; expected 0 to 278",
    "a\ud800b": "lone surrogate U\\+D800",
}


@pytest.mark.parametrize("bad", BAD)
def test_one_bad_item_never_fails_its_neighbours(either, bad):
    """The bad item gets a sentence, the others what they get without it."""
    good = [InferenceBatchRequest(p, max_tokens=4) for p in PROMPTS[:2]]
    result = either.infer_batch(items(good[0], InferenceBatchRequest(bad), good[1]))
    assert [row.id for row in result.responses] == ["r0", "r1", "r2"]
    with pytest.raises(UserError, match=BAD[bad]):
        raise UserError(result.responses[1].error)
    assert result.success_count() == 2
    kept = [result.responses[0].data.token_ids, result.responses[2].data.token_ids]
    assert kept == [a.token_ids for a in ask(either, *good)]


def test_a_batch_of_only_bad_items_is_answered(either):
    """Nothing to run is no reason to fail."""
    result = either.infer_batch(items(InferenceBatchRequest("")))
    assert result.success_count() == 0


def test_bad_batches_are_refused(either):
    """None, too many, or the same id twice: one sentence each."""
    request = InferenceBatchRequest("a", max_tokens=1)
    with pytest.raises(UserError, match="The batch has 0 items; expected 1 to 100"):
        either.infer_batch([])
    with pytest.raises(UserError, match="The batch has 101 items; expected 1 to 100"):
        either.infer_batch(items(*[request] * 101))
    with pytest.raises(UserError, match="same id"):
        either.infer_batch([BatchItem("x", request), BatchItem("x", request)])


def test_a_model_that_wants_a_begin_token_gets_one(tmp_path):
    """Then an empty prompt is that token alone, and a template that writes it is not doubled."""
    path = write_tiny_model(tmp_path / "bos.gguf", add_bos=True)
    engine = BatchInferenceEngine.from_gguf(path)
    assert engine.reader.read(InferenceBatchRequest("")) == [1]
    assert engine.reader.read(InferenceBatchRequest("a")) == [1, engine.tokenizer.encode("a")[0]]
    chat = engine.reader.read(InferenceBatchRequest("a", chat=True))
    assert chat[0] == 1
    assert chat[1] != 1
    (answer,) = ask(engine, InferenceBatchRequest("", max_tokens=2))
    assert answer.prompt_tokens == 1


def test_special_tokens_in_plain_prompts_are_text(engine):
    """Only the chat template's own special tokens count as such."""
    plain = engine.reader.read(InferenceBatchRequest("<|im_end|>"))
    assert 2 not in plain
    assert 2 in engine.reader.read(InferenceBatchRequest("a", chat=True))


def test_counters_and_stages_add_up(either):
    """Work is counted exactly, and the stages lie within the whole."""
    requests = [
        InferenceBatchRequest(p, max_tokens=m, ignore_eos=True)
        for p, m in zip(PROMPTS, (3, 1, 5, 2, 5, 4), strict=True)
    ]
    result = either.infer_batch(items(*requests))
    answers = [row.data for row in result.responses]
    counters = result.counters
    assert counters["prompt_tokens"] == sum(a.prompt_tokens for a in answers)
    assert counters["generated_tokens"] == 20
    assert counters["positions"] == counters["prompt_tokens"] + 20 - 6
    assert counters["padded_positions"] == 0
    expected = 4 if either.name == "numpy" else 14
    assert counters["decode_steps"] == expected
    assert tuple(result.stages_ms) == Stages.NAMES
    assert 0 < sum(result.stages_ms.values()) <= result.stats.total_duration_ms
    for row in result.responses:
        assert row.data.ttft_ms + sum(row.data.inter_token_ms) == pytest.approx(row.duration_ms)


def test_the_next_tokens_scores_are_those_that_greedy_takes(either):
    """`next_token_logits` shows what the first sample chose from."""
    request = InferenceBatchRequest("hello", max_tokens=1, ignore_eos=True)
    logits = either.next_token_logits(request)
    assert logits.shape == (279,)
    assert int(logits.argmax()) == ask(either, request)[0].token_ids[0]


def test_bytes_that_must_exist_are_counted(engine):
    """Weights, the cache of what is held, ids and a row of scores."""
    held = engine.count_bytes([10, 5], [4, 1])
    assert held["weights"] == engine.model.weights_bytes
    assert held["kv_cache"] == 18 * engine.model.kv_bytes_per_token
    assert held["outputs"] == 4 * 5 + 2 * 4 * 279


def test_samples_follow_their_distribution():
    """Frequencies of 4,000 draws lie within five standard deviations of softmax(x / T)."""
    logits = np.array([2.0, 1.0, 0.0, -1.0, -np.inf], np.float32)
    sampler = Sampler(InferenceBatchRequest("a", temperature=0.7, seed=1))
    drawn = np.bincount([sampler(logits) for _ in range(4000)], minlength=5)
    weights = np.exp(logits.astype(np.float64) / 0.7)
    expected = weights / weights.sum()
    spread = np.sqrt(4000 * expected * (1 - expected)) + 1e-9
    assert (np.abs(drawn - 4000 * expected) <= 5 * spread).all()
    assert drawn[4] == 0


def test_the_nucleus_is_the_smallest_set_that_reaches_top_p():
    """Against a full sort, for flat and peaked distributions."""
    rng = np.random.default_rng(2)
    for sharpness in (0.1, 1.0, 5.0):
        weights = np.exp(sharpness * rng.normal(size=500))
        probabilities = (weights / weights.sum()).astype(np.float32)
        for top_p in (0.001, 0.3, 0.9, 0.999):
            order = np.argsort(-probabilities, kind="stable")
            sums = np.cumsum(probabilities[order], dtype=np.float64)
            expected = order[: int(np.argmax(sums >= top_p)) + 1]
            assert nucleus(probabilities, top_p).tolist() == expected.tolist()


def test_a_tiny_temperature_is_greedy_and_never_overflows():
    """Scores divided by nearly nothing still give the best token."""
    logits = np.array([3.0, 80.0, 79.9], np.float32)
    sampler = Sampler(InferenceBatchRequest("a", temperature=1e-30))
    with np.errstate(invalid="raise"):
        assert sampler(logits) == 1


def poisoned(engine, token, value):
    """Give a token an embedding that overflows everything behind it."""
    weights = engine.model.weights
    table = weights["token_embd"] if isinstance(weights, dict) else weights.embedding
    table[token] = value


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("kind", ["core", "core by NumPy", "baseline"])
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8}, {"temperature": 0.8, "top_p": 0.5}])
def test_scores_that_are_not_finite_fail_their_item_alone(tmp_path, kind, value, sampling):
    """From the prompt on, or from some step of it on; the others get what they get without."""
    # Heads of a size that compiled attention takes.
    path = write_tiny_model(tmp_path / "m.gguf", d_model=128, heads=2, kv_heads=1, tied=False)
    baseline = kind == "baseline"
    engine: Any = (BaselineEngine if baseline else BatchInferenceEngine).from_gguf(path)

    def reload():
        engine.model = (BaselineModel if baseline else LlamaModel).load(path)
        if kind == "core by NumPy":
            windows = engine.model.config.windows
            engine.model.layers, engine.model.attention = None, PlainAttention(windows)

    rng = np.random.default_rng(5)
    for length in (2, 3, 4, 5):
        prompts = [tuple(row) for row in rng.integers(3, 150, (7, length)).tolist()]
        requests = [
            InferenceBatchRequest(prompt, max_tokens=6, seed=i, ignore_eos=True, **sampling)
            for i, prompt in enumerate(prompts)
        ]
        reload()
        clean = [answer.token_ids for answer in ask(engine, *requests)]
        for token in (prompts[6][0], prompts[3][-1], clean[2][1], clean[6][3]):
            reload()
            poisoned(engine, token, value)
            rows = engine.infer_batch(items(*requests)).responses
            for row, prompt, ids in zip(rows, prompts, clean, strict=True):
                if token in {*prompt, *ids[:-1]}:
                    assert row.data is None
                    assert row.error.startswith("The model gave no finite score for the next token")
                else:
                    assert row.error is None
                    assert row.data.token_ids == ids
            assert len({row.error is None for row in rows}) == 2


@pytest.mark.parametrize(
    ("scores", "fine"),
    [
        ([0.0, np.nan, 9.0], False),
        ([np.nan] * 3, False),
        ([0.0, np.inf, 1.0], False),
        ([-np.inf] * 3, False),
        ([-np.inf, 1.0, -np.inf], True),
        ([-3e38, 3e38, 0.0], True),
    ],
)
@pytest.mark.parametrize("temperature", [0.0, 1e-46, 1e-30, 0.7, 2.0])
@pytest.mark.parametrize("top_p", [1.0, 0.5])
def test_no_token_wins_by_a_score_that_is_none(scores, fine, temperature, top_p):
    """NaN and plus infinity are no scores; minus infinity means 'never' beside a finite one."""
    sampler = Sampler(InferenceBatchRequest("a", top_p=top_p))
    sampler.temperature = temperature  # some of these no request can have
    if fine:
        assert sampler(np.array(scores, np.float32)) == 1
    else:
        with pytest.raises(UserError, match="no finite score"):
            sampler(np.array(scores, np.float32))


def test_the_chat_template_lays_out_one_turn(engine):
    """The tiny model's template, as text."""
    assert engine.reader.template("hi") == (
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )


def test_templates_have_what_real_ones_use():
    """Today's date and the special tokens are there; a template can refuse."""
    source = "{{ bos_token }}{{ strftime_now('%Y') | length }}"
    template = ChatTemplate(source, {"bos_token": "<s>"})
    assert template("x") == "<s>4"
    with pytest.raises(UserError, match="failed: only English"):
        ChatTemplate("{{ raise_exception('only English') }}")("x")


def test_templates_cannot_reach_outside():
    """The sandbox refuses Python's back doors, and a broken template is a UserError."""
    with pytest.raises(UserError, match="failed"):
        ChatTemplate("{{ ''.__class__.__mro__[1].__subclasses__() }}")("x")
    with pytest.raises(UserError, match="cannot be read"):
        ChatTemplate("{% for %}")("x")


def test_chat_without_a_template_is_that_items_error(tmp_path):
    """A base model cannot chat; a plain prompt beside it is answered."""
    path = write_tiny_model(tmp_path / "base.gguf", chat_template=None)
    result = BatchInferenceEngine.from_gguf(path).infer_batch(
        items(
            InferenceBatchRequest("a", chat=True, max_tokens=1),
            InferenceBatchRequest("a", max_tokens=1),
        )
    )
    assert "no chat template" in (result.responses[0].error or "")
    assert result.responses[1].error is None
