"""What `tokenizer.json` and its neighbours say, under GGUF's keys.

The vocabulary is byte-level BPE; its way to cut words is told from its pre-tokenizer, whose
patterns `pretokenize` knows. Begin and end of a text are those of its post-processor.

Left out: SentencePiece's kinds of vocabulary, WordPiece, normalisers (NFC, which Qwen's files
have and no GGUF carries, is passed over as there).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from batchgauge.core.tokenizer.pretokenize import IGNORE_MERGES, PATTERNS
from batchgauge.core.tokenizer.vocabulary import CONTROL, NORMAL, UNUSED, USER_DEFINED
from batchgauge.errors import UserError

MOST_TOKENS = 1 << 21
_PLAIN = ((r"[\p{L}]", r"\p{L}"), (r"[\p{N}]", r"\p{N}"), (r"[^\s]", r"\S"), (r"[\s]", r"\s"))
_SPECIAL = {"bos": "bos", "eos": "eos", "unk": "unknown", "pad": "padding"}
JSON = Mapping[str, Any]


def tokenizer_metadata(
    tokenizer: JSON, config: JSON, ids: JSON, generation: JSON, where: str
) -> dict[str, Any]:
    """GGUF's keys for `tokenizer.json`, `tokenizer_config.json`, `config.json` and
    `generation_config.json`, each empty where it is missing; `where` names the first.

    Raises UserError for a tokenizer of another kind, and for what is no tokenizer.
    """
    try:
        tokens, types = _tokens(tokenizer, int(ids["vocab_size"]), where)
        found: dict[str, Any] = {
            "model": "gpt2",
            "pre": _pre_tokenizer(tokenizer, where),
            "tokens": tokens,
            "token_type": np.array(types, np.int32),
            "merges": [
                one if isinstance(one, str) else " ".join(one)
                for one in tokenizer["model"]["merges"]
            ],
        }
        numbers = {token: i for i, token in enumerate(tokens)}
        for theirs, ours in _SPECIAL.items():
            named = config.get(f"{theirs}_token")
            named = named.get("content") if isinstance(named, dict) else named
            one = numbers.get(named) if named is not None else _first(ids, f"{theirs}_token_id")
            if one is not None:
                found[f"{ours}_token_id"] = one
        ends = [*_all(generation, "eos_token_id"), *_all(ids, "eos_token_id")]
        if more := sorted({*ends} - {found.get("eos_token_id")}):
            found["eot_token_id"] = more[0] if len(more) == 1 else more
        for place, special in zip(("bos", "eos"), _around(tokenizer, numbers), strict=True):
            found[f"add_{place}_token"] = special is not None
            if special is not None:
                found[f"{place}_token_id"] = special
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as problem:
        raise UserError(
            f"{where} is not a tokenizer as the `tokenizers` library writes it "
            f"({type(problem).__name__} at {str(problem)[:60]!r}); expected one."
        ) from None
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()}


def _tokens(tokenizer: JSON, rows: int, where: str) -> tuple[list[str], list[int]]:
    """Tokens and their types in a GGUF; ids that no token has are unused, as in its converter."""
    model = tokenizer["model"]
    if (kind := model.get("type", "BPE")) != "BPE" or model.get("byte_fallback"):
        raise UserError(
            f"{where} is a tokenizer of the kind {kind!r}"
            f"{' with byte fallback, as SentencePiece has it' if kind == 'BPE' else ''}, which is "
            "not supported; expected byte-level BPE."
        )
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(key):
            raise UserError(f"{where} has {key!r}, which is not supported; expected none.")
    vocabulary: dict[str, int] = model["vocab"]
    added = tokenizer.get("added_tokens") or []
    special = {one["content"]: (one["id"], bool(one.get("special"))) for one in added}
    for one in added:
        if one.get("lstrip") or one.get("rstrip") or one.get("single_word"):
            raise UserError(
                f"{where} has the token {one['content'][:60]!r} that takes spaces beside it or "
                "words alone, which is not supported; expected tokens that stand for themselves."
            )
    numbers = [*vocabulary.values(), *(i for i, _ in special.values())]
    if not all(isinstance(i, int) and not isinstance(i, bool) and i >= 0 for i in numbers):
        raise ValueError("an id that is no whole number")
    count = max(rows, max(numbers) + 1)
    if count > MOST_TOKENS:
        raise ValueError(f"an id of {count - 1}")
    tokens, types = [f"[PAD{i}]" for i in range(count)], [UNUSED] * count
    for token, i in vocabulary.items():
        tokens[i], types[i] = token, NORMAL
    for token, (i, is_special) in special.items():
        tokens[i], types[i] = token, CONTROL if is_special else USER_DEFINED
    return tokens, types


def _pre_tokenizer(tokenizer: JSON, where: str) -> str:
    """The name of the pre-tokenizer in a GGUF."""
    normal = tokenizer.get("normalizer")
    if normal is not None and normal.get("type") != "NFC":
        raise UserError(
            f"{where} has the normaliser {normal.get('type')!r}, which is not supported; expected "
            "none, or NFC."
        )
    steps = tokenizer.get("pre_tokenizer") or {"type": "none"}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    regex = [step.get("use_regex", True) for step in steps if step.get("type") == "ByteLevel"]
    found = None
    if kinds == ["ByteLevel"] and regex == [True]:
        found = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and regex == [True] and steps[0]["individual_digits"]:
        found = "smollm"
    elif kinds == ["Split", "ByteLevel"] and regex == [False]:
        pattern = _canonical(steps[0]["pattern"].get("Regex", ""))
        usual = steps[0].get("behavior") == "Isolated" and not steps[0].get("invert")
        names = [name for name, one in PATTERNS.items() if usual and _canonical(one) == pattern]
        found = names[0] if names else None
    whole = bool(tokenizer["model"].get("ignore_merges"))
    if found is None or any(step.get("add_prefix_space") for step in steps):
        raise UserError(
            f"{where} cuts words by {' and '.join(map(str, kinds))} in a way that is not known; "
            f"expected the pre-tokenizer of {', '.join(PATTERNS)}."
        )
    if whole != (found in IGNORE_MERGES):
        raise UserError(
            f"{where} has `ignore_merges` {str(whole).lower()} with the pre-tokenizer {found!r}, "
            "which is not supported together."
        )
    return found


def _canonical(pattern: str) -> str:
    for bracketed, plain in _PLAIN:
        pattern = pattern.replace(bracketed, plain)
    return pattern


def _around(tokenizer: JSON, numbers: Mapping[str, int]) -> tuple[int | None, int | None]:
    """Ids that the post-processor puts before and behind a text."""
    steps = tokenizer.get("post_processor") or {}
    for step in steps.get("processors", [steps]):
        if step.get("type") != "TemplateProcessing":
            continue
        pieces = [next(iter(piece.items())) for piece in step["single"]]
        at = [kind for kind, _ in pieces].index("Sequence")
        names = [[one["id"] for _, one in some] for some in (pieces[:at], pieces[at + 1 :])]
        if max(map(len, names)) > 1:
            raise ValueError("more than one token before or behind a text")
        first, last = (numbers[name[0]] if name else None for name in names)
        return first, last
    return None, None


def _all(values: JSON, key: str) -> list[int]:
    found = values.get(key)
    return [] if found is None else found if isinstance(found, list) else [found]


def _first(values: JSON, key: str) -> int | None:
    return next(iter(_all(values, key)), None)
