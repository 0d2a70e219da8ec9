"""The work that is measured: prompts, texts and request lengths, all seeded and all real.

Three sources, none of them fetched: the project's own prompt set
(`data/prompts.jsonl`), the English prose and the Python code that every CPython
ships, and the length shape of real traffic. A user's `.txt` or `.jsonl` file
works in the prompt set's place. Nothing here tokenizes or times.
"""

from __future__ import annotations

import functools
import json
import sysconfig
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from batchgauge.errors import UserError
from batchgauge.files import json_line, text_lines
from batchgauge.request import BatchItem, InferenceBatchRequest
from batchgauge.text import has_surrogate

TextKind = Literal["prose", "code", "unicode"]
_LENGTH_NAMES = ("max_tokens", "max_completion_tokens", "max_output_tokens", "max_new_tokens")
_MOST_TOKENS = 2**31 - 1
_SMALL_VOCABULARY = 200  # ids that every model has

# Azure LLM inference trace 2023, conversation (CC-BY; Patel et al., Splitwise, ISCA 2024):
# quantiles and means of 19,366 requests.
_QUANTILES = np.array([0.10, 0.25, 0.50, 0.75, 0.90, 0.99])
_CONTEXT_TOKENS = np.array([207, 396, 1020, 1189, 2735, 4142])
_GENERATED_TOKENS = np.array([54, 85, 129, 395, 424, 601])
MEAN_CONTEXT, MEAN_GENERATED = 1155, 211


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt of a workload; `kind` groups prompts in reports."""

    id: str
    kind: str
    prompt: str
    max_tokens: int = 64


def load_prompts(path: str | Path = "") -> list[Prompt]:
    """The prompts of a workload file; the project's own set when `path` is empty.

    A `.txt` file has one prompt a line. A `.jsonl` file has one object a line: `prompt`
    (or `text`, or `messages`) and optionally `id`, `kind` and `max_tokens` (or one of its
    other names), or a request of OpenAI's batch files: `custom_id`, and the same in `body`.
    Messages become one prompt, their texts with a blank line between: what is measured is
    how long they are, not who said them. Raises UserError for a file that is missing,
    empty, not UTF-8 or not of that form.
    """
    source = Path(path) if str(path) else _own_prompts()
    what, kind = f"Workload '{source}'", source.suffix.lower()
    if kind not in {".txt", ".jsonl"}:
        raise UserError(f"{what} is neither a .txt nor a .jsonl file.")
    lines = text_lines(source, what)
    if not lines:
        raise UserError(f"{what} is empty; expected at least one prompt.")
    if kind == ".txt":
        return [Prompt(f"line-{number}", "text", line) for number, line in lines]
    prompts = [prompt_from_json(line, f"{what}, line {number},", number) for number, line in lines]
    twice = [name for name, count in Counter(p.id for p in prompts).items() if count > 1]
    if twice:
        raise UserError(f"{what} has the id '{twice[0]}' twice; ids must be unique.")
    return prompts


def prompt_from_json(line: str, where: str, number: int, most_tokens: int = 64) -> Prompt:
    """The prompt in one line of JSON, called `line-<number>` where it has no id.

    `most_tokens` is for a prompt that names no `max_tokens`. Raises UserError, which begins with
    `where`, for what is none.
    """
    row = json_line(line, where)
    body = row.get("body", row)
    if not isinstance(body, dict):
        raise UserError(f"{where} has a body that is no object; expected a request.")
    given = [(name, body[name]) for name in _LENGTH_NAMES if body.get(name) is not None]
    name, most = given[0] if given else ("max_tokens", most_tokens)
    if isinstance(most, bool) or not isinstance(most, int) or not 1 <= most <= _MOST_TOKENS:
        raise UserError(
            f"{where} has {name} {json.dumps(most)[:40]}; "
            f"expected a whole number from 1 to {_MOST_TOKENS}."
        )
    own = row.get("custom_id") if row.get("id") is None else row["id"]
    kind = row.get("kind")
    for name, value in (("id", own), ("kind", kind)):
        if isinstance(value, bool) or not isinstance(value, str | int | None):
            raise UserError(f"{where} has {name} {json.dumps(value)[:40]}; expected a text.")
    own, kind = (f"line-{number}" if own is None else own), ("text" if kind is None else kind)
    prompt = Prompt(str(own), str(kind), prompt_text(body, where), most)
    if any(has_surrogate(text) for text in (prompt.id, prompt.kind, prompt.prompt)):
        raise UserError(f"{where} has a lone surrogate; expected text that UTF-8 can hold.")
    return prompt


def prompt_text(body: Mapping[str, Any], where: str) -> str:
    """What a request says: its prompt, or the texts of its messages."""
    for name in ("prompt", "text", "input"):
        if isinstance(body.get(name), str):
            return str(body[name])
    messages = body.get("messages", body.get("input"))
    if not isinstance(messages, list) or not messages:
        raise UserError(
            f"{where} is not a prompt; expected an object with 'prompt' (text) or 'messages', "
            "and optionally 'id', 'kind' and 'max_tokens'."
        )
    texts = []
    for message in messages:
        content = message.get("content") if isinstance(message, dict) else None
        parts = content if isinstance(content, list) else [{"type": "text", "text": content}]
        for part in parts:
            kind = part.get("type") if isinstance(part, dict) else None
            text = part.get("text") if kind in {"text", "input_text", "output_text"} else None
            if not isinstance(text, str):
                found = f"of type {kind}" if isinstance(kind, str) and kind != "text" else "empty"
                raise UserError(
                    f"{where} has a message with a content that is {found}; expected text."
                )
            texts.append(text)
    return "\n\n".join(texts)


def _own_prompts() -> Path:
    installed = Path(__file__).parent / "data" / "prompts.jsonl"  # in a wheel
    checkout = Path(__file__).parents[2] / "data" / "prompts.jsonl"  # in the project
    return installed if installed.exists() else checkout


def to_items(
    prompts: Sequence[Prompt],
    *,
    max_tokens: int | None = None,
    temperature: float = 0.0,
    seed: int = 0,
    chat: bool = True,
    ignore_eos: bool = False,
) -> list[BatchItem[InferenceBatchRequest]]:
    """Prompts as batch items under their own ids; `max_tokens` replaces each prompt's own."""
    same: dict[str, Any] = {"temperature": temperature, "chat": chat, "ignore_eos": ignore_eos}
    items = []
    for position, p in enumerate(prompts):
        most = max_tokens or p.max_tokens
        request = InferenceBatchRequest(p.prompt, most, seed=seed + position, **same)
        items.append(BatchItem(p.id, request))
    return items


