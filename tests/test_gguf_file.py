"""GGUF files: values as the `gguf` package reads them, and one clear sentence for bad ones."""

from __future__ import annotations

import os
import re
import shutil
import socket
import struct
import sys
import tracemalloc
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf import quants
from tests.corrupt_gguf import find_places
from tests.fuzzing import check_sentence
from tests.tiny_model import TOKENS, write_tiny_model

from batchgauge.core import default_model
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.core.model import LlamaModel
from batchgauge.core.model_facts import ModelFacts
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


@pytest.mark.parametrize("kind", sorted(kind.name for kind in quants._type_traits))
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


@pytest.mark.parametrize(
    ("start", "sentence"),
    [
        (b"GGUF\x00\x00\x00\x00", "GGUF version 0; expected 2 or 3"),
        (b"GGUF\x01\x00\x00\x00", "GGUF version 1; expected 2 or 3"),
        (b"GGUF\x04\x00\x00\x00", "GGUF version 4; expected 2 or 3"),
        (b"GGUF\x00\x00\x00\x03", "a big-endian GGUF file; expected little-endian"),
        (b"FUGG\x00\x00\x00\x03", "not a GGUF file"),
    ],
)
def test_another_version_or_byte_order_is_said_as_such(tiny, tmp_path, start, sentence):
    """Version 1 had another layout; of a big-endian file the version shows it."""
    path = tmp_path / "old.gguf"
    path.write_bytes(start + tiny.read_bytes()[8:])
    with pytest.raises(UserError, match=sentence):
        GGUFFile.open(path)


def refused(path, content, sentence):
    """Opening a file of this content is a UserError of this kind."""
    path.write_bytes(content)
    with pytest.raises(UserError, match=sentence) as error:
        GGUFFile.open(path)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")


def changed(content, place, value, width=8):
    """The content with a whole number somewhere."""
    return content[:place] + value.to_bytes(width, "little") + content[place + width :]


def test_two_keys_or_two_tensors_of_one_name_are_refused(tiny, tmp_path):
    """Which of them counts, nobody knows."""
    whole, path = tiny.read_bytes(), tmp_path / "m.gguf"
    places = find_places(whole)
    start, end = places.pairs[3]
    twice = changed(whole, 16, len(places.pairs) + 1)
    refused(path, twice[:end] + whole[start:end] + whole[end:], "the key 'llama.block_count' twice")
    start, end = places.entries[2]
    twice = changed(whole, 8, len(places.entries) + 1)
    refused(path, twice[:end] + whole[start:end] + whole[end:], r"the tensor 'blk\.0\S+' twice")


def test_tensors_lie_one_behind_the_other(tiny, tmp_path):
    """No overlap, no gap, no other order, no odd place, nothing behind the last."""
    whole, path = tiny.read_bytes(), tmp_path / "m.gguf"
    offsets = find_places(whole).offsets
    second, third = (int.from_bytes(whole[at : at + 8], "little") for at in offsets[1:3])
    wrong = [0, second - 32, second + 4, second + 32, third, 1 << 63, (1 << 64) - 32]
    for offset in wrong:
        refused(path, changed(whole, offsets[1], offset), r"lies at \d+ of the data; expected")
    swapped = changed(changed(whole, offsets[1], third), offsets[2], second)
    refused(path, swapped, "lies at")
    refused(path, whole + bytes(32), "bytes lie behind its last tensor")
    refused(path, whole[: find_places(whole).head + 64], "ends beyond the end of the file")


def test_sides_types_and_rows_of_a_tensor_are_checked(tiny, tmp_path):
    """One to four sides above 0, a known type, rows of whole blocks."""
    whole, path = tiny.read_bytes(), tmp_path / "m.gguf"
    places = find_places(whole)
    at = places.offsets[0] - 4  # the type of the embedding [291, 64]
    for sides in (0, 5, 255, 1 << 31):
        refused(path, changed(whole, at - 20, sides, 4), f"has {sides} dimensions; expected 1 to 4")
    for side in (0, 1 << 63, (1 << 64) - 1, 1 << 40):
        refused(path, changed(whole, at - 8, side), "sides above 0|beyond the end|of the data")
    for kind in (4, 5, 99, 1 << 31):
        refused(path, changed(whole, at, kind, 4), f"the tensor type {kind} is unknown")
    refused(path, changed(whole, at, 12, 4), "as Q4_K, rows of a multiple of 256")
    refused(path, changed(changed(whole, at, 2, 4), at - 16, 63), "as Q4_0, rows of a multiple")


