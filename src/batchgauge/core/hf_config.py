"""What `config.json` of a Hugging Face model says, under GGUF's keys.

`MODELS` tells for each `model_type` which architecture it is and where its keys differ. A key
that may change what the model computes and that nothing here knows is refused by name, never
ignored; numbers are rounded to float32, as a GGUF has them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np

from batchgauge.core.gguf_layouts import Floats
from batchgauge.core.keys import LARGEST
from batchgauge.core.model_file import shown
from batchgauge.core.rotary import yarn_magnitude
from batchgauge.errors import UserError

# Keys about training, bookkeeping, generation and other runtimes: they never change the logits.
_IGNORED = frozenset({
    "architectures", "attention_dropout", "attn_implementation", "auto_map", "bos_token_id",
    "cache_implementation", "dtype", "embd_pdrop", "eos_token_id", "hidden_dropout",
    "id2label", "initializer_range", "is_decoder", "is_llama_config", "label2id", "model_type",
    "pad_token_id", "pretraining_tp", "problem_type", "resid_pdrop", "return_dict",
    "sep_token_id", "torch_dtype", "transformers.js_config", "transformers_version",
    "unsloth_fixed", "unsloth_version", "use_cache", "vocab_file",
    # Old files of the library have the defaults of `generate` too.
    "diversity_penalty", "do_sample", "early_stopping", "length_penalty", "max_length",
    "num_beam_groups", "num_beams", "num_return_sequences", "repetition_penalty",
    "temperature", "top_k", "top_p", "typical_p",
})  # fmt: skip
_EXPERTS = ("num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size")
_WITH_BIAS = {
    "attention_bias": ("attn_q", "attn_k", "attn_v", "attn_output"),
    "mlp_bias": ("ffn_gate", "ffn_up", "ffn_down"),
}


@dataclass(frozen=True, slots=True)
class HFModel:
    """One `model_type`.

    architecture  GGUF's name of it
    paired        GGUF files have queries and keys so that neighbours turn, not halves of heads
    less_one      gains of norms are stored less one
    tied          whether the head is the embedding where no key says it
    windowed      layers have a window: "always", or "asked" by `use_sliding_window`
    period        every so many layers the last has none; 0: by `max_window_layers`, or no other
    gelu          the gate is tanh's approximation of GELU
    numbers       more keys, to those of a GGUF; null is 0
    fixed         keys, to the one value that is supported
    """

    architecture: str
    paired: bool = False
    less_one: bool = False
    tied: bool = False
    windowed: str = ""
    period: int = 0
    gelu: bool = False
    numbers: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)


_CAPS = {name: name for name in ("attn_logit_softcapping", "final_logit_softcapping")}
MODELS = {
    "llama": HFModel("llama", paired=True),
    "mistral": HFModel("llama", paired=True, windowed="always"),
    "qwen2": HFModel("qwen2", windowed="asked"),
    "qwen3": HFModel("qwen3", windowed="asked"),
    "gemma": HFModel("gemma", less_one=True, tied=True, gelu=True),
    "gemma2": HFModel(
        "gemma2", less_one=True, tied=True, gelu=True, windowed="always", period=2, numbers=_CAPS
    ),
    "gemma3_text": HFModel(
        "gemma3", less_one=True, tied=True, gelu=True, windowed="always", period=6, numbers=_CAPS
    ),
    "phi3": HFModel("phi3", windowed="always"),
    "granite": HFModel(
        "granite",
        paired=True,
        numbers={
            "attention_multiplier": "attention.scale",
            "embedding_multiplier": "embedding_scale",
            "residual_multiplier": "residual_scale",
            "logits_scaling": "logit_scale",
        },
    ),
    "olmo2": HFModel("olmo2"),
    "smollm3": HFModel(
        "smollm3", paired=True, tied=True, windowed="asked", fixed={"no_rope_layer_interval": 4}
    ),
}


class Settings:
    """An object of a JSON file, its values of the right kind or a UserError that names them.

    `where` begins sentences. Null counts as nothing there.
    """

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self._values, self._where = values, where
        self._seen: set[str] = set()

    def get(self, key: str, default: Any = None) -> Any:
        """Whatever stands there."""
        self._seen.add(key)
        value = self._values.get(key)
        return default if value is None else value

    def count(self, key: str, default: int | None = None) -> int:
        """A whole number above 0."""
        value = self.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST:
            self.refuse(key, value, f"a whole number from 1 to {LARGEST}")
        return value

    def number(self, key: str, default: float | None = None) -> float:
        """A finite number, rounded to float32."""
        value = self.get(key, default)
        with np.errstate(over="ignore"):
            fits = isinstance(value, int | float) and not isinstance(value, bool)
            if not fits or abs(value) > 1e38 or not math.isfinite(value):
                self.refuse(key, value, "a number within float32")
            return float(np.float32(value))

    def flag(self, key: str, default: bool) -> bool:
        """True or false."""
        value = self.get(key, default)
        if not isinstance(value, bool):
            self.refuse(key, value, "true or false")
        return value

    def items(self, key: str, kinds: type | tuple[type, ...], count: int) -> list[Any]:
        """So many values of a kind."""
        value = self.get(key)
        if not isinstance(value, list) or len(value) != count or not all(
            isinstance(one, kinds) and not isinstance(one, bool) for one in value
        ):  # fmt: skip
            self.refuse(key, value, f"a list of {count}")
        return value

    def part(self, key: str) -> dict[str, Any]:
        """An object, empty where there is none."""
        value = self.get(key, {})
        if not isinstance(value, dict):
            self.refuse(key, value, "an object")
        return value

    def refuse(self, key: str, value: Any, expected: str) -> NoReturn:
        """Raise UserError for a key."""
        found = "lacks" if value is None else f"has {_described(value)} as"
        raise UserError(f"{self._where} {found} `{key}`; expected {expected}.")

    def refuse_unknown(self) -> None:
        """Raise UserError for a key that nobody asked for, unless its value means nothing."""
        for key, value in self._values.items():
            known = key in self._seen or key in _IGNORED or key.startswith("_")
            if not known and value not in (None, False, 0, "", [], {}):
                raise UserError(
                    f"{self._where} has the key {shown(key)}, which is {_described(value)}: what "
                    "it changes is not known; expected a model without it."
                )


def _described(value: Any) -> str:
    if isinstance(value, list | dict):
        return f"{'a list' if isinstance(value, list) else 'an object'} of {len(value)}"
    return shown(value) if isinstance(value, str) else str(value)[:40]


@dataclass(frozen=True, slots=True)
class Described:
    """A model's `config.json`: `metadata` under GGUF's keys, and what its tensors must be.

    biases   matrices that have one, as far as the architecture leaves it open
    factors  tensors that a GGUF has and a folder says in numbers
    """

    model: HFModel
    metadata: dict[str, Any]
    layers: int
    tied: bool
    biases: frozenset[str]
    factors: dict[str, Floats]


def describe(values: Mapping[str, Any], where: str) -> Described:
    """Read the values of `config.json`; `where` names it. Raises UserError."""
    config = Settings(values, where)
    model, kind = _model(config, where)
    name = model.architecture
    layers, heads = config.count("num_hidden_layers"), config.count("num_attention_heads")
    width, context = config.count("hidden_size"), config.count("max_position_embeddings")
    head = config.count("head_dim", max(width // heads, 1))
    said: dict[str, Any] = {
        "block_count": layers,
        "context_length": context,
        "embedding_length": width,
        "feed_forward_length": config.count("intermediate_size"),
        "attention.head_count": heads,
        "attention.head_count_kv": config.count("num_key_value_heads", heads),
        "attention.key_length": head,
        "attention.value_length": head,
        "attention.layer_norm_rms_epsilon": config.number("rms_norm_eps"),
        "vocab_size": config.count("vocab_size"),
    }
    acts = ("gelu_pytorch_tanh", "gelu") if model.gelu else ("silu",)  # Gemma's "gelu" is tanh's
    for key in ("hidden_activation", "hidden_act"):
        if (act := config.get(key, acts[0])) not in acts[: 1 + (key == "hidden_act")]:
            config.refuse(key, act, repr(acts[0]))
    for key, wanted in model.fixed.items():
        if (value := config.get(key, wanted)) != wanted:
            config.refuse(key, value, repr(wanted))
    if kind == "smollm3":
        turns = [int((i + 1) % 4 != 0) for i in range(min(layers, 1 << 16))]
        if (value := config.get("no_rope_layers", turns)) != turns:
            config.refuse("no_rope_layers", value, "every fourth layer to be 0")
    for key, theirs in model.numbers.items():
        said[theirs] = config.number(key, 0.0)
    if kind.startswith(("gemma2", "gemma3")):
        said["attention.scale"] = config.number("query_pre_attn_scalar", float(head)) ** -0.5
    said |= _windows(config, model, layers)
    more, factors = _rotation(config, kind, head, context, where)
    said |= more
    tied = config.flag("tie_word_embeddings", model.tied)
    biases = [
        part for key, parts in _WITH_BIAS.items() if config.flag(key, False) for part in parts
    ]
    config.refuse_unknown()
    metadata = {f"{name}.{key}": value for key, value in said.items()}
    return Described(
        model, {"general.architecture": name} | metadata, layers, tied, frozenset(biases), factors
    )


def _model(config: Settings, where: str) -> tuple[HFModel, str]:
    """The kind of model and its `model_type`. Raises UserError for what is not supported."""
    kind = config.get("model_type")
    if (quantised := config.get("quantization_config")) is not None:
        how = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise UserError(
            f"{where} says that the weights are quantised by {_described(how or 'a method')}, "
            "which is not supported; expected float32, float16 or bfloat16, or a GGUF file."
        )
    if not isinstance(kind, str) or kind not in MODELS:
        mixture = any(isinstance(config.get(key), int) for key in _EXPERTS)
        raise UserError(
            f"{where} is of the model_type {_described(kind)}"
            f"{', a mixture of experts' if mixture else ''}, which is not supported; expected one "
            f"of {', '.join(MODELS)}."
        )
    return MODELS[kind], kind


def _windows(config: Settings, model: HFModel, layers: int) -> dict[str, Any]:
    """The keys about how far each layer sees."""
    every = ["full_attention"] * min(layers, 1 << 16)
    if not model.windowed:
        if (types := config.get("layer_types", every)) != every:
            config.refuse("layer_types", types, "all of them to be 'full_attention'")
        return {}
    asked = model.windowed == "always" or config.flag("use_sliding_window", False)
    first = config.get("max_window_layers", 0) if model.windowed == "asked" else 0
    window = config.get("sliding_window")
    period = config.get(
        "sliding_window_pattern", config.get("_sliding_window_pattern", model.period)
    )
    types = config.get("layer_types")
    if not asked or window is None:
        return {"attention.sliding_window": 0} if model.period else {}
    if types is None:
        if not all(isinstance(n, int) and 0 <= n <= LARGEST for n in (first, period)):
            config.refuse("sliding_window_pattern", period, "a whole number")
        slides = [
            i >= first and not (period and i % period == period - 1) for i in range(len(every))
        ]
    else:
        config.items("layer_types", str, layers)
        if not {*types} <= {"full_attention", "sliding_attention"}:
            config.refuse("layer_types", types, "'full_attention' and 'sliding_attention'")
        slides = [kind == "sliding_attention" for kind in types]
    key = "attention.sliding_window"
    found: dict[str, Any] = {key: config.count("sliding_window") if any(slides) else 0}
    pattern = {} if all(slides) and not model.period else {f"{key}_pattern": np.array(slides)}
    return found | pattern


def _rotation(
    config: Settings, kind: str, head: int, context: int, where: str
) -> tuple[dict[str, Any], dict[str, Floats]]:
    """The keys about rotary positions, and tensors of factors."""
    given = config.part("rope_scaling") | config.part("rope_parameters")
    said: dict[str, Any] = {}
    base = config.number("rope_theta", 10_000.0)
    if kind == "gemma3_text":
        base = config.number("rope_theta", 1_000_000.0)
        said["rope.freq_base_swa"] = _local_base(config, given.get("sliding_attention"), where)
        given = given.get("full_attention", given)
    rope = Settings(given if isinstance(given, dict) else {}, f"{where}, `rope_parameters`,")
    scaling = rope.get("rope_type", rope.get("type", "default"))
    rope.get("type")
    share = rope.number("partial_rotary_factor", config.number("partial_rotary_factor", 1.0))
    if not 0.0 < share <= 1.0:
        config.refuse("partial_rotary_factor", share, "above 0 and at most 1")
    width = int(head * share)
    base = rope.number("rope_theta", base)
    said |= {"rope.freq_base": base, "rope.dimension_count": width}
    original = rope.count(
        "original_max_position_embeddings",
        config.count("original_max_position_embeddings", context),
    )
    factors: dict[str, Floats] = {}
    if scaling in {"linear", "dynamic"}:
        said |= {"rope.scaling.type": scaling, "rope.scaling.factor": rope.number("factor")}
        if original != context and scaling == "dynamic":
            rope.refuse("original_max_position_embeddings", original, f"the context of {context}")
    elif scaling == "yarn":
        said |= _yarn(rope, context, original)
    elif scaling == "llama3":
        factors["rope_freqs.weight"] = _llama3_factors(rope, width, base, original)
    elif scaling in {"longrope", "su"}:
        said |= _longrope(rope, context, original)
        for length in ("long", "short"):
            numbers = rope.items(f"{length}_factor", (int, float), width // 2)
            factors[f"rope_factors_{length}.weight"] = np.array(numbers, np.float32)
    elif scaling != "default":
        rope.refuse(
            "rope_type", scaling, "'default', 'linear', 'dynamic', 'yarn', 'llama3' or 'longrope'"
        )
    rope.refuse_unknown()
    return said, factors


def _local_base(config: Settings, given: Any, where: str) -> float:
    """The base of the rotation in Gemma 3's layers with a window."""
    inner = Settings(given if isinstance(given, dict) else {}, f"{where}, `rope_parameters`,")
    if (kind := inner.get("rope_type", "default")) != "default":
        inner.refuse("rope_type", kind, "'default' of layers with a window")
    base = inner.number("rope_theta", config.number("rope_local_base_freq", 10_000.0))
    inner.refuse_unknown()
    return base