def exact_requests(
    prompt_tokens: Iterable[int], new_tokens: Iterable[int], *, seed: int = 0
) -> list[BatchItem[InferenceBatchRequest]]:
    """Greedy requests of exactly these lengths: prompts are random ids, end tokens ignored."""
    rng = np.random.default_rng(seed)
    items = []
    for i, (prompt, new) in enumerate(zip(prompt_tokens, new_tokens, strict=True)):
        ids = tuple(rng.integers(1, _SMALL_VOCABULARY, size=prompt).tolist())
        items.append(BatchItem(str(i), InferenceBatchRequest(ids, int(new), ignore_eos=True)))
    return items


def sample_prompts(prompts: Sequence[Prompt], count: int, seed: int = 0) -> list[Prompt]:
    """`count` prompts in seeded order, going round again (under new ids) when there are fewer."""
    if count < 1:
        raise UserError(f"Asked for {count} prompts; expected at least 1.")
    order = np.random.default_rng(seed).permutation(len(prompts))
    taken = {prompt.id for prompt in prompts}
    chosen = []
    for i in range(count):
        prompt, lap = prompts[order[i % len(prompts)]], i // len(prompts)
        name = f"{prompt.id}#{lap + 1}" if lap else prompt.id
        while lap and name in taken:  # a file may have such ids itself
            name += "'"
        taken.add(name)
        chosen.append(Prompt(name, prompt.kind, prompt.prompt, prompt.max_tokens))
    return chosen


