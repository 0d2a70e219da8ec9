"""Side by side with what people use: who takes part, under which conditions, and with equal output.

Opens every peer that is installed, says which are not, and lets nobody be timed whose
output differs where it must not. Timing is in `tokenizing` and `engines`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import pandas as pd

from batchgauge import workload
from batchgauge.adapters.own import NumpyStepper
from batchgauge.adapters.stepped import SteppedEngine, Stepper
from batchgauge.core.engine import BatchInferenceEngine
from batchgauge.experiments import ways
from batchgauge.experiments.context import Context
from batchgauge.experiments.peers.rates import OURS
from batchgauge.machine import preflight
from batchgauge.machine.identity import Machine
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.redaction import redacted
from batchgauge.registry import missing_packages, open_engine, open_tokenizer
from batchgauge.text import one_line

Opened = TypeVar("Opened")
TOKENIZERS = (OURS, *ways.TOKENIZERS)
ENGINES = (OURS, *(spec for spec in ways.ENGINES if spec != ways.FEWER))
FLOAT32 = frozenset({OURS, "transformers", "llama-cpp:f32"})  # must agree to the token
RAGGED = (5, 17, 30, 64)  # prompt lengths whose logits are compared


@dataclass(slots=True)
class Peers:
    """Who takes part, under which conditions, and a line on each that does not."""

    context: Context
    tokenizers: dict[str, Tokenizer] = field(default_factory=dict)
    engines: dict[str, Engine] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)

    @classmethod
    def open(cls, context: Context) -> Peers:
        """Ours, every known peer that is installed, and the two that the context names.

        The smoke profile leaves out the variants of an engine. Raises UserError when our
        own, or the user's, cannot be opened.
        """
        peers, smoke = cls(context), context.budget.name == "smoke"
        engines = [e for e in ENGINES if not smoke or ":" not in e or "f32" in e]
        peers.tokenizers = peers._opened(TOKENIZERS, context.tokenizer_name, open_tokenizer)
        own = context.engine_spec

        def opened(spec: str, model: str | None) -> Engine:
            return context.engine if spec == own else open_engine(spec, model)

        peers.engines = peers._opened(engines, own, opened)
        peers.absent["sentencepiece"] = (
            "its model files hold vocabularies of their own: none can hold this one"
        )
        return peers

    def _opened(
        self, known: Sequence[str], own: str, opener: Callable[[str, str | None], Opened]
    ) -> dict[str, Opened]:
        """What can be opened of `known` and the user's own; the rest goes to `absent`."""
        found: dict[str, Opened] = {}
        for spec in dict.fromkeys([*known, own]):
            try:
                found[spec] = opener(spec, self.context.model or None)
            except Exception as problem:  # a peer's library may refuse a model as it likes
                if spec in {OURS, own}:
                    raise
                lacks = missing_packages(spec)
                said = one_line(problem).partition(". ")[0]
                self.absent[spec] = f"{', '.join(lacks)} not installed" if lacks else said
        return found

    def absent_sentence(self) -> str:
        """Who is passed over, and why."""
        rows = [f"{name} ({why})" for name, why in self.absent.items()]
        return f"Passed over: {'; '.join(rows)}."

    def steppers(self) -> dict[str, Stepper]:
        """The engines that can be advanced step by step."""
        found: dict[str, Stepper] = {}
        for spec, engine in self.engines.items():
            if isinstance(engine, BatchInferenceEngine):
                found[spec] = NumpyStepper(engine.model)
            elif isinstance(engine, SteppedEngine):
                found[spec] = engine.stepper
        return found


def conditions_table(peers: Peers) -> pd.DataFrame:
    """Versions, build flags and the way each peer is used."""
    blas = preflight.check()
    rows = [
        (
            OURS,
            f"numpy {metadata.version('numpy')}, numba {metadata.version('numba')}",
            f"{blas.blas} {blas.version}, {blas.core} kernels",
            "encode_many; ragged prefill without padding, one decode step for all rows",
        )
    ]
    if "tiktoken" in peers.tokenizers:
        rows.append(
            ("tiktoken", _version("tiktoken"), "Rust", "the quickest of its ways, chosen per shape")
        )
    if "hf" in peers.tokenizers:
        way = "the quickest of its ways, chosen per shape; its own word cache on"
        rows.append(("hf", _version("tokenizers"), "Rust", way))
    if any(name.startswith("transformers") for name in peers.engines):
        rows += _torch_rows(peers)
    if any(name.startswith("llama-cpp") for name in peers.engines):
        import llama_cpp

        from batchgauge.adapters.llama_cpp_adapter import has_amx

        flags = [
            flag.strip().removesuffix(" = 1")
            for flag in llama_cpp.llama_print_system_info().decode().split("|")
            if flag.strip().endswith("= 1")
        ]
        way = (
            "llama_decode on one batch of all sequences, a KV stream each, n_ubatch 512, "
            "flash attention as llama.cpp chooses (on), float16 KV cache; "
        )
        quantised = "quantised products" + (", AMX left out: it crashes" if has_amx() else "")
        version = f"{_version('llama-cpp-python')}; " + ", ".join(flags)
        rows += [
            ("llama-cpp:f32", "the same weights in float32", version, way + "prefix reuse off"),
            ("llama-cpp", "the file as it is", version, way + quantised),
        ]
    rows.append(("the processor", Machine.here().cpu, processor_features(), "everybody"))
    return pd.DataFrame(rows, columns=["peer", "version", "build", "used_by"])


