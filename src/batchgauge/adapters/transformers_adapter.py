"""PyTorch through `transformers` as an engine, on the weights of the same GGUF.

The weights are dequantised by our loader and put into the library's own model of the
architecture, so that a difference in speed is no difference in weights. Batches are left-padded
with an attention mask, as the library documents, and run by `forward` with its KV
cache: the loop of `generate` without its work per step. On a CPU, float32 goes
through oneDNN's matrix products (`torch.utils.mkldnn`), which measured faster than
the default MKL; bfloat16 goes there by itself. Left out: compilation (it needs a
C++ compiler and compiles anew for every shape), several devices.

Letters: B sequences, T tokens of the longest prompt, V vocabulary.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import transformers
from torch.utils import mkldnn

from batchgauge.adapters.hf import HFTokenizer, from_vocabulary
from batchgauge.adapters.stepped import FloatArray, SteppedEngine
from batchgauge.core.config import Config, LayerShape, check_tensors
from batchgauge.core.default_model import open_model
from batchgauge.core.model_file import ModelFile
from batchgauge.core.rotary import Rotary
from batchgauge.core.tokenizer.vocabulary import Vocabulary
from batchgauge.errors import UserError

# The faster of the library's two attentions, as measured at batch 8 and 32 on a CPU.
_ATTENTION = {"float32": "sdpa", "bfloat16": "eager"}
_ARCHITECTURES = ("llama", "qwen2", "qwen3")  # under the library's names
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_LAYER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def open_engine(argument: str, model: Path | None, threads: int) -> SteppedEngine:
    """`argument` is the type of the weights, then optionally the device: `bfloat16,cuda`."""
    dtype, _, device = (argument or "float32").partition(",")
    if dtype not in _ATTENTION or device not in {"", "cpu", "cuda"}:
        raise UserError(
            f"The engine 'transformers' has no variant '{argument}'; "
            "expected float32 or bfloat16, optionally followed by ',cuda'."
        )
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("This machine has no CUDA device that torch can use; expected ',cpu'.")
    file = open_model(model)
    return SteppedEngine(
        f"transformers {dtype}" + (" cuda" if device == "cuda" else ""),
        TransformersStepper(load_model(file, dtype, device or "cpu"), threads),
        HFTokenizer(from_vocabulary(Vocabulary.from_metadata(file.metadata))),
        file.metadata,
    )


class TransformersStepper:
    """A Llama model in torch, advanced step by step; see `batchgauge.adapters.stepped.Stepper`."""

    max_rows = 100

    def __init__(self, model: transformers.LlamaForCausalLM, threads: int = 1) -> None:
        self.model = model
        self.vocab_size = int(model.config.vocab_size)
        self.context_length = int(model.config.max_position_embeddings)
        self.padded_positions = 0
        self._threads = threads
        self._cache: Any = None
        self._mask: torch.Tensor | None = None  # [B, positions held], None while nothing is padded
        self._next = torch.zeros(0)  # [B] position of the next token

    def prefill(self, rows: Sequence[Sequence[int]], reserve: int) -> FloatArray:
        """Run the prompts from an empty cache; logits [B, V] of each one's last token."""
        torch.set_num_threads(self._threads)  # one setting a process: another engine may differ
        lengths = np.array([len(row) for row in rows])  # [B]
        T = int(lengths.max())
        ids = np.zeros((len(rows), T), dtype=np.int64)
        for i, row in enumerate(rows):
            ids[i, T - len(row) :] = row
        places = np.arange(T) - (T - lengths)[:, None]  # [B, T], negative where padded
        self.padded_positions = int((places < 0).sum())
        self._mask = self._put(places >= 0) if self.padded_positions else None
        self._cache = transformers.DynamicCache(config=self.model.config)
        self._next = self._put(lengths)
        return self._forward(self._put(ids), self._put(np.maximum(places, 0)))

    def decode(self, ids: npt.NDArray[np.int32]) -> FloatArray:
        """Append one token [B] to every sequence; logits [B, V]."""
        torch.set_num_threads(self._threads)
        if self._mask is not None:
            self._mask = torch.nn.functional.pad(self._mask, (0, 1), value=1)
        logits = self._forward(self._put(ids)[:, None], self._next[:, None])
        self._next = self._next + 1
        return logits

    def keep(self, rows: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        """Go on with only these of the sequences, in this order."""
        chosen = self._put(rows)
        self._cache.batch_select_indices(chosen)
        self._next = self._next[chosen]
        if self._mask is not None:
            self._mask = self._mask[chosen]
        return rows

    def set_threads(self, threads: int) -> None:
        """Use so many threads from now on."""
        self._threads = threads

    def _put(self, array: npt.NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(array.astype(np.int64)).to(self.model.device)

    def _forward(self, ids: torch.Tensor, positions: torch.Tensor) -> FloatArray:
        with torch.inference_mode():
            output = self.model(
                input_ids=ids,
                attention_mask=self._mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1,
            )
        logits: FloatArray = output.logits[:, -1].float().cpu().numpy()
        return logits


def load_model(
    file: ModelFile, dtype: str = "float32", device: str = "cpu"
) -> transformers.PreTrainedModel:
    """The library's model with the weights of `file`. Raises UserError for other models."""
    config = Config.from_file(file)
    check_tensors(file, config)
    architecture = file.metadata["general.architecture"]
    usual = LayerShape(config.kv_heads, config.d_ff, 0, 0)
    if (
        architecture not in _ARCHITECTURES
        or set(config.shapes) != {usual}
        or config.rotaries[0].width != config.head_dim
        or config.rotaries[0].scaling == "longrope"
        or not np.isclose(config.query_scale, config.head_dim**-0.5)
    ):
        raise UserError(
            f"The engine 'transformers' cannot run '{file.path}' ({architecture}); expected one of "
            f"{', '.join(_ARCHITECTURES)}, with layers alike, no windows and whole heads rotated."
        )
    attention = bool(config.biases & {"attn_q", "attn_k", "attn_v", "attn_output"})
    theirs = transformers.AutoConfig.for_model(
        architecture,
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.layers,
        num_attention_heads=config.heads,
        num_key_value_heads=config.kv_heads,
        head_dim=config.head_dim,
        max_position_embeddings=config.context_length,
        rms_norm_eps=config.norm_epsilon,
        rope_parameters=_rope(config.rotaries[0]),
        tie_word_embeddings=config.tied,
        attention_bias=attention,
        mlp_bias=bool(config.biases & {"ffn_gate", "ffn_up", "ffn_down"}),
        attn_implementation=_ATTENTION[dtype],
    )
    with torch.device("meta"):  # no memory, no random numbers
        model: Any = transformers.AutoModelForCausalLM.from_config(theirs)
    kind = getattr(torch, dtype)
    state = {name: torch.from_numpy(array).to(kind) for name, array in _weights(file, config)}
    state.setdefault("lm_head.weight", state["model.embed_tokens.weight"])
    for name, parameter in model.named_parameters():
        if name.endswith(".bias"):  # the library has all of a kind or none
            state.setdefault(name, torch.zeros(parameter.shape, dtype=kind))
    model.load_state_dict(state, assign=True)
    rotary = type(model.model.rotary_emb)(config=theirs)  # its buffers were on the meta device
    if "rope_freqs.weight" in file.tensors:
        rotary.inv_freq /= torch.from_numpy(file.read("rope_freqs.weight"))
    model.model.rotary_emb = rotary
    model = model.eval().to(device)
    if device == "cpu" and dtype == "float32":
        with warnings.catch_warnings():  # its classes are still TorchScript's
            warnings.simplefilter("ignore", DeprecationWarning)
            model = mkldnn.to_mkldnn(model)
    return model


def _rope(rotary: Rotary) -> dict[str, Any]:
    """A rotation in the library's words."""
    found: dict[str, Any] = {"rope_theta": rotary.base, "rope_type": "default"}
    if rotary.scaling == "none" or (rotary.scaling == "linear" and rotary.factor == 1.0):
        return found
    found |= {"rope_type": rotary.scaling, "factor": rotary.factor}
    if rotary.scaling == "yarn":
        found |= {
            "original_max_position_embeddings": rotary.original,
            "attention_factor": rotary.magnitude,
            "beta_fast": rotary.betas[0],
            "beta_slow": rotary.betas[1],
        }
    return found


def _weights(file: ModelFile, config: Config) -> Iterator[tuple[str, FloatArray]]:
    """The weights of `file` under the library's names, in its order of rotated features.

    Ours pairs neighbouring features of queries and keys for rotation, the library
    pairs each feature of a head's first half with one of the second.
    """
    for name in config.tensor_shapes():
        weight = file.read(name)
        if name in _OUTSIDE:
            yield _OUTSIDE[name], weight
            continue
        _, layer, part, kind = name.split(".")
        if part.removesuffix("_norm") in {"attn_q", "attn_k"}:
            pairs = weight.reshape(len(weight) // config.head_dim, config.head_dim // 2, 2, -1)
            weight = np.ascontiguousarray(pairs.swapaxes(1, 2)).reshape(weight.shape)
        yield f"model.layers.{layer}.{_IN_LAYER[part]}.{kind}", weight
