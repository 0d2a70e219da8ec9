"""The model: against transformers and the baseline, ragged as alone, cached as whole."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from tests.tiny_model import TOKENS, write_tiny_model

from batchgauge.baseline.model import BaselineModel
from batchgauge.core import model as core_model
from batchgauge.core import weights as core_weights
from batchgauge.core.config import Config
from batchgauge.core.counts import decode_counts, held_bytes, linear, prefill_counts, total
from batchgauge.core.default_model import default_model_path
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.kv_cache import KVCache, length
from batchgauge.core.model import LlamaModel
from batchgauge.errors import UserError

SHAPES: dict[str, dict[str, Any]] = {
    "tied": {},
    "untied": {"tied": False},
    "one kv head": {"kv_heads": 1},
    "no grouping": {"kv_heads": 4},
    "rope factors": {"rope_factors": np.linspace(1.0, 8.0, 8)},
    "odd widths": {"d_model": 40, "heads": 5, "kv_heads": 1, "d_ff": 33},
    "quantised": {"quantisation": "Q4_1"},
}
RNG = np.random.default_rng(7)
PROMPTS = [RNG.integers(0, len(TOKENS), n).tolist() for n in (5, 1, 17, 9, 30, 2, 64, 3, 11, 8)]


@pytest.fixture(scope="module", params=SHAPES)
def pair(request, tmp_path_factory):
    """The core's and the baseline's model of one file."""
    path = tmp_path_factory.mktemp("model") / "tiny.gguf"
    file = GGUFFile.open(write_tiny_model(path, **SHAPES[request.param]))
    return LlamaModel(file), BaselineModel.from_file(file)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """The core's model, tied head."""
    return LlamaModel.load(write_tiny_model(tmp_path_factory.mktemp("model") / "tiny.gguf"))


def greedy(model, prompts, count):
    """`count` greedy tokens for each prompt, all in one batch."""
    cache = model.new_cache([len(prompt) + count for prompt in prompts])
    logits = model.prefill(prompts, cache)
    chosen = []
    for _ in range(count):
        tokens = logits.argmax(axis=1)
        chosen.append(tokens)
        logits = model.decode(tokens, cache)
    return np.array(chosen).T.tolist()


def test_logits_are_those_of_the_baseline(pair):
    """Prefill of ragged prompts and decode steps agree with the textbook forward."""
    core, baseline = pair
    cache = core.new_cache([len(prompt) + 3 for prompt in PROMPTS])
    logits = [core.prefill(PROMPTS, cache)]
    following = RNG.integers(0, len(TOKENS), (3, len(PROMPTS)))
    logits += [core.decode(tokens, cache) for tokens in following]
    for row, prompt in enumerate(PROMPTS):
        ids = prompt + following[:, row].tolist()
        expected = baseline.forward(ids, baseline.new_cache())[len(prompt) - 1 :]  # [4, V]
        np.testing.assert_allclose([step[row] for step in logits], expected, rtol=0, atol=2e-4)


def test_a_ragged_batch_gives_what_each_prompt_gives_alone(pair):
    """Greedy tokens do not depend on the neighbours, ten rows in two groups."""
    core, _ = pair
    assert greedy(core, PROMPTS, 12) == [greedy(core, [prompt], 12)[0] for prompt in PROMPTS]


def test_the_baselines_cache_changes_nothing(pair):
    """Token by token through the cache gives the logits of all at once."""
    _, baseline = pair
    cache = baseline.new_cache()
    steps = [baseline.forward([token], cache)[0] for token in PROMPTS[2]]
    whole = baseline.forward(PROMPTS[2], baseline.new_cache())
    np.testing.assert_allclose(steps, whole, rtol=0, atol=1e-4)


@pytest.mark.parametrize("part", [1, 7, 64])
def test_parts_of_a_prefill_change_nothing(tiny, monkeypatch, part):
    """However a prefill is cut, the logits are the same."""
    whole = tiny.prefill(PROMPTS, tiny.new_cache([len(p) for p in PROMPTS]))
    monkeypatch.setattr(core_model, "PART", part)
    monkeypatch.setattr(core_model, "TILE", 5)
    monkeypatch.setattr("batchgauge.core.ops.QUERY_BLOCK", 3)
    cut = tiny.prefill(PROMPTS, tiny.new_cache([len(p) for p in PROMPTS]))
    np.testing.assert_allclose(cut, whole, rtol=0, atol=1e-4)


def test_a_second_prefill_goes_on_behind_the_first(tiny):
    """Two prefills into one cache are one long prompt."""
    prompt = PROMPTS[6]
    cache = tiny.new_cache([len(prompt)])
    tiny.prefill([prompt[:20]], cache)
    twice = tiny.prefill([prompt[20:]], cache)
    once = tiny.prefill([prompt], tiny.new_cache([len(prompt)]))
    np.testing.assert_allclose(twice, once, rtol=0, atol=1e-4)