@functools.cache
def corpus(kind: TextKind) -> str:
    """Real text that every machine has.

    `prose`: the Python language reference as shipped in `pydoc_data` (about 0.7 MB
    of English). `code`: the standard library's top-level modules (first 2 MB).
    `unicode`: the project's own mix of scripts, emoji, odd white space and text
    that cannot be split. Raises UserError for another kind.
    """
    if kind == "prose":
        from pydoc_data.topics import topics

        return "\n\n".join(topics[name] for name in sorted(topics))
    if kind == "code":
        files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
        return "\n".join(f.read_text(encoding="utf-8", errors="ignore") for f in files)[:2_000_000]
    if kind == "unicode":
        return " ".join(UNICODE_CASES)
    raise UserError(f"Text kind '{kind}' is unknown; expected prose, code or unicode.")


def texts(kind: TextKind, characters: int, count: int, seed: int = 0) -> list[str]:
    """`count` pieces of `characters` characters each, cut from `corpus(kind)` at seeded places."""
    if characters < 1 or count < 1:
        raise UserError(f"Asked for {count} texts of {characters} characters; expected 1 or more.")
    source = corpus(kind)
    source *= -(-(characters + 1) // len(source))
    starts = np.random.default_rng(seed).integers(0, len(source) - characters + 1, size=count)
    return [source[s : s + characters] for s in starts.tolist()]


def request_lengths(
    count: int, *, scale: float = 1.0, longest: int | None = None, seed: int = 0
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Context and generated tokens [count] each, in the shape of real traffic.

    Inverse transform over the trace's published quantiles: log-linear between them,
    uniform below p10, cut at p99. The two lengths are drawn independently (their
    joint distribution is not published). `scale` shrinks both for a small model,
    which keeps the skew; `longest` caps each. Every length is at least 1.
    """
    if count < 1 or scale <= 0:
        raise UserError(f"Asked for {count} lengths at scale {scale}; expected both above 0.")
    rng = np.random.default_rng(seed)

    def draw(quantiles: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
        u = rng.random(count)  # [count]
        inside = np.exp(np.interp(u, _QUANTILES, np.log(quantiles)))
        below = 1 + u / _QUANTILES[0] * (quantiles[0] - 1)
        lengths = np.where(u < _QUANTILES[0], below, inside) * scale
        return np.clip(np.rint(lengths), 1, longest).astype(np.int64)

    return draw(_CONTEXT_TOKENS), draw(_GENERATED_TOKENS)


# What tokenizers stumble over; also the tests' own cases.
UNICODE_CASES: tuple[str, ...] = (
    "Grüße aus Köln, façade, naïve, Ångström, Łódź",
    "日本語の文章です。漢字とかな、カタカナ。",
    "请把这句话切成词元，谢谢。",
    "한국어 문장도 있습니다.",
    "Привет, как дела? Съешь ещё этих мягких булок.",
    "مرحبا بالعالم، كيف الحال؟ ١٢٣",
    "שלום עולם",
    "हिन्दी में एक वाक्य १२३",
    "ภาษาไทยไม่มีช่องว่าง",
    "Ελληνικά και ΚΕΦΑΛΑΙΑ",
    "e\u0301 n\u0303 o\u0308 \u0915\u094d\u0937",  # combining marks
    "👍 👩‍👩‍👧‍👦 🏳️‍🌈 🇩🇪 ☕️ 🤷🏽‍♂️",
    "a\u00a0b\u2003c\u3000d\u200be\ufefff",  # odd white space
    "x\t\ty\r\nz\n\n\n  w  \v\f\x85\u2028\u2029",
    "½ ² Ⅷ ٣ ৪ 一二三 1234567890 3.14 1e-9",
    "I'm you're we'll they'd he's I'VE don'T ’tis",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "__init__(self,**kw)->None: #!/usr/bin/env {[(<$€£¥>)]}",
    "\x00\x01\x1b[31m\x7f",
    "\U0001d54f\U0001f9ff\U00020000\u0378\ue000",  # outside the BMP, unassigned, private
)