def processor_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Which vector and matrix units decide about products, of those that Linux names."""
    try:
        lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return "units unknown: this system does not name them"
    flags = next((x for x in lines if x.lower().startswith(("flags", "features"))), "").split()
    names = {
        "avx2": "AVX2", "avx512f": "AVX-512", "avx512_vnni": "AVX-512 VNNI",
        "avx512_bf16": "AVX-512 BF16", "amx_tile": "AMX tiles", "amx_bf16": "AMX BF16",
        "amx_int8": "AMX INT8", "asimd": "NEON", "sve": "SVE", "bf16": "BF16", "i8mm": "I8MM",
    }  # fmt: skip
    has = [name for flag, name in names.items() if flag in flags]
    wanted = [f for f in names if f.startswith(("avx", "amx")) == ("asimd" not in flags)]
    lacks = [names[flag] for flag in wanted if flag not in flags]
    return f"has {', '.join(has) or 'none of them'}" + (f"; lacks {', '.join(lacks)}" * bool(lacks))


def _torch_rows(peers: Peers) -> list[tuple[str, str, str, str]]:
    import torch

    build = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}"
    way = "forward with its KV cache, left-padded with a mask where lengths differ; eager: "
    variants = {
        "transformers": "oneDNN products (faster than its default MKL here), sdpa attention",
        "transformers:bfloat16": "oneDNN products, eager attention (faster than sdpa in batches)",
    }
    version = _version("transformers")
    return [(n, version, build, way + v) for n, v in variants.items() if n in peers.engines]


def _version(package: str) -> str:
    return f"{package} {metadata.version(package)}"


def same_ids(peers: Peers) -> pd.DataFrame:
    """Ids of real texts of all kinds beside ours; a tokenizer that differs is left out after."""
    kinds: tuple[workload.TextKind, ...] = ("prose", "code", "unicode")
    texts = [t for kind in kinds for t in workload.texts(kind, 400, 40, peers.context.seed)]
    texts += workload.UNICODE_CASES
    wanted = peers.tokenizers[OURS].encode_many(texts).tolist()
    rows = []
    for name, tokenizer in list(peers.tokenizers.items()):
        got = tokenizer.encode_many(texts).tolist()
        equal = sum(a == b for a, b in zip(wanted, got, strict=True))
        rows.append((name, len(texts), equal, equal == len(texts)))
        if equal < len(texts):
            peers.absent[name] = f"its ids differ in {len(texts) - equal} of {len(texts)} texts"
            del peers.tokenizers[name]
    return pd.DataFrame(rows, columns=["tokenizer", "texts", "equal", "identical"])


def same_answers(peers: Peers) -> pd.DataFrame:
    """Greedy answers and logits beside ours; a float32 engine that differs is left out after."""
    choose = peers.context.budget.choose
    prompts = peers.context.prompts(
        choose(smoke=2, default=4, thorough=24), lambda p: len(p.prompt) < 300
    )
    length = choose(smoke=6, default=16, thorough=32)
    items = workload.to_items(prompts, max_tokens=length, chat=peers.context.chat)
    wanted = _ids(peers.engines[OURS], items)
    steppers = peers.steppers()
    first = _ragged_logits(steppers[OURS], peers.context.seed)
    rows = []
    for name, engine in list(peers.engines.items()):
        got = _ids(engine, items)
        equal = sum(a == b for a, b in zip(wanted, got, strict=True))
        step = _ragged_logits(steppers[name], peers.context.seed) if name in steppers else None
        apart = math.nan if step is None else float(np.abs(step - first).max())
        best = math.nan if step is None else float((step.argmax(-1) == first.argmax(-1)).mean())
        rows.append((redacted(name), name in FLOAT32, len(items), equal, apart, 100 * best))
        if name in FLOAT32 and equal < len(items):
            peers.absent[name] = f"its greedy answers differ in {len(items) - equal}"
            del peers.engines[name]
    return pd.DataFrame(
        rows,
        columns=[
            "engine", "float32", "prompts", "equal_answers", "largest_logit_difference",
            "same_best_token_percent",
        ],
    )  # fmt: skip


def _ids(engine: Engine, items: Sequence[Any]) -> list[object]:
    """Generated ids of each item; its text where ids are not known."""
    rows = [r.data for r in engine.infer_batch(items).responses]
    return [row and (row.token_ids or row.text) for row in rows]


def _ragged_logits(stepper: Stepper, seed: int) -> npt.NDArray[np.float32]:
    """Logits of a ragged prefill and of one decode step after it: [2, B, V]."""
    rng = np.random.default_rng(seed)
    rows = [rng.integers(0, stepper.vocab_size, n).tolist() for n in RAGGED]
    first = stepper.prefill(rows, 1).copy()
    return np.stack([first, stepper.decode(np.arange(len(rows), dtype=np.int32)).copy()])