def test_rows_that_leave_do_not_disturb_those_that_stay(tiny):
    """The remaining rows go on as if nothing had happened."""
    alone = [greedy(tiny, [prompt], 6)[0] for prompt in PROMPTS]
    cache = tiny.new_cache([len(prompt) + 6 for prompt in PROMPTS])
    tokens = tiny.prefill(PROMPTS, cache).argmax(axis=1)
    rows = cache.rows
    got = {row: [int(token)] for row, token in zip(rows, tokens, strict=True)}
    for leaving in ({0, 9}, {4}, {1, 2, 3}, set(), {8}):
        stay = ~np.isin(rows, list(leaving))
        for row in leaving:
            cache.give(row)
        rows, tokens = rows[stay], tokens[stay]
        tokens = tiny.decode(tokens, cache, rows).argmax(axis=1)
        for row, token in zip(rows, tokens, strict=True):
            got[row].append(int(token))
    for row, tokens in got.items():
        assert tokens == alone[row][: len(tokens)]
    assert sorted(rows) == [5, 6, 7]


def test_groups_of_the_cache_are_as_long_as_they_need():
    """Groups of rows are as long as their own longest row, rows alone as they asked for."""
    shape = (2, 3, 4)
    each = 2 * 2 * 3 * 4 * 4  # bytes of a position
    cache = KVCache(shape, [10] * 7 + [11, 100])
    assert cache.nbytes == each * (8 * 11 + 100)
    assert KVCache(shape, [10, 30], alike=0).nbytes == each * 40
    cache.give(8)
    assert cache.rows.tolist() == list(range(8))
    with pytest.raises(KeyError):
        cache.find(8)


def test_rooms_go_to_newcomers_and_nothing_else_moves():
    """A newcomer gets a clean room that was left; there are never more than were once in use."""
    cache = KVCache((2, 1, 4), [10, 20, 30], alike=0, limit=60)
    for row in range(3):
        group, place = cache.find(row)
        group.rooms[place][:] = np.nan
        cache.lengths[row] = 9
    before = cache.places([0, 2])
    cache.give(1)
    (row,) = cache.take([15])
    assert row == 1
    group, place = cache.find(row)
    assert not group.rooms[place][..., :9, :].any()
    assert (group.capacities[place], cache.used, cache.lengths[row]) == (20, 60, 0)
    np.testing.assert_array_equal(cache.places([0, 2]), before)
    cache.give(1)
    cache.take([9])  # 20 would be more than twice as long
    assert (cache.used, cache.positions) == (49, 49)


def test_a_limit_of_the_cache_holds():
    """Through thousands of random comings and goings: newcomers that fit never break it."""
    rng = np.random.default_rng(4)
    for alike, limit in ((0, 200), (3, 200), (0, np.inf), (3, np.inf)):
        cache = KVCache((1, 1, 2), alike=alike, limit=limit)
        for _ in range(2000):
            if len(cache) and rng.random() < 0.5:
                cache.give(int(rng.choice(cache.rows)))
                continue
            coming = rng.integers(1, 40, rng.integers(1, 4)).tolist()
            if cache.used + sum(coming) <= 200:
                rows = cache.take(coming)
                assert all(
                    length(cache.find(row)) >= need for row, need in zip(rows, coming, strict=True)
                )
            assert cache.used == sum(length(cache.find(row)) for row in cache.rows.tolist())
            assert cache.used <= cache.positions <= limit
        assert len({cache.find(row) for row in cache.rows.tolist()}) == len(cache)


def test_blocks_give_the_plain_product():
    """Any number of rows, through any way of cutting them, gives x times the matrix."""
    rng = np.random.default_rng(0)
    for features, inputs in ((64, 64), (65, 40), (300, 576), (3, 1536)):
        matrix = rng.normal(size=(features, inputs)).astype(np.float32)
        size = core_weights.blocked_size(features, inputs)
        blocks = np.zeros(size, np.float32).reshape(-1, inputs, core_weights.BLOCK)
        core_weights.place_rows(blocks, 0, matrix)
        blocked = core_weights.Blocked(blocks, features)
        for rows in (1, 2, 3, 8, 27, 28, 31, 55, 200):
            x = rng.normal(size=(rows, inputs)).astype(np.float32)
            np.testing.assert_allclose(blocked(x), x @ matrix.T, rtol=0, atol=1e-3)
        np.testing.assert_array_equal(blocked.rows(np.array([2, 0])), matrix[[2, 0]])


def test_weights_are_counted_and_shared(tiny):
    """A tied head is held once; the cache's bytes per token follow from the shape."""
    c = tiny.config
    per_layer = (c.heads + 2 * c.kv_heads) * c.head_dim * 64 + 64 * 64 + 3 * 96 * 64
    assert tiny.weights_bytes >= 4 * (c.layers * per_layer + c.vocab_size * 64)
    assert tiny.weights_bytes < 1.2 * 4 * (c.layers * per_layer + c.vocab_size * 64)
    assert tiny.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4


