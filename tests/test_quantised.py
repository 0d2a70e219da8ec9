"""Weights as the file has them: the bits of float32 weights, from fewer bytes; bfloat16 beside."""

from __future__ import annotations

import os

import gguf
import numpy as np
import pytest
from tests.tiny_model import write_tiny_model

from batchgauge.core import weights as loading
from batchgauge.core.default_model import default_model_path
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.gguf_layouts import layout_of
from batchgauge.core.kernels import products
from batchgauge.core.model import LlamaModel
from batchgauge.core.quantised import Packed, Room, Stacked, Stored, as_bfloat16, read_matrix
from batchgauge.core.quantised_kinds import KINDS
from batchgauge.core.weights import Blocked, blocked_size, checked, fuse
from batchgauge.errors import UserError
from batchgauge.registry import open_engine
from batchgauge.request import BatchItem, InferenceBatchRequest

ROWS = (1, 2, 3, 4, 5, 8, 9, 32, 72)
# Where float16 numbers lie in a block of a type, all other bytes of which are codes.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q4_K": [0, 2],
    "Q5_K": [0, 2], "Q6_K": [208], "Q2_K": [80, 82], "F16": [0], "BF16": [],
}  # fmt: skip
needs_tiles = pytest.mark.skipif(products.compiled() is None, reason="no compiled tiles here")


def tensor(name, rows, inputs, rng):
    """Rows of any bytes that a type may have, as uint8 [rows, bytes]."""
    layout = layout_of(gguf.GGMLQuantizationType[name].value)
    if name == "BF16":
        return as_bfloat16(rng.standard_normal((rows, inputs), np.float32)).reshape(rows, -1)
    data = rng.integers(0, 256, (rows, inputs // layout.block, layout.block_bytes), np.uint8)
    for at in HALVES[name]:
        scales = rng.normal(0, 0.01, (*data.shape[:2], 1)).astype(np.float16)
        data[..., at : at + 2] = scales.view(np.uint8)
    return data.reshape(rows, -1)


def written(path, tensors):
    """A file of matrices, {name: (type, uint8 [rows, bytes])}, opened."""
    writer = gguf.GGUFWriter(path, "llama")
    for name, (kind, data) in tensors.items():
        writer.add_tensor(f"{name}.weight", data, raw_dtype=gguf.GGMLQuantizationType[kind])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GGUFFile.open(path)


def both(file, *names):
    """The matrix as the file has it, and in float32."""

    def whole(names):
        shapes = [file.tensors[f"{name}.weight"].shape for name in names]
        size = blocked_size(sum(shape[0] for shape in shapes), shapes[0][1])
        return fuse(file, np.empty(size, np.float32), names)

    kept = read_matrix(file, names, bfloat16=False, check=checked, whole=whole, room=Room())
    return kept, whole(names)


def assert_the_same(kept, plain, inputs):
    """The same bits for any number of rows, for rows alone, and for rows looked up."""
    x = np.random.default_rng(1).standard_normal((max(ROWS), inputs), np.float32)
    together = plain(x)
    for rows in ROWS:
        np.testing.assert_array_equal(kept(x[:rows]), together[:rows])
    ids = np.array([plain.features - 1, 0, 7, 7])
    np.testing.assert_array_equal(kept.rows(ids), plain.rows(ids))


@needs_tiles
@pytest.mark.parametrize("weights", ["file", "float32"])
def test_any_number_of_threads_gives_the_same_bits(tmp_path, monkeypatch, weights):
    """Loading, prefill and decode of a model with compiled attention, by one and by several."""
    path = write_tiny_model(
        tmp_path / "m.gguf", d_model=256, heads=4, kv_heads=2, quantisation="Q4_1"
    )
    monkeypatch.setattr(products, "WORTH_SHARING", 0)
    monkeypatch.setattr(products, "usable_processors", lambda: set(range(8)))
    found = []
    for threads in (1, 2, 5):
        monkeypatch.setattr(products, "allowed_threads", lambda n=threads: n)
        monkeypatch.setattr(loading, "usable_cores", lambda n=threads: n)
        model = LlamaModel.load(path, weights)
        cache = model.new_cache([50] * 9)
        scores = [model.prefill([[5, 6, 7] * 10] * 9, cache)]
        scores += [model.decode(np.arange(9), cache) for _ in range(10)]
        found.append(np.array(scores))
    np.testing.assert_array_equal(found[1], found[0])
    np.testing.assert_array_equal(found[2], found[0])


@needs_tiles
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_gives_the_bits_of_float32(tmp_path, kind):
    """Two matrices fused, the first of which fills no whole block, with any scales and codes."""
    rng = np.random.default_rng(0)
    parts = {name: (kind, tensor(kind, rows, 512, rng)) for name, rows in (("a", 70), ("b", 33))}
    kept, plain = both(written(tmp_path / "m.gguf", parts), "a", "b")
    assert isinstance(kept, Packed)
    assert_the_same(kept, plain, 512)
    if kind in {
        "Q4_0",
        "Q4_1",
        "Q5_0",
        "Q5_1",
        "Q8_0",
        "F16",
    }:  # blocks hold the file's bits and no more
        assert kept.nbytes == sum(data.nbytes for _, data in parts.values()) * 128 / 103


def test_other_types_and_sizes_are_made_float32_row_by_row(tmp_path):
    """A type without a kernel, inputs that fill no group, and types that differ in one matrix."""
    rng = np.random.default_rng(0)
    parts = {
        "two": ("Q2_K", tensor("Q2_K", 70, 256, rng)),
        "odd": ("F16", tensor("F16", 10, 50, rng)),
        "four": ("Q4_1", tensor("Q4_1", 40, 256, rng)),
        "plain": ("F32", rng.standard_normal((9, 256), np.float32)),
    }
    file = written(tmp_path / "m.gguf", parts)
    for names, form in ((["two"], Blocked), (["odd"], Stored), (["two", "four", "plain"], Stacked)):
        kept, plain = both(file, *names)
        assert isinstance(kept, form)
        assert_the_same(kept, plain, 50 if names == ["odd"] else 256)
    assert isinstance(both(file, "plain")[0], Blocked)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("compiled", [True, False])
def test_a_model_answers_as_in_float32(tmp_path, monkeypatch, tied, compiled):
    """Scores are the same bits, by kernels and by NumPy; bytes are fewer."""
    if not compiled:
        monkeypatch.setattr(products, "compiled", lambda: None)
    path = write_tiny_model(tmp_path / "m.gguf", quantisation="Q4_1", tied=tied)
    models = [LlamaModel.load(path, weights) for weights in ("float32", "file")]
    prompts = [[5, 6, 7], [8] * 40, [9]]
    caches = [model.new_cache([50] * 3) for model in models]
    plain, kept = (m.prefill(prompts, c) for m, c in zip(models, caches, strict=True))
    np.testing.assert_array_equal(kept, plain)
    for _ in range(3):
        plain, kept = (m.decode(plain.argmax(1), c) for m, c in zip(models, caches, strict=True))
        np.testing.assert_array_equal(kept, plain)
    assert models[1].weights_bytes < 0.35 * models[0].weights_bytes
    assert [model.weights.mode for model in models] == ["float32", "file"]


def test_the_default_models_layers():
    """First, middle and last layer and the head of the real model, at every number of rows."""
    file = GGUFFile.open(default_model_path())
    for i in (0, 15, 29):
        for names in (["attn_q", "attn_k", "attn_v"], ["ffn_gate", "ffn_up"], ["ffn_down"]):
            kept, plain = both(file, *(f"blk.{i}.{name}" for name in names))
            assert_the_same(kept, plain, 1536 if names == ["ffn_down"] else 576)
    kept, plain = both(file, "token_embd")
    assert_the_same(kept, plain, 576)


def test_bfloat16_says_what_it_loses(tmp_path):
    """Weights are rounded to nearest, halves the bytes, and scores change a little."""
    path = write_tiny_model(tmp_path / "m.gguf", tied=False)
    plain, short = (LlamaModel.load(path, weights) for weights in ("float32", "bfloat16"))
    assert short.weights_bytes < 0.56 * plain.weights_bytes
    for prompt in ([5, 6, 7], [8] * 40):
        scores, expected = (m.prefill([prompt], m.new_cache([len(prompt)])) for m in (short, plain))
        errors = np.abs(scores - expected) / np.abs(expected).max()
        assert 0 < errors.mean() < errors.max() < 0.05
    ties = np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8, 1 + 2**-8 + 2**-20, -0.0], np.float32)
    rounded = (as_bfloat16(ties).view("<u2").astype(np.uint32) << 16).view(np.float32)
    assert rounded.tolist() == [1.0, 1.0, 1 + 2**-6, 1 + 2**-7, 0.0]


