"""The tour's steps: tokens, next-token probabilities, a timeline, a batch of eight.

Illustrations from single runs; nothing here is a measurement with an interval.
"""

from __future__ import annotations

from functools import partial

import numpy as np
import pandas as pd
import scipy

from batchgauge.experiments.context import Context, Result
from batchgauge.experiments.tour import figures
from batchgauge.reporting import Answer, Section
from batchgauge.request import (
    BatchItem,
    InferenceBatchRequest,
    InferenceBatchResponse,
    generated_tokens,
)
from batchgauge.text import Markdown, counted, percent, visible
from batchgauge.workload import to_items


def tokens(context: Context, text: str) -> Section:
    """The tokens of `text`, one row each; their text with its white space shown."""
    ids = context.tokenizer.encode(text)
    shown = [context.tokenizer.decode([i]) for i in ids]
    pieces = pd.DataFrame(
        {
            "position": range(len(ids)),
            "id": ids,
            "text": [_shown(piece) for piece in shown],
            "length_bytes": [len(piece.encode(errors="replace")) for piece in shown],
        }
    )
    said = (
        f"{len(text)} characters became {len(ids)} tokens, "
        f"{len(text) / max(len(ids), 1):.1f} characters each."
    )
    return Section("tokens", {}, said, pieces, "The prompt's tokens: position, id, text and bytes.")


def _shown(piece: str) -> str:
    return visible(piece.replace("\n", "↵")).replace(" ", "␣")


def next_tokens(context: Context, prompt: str, *, count: int) -> Section:
    """The `count` most probable next tokens after the `prompt`, in chat format if there is one.

    Needs an engine that can be seen into (ours and the baseline); others have no such numbers.
    """
    look = getattr(context.engine, "next_token_logits", None)
    guesses = pd.DataFrame({"text": [], "probability": []})
    said = "This engine does not show its logits, so there is no picture here."
    if look is not None:
        logits = np.asarray(
            look(InferenceBatchRequest(prompt, chat=context.chat)), np.float64
        )  # [V]
        best = np.argsort(-logits)[:count]
        decode = context.engine.tokenizer.decode  # type: ignore[attr-defined]  # of ours
        texts = [_shown(decode([int(i)])) for i in best]
        guesses = pd.DataFrame({"text": texts, "probability": scipy.special.softmax(logits)[best]})
        said = (
            f"The favourite is “{texts[0]}” with {percent(guesses['probability'][0])}; the "
            f"{len(guesses)} shown hold {percent(guesses['probability'].sum())} of the probability."
        )
    return Section(
        "tour_next_token", {"next_tokens": guesses}, said,
        picture=partial(figures.next_tokens, guesses, said.rstrip(".")),
        picture_caption="The most probable next tokens after the prompt.",
        rests_on="1 call, 1 process",
    )  # fmt: skip


def ask(context: Context, prompt: str, *, batch_size: int, max_tokens: int) -> Result:
    """The answers to `prompt` and `batch_size - 1` prompts of the project's own, in one batch.

    Raises UserError when the engine could not answer one.
    """
    chat = context.chat
    own = InferenceBatchRequest(prompt, max_tokens=max_tokens, chat=chat, seed=context.seed)
    items = [BatchItem("tour", own)]
    if batch_size > 1:
        short = {"question", "list", "chat", "code"}
        others = context.prompts(batch_size - 1, lambda p: p.kind in short)
        items += to_items(others, max_tokens=max_tokens, chat=chat)
    return context.infer(items)


def _answers(result: Result) -> list[InferenceBatchResponse]:
    return [response.data for response in result.responses if response.data]


def answer_text(alone: Result, prompt: str) -> Section:
    """Prompt and answer, as a quotation."""
    return Section("answer", {}, Markdown("**{}** {}").format(prompt, _answers(alone)[0].text))


