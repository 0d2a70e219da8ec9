"""The table "family × reader × quantisation × weights": tiny random models, read in every way.

Each family's GGUF is read whole and in parts, and as the folder that `transformers` saves of
the same weights; in float32 and as the file has them. `python -m tests.family_table` writes
the table again; a test compares it with a run.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pandas as pd
from tests.hf_folder import tokenizer_json
from tests.tiny_families import CASES, transformers_model, write_family

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


def rows() -> Iterator[dict[str, Any]]:
    """A row for every way to read a model, against its GGUF in float32."""
    for name in FAMILIES:
        for quantisation in QUANTISATIONS:
            with tempfile.TemporaryDirectory() as place:
                path = write_family(Path(place) / "m.gguf", CASES[name], quantisation=quantisation)
                ways = {
                    "GGUF": path,
                    "GGUF in parts": split_file(path, Path(place) / "parts"),
                    "Hugging Face folder": saved_folder(path, name, Path(place) / "folder"),
                }
                tokens, scores = answer(path, "float32")
                for reader, where in ways.items():
                    for weights in ("float32", "file"):
                        ours, theirs = answer(where, weights)
                        apart = float(np.abs(theirs - scores).max() / np.abs(scores).max())
                        yield {
                            "family": CASES[name].kind or CASES[name].family,
                            "reader": reader,
                            "quantisation": quantisation,
                            "weights": weights,
                            "tokens": len(tokens),
                            "tokens_equal": ours == tokens,
                            f"scores_within_{NEAR:g}": apart <= NEAR,
                        }


def table() -> pd.DataFrame:
    """The whole of it."""
    return pd.DataFrame(rows())


if __name__ == "__main__":
    table().to_csv(TABLE, index=False)