def test_what_cannot_be_is_said(tmp_path):
    """An unknown mode, scales that are not finite, and numbers of threads nobody has."""
    path = write_tiny_model(tmp_path / "m.gguf", quantisation="Q4_0")
    with pytest.raises(UserError, match="weights is 'int3'; expected one of float32, file, bf"):
        LlamaModel.load(path, "int3")
    broken = tensor("Q4_0", 64, 64, np.random.default_rng(0))
    broken[3, :2] = np.array([np.inf], np.float16).view(np.uint8)
    with pytest.raises(UserError, match="'a' has a value that is not finite"):
        both(written(tmp_path / "n.gguf", {"a": ("Q4_0", broken)}), "a")
    for threads in (0, -1, 100_000, True, 1.5):
        with pytest.raises(UserError, match=f"threads is {threads}; expected a whole number"):
            open_engine("numpy:file", path, threads=threads)  # type: ignore[arg-type]  # on purpose


def test_the_engine_of_a_spec(tmp_path):
    """`numpy:file` generates what `numpy` does, from fewer bytes, and says how it keeps weights."""
    path = write_tiny_model(tmp_path / "m.gguf", quantisation="Q8_0")
    threads = min(2, os.cpu_count() or 1)
    engines = [open_engine(spec, path, threads=threads) for spec in ("numpy", "numpy:file")]
    items = [
        BatchItem(str(n), InferenceBatchRequest("the world " * n, max_tokens=12, ignore_eos=True))
        for n in range(1, 6)
    ]
    plain, kept = (
        [response.data.text for response in engine.infer_batch(items).responses if response.data]
        for engine in engines
    )
    assert kept == plain
    assert len(kept) == 5
    assert [engine.weights for engine in engines] == ["float32", "file"]  # type: ignore[attr-defined]  # our own
    weights = [engine.count_bytes([1], [1])["weights"] for engine in engines]  # type: ignore[attr-defined]  # our own
    assert weights[1] < 0.5 * weights[0]