@pytest.mark.parametrize("value", [0, 1, 8, 24, 33, (1 << 32) - 1, 1 << 31, 32.0, "32", True, [32]])
def test_the_alignment_is_a_power_of_two_that_the_tensors_keep(tmp_path, value):
    """Another number, or another kind of value; 8 would be legal, were the tensors at it."""
    path = write_tiny_model(tmp_path / "m.gguf", keys={"general.alignment": value})
    with pytest.raises(UserError, match=r"general\.alignment|lies at|beyond the end|lie behind"):
        GGUFFile.open(path)


def test_the_alignment_is_of_the_formats_own_type(tmp_path):
    """Other readers refuse a 32 of another width or with a sign, and so do we."""
    whole = write_tiny_model(tmp_path / "m.gguf", keys={"general.alignment": 32}).read_bytes()
    at = whole.index(b"general.alignment") + len(b"general.alignment")
    assert whole[at] == 4
    GGUFFile.open(tmp_path / "m.gguf")
    refused(tmp_path / "m.gguf", changed(whole, at, 5, 4), "general.alignment.* type 5")


def split_model(folder, **options):
    """A tiny model in several parts, by the format's own package; and it whole, in one."""
    whole = write_tiny_model(folder / "whole.gguf", **options)
    reader = gguf.GGUFReader(whole)
    writer = gguf.GGUFWriter(folder / "m.gguf", "llama", split_max_tensors=8)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.arch")):
            writer.add_key_value(key, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return whole, sorted(folder.glob("m-*.gguf"))


def test_parts_of_a_split_model_are_opened_as_one(tmp_path):
    """Whichever of them is named, or their folder; they weigh and count as all of them."""
    whole, parts = split_model(tmp_path, quantisation="Q8_0")
    assert [path.name[-14:] for path in parts] == [f"0000{n}-of-00003.gguf"[-14:] for n in "123"]
    one = GGUFFile.open(whole)
    whole.unlink()
    for place in (*parts, tmp_path):
        file = default_model.open_model(place)
        assert (file.path, file.files, file.form) == (parts[0], tuple(parts), "GGUF in 3 parts")
        assert file.tensors.keys() == one.tensors.keys()
        for name in one.tensors:
            np.testing.assert_array_equal(file.read(name), one.read(name))
        split = {key for key in file.metadata if key.startswith("split.")}
        assert {
            k: v for k, v in file.metadata.items() if k not in split
        }.keys() == one.metadata.keys()
    facts = ModelFacts.read(parts[1])
    assert facts.file_bytes == sum(path.stat().st_size for path in parts)
    (ours, theirs) = (
        LlamaModel.load(path) for path in (parts[2], write_tiny_model(whole, quantisation="Q8_0"))
    )
    every = np.arange(len(TOKENS))
    np.testing.assert_array_equal(ours.weights.head.rows(every), theirs.weights.head.rows(every))


def test_parts_that_do_not_fit_are_said_so(tmp_path):
    """Missing, of another model, exchanged, of another count, without a name that tells."""

    def refusal(*, named=0):
        with pytest.raises(UserError) as error:
            default_model.open_model(parts[named])
        check_sentence(str(error.value))
        return str(error.value)

    def fresh(**options):
        shutil.rmtree(tmp_path / "f", ignore_errors=True)
        (tmp_path / "f").mkdir()
        return split_model(tmp_path / "f", **options)[1]

    parts = fresh()
    kept = [path.read_bytes() for path in parts]
    parts[1].unlink()
    assert "'m-00002-of-00003.gguf' is missing; expected all in one folder" in refusal()
    assert "part 3 of 3, and 'm-00002" in refusal(named=2)
    parts[1].write_bytes(kept[2])
    assert "says that it is part 3 of 3; expected part 2 of 3" in refusal()
    parts[1].write_bytes(kept[0])
    assert "says that it is part 1 of 3; expected part 2 of 3" in refusal()
    write_tiny_model(parts[1])
    assert "says that it is a whole model; expected part 2 of 3" in refusal()
    other = fresh(layers=3)[1].read_bytes()
    parts = fresh()
    parts[1].write_bytes(other)
    assert re.search("part 2 of 4; expected part 2 of 3|tensor|'split", refusal())
    parts[1].write_bytes(b"GGUF")
    assert f"'{parts[1]}' is corrupt" in refusal()
    path = write_tiny_model(tmp_path / "m.gguf", keys={"split.count": 3, "split.no": 0})
    with pytest.raises(UserError, match=r"is part 1 of 3, .* expected one like 'model-00001-of-0"):
        GGUFFile.open(path)
    path = path.rename(tmp_path / "m-00001-of-00002.gguf")
    with pytest.raises(UserError, match="is part 1 of 3; expected one of 2, as its name says"):
        GGUFFile.open(path)
    path = write_tiny_model(tmp_path / "m.gguf", keys={"split.count": 1, "split.no": 0})
    assert GGUFFile.open(path).metadata["split.count"] == 1


@pytest.mark.parametrize("depth", [1, 2, 1000, 100_000])
def test_arrays_of_arrays_are_refused(tmp_path, depth):
    """However deep."""
    value = struct.pack("<IQ", 9, 1) * depth + struct.pack("<IQ", 4, 0)
    pair = struct.pack("<Q4sI", 4, b"deep", 9) + value
    content = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + pair
    refused(tmp_path / "m.gguf", content, "its key 'deep': it is an array of arrays")


@pytest.mark.parametrize("kind", [0, 4, 7, 8, 12])
@pytest.mark.parametrize("count", [1 << 20, 1 << 31, 1 << 40, 1 << 62, (1 << 64) - 1])
def test_a_count_beyond_the_file_builds_nothing(tmp_path, kind, count):
    """Counts of pairs, tensors and items are held against the size of the file."""
    path = tmp_path / "m.gguf"
    array = struct.pack("<Q1sIIQ", 1, b"a", 9, kind, count) + bytes(5000)
    tracemalloc.start()
    sentence = "beyond the end of the file|expected at most"
    refused(path, b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + array, sentence)
    refused(path, b"GGUF" + struct.pack("<IQQ", 3, 0, count) + bytes(5000), "at most 65536")
    refused(path, b"GGUF" + struct.pack("<IQQ", 3, count, 0) + bytes(5000), "at most 65536")
    refused(path, b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, count) + bytes(99), "beyond|cut short")
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("general.architecture", 3),
        ("split.count", "2"),
        ("tokenizer.ggml.model", ["gpt2"]),
        ("tokenizer.ggml.pre", 1),
        ("tokenizer.ggml.tokens", "a b c"),
        ("tokenizer.ggml.merges", [1, 2, 3]),
        ("tokenizer.ggml.token_type", ["1", "1"]),
        ("tokenizer.ggml.token_type", 1),
        ("tokenizer.ggml.eos_token_id", [1, 2]),
        ("tokenizer.ggml.bos_token_id", 1.0),
        ("tokenizer.ggml.eot_token_id", "2"),
        ("tokenizer.ggml.eom_token_id", True),
        ("tokenizer.ggml.add_bos_token", 1),
        ("tokenizer.ggml.add_bos_token", "true"),
    ],
)
def test_a_key_of_another_kind_is_named(tmp_path, key, value):
    """The format says what each of its keys holds."""
    path = write_tiny_model(tmp_path / "m.gguf", keys={key: value})
    with pytest.raises(UserError, match=rf"its key '{key}' is not "):
        GGUFFile.open(path)


