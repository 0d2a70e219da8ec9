"""Names to tokenizers and engines: what every notebook's `tokenizer` and `engine` parameters mean.

A spec is a known name, a known name with an argument after a colon, or
`package.module:factory` for the user's own. Nothing is imported until it is
asked for, and a library that is not installed is said with the extra that
installs it. What a factory of the user's returns is checked against the
protocols here; what it *does* is checked by `batchgauge.adapters.checks`.

    >>> known_tokenizers()
    ('numpy', 'baseline', 'hf', 'tiktoken', 'sentencepiece', 'llama-cpp')
"""

from __future__ import annotations

import importlib
import inspect
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchgauge import extras
from batchgauge.errors import UserError
from batchgauge.machine.limits import checked_threads, default_threads
from batchgauge.protocols import Engine, Tokenizer
from batchgauge.redaction import redacted


@dataclass(frozen=True, slots=True)
class Known:
    """One name: where its factory is, which packages it needs, what its argument means.

    `factory` is `module:function`, called with (argument, model, threads), the
    tokenizers' with (argument, model). `extra` is the extra of this package that
    installs `packages`; both are empty for our own.
    """

    factory: str
    packages: tuple[str, ...] = ()
    extra: str = ""
    argument: str = ""


_TOKENIZERS: Mapping[str, Known] = {
    "numpy": Known(
        "batchgauge.adapters.own:numpy_tokenizer", argument="threads that share a batch; 1 without"
    ),
    "baseline": Known("batchgauge.adapters.own:baseline_tokenizer"),
    "hf": Known("batchgauge.adapters.hf:open_tokenizer", ("tokenizers",), "hf", "tokenizer.json"),
    "tiktoken": Known(
        "batchgauge.adapters.tiktoken_adapter:open_tokenizer",
        ("tiktoken",),
        "tiktoken",
        "name of an encoding that is cached on this machine",
    ),
    "sentencepiece": Known(
        "batchgauge.adapters.sentencepiece_adapter:open_tokenizer",
        ("sentencepiece",),
        "sentencepiece",
        "path of a .model file",
    ),
    "llama-cpp": Known(
        "batchgauge.adapters.llama_cpp_adapter:open_tokenizer", ("llama_cpp",), "llama-cpp"
    ),
}
_ENGINES: Mapping[str, Known] = {
    "numpy": Known(
        "batchgauge.adapters.own:numpy_engine",
        argument="how weights are kept: float32 (default), file (as it has them) or bfloat16",
    ),
    "baseline": Known("batchgauge.adapters.own:baseline_engine"),
    "transformers": Known(
        "batchgauge.adapters.transformers_adapter:open_engine",
        ("torch", "transformers"),
        "transformers",
        "float32 (default) or bfloat16, then optionally ',cuda'",
    ),
    "llama-cpp": Known(
        "batchgauge.adapters.llama_cpp_adapter:open_engine",
        ("llama_cpp",),
        "llama-cpp",
        "'f32' to run the same weights dequantised",
    ),
    "openai": Known(
        "batchgauge.adapters.openai_http:open_engine",
        ("httpx",),
        "openai",
        "base URL, e.g. http://127.0.0.1:8080/v1, with '#model' where the server has several",
    ),
}


def known_tokenizers() -> tuple[str, ...]:
    """The names that `open_tokenizer` knows, ours first."""
    return tuple(_TOKENIZERS)


def known_engines() -> tuple[str, ...]:
    """The names that `open_engine` knows, ours first."""
    return tuple(_ENGINES)


def missing_packages(spec: str) -> tuple[str, ...]:
    """Which packages the library behind `spec` lacks on this machine; empty when it can be opened.

    Looks without importing. Raises UserError for a name that is neither known nor a
    `package.module:factory`.
    """
    name = spec.partition(":")[0]
    known = _ENGINES.get(name) or _TOKENIZERS.get(name)
    if known is None:
        if ":" not in spec:
            raise _unknown("tokenizer or engine", spec, {**_TOKENIZERS, **_ENGINES})
        return ()
    return extras.missing(*known.packages)


def weights_of(spec: str) -> str:
    """How the engine of a spec keeps its weights: float32, file, bfloat16; "" where not known.

    >>> weights_of("numpy:file"), weights_of("transformers:bfloat16,cuda"), weights_of("my:engine")
    ('file', 'bfloat16', '')
    """
    from batchgauge.core.memory_need import mode_of

    known = mode_of(spec)
    return known[0] if known else ""


def with_weights(spec: str, weights: str = "float32") -> str:
    """The spec of an engine that keeps its weights in that way.

    The default, float32, leaves a spec as it is; another one must be what the spec says, or
    becomes the argument of `numpy`. Raises UserError for any other, before anything is loaded.

    >>> with_weights("numpy", "file"), with_weights("numpy:file"), with_weights("baseline")
    ('numpy:file', 'numpy:file', 'baseline')
    """
    from batchgauge.core.weights import MODES

    name, _, argument = spec.partition(":")
    for given in (weights, argument if name == "numpy" and argument else MODES[0]):
        if given not in MODES:
            raise UserError(f"weights is {given!r}; expected one of {', '.join(MODES)}.")
    if weights in {MODES[0], weights_of(spec)}:
        return spec
    if spec == "numpy":
        return f"{spec}:{weights}"
    kept = weights_of(spec)
    raise UserError(
        f"weights is '{weights}', but the engine '{redacted(spec)}' keeps them "
        f"{f'as {kept}' if kept else 'in its own way'}; expected the engine 'numpy', or no weights."
    )


