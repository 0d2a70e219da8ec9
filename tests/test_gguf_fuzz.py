"""Corrupt model files: one plain sentence, or the model that an independent reading gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tests.corrupt_gguf import corrupted
from tests.fuzzing import check_sentence, seeds
from tests.reference_llama import read_metadata, read_tensors, reference_logits
from tests.tiny_model import write_tiny_model

from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.errors import UserError
from batchgauge.request import BatchItem, InferenceBatchRequest

IDS = (5, 80, 260, 17, 42)
SMALL: dict[str, Any] = {"d_model": 32, "heads": 2, "kv_heads": 1, "d_ff": 64}
BASES: list[dict[str, Any]] = [
    {**SMALL, "keys": {"llama.rope.freq_base": 5e4}},
    {
        **SMALL,
        "tied": False,
        "quantisation": "Q4_1",
        "rope_factors": np.linspace(1.0, 8.0, 8),
        "keys": {"llama.rope.freq_base": 2e4},
    },
    {
        **SMALL,
        "quantisation": "F16",
        "padding_rows": 5,
        "keys": {"llama.rope.freq_base": 3e4, "llama.rope.scaling.factor": 2.0},
    },
    {**SMALL, "architecture": "qwen2", "biases": ("attn_q", "attn_k", "attn_v")},
    {
        **SMALL,
        "architecture": "gemma2",
        "quantisation": "Q8_0",
        "norms": ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm"),
        "keys": {"gemma2.attention.sliding_window": 3, "gemma2.attn_logit_softcapping": 20.0},
    },
]
REQUESTS = [
    InferenceBatchRequest(IDS, max_tokens=3),
    InferenceBatchRequest("and the world", max_tokens=3, temperature=1.0, top_p=0.5),
    InferenceBatchRequest("hello", chat=True, max_tokens=3),
]
MOST_BYTES = 200 << 20
SANE = 100.0  # weights and frequencies up to this give what float32 and float64 agree on
# Changes of a file that can hide what was there, but cannot make another legal model of it.
HIDING = {"name", "count", "kind", "offset", "cut", "nested"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Tiny models that have something of everything, as bytes."""
    folder = tmp_path_factory.mktemp("bases")
    return [
        write_tiny_model(folder / f"{number}.gguf", **base).read_bytes()
        for number, base in enumerate(BASES)
    ]


def memory(reset=False):
    """The most bytes that this process had since the last reset; 0 where nobody says."""
    try:
        if reset:
            Path("/proc/self/clear_refs").write_text("5")
        status = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(status.partition("VmHWM:")[2].split()[0]) << 10


def largest(tensors):
    """The largest value of all tensors."""
    return max(np.abs(values).max() for values in tensors.values())


def check(path, intact=None):
    """What the engine makes of a file: refused, or the very model that is in the file.

    Refused is a UserError of one plain sentence. Whatever is taken must be readable by the
    `gguf` package too, with the same metadata and the same values of every tensor, all
    finite; and its scores must be those of `reference_logits`, which computes them from that
    reading. So other weights or another epsilon that are as legal as those before are simply
    another model, and one whose finite weights overflow gives an error response and no token.
    With `intact`, the scores of the file before the corruption, they must be these too.
    """
    try:
        engine = BatchInferenceEngine.from_gguf(path)
    except UserError as problem:
        check_sentence(str(problem))
        return "refused"
    reader = gguf.GGUFReader(path)
    file, theirs = GGUFFile.open(path), read_tensors(reader)
    metadata = read_metadata(reader)
    assert file.metadata.keys() == metadata.keys()
    for key, value in metadata.items():
        np.testing.assert_array_equal(file.metadata[key], value)
    assert file.tensors.keys() == theirs.keys()
    for name, values in theirs.items():
        np.testing.assert_array_equal(file.read(name), values)
        if name in {"token_embd.weight", "output.weight"}:  # rows without a token are not read
            theirs[name] = values[: len(metadata["tokenizer.ggml.tokens"])]
        assert np.isfinite(theirs[name]).all()
    answers = engine.infer_batch(
        [BatchItem(str(i), request) for i, request in enumerate(REQUESTS)]
    ).responses
    for answer in answers:
        if answer.error:
            check_sentence(answer.error)
        else:
            assert answer.data is not None
            assert all(0 <= token < 10_000 for token in answer.data.token_ids)
    if (first := answers[0].data) is None:
        return "taken"
    logits = engine.next_token_logits(REQUESTS[0])
    if intact is not None:
        np.testing.assert_array_equal(logits, intact)
    if max(np.abs(engine.model.weights.turns[0].frequencies).max(), largest(theirs)) > SANE:
        return "taken"
    expected = reference_logits(path, IDS)
    np.testing.assert_allclose(logits, expected, rtol=0, atol=2e-3 * np.abs(expected).max())
    assert first.token_ids[:1] in {(), (int(logits.argmax()),)}
    return "taken"


@pytest.mark.fuzz
@pytest.mark.filterwarnings("error::RuntimeWarning")
def test_a_corrupt_file_is_refused_or_read_for_what_it_is(bases, tmp_path):
    """Many seeds, none of which may take 200 MB either; see `check` for what is right."""
    path = tmp_path / "m.gguf"
    intact = []
    for content in bases:
        path.write_bytes(content)
        assert check(path) == "taken"
        intact.append(BatchInferenceEngine.from_gguf(path).next_token_logits(REQUESTS[0]))
    outcomes = set()
    for seed in seeds("gguf"):
        change, content = corrupted(bases[seed % len(bases)], seed)
        path.write_bytes(content)
        before = memory(reset=True)
        try:
            outcomes.add(check(path, intact[seed % len(bases)] if change in HIDING else None))
        except BaseException as problem:
            problem.add_note(f"seed {seed}: {change} in model {seed % len(bases)}")
            raise
        assert memory() - before < MOST_BYTES, f"seed {seed}: {change}"
    assert {"refused", "taken"} <= outcomes