def test_a_damaged_name_of_a_key_is_told_from_none(tmp_path):
    """Without the check, the types of all tokens would be lost without a word."""
    keys = {"tokenizer.ggml.token_type": None, "tokenizer.ggml.tokdn_type": [1] * len(TOKENS)}
    path = write_tiny_model(tmp_path / "m.gguf", keys=keys)
    with pytest.raises(UserError, match=r"the key '\S+tokdn_type', but not '\S+token_type'"):
        GGUFFile.open(path)


def test_names_and_texts_are_checked(tmp_path):
    """UTF-8 without exception, names neither empty nor endless, bools 0 or 1, known types."""
    path, start = tmp_path / "m.gguf", b"GGUF" + struct.pack("<IQQ", 3, 0, 1)

    def pair(key, kind, value):
        return start + struct.pack("<Q", len(key)) + key + struct.pack("<I", kind) + value

    refused(path, pair(b"k", 8, struct.pack("<Q2s", 2, b"\xff\xfe")), "'k': a text is not UTF-8")
    refused(path, pair(b"k\xff", 4, bytes(4)), "a text is not UTF-8")
    refused(path, pair(b"", 4, bytes(4)), "name of a key has 0 bytes")
    refused(path, pair(b"k" * 65_536, 4, bytes(4)), "name of a key has 65536 bytes")
    refused(path, pair(b"k\n\x1b[2J" * 99, 7, b"\x02"), r"'k\\n\\x1b\[2J.*…': a bool is neither")
    refused(path, pair(b"k", 13, bytes(8)), "'k': its value has the unknown type 13")
    tensor = struct.pack("<Q64sIQIQ", 64, b"t" * 64, 1, 8, 0, 0) + bytes(64)
    head = b"GGUF" + struct.pack("<IQQ", 3, 1, 0)
    refused(path, head + tensor, "name of a tensor has 64 bytes")