def open_tokenizer(spec: str = "numpy", model: str | Path | None = None) -> Tokenizer:
    """The tokenizer that `spec` names, with the vocabulary of `model` (None: the default).

    `model` is a GGUF file or a Hugging Face folder. `hf`, `tiktoken` and ours read the
    vocabulary from the model; `hf:PATH`, `tiktoken:ENCODING` and `sentencepiece:PATH` bring
    their own. Raises UserError for an unknown name, a library that is not installed, or a
    factory whose result is no tokenizer.
    """
    factory, argument = _resolve("tokenizer", spec, _TOKENIZERS)
    path = Path(model) if model else None
    if factory is None:
        tokenizer: Tokenizer = _own("tokenizer", spec, Tokenizer, model=path)
    else:
        tokenizer = factory(argument, path)
    return tokenizer


def open_engine(
    spec: str = "numpy", model: str | Path | None = None, threads: int | None = None
) -> Engine:
    """The engine that `spec` names, on `model` (None: the default) with `threads` threads.

    Where no number is given, as many as `limits.default_threads` says.
    An `openai:` server keeps its own model and threads. A user's engine is wrapped
    so that a wrong number of responses or a foreign id is said where it happens.
    Raises UserError as `open_tokenizer` does, and for a number of `threads`
    that this machine does not have.
    """
    threads = default_threads() if threads is None else checked_threads(threads)
    factory, argument = _resolve("engine", spec, _ENGINES)
    path = Path(model) if model else None
    if spec.partition(":")[0] not in {"numpy", "baseline"}:  # ours look themselves
        check_fits(spec, path)
    if factory is None:
        from batchgauge.adapters.checks import CheckedEngine

        return CheckedEngine(_own("engine", spec, Engine, model=path, threads=threads))
    engine: Engine = factory(argument, path, threads)
    return engine


def check_fits(spec: str, model: Path | None, batch: tuple[int, int] = (1, 512)) -> None:
    """Raise UserError when the engine's model and a batch need more memory than is free.

    `batch` is (requests, tokens of each). Of servers and users' own engines nothing is known.
    """
    from batchgauge.core.memory_need import check_memory, mode_of
    from batchgauge.core.model_facts import ModelFacts

    if (known := mode_of(spec)) is not None:
        check_memory(ModelFacts.read(model), known[0], batch, factor=known[1])


def _resolve(
    kind: str, spec: str, table: Mapping[str, Known]
) -> tuple[Callable[..., Any] | None, str]:
    """The factory and argument of a known name; (None, "") for the user's own."""
    name, _, argument = spec.partition(":")
    known = table.get(name)
    if known is None:
        if not name or not argument:
            raise _unknown(kind, spec, table)
        return None, ""
    if argument and not known.argument:
        raise UserError(f"The {kind} '{name}' takes no argument; got '{argument}'.")
    extras.require(f"The {kind} '{spec}'", known.extra, *known.packages)
    module, _, function = known.factory.partition(":")
    return getattr(importlib.import_module(module), function), argument


def _own(kind: str, spec: str, protocol: type, **offered: Any) -> Any:
    """Call the user's factory with those of `offered` that its signature names."""
    module_name, _, attribute = spec.partition(":")
    here = os.getcwd()  # noqa: PTH109 - an entry of sys.path is a string
    if here not in sys.path:  # as `python -m` has it: one's own module beside one's own work
        sys.path.insert(0, here)
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as problem:
        raise UserError(
            f"The {kind} '{spec}' is neither a known name nor a module that can be imported "
            f"({problem}); expected package.module:factory, importable from '{here}'."
        ) from None
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise UserError(f"Module '{module_name}' has nothing callable named '{attribute}'.")
    parameters = inspect.signature(factory).parameters
    made = factory(**{name: value for name, value in offered.items() if name in parameters})
    if not isinstance(made, protocol):
        wanted = [n for n in dir(protocol) if not n.startswith("_") and not hasattr(made, n)]
        raise UserError(
            f"'{spec}' made a {type(made).__name__}, which is no {kind}: it lacks "
            f"{', '.join(wanted)} (see batchgauge.protocols)."
        )
    return made


def _unknown(kind: str, spec: str, table: Mapping[str, Known]) -> UserError:
    names = ", ".join(
        f"{name}:ARGUMENT" if name in {"sentencepiece", "openai"} else name for name in table
    )
    return UserError(
        f"The {kind} '{spec}' is unknown; expected one of {names}, or package.module:factory."
    )