def timeline(alone: Result) -> Section:
    """Tokens generated against time since the request began."""
    answer = _answers(alone)[0]
    when_ms = answer.ttft_ms + np.concatenate([[0.0], np.cumsum(answer.inter_token_ms)])  # [tokens]
    said = timeline_sentence(alone)
    arrivals = pd.DataFrame({"token": range(1, len(when_ms) + 1), "at_ms": when_ms})
    return Section(
        "tour_timeline", {"timeline": arrivals}, said,
        picture=partial(figures.timeline, when_ms, said.rstrip(".")),
        picture_caption="When each token arrived.",
        rests_on="1 call, 1 process",
    )  # fmt: skip


def timeline_sentence(alone: Result) -> str:
    """TTFT and the median inter-token latency of this one run."""
    answer = _answers(alone)[0]
    count = answer.tokens_generated
    came = "An answer of unknown length" if count is None else counted(count, "token")
    if np.isnan(answer.ttft_ms):
        return f"{came} came; this engine does not say when."
    first = f"The first token came after {answer.ttft_ms:.0f} ms"
    if answer.reasoning:
        first += f", of reasoning; the answer began after {answer.first_answer_ms:.0f} ms"
    if not answer.inter_token_ms:
        return f"{first}; when the others came is not known one by one ({came.lower()} in all)."
    return f"{first}, each further one after {np.median(answer.inter_token_ms):.0f} ms (median)."


def batch(alone: Result, together: Result) -> Section:
    """The answers of one batch, and its throughput beside that of the prompt alone."""
    rows = [
        (
            response.id,
            answer.prompt_tokens,
            np.nan if answer.tokens_generated is None else answer.tokens_generated,
            " ".join(answer.text.split())[:90],
        )
        for response, answer in zip(together.responses, _answers(together), strict=True)
    ]
    shown = pd.DataFrame(rows, columns=["id", "prompt_tokens", "tokens_generated", "answer"])
    times = {"timings": timings(alone, together)}
    said = batch_sentence(alone, together)
    return Section("batch", times, said, shown, f"{len(rows)} prompts, one batch.")


def timings(*results: Result) -> pd.DataFrame:
    """One row a batch: size, tokens, wall time and throughput of this single run."""
    rows = []
    for result in results:
        known = generated_tokens(result)
        count = np.nan if known is None else known
        wall_ms = result.stats.total_duration_ms
        rows.append((len(result.responses), count, wall_ms, 1e3 * count / wall_ms))
    columns = ["batch_size", "tokens_generated", "wall_ms", "throughput_tokens_per_s"]
    return pd.DataFrame(rows, columns=columns)


def batch_sentence(alone: Result, together: Result) -> str:
    """The throughputs of the two runs, and whether the prompt's answer stayed the same."""
    times = timings(alone, together)
    one, many = times.itertuples(index=False)
    first, second = _answers(alone)[0], _answers(together)[0]
    same = (first.token_ids, first.text) == (second.token_ids, second.text)
    exactly = "token for token" if first.token_ids else "as text"
    rates = (
        f"Alone: {one.throughput_tokens_per_s:.0f} tokens/s. {many.batch_size} together: "
        f"{many.throughput_tokens_per_s:.0f} tokens/s."
    )
    if times["tokens_generated"].isna().any():
        rates = (
            f"Alone: {one.wall_ms:.0f} ms. {many.batch_size} together: {many.wall_ms:.0f} ms; "
            "how many tokens came is not known."
        )
    return (
        f"{rates} The prompt's own answer is "
        f"{f'the same, {exactly}' if same else 'NOT the same'} in both."
    )


def summary(pieces: Section, alone: Result, together: Result) -> Answer:
    """The tour in two sentences."""
    assert pieces.shown is not None
    times, count = timeline_sentence(alone), len(pieces.shown)
    wrapped = _answers(alone)[0].prompt_tokens
    went = f"The prompt is {counted(count, 'token')}"
    if wrapped and wrapped > count + 1:  # one more is the token that begins any text
        went += f", {wrapped} in the model's chat format"
    return Answer(
        f"{went}; {times[0].lower()}{times[1:]} {batch_sentence(alone, together)}", "tour_timeline"
    )