def test_a_head_of_many_megabytes_is_read(tmp_path):
    """The first bytes that are read do not hold all of it; beyond 64 MiB it is refused."""
    texts = [f"text {i:040}" for i in range(100_000)]
    path = write_tiny_model(tmp_path / "m.gguf", keys={"general.texts": texts, "general.end": 7})
    assert find_places(path.read_bytes()).head > 1 << 22
    file = GGUFFile.open(path)
    assert file.metadata["general.texts"] == texts
    assert file.metadata["general.end"] == 7
    np.testing.assert_array_equal(file.read("output_norm.weight").shape, (64,))
    long = struct.pack("<Q4sIQ", 4, b"long", 8, 70 << 20)
    with (tmp_path / "l.gguf").open("wb") as out:
        out.write(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + long)
        out.truncate(80 << 20)  # sparse
    with pytest.raises(UserError, match="metadata has more than 64 MiB"):
        GGUFFile.open(tmp_path / "l.gguf")


@pytest.mark.skipif(sys.platform == "win32", reason="no such files")
def test_what_is_no_file_is_refused_at_once(tmp_path):
    """A pipe that nobody writes to, a folder, a device without an end, a socket."""
    os.mkfifo(tmp_path / "pipe.gguf")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(tmp_path / "s"))
        for path in (tmp_path / "pipe.gguf", tmp_path, Path("/dev/zero"), tmp_path / "s"):
            with pytest.raises(UserError, match=r"is a (folder|device, pipe or socket); expected"):
                GGUFFile.open(path)


def test_a_file_that_is_cut_under_us_is_an_error(tiny, tmp_path):
    """No signal, whichever part is gone; and a file put in its place is not read instead."""
    path = tmp_path / "m.gguf"
    shutil.copy(tiny, path)
    file = GGUFFile.open(path)
    path.rename(tmp_path / "moved.gguf")
    path.write_bytes(b"something else")
    assert LlamaModel(file).config.layers == 2
    os.truncate(tmp_path / "moved.gguf", 1000)
    with pytest.raises(UserError, match="can no longer be read: it has become shorter"):
        LlamaModel(file)


def test_a_million_layers_are_refused_before_anything_is_built(tmp_path):
    """What the table of tensors does not hold is not asked for."""
    path = write_tiny_model(tmp_path / "m.gguf", keys={"llama.block_count": 1_000_000})
    tracemalloc.start()
    with pytest.raises(UserError, match="block_count` that is 1000000; expected the 2 layers"):
        LlamaModel.load(path)
    assert tracemalloc.get_traced_memory()[1] < 10 << 20
    tracemalloc.stop()


def test_an_unknown_tensor_is_a_user_error(tiny):
    """A tensor that is not in the file is named."""
    with pytest.raises(UserError, match="no tensor 'blk"):
        GGUFFile.open(tiny).read("blk.99.attn_q.weight")


def test_the_environment_names_the_default_model(tiny, monkeypatch):
    """`BATCHGAUGE_MODEL` wins over the wheel; naming nothing is an error with a remedy."""
    monkeypatch.setenv(default_model.VARIABLE, str(tiny))
    assert default_model.default_model_path() == tiny
    monkeypatch.setenv(default_model.VARIABLE, str(tiny) + ".gone")
    with pytest.raises(UserError, match="does not exist; run `pip install"):
        default_model.default_model_path()


def test_without_the_wheel_the_remedy_is_told(monkeypatch):
    """Where the wheel is not installed, the sentence says what to run."""
    monkeypatch.delenv(default_model.VARIABLE, raising=False)
    monkeypatch.setattr(default_model, "PACKAGE", "no_such_package_here")
    with pytest.raises(UserError, match="not installed; run `pip install"):
        default_model.default_model_path()