def _yarn(rope: Settings, context: int, original: int) -> dict[str, Any]:
    """YaRN's keys."""
    factor = rope.number("factor", context / original)
    usual = yarn_magnitude(factor)
    magnitude = rope.number("attention_factor", _mscale(rope, factor) or usual)
    if not rope.flag("truncate", True):
        rope.refuse("truncate", False, "true")
    return {
        "rope.scaling.type": "yarn",
        "rope.scaling.factor": factor,
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": float(np.float32(magnitude / usual)),
        "rope.scaling.yarn_beta_fast": rope.number("beta_fast", 32.0),
        "rope.scaling.yarn_beta_slow": rope.number("beta_slow", 1.0),
    }


def _longrope(rope: Settings, context: int, original: int) -> dict[str, Any]:
    """The keys of long and short factors, beside the factors."""
    factor = max(rope.number("factor", context / original), 1.0)
    magnitude = math.sqrt(1.0 + math.log(factor) / math.log(max(original, 2)))
    return {
        "rope.scaling.original_context_length": original,
        "rope.scaling.attn_factor": rope.number("attention_factor", magnitude),
    }


def _mscale(rope: Settings, factor: float) -> float:
    """What YaRN's two `mscale` make of its magnitude; 0 without them."""
    one, all_of = (rope.number(key, 0.0) for key in ("mscale", "mscale_all_dim"))
    if not one or not all_of or factor <= 1.0:
        return 0.0
    return (0.1 * one * math.log(factor) + 1.0) / (0.1 * all_of * math.log(factor) + 1.0)


def _llama3_factors(rope: Settings, width: int, base: float, original: int) -> Floats:
    """The factors [width / 2] that a GGUF of Llama 3.1 has for its three numbers.

    Wavelengths above original / low are stretched by the factor, below original / high not.
    """
    factor, low, high = (
        rope.number(key) for key in ("factor", "low_freq_factor", "high_freq_factor")
    )
    if factor <= 0.0 or not 0.0 < low < high or base <= 0.0:
        rope.refuse("factor", factor, "factors above 0, the low one below the high one")
    turns = original * np.power(base, -np.arange(0, width, 2) / width) / (2.0 * math.pi)
    smooth = np.clip((turns - low) / (high - low), 0.0, 1.0)
    factors: Floats = (1.0 / ((1.0 - smooth) / factor + smooth)).astype(np.float32)
    return factors
