"""The table "family × reader × quantisation × weights": tiny random models, read in every way.

Each family's GGUF is read whole and in parts, and as the folder that `transformers` saves of
the same weights; in float32 and as the file has them. `python -m tests.family_table` writes
the table again; a test compares it with a run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pandas as pd
from tests.hf_folder import tokenizer_json, write_hf_folder
from tests.tiny_families import CASES, transformers_model, write_family
from tests.tiny_model import write_tiny_model

from batchgauge.core.default_model import open_model
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.request import BatchItem, InferenceBatchRequest

TABLE = Path(__file__).parents[1] / "data" / "models_families.csv"
FAMILIES = (
    "llama biases", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3", "phi3", "granite",
    "olmo2", "smollm3",
)  # fmt: skip
QUANTISATIONS = ("F32", "BF16", "Q8_0", "Q4_0")
TOKENS = 16
NEAR = 1e-4  # of the largest score
PROMPT = InferenceBatchRequest("hello and the world, and other 123", max_tokens=TOKENS)


def split_file(whole: Path, folder: Path) -> Path:
    """A GGUF in several parts, by the format's own package; the last of them."""
    folder.mkdir()
    reader = gguf.GGUFReader(whole)
    architecture = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(folder / "m.gguf", architecture, split_max_tensors=16)
    for key, field in reader.fields.items():
        if not key.startswith(("GGUF.", "general.arch")):
            writer.add_key_value(key, field.contents(), *field.types[:2])
    for tensor in reader.tensors:
        writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return max(folder.glob("m-*.gguf"))


def saved_folder(path: Path, name: str, folder: Path) -> Path:
    """What `save_pretrained` writes of the same weights, in two files, and a tokenizer."""
    transformers_model(path, CASES[name]).save_pretrained(folder, max_shard_size="1MB")
    metadata = open_model(path).metadata
    (folder / "tokenizer.json").write_text(
        json.dumps(tokenizer_json(Vocabulary.from_metadata(metadata)))
    )
    config = json.loads((folder / "config.json").read_text())
    ends = {f"{key}_token_id": metadata[f"tokenizer.ggml.{key}_token_id"] for key in ("bos", "eos")}
    (folder / "config.json").write_text(json.dumps(config | ends))
    return folder


def answer(path: Path, weights: str) -> tuple[tuple[int, ...], np.ndarray]:
    """Greedy tokens, and the scores of the first."""
    engine = BatchInferenceEngine.from_gguf(path, weights)
    data = engine.infer_batch([BatchItem("1", PROMPT)]).responses[0].data
    assert data is not None
    return data.token_ids, engine.next_token_logits(PROMPT)


def rows(
    family: str, quantisation: str, path: Path, saved: Callable[[Path], Path]
) -> Iterator[dict[str, Any]]:
    """A row for every way to read the model of a GGUF, against that in float32.

    `saved` writes the same weights as a folder, and returns it.
    """
    with tempfile.TemporaryDirectory() as place:
        ways = {
            "GGUF": path,
            "GGUF in parts": split_file(path, Path(place) / "parts"),
            "Hugging Face folder": saved(Path(place) / "folder"),
        }
        tokens, scores = answer(path, "float32")
        for reader, where in ways.items():
            for weights in ("float32", "file"):
                ours, theirs = answer(where, weights)
                apart = float(np.abs(theirs - scores).max() / np.abs(scores).max())
                yield {
                    "family": family,
                    "reader": reader,
                    "quantisation": quantisation,
                    "weights": weights,
                    "tokens": len(tokens),
                    "tokens_equal": ours == tokens,
                    f"scores_within_{NEAR:g}": apart <= NEAR,
                }


def of_a_llama(place: Path) -> pd.DataFrame:
    """A Llama's rows, its folder as `tests.hf_folder` writes it: without the library."""
    found: list[dict[str, Any]] = []
    for quantisation in QUANTISATIONS:
        path = write_tiny_model(place / "m.gguf", d_model=256, quantisation=quantisation)
        dtype = "BF16" if quantisation == "BF16" else "F32"
        saved = partial(write_hf_folder, path, dtype=dtype, shards=2)
        found += rows("llama", quantisation, path, saved)
    return pd.DataFrame(found)


def table(place: Path) -> pd.DataFrame:
    """The whole of it."""
    found: list[dict[str, Any]] = []
    for name in FAMILIES:
        case = CASES[name]
        for quantisation in QUANTISATIONS:
            path = write_family(place / "m.gguf", case, quantisation=quantisation)
            saved = partial(saved_folder, path, name)
            found += rows(case.kind or case.family, quantisation, path, saved)
    return pd.DataFrame(found)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as chosen:
        table(Path(chosen)).to_csv(TABLE, index=False)
