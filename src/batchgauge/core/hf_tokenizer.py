"""What `tokenizer.json` and its neighbours say, under GGUF's keys.

The vocabulary is byte-level BPE, whose way to cut words is told from its pre-tokenizer
(`pretokenize` knows the patterns), or BPE with byte fallback, as SentencePiece's are written.
Begin and end of a text are those of its post-processor. Unicode normalisation and the ways to
put a space before a text, which no GGUF tells, stand under keys of our own (`normalise`).

Left out: Unigram, WordPiece, any other normaliser: refused by name.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from batchgauge.core.tokenizer.edges import (
    BYTE,
    BYTES,
    CONTROL,
    NORMAL,
    PIECES,
    UNUSED,
    USER_DEFINED,
)
from batchgauge.core.tokenizer.normalise import FORM_KEY, FORMS, PREFIX_KEY, SPACE
from batchgauge.core.tokenizer.pretokenize import STEPS
from batchgauge.core.tokenizer.vocabulary import WHOLE_KEY
from batchgauge.errors import UserError

MOST_TOKENS = 1 << 21
_BYTE = re.compile("<0x[0-9A-F]{2}>")
_PLAIN = (
    (r"[\p{L}]", r"\p{L}"), (r"[\p{N}]", r"\p{N}"), (r"[^\s]", r"\S"), (r"[\s]", r"\s"),
    ("\r", r"\r"), ("\n", r"\n"),
)  # fmt: skip
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
        form, spaces = _normaliser(tokenizer, where)
        own: dict[str, Any] = {FORM_KEY: form}
        pieces = bool(tokenizer["model"].get("byte_fallback"))
        if pieces:
            own[PREFIX_KEY] = _space_prefix(tokenizer, spaces, where)
        elif spaces:
            raise _unknown_normaliser(where, "Replace")
        else:
            own[WHOLE_KEY] = bool(tokenizer["model"].get("ignore_merges"))
        found: dict[str, Any] = {
            "model": PIECES if pieces else BYTES,
            "pre": "default" if pieces else _pre_tokenizer(tokenizer, where),
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
    return {f"tokenizer.ggml.{key}": value for key, value in found.items()} | own


def _tokens(tokenizer: JSON, rows: int, where: str) -> tuple[list[str], list[int]]:
    """Tokens and their types in a GGUF; ids that no token has are unused, as in its converter."""
    model = tokenizer["model"]
    if (kind := model.get("type", "BPE")) != "BPE":
        raise UserError(
            f"{where} is a tokenizer of the kind {kind!r}, which is not supported; expected "
            "byte-level BPE, or BPE with byte fallback."
        )
    pieces = bool(model.get("byte_fallback"))
    for key in ("dropout", "continuing_subword_prefix", "end_of_word_suffix", "ignore_merges"):
        if model.get(key) and (pieces or key != "ignore_merges"):
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
        is_byte = pieces and _BYTE.fullmatch(token)
        tokens[i], types[i] = token, BYTE if is_byte else NORMAL
    for token, (i, is_special) in special.items():
        tokens[i], types[i] = token, CONTROL if is_special else USER_DEFINED
    return tokens, types


def _unknown_normaliser(where: str, kind: object) -> UserError:
    return UserError(
        f"{where} has the normaliser {kind!r}, which is not supported; expected none, one of "
        f"{', '.join(FORMS)}, or SentencePiece's spaces."
    )


def _normaliser(tokenizer: JSON, where: str) -> tuple[str, tuple[str, ...]]:
    """The form of Unicode that texts get, and what is done to their spaces, in order."""
    whole = tokenizer.get("normalizer") or {"type": "Sequence", "normalizers": []}
    form = ""
    spaces: list[str] = []
    for step in whole.get("normalizers", [whole]):
        kind = step.get("type")
        if kind in FORMS and not form and not spaces:
            form = kind
        elif (kind == "Prepend" and step["prepend"] == SPACE and not spaces) or (
            kind == "Replace" and (step["pattern"], step["content"]) == ({"String": " "}, SPACE)
        ):
            spaces.append(kind)
        else:
            raise _unknown_normaliser(where, kind)
    return form, tuple(spaces)


def _space_prefix(tokenizer: JSON, spaces: tuple[str, ...], where: str) -> str:
    """Where `▁` stands before a text, by normaliser and pre-tokenizer: see `normalise`."""
    steps = tokenizer.get("pre_tokenizer") or {"type": "Sequence", "pretokenizers": []}
    steps = steps.get("pretokenizers", [steps])
    # A step that cuts at spaces finds none: all have become `▁`.
    if spaces and all(s.get("type") == "Split" and s["pattern"] == {"String": " "} for s in steps):
        if spaces == ("Replace",):
            return ""
        if spaces == ("Prepend", "Replace"):
            return "every"
    if not spaces and len(steps) == 1 and steps[0].get("type") == "Metaspace":
        step = steps[0]
        schemes = {"always": "missing", "first": "first", "never": ""}
        scheme = step.get("prepend_scheme", "always")
        if step["replacement"] == SPACE and not step.get("split", True) and scheme in schemes:
            return schemes[scheme]
    kinds = [*spaces, *(str(step.get("type")) for step in steps)] or ["nothing"]
    raise UserError(
        f"{where} prepares texts by {' and '.join(kinds)} in a way that is not known; expected "
        "spaces that become '▁', as in the files of Llama 2, Mistral and Gemma."
    )


def _pre_tokenizer(tokenizer: JSON, where: str) -> str:
    """The name of the pre-tokenizer in a GGUF."""
    steps = tokenizer.get("pre_tokenizer") or {"type": "none"}
    steps = steps.get("pretokenizers", [steps])
    kinds = [step.get("type") for step in steps]
    regex = [step.get("use_regex", True) for step in steps if step.get("type") == "ByteLevel"]
    found = None
    if kinds == ["ByteLevel"] and regex == [True]:
        found = "gpt-2"
    elif kinds == ["Digits", "ByteLevel"] and regex == [True] and steps[0]["individual_digits"]:
        found = "smollm"
    elif kinds[-1] == "ByteLevel" and regex == [False]:
        cuts = [_cut(step) for step in steps[:-1]]
        names = [name for name, some in STEPS.items() if [*map(_canonical, some)] == cuts]
        found = names[0] if names else None
    if found is None or any(step.get("add_prefix_space") for step in steps):
        raise UserError(
            f"{where} cuts words by {' and '.join(map(str, kinds))} in a way that is not known; "
            f"expected the pre-tokenizer of {', '.join(STEPS)}."
        )
    return found


def _cut(step: JSON) -> str | None:
    """The pattern whose matches stand apart behind a step; None where it does something else."""
    if step.get("type") == "Digits" and step["individual_digits"]:
        return r"\p{N}"
    if step.get("type") != "Split" or step.get("behavior") != "Isolated" or step.get("invert"):
        return None
    return _canonical(step["pattern"].get("Regex", ""))


def _canonical(pattern: str) -> str:
    for one, other in _PLAIN:
        pattern = pattern.replace(one, other)
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
