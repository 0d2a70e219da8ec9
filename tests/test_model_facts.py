"""What is known of a model before its weights are read."""

from __future__ import annotations

import pytest
from tests.tiny_model import TOKENS, write_tiny_model

from batchgauge.core.config import Config
from batchgauge.core.default_model import open_model
from batchgauge.core.kernels import products
from batchgauge.core.model_facts import ModelFacts
from batchgauge.core.weights import MODES, Weights


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantisation", ["F32", "F16", "Q4_0", "Q5_1", "Q8_0", "TQ2_0"])
@pytest.mark.parametrize("compiled", [True, False])
def test_memory_is_what_the_weights_take(tmp_path, monkeypatch, quantisation, tied, compiled):
    """In every mode, to the byte, also where nothing is compiled."""
    if not compiled:
        monkeypatch.setattr(products, "compiled", lambda: None)
    width = 256 if quantisation == "TQ2_0" else 64
    path = write_tiny_model(
        tmp_path / "m.gguf",
        d_model=width,
        d_ff=width,
        quantisation=quantisation,
        tied=tied,
        padding_rows=3,
        rope_factors=[1.0] * (width // 8),
    )
    facts = ModelFacts.read(path)
    for mode in MODES:
        file = open_model(path)
        assert facts.weights_bytes[mode] == Weights(file, Config.from_file(file), mode).nbytes


def test_facts_of_a_model(tmp_path):
    """What the file says, and what follows; nothing that it does not say."""
    path = write_tiny_model(tmp_path / "m.gguf", quantisation="Q8_0")
    facts = ModelFacts.read(path)
    assert (facts.name, facts.licence) == ("", "")
    keys = {"general.name": "Tiny", "general.license": "mit"}
    facts = ModelFacts.read(write_tiny_model(path, quantisation="Q8_0", tied=False, keys=keys))
    assert (facts.name, facts.licence, facts.form) == ("Tiny", "mit", "GGUF")
    assert (facts.architecture, facts.layers, facts.d_model) == ("llama", 2, 64)
    assert (facts.vocab_size, facts.context_length) == (len(TOKENS), 128)
    layer = 64 * (64 + 2 * 32 + 64) + 3 * 64 * 96
    assert facts.types == {"Q8_0": 2 * layer + 2 * len(TOKENS) * 64, "F32": 5 * 64}
    assert facts.parameters == sum(facts.types.values())
    assert facts.quantisation == "Q8_0"
    assert facts.file_bytes == path.stat().st_size
    assert facts.kv_bytes_per_token == 2 * 2 * 32 * 4
    wide = write_tiny_model(path, d_model=256, d_ff=256, quantisation="TQ1_0", tied=False)
    facts = ModelFacts.read(wide)
    assert facts.weights_bytes["file"] > 4 * (facts.parameters - 5 * 256)