def test_counts_follow_the_formulas(tiny):
    """A decode step costs two operations per weight, plus attention over what is seen."""
    c = tiny.config
    matrices = (
        c.layers * ((c.heads + 2 * c.kv_heads) * c.head_dim * 64 + 64 * 64 + 3 * 96 * 64)
        + c.vocab_size * 64
    )
    step = decode_counts(c, [10])
    assert total(step).flops == 2 * matrices + c.layers * 4 * 10 * 64
    assert step["head"] == linear(1, 64, c.vocab_size)
    whole, steps = prefill_counts(c, [10]), [decode_counts(c, [n + 1]) for n in range(10)]
    for kernel in ("qkv", "attention", "down"):
        assert whole[kernel].flops == sum(one[kernel].flops for one in steps)
    held = held_bytes(c, tiny.weights_bytes, [10, 20], [3, 1])
    assert held["kv_cache"] == 32 * tiny.kv_bytes_per_token


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "gpt2"}, "architecture 'gpt2'; expected 'llama'"),
        ({"heads": 3}, "head sizes that do not fit together"),
    ],
)
def test_models_of_another_kind_are_refused(tmp_path, changes, sentence):
    """Another architecture, or numbers that cannot be, are one sentence."""
    path = write_tiny_model(tmp_path / "m.gguf", **changes)
    with pytest.raises(UserError, match=sentence):
        LlamaModel.load(path)


def test_a_missing_or_misshapen_tensor_is_named(tmp_path):
    """What the file has and what was expected are both told."""
    file = GGUFFile.open(write_tiny_model(tmp_path / "m.gguf"))
    del file.tensors["blk.1.ffn_up.weight"]
    with pytest.raises(UserError, match=r"'blk\.1\.ffn_up\.weight' in shape None; expected"):
        LlamaModel(file)


def transformers_logits(path, prompts):
    """The last position's logits of each prompt by `transformers`, from the same weights."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    file = GGUFFile.open(path)
    c = Config.from_file(file)
    config = transformers.LlamaConfig(
        vocab_size=c.vocab_size,
        hidden_size=c.d_model,
        intermediate_size=c.d_ff,
        num_hidden_layers=c.layers,
        num_attention_heads=c.heads,
        num_key_value_heads=c.kv_heads,
        max_position_embeddings=c.context_length,
        rms_norm_eps=c.norm_epsilon,
        rope_theta=c.rotaries[0].base,
        rope_parameters={"rope_type": "default", "rope_theta": c.rotaries[0].base},
        tie_word_embeddings=c.tied,
        attn_implementation="eager",
    )
    names = {
        "attn_norm": "input_layernorm",
        "attn_q": "self_attn.q_proj",
        "attn_k": "self_attn.k_proj",
        "attn_v": "self_attn.v_proj",
        "attn_output": "self_attn.o_proj",
        "ffn_norm": "post_attention_layernorm",
        "ffn_gate": "mlp.gate_proj",
        "ffn_up": "mlp.up_proj",
        "ffn_down": "mlp.down_proj",
    }
    state = {
        "model.embed_tokens.weight": file.read("token_embd.weight"),
        "model.norm.weight": file.read("output_norm.weight"),
    }
    state["lm_head.weight"] = file.read("token_embd.weight" if c.tied else "output.weight")
    for layer in range(c.layers):
        for ours, theirs in names.items():
            values = file.read(f"blk.{layer}.{ours}.weight")
            if ours in {"attn_q", "attn_k"}:  # pairs (2i, 2i + 1) to (i, i + E / 2)
                heads = values.reshape(-1, c.head_dim // 2, 2, c.d_model)
                values = heads.swapaxes(1, 2).reshape(values.shape).copy()
            state[f"model.layers.{layer}.{theirs}.weight"] = values
    with torch.no_grad():
        model = transformers.LlamaForCausalLM(config)
        model.load_state_dict({name: torch.from_numpy(value) for name, value in state.items()})
        model.eval()
        return np.array([model(torch.tensor([p])).logits[0, -1].numpy() for p in prompts])


@pytest.mark.peers
@pytest.mark.parametrize("shape", ["tied", "untied", "one kv head", "quantised"])
def test_logits_are_those_of_transformers_on_a_tiny_model(tmp_path, shape):
    """An implementation from outside gives the same scores for the same file."""
    path = write_tiny_model(tmp_path / "m.gguf", **SHAPES[shape])
    model = LlamaModel.load(path)
    ours = model.prefill(PROMPTS, model.new_cache([len(p) for p in PROMPTS]))
    np.testing.assert_allclose(ours, transformers_logits(path, PROMPTS), rtol=0, atol=2e-4)


@pytest.mark.peers
def test_logits_are_those_of_transformers_on_the_real_model():
    """SmolLM2's scores agree, for ragged prompts in one batch."""
    model = LlamaModel.load()
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, 49152, n).tolist() for n in (3, 40, 11)]
    prompts += [[504, 3575, 282, 4649, 314], [1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47]]
    ours = model.prefill(prompts, model.new_cache([len(p) for p in prompts]))
    theirs = transformers_logits(default_model_path(), prompts)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=2e-3)
    assert (ours.argmax(axis=1) == theirs.argmax(axis=1)).all()
