"""What the supported architectures have in common and where they differ, as data.

A file may say things that change what its model computes and that nothing here does: every
such key is refused by name, never ignored. For each architecture a `Family` tells which
keys are applied, which values of others mean nothing, and what no key says. Kinds and
meanings are those of llama.cpp's loader; `dynamic` scaling, which it does not know, and
windows of architectures for which it has none are those of `transformers`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

# Keys that are applied to every architecture.
_COMMON = frozenset({
    "block_count", "context_length", "embedding_length", "feed_forward_length", "vocab_size",
    "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.value_length", "attention.scale", "attention.layer_norm_rms_epsilon",
    "rope.dimension_count", "rope.freq_base", "rope.scaling.type", "rope.scaling.factor",
    "rope.scale_linear", "rope.scaling.original_context_length", "rope.scaling.finetuned",
    "rope.scaling.attn_factor", "rope.scaling.yarn_attn_factor", "rope.scaling.yarn_ext_factor",
    "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
})  # fmt: skip
_WINDOW = frozenset({"attention.sliding_window", "attention.sliding_window_pattern"})
_CAPS = frozenset({"attn_logit_softcapping", "final_logit_softcapping"})
_UNIT = (0, 1)  # of a factor: llama.cpp takes 0 for "none"
NOTHING = (0, "", "none")
# For keys that an architecture does not apply, the values with which they change nothing,
# where those are not `NOTHING` (0 is false too).
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "attention.causal": (True,),
    "attention.output_scale": _UNIT,
    "embedding_scale": _UNIT,
    "expert_weights_scale": _UNIT,
    "logit_scale": _UNIT,
    "residual_scale": _UNIT,
    "rope.scaling.alpha": _UNIT,
    "tensor_data_layout": ("", "Meta AI original pth"),  # neighbours are pairs
}


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture: what it applies, and the rules that no key of a file states.

    more            keys that are applied beside the common ones
    halves          a head's first half and its second are the pairs that turn, not neighbours
    biases          matrices that always have a bias; any other may have one
    norms           gains of a layer
    wide_norms      norms of queries and keys go over all heads together, not over each
    fused           queries, keys and values are one tensor, gate and up are another
    gelu            the gate is tanh's approximation of GELU, not SiLU
    scaled_embedding  embeddings are multiplied by the square root of their width
    window          positions that a layer with a window sees where no key says it; 0: all
    period          every so many layers the last one has no window; 0: all of them have one
    bare_period     every so many layers the last one does not turn by position; 0: all do
    local_base      base of the rotation in layers with a window; 0: as in the others
    scaled_by_width  numbers of layers whose models scale scores by width ÷ heads
    caps            soft limits of scores and of logits where no key says them; 0: none
    """

    more: frozenset[str] = frozenset()
    halves: bool = True
    biases: frozenset[str] = frozenset()
    norms: tuple[str, ...] = ("attn_norm", "ffn_norm")
    wide_norms: bool = False
    fused: bool = False
    gelu: bool = False
    scaled_embedding: bool = False
    window: int = 0
    period: int = 0
    bare_period: int = 0
    local_base: float = 0.0
    scaled_by_width: frozenset[int] = frozenset()
    caps: tuple[float, float] = (0.0, 0.0)

    @property
    def applied(self) -> frozenset[str]:
        """The keys that are read, or that never change a result."""
        return _COMMON | self.more


_HEAD_NORMS = ("attn_q_norm", "attn_k_norm")
_BEHIND = ("post_attention_norm", "post_ffw_norm")
FAMILIES: Mapping[str, Family] = {
    "llama": Family(more=_WINDOW, halves=False),
    "qwen2": Family(more=_WINDOW, biases=frozenset({"attn_q", "attn_k", "attn_v"})),
    "qwen3": Family(more=_WINDOW, norms=("attn_norm", *_HEAD_NORMS, "ffn_norm")),
    "gemma": Family(gelu=True, scaled_embedding=True),
    "gemma2": Family(
        more=_WINDOW | _CAPS,
        norms=("attn_norm", "ffn_norm", *_BEHIND),
        gelu=True,
        scaled_embedding=True,
        window=4096,
        period=2,
        scaled_by_width=frozenset({46}),
        caps=(50.0, 30.0),
    ),
    "gemma3": Family(
        more=_WINDOW | _CAPS | {"rope.freq_base_swa"},
        norms=("attn_norm", *_HEAD_NORMS, "ffn_norm", *_BEHIND),
        gelu=True,
        scaled_embedding=True,
        period=6,
        local_base=10_000.0,
        scaled_by_width=frozenset({62}),
    ),
    "phi3": Family(more=_WINDOW, fused=True),
    "granite": Family(
        more=frozenset({"embedding_scale", "residual_scale", "logit_scale"}), halves=False
    ),
    "olmo2": Family(norms=(*_HEAD_NORMS, *_BEHIND), wide_norms=True),
    "smollm3": Family(halves=False, bare_period=4),
}

# Architectures whose files need not say how many experts they have to be refused as what they are.
MIXTURES = frozenset({
    "arctic", "bailingmoe", "bailingmoe2", "dbrx", "deepseek", "deepseek2", "dots1",
    "ernie4_5-moe", "exaone-moe", "glm4moe", "gpt-oss", "granitemoe", "grok", "grovemoe",
    "hunyuan-moe", "lfm2moe", "llada-moe", "llama4", "minimax-m2", "mixtral", "nomic-bert-moe",
    "olmoe", "phimoe", "qwen2moe", "qwen3moe", "qwen3next", "qwen3vlmoe", "qwen35moe", "rnd1",
    "smallthinker", "afmoe", "mimo2", "step35",
})  # fmt: skip
