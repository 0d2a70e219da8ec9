"""The tour notebook's steps: tokens, next-token probabilities, a timeline, a batch of eight.

Illustrations from single runs; nothing here is a measurement with an interval.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from batchgauge.errors import UserError
from batchgauge.request import (
    BatchItem,
    BatchResponse,
    BatchResult,
    InferenceBatchRequest,
    generated_tokens,
)
from batchgauge.text import Markdown, visible
from batchgauge.workload import load_prompts, sample_prompts, to_items

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from batchgauge.protocols import Engine, Tokenizer
    from batchgauge.request import InferenceBatchResponse

Answer = BatchResponse["InferenceBatchResponse"]


def token_table(tokenizer: Tokenizer, text: str) -> pd.DataFrame:
    """One row a token of `text`: position, id, text (with its space shown as ␣), bytes."""
    ids = tokenizer.encode(text)
    shown = [tokenizer.decode([i]) for i in ids]
    return pd.DataFrame(
        {
            "position": range(len(ids)),
            "id": ids,
            "text": [_shown(piece) for piece in shown],
            "length_bytes": [len(piece.encode(errors="replace")) for piece in shown],
        }
    )


def _shown(piece: str) -> str:
    """A token's text with its white space shown."""
    return visible(piece.replace("\n", "↵")).replace(" ", "␣")


def token_sentence(pieces: pd.DataFrame, text: str) -> str:
    """How many tokens, and how many characters each stands for."""
    return (
        f"{len(text)} characters became {len(pieces)} tokens, "
        f"{len(text) / max(len(pieces), 1):.1f} characters each."
    )


def next_tokens(engine: Engine, prompt: str, count: int = 8) -> pd.DataFrame:
    """The `count` most probable next tokens after the chat-wrapped `prompt`: text, probability.

    Needs an engine that can be seen into (ours and the baseline); for any other the
    frame is empty.
    """
    look = getattr(engine, "next_token_logits", None)
    if look is None:
        return pd.DataFrame({"text": [], "probability": []})
    logits = np.asarray(look(InferenceBatchRequest(prompt, chat=True)), dtype=np.float64)  # [V]
    weights = np.exp(logits - logits.max())
    probabilities = weights / weights.sum()
    best = np.argsort(-probabilities)[:count]
    shown = [engine.tokenizer.decode([int(i)]) for i in best]  # type: ignore[attr-defined]  # ours
    return pd.DataFrame(
        {"text": [_shown(piece) for piece in shown], "probability": probabilities[best]}
    )


def next_token_sentence(guesses: pd.DataFrame) -> str:
    """The favourite and its probability."""
    if guesses.empty:
        return "This engine does not show its logits, so there is no picture here."
    first = guesses.iloc[0]
    return (
        f"The favourite is “{first['text']}” with {first['probability']:.0%}; the "
        f"{len(guesses)} shown hold {guesses['probability'].sum():.0%} of the probability."
    )


def draw_next_tokens(guesses: pd.DataFrame) -> Figure:
    """Bars of the next-token probabilities."""
    import matplotlib.pyplot as plt

    from batchgauge.reporting import plots

    fig, ax = plt.subplots(figsize=(7, 0.35 * max(len(guesses), 2) + 1))
    ax.barh(range(len(guesses)), 100 * guesses["probability"], color=plots.colour("numpy"))
    ax.set_yticks(range(len(guesses)), guesses["text"])  # two tokens may read alike
    ax.invert_yaxis()
    ax.set(xlabel="probability of being next (%)", ylabel="token", title="What comes next?")
    return fig


def _answer(row: Answer) -> InferenceBatchResponse:
    if row.data is None:
        raise UserError(f"The engine could not answer '{row.id}': {row.error}")
    return row.data


def answer_sentence(row: Answer, prompt: str) -> Markdown:
    """Prompt and answer, as a quotation."""
    return Markdown("**{}** {}").format(prompt, _answer(row).text)


def draw_timeline(row: Answer) -> Figure:
    """Tokens generated against time since the request began."""
    import matplotlib.pyplot as plt

    from batchgauge.reporting import plots

    answer = _answer(row)
    when = answer.ttft_ms + np.concatenate([[0.0], np.cumsum(answer.inter_token_ms)])  # [tokens]
    fig, ax = plt.subplots(figsize=(7, 3))
    ax.step(when, np.arange(1, when.size + 1), where="post", color=plots.colour("numpy"))
    ax.axvline(answer.ttft_ms, color="0.5", linestyle="--")
    ax.annotate(" TTFT", (answer.ttft_ms, 1), va="top", color="0.4")
    ax.set(
        xlim=(0, None),
        xlabel="time since the request began (ms)",
        ylabel="tokens generated",
        title="First the prompt is read, then tokens come one by one",
    )
    return fig


def timeline_sentence(row: Answer) -> str:
    """TTFT and the median inter-token latency of this one run."""
    answer = _answer(row)
    count = answer.tokens_generated
    came = "An answer of unknown length" if count is None else f"{count} token(s)"
    if np.isnan(answer.ttft_ms):
        return f"{came} came; this engine does not say when."
    asked = f" ({answer.prompt_tokens} prompt tokens)" if answer.prompt_tokens else ""
    first = f"The first token came after {answer.ttft_ms:.0f} ms{asked}"
    if answer.reasoning:
        first += f", of reasoning; the answer began after {answer.first_answer_ms:.0f} ms"
    if not answer.inter_token_ms:
        return f"{first}; when the others came is not known one by one ({came.lower()} in all)."
    return f"{first}, each further one after {np.median(answer.inter_token_ms):.0f} ms (median)."


def batch_with_neighbours(
    engine: Engine, prompt: str, *, batch_size: int, max_tokens: int, seed: int
) -> BatchResult[InferenceBatchResponse]:
    """`prompt` and `batch_size - 1` others from the project's own set, in one batch."""
    own = BatchItem("tour", InferenceBatchRequest(prompt, max_tokens=max_tokens, chat=True))
    short = [p for p in load_prompts() if p.kind in {"question", "list", "chat", "code"}]
    others = to_items(sample_prompts(short, batch_size - 1, seed), max_tokens=max_tokens)
    return engine.infer_batch([own, *others])


def answers_table(result: BatchResult[InferenceBatchResponse]) -> pd.DataFrame:
    """One row a response: prompt tokens, tokens generated, and the beginning of the answer."""
    rows = [(r.id, _answer(r)) for r in result.responses]
    return pd.DataFrame(
        {
            "id": [name for name, _ in rows],
            "prompt_tokens": [a.prompt_tokens for _, a in rows],
            "tokens_generated": [
                np.nan if a.tokens_generated is None else a.tokens_generated for _, a in rows
            ],
            "answer": [" ".join(a.text.split())[:90] for _, a in rows],
        }
    )


def timings(*results: BatchResult[InferenceBatchResponse]) -> pd.DataFrame:
    """One row a batch: size, tokens, wall time and throughput of this single run."""
    rows = []
    for result in results:
        for response in result.responses:
            _answer(response)  # an item that failed is said
        known = generated_tokens(result)
        tokens = np.nan if known is None else known
        wall = result.stats.total_duration_ms
        rows.append((len(result.responses), tokens, wall, 1e3 * tokens / wall))
    columns = ["batch_size", "tokens_generated", "wall_ms", "throughput_tokens_per_s"]
    return pd.DataFrame(rows, columns=columns)


def batch_sentence(
    alone: BatchResult[InferenceBatchResponse], together: BatchResult[InferenceBatchResponse]
) -> str:
    """The throughputs of the two runs, and whether the prompt's answer stayed the same."""
    one, many = timings(alone, together).itertuples(index=False)
    first, second = _answer(alone.responses[0]), _answer(together.responses[0])
    same = (first.token_ids, first.text) == (second.token_ids, second.text)
    exactly = "token for token" if first.token_ids else "as text"
    rates = (
        f"Alone: {one.throughput_tokens_per_s:.0f} tokens/s. {many.batch_size} together: "
        f"{many.throughput_tokens_per_s:.0f} tokens/s."
    )
    if generated_tokens(alone) is None or generated_tokens(together) is None:
        rates = (
            f"Alone: {one.wall_ms:.0f} ms. {many.batch_size} together: {many.wall_ms:.0f} ms; "
            "how many tokens came is not known."
        )
    return (
        f"{rates} The prompt's own answer is "
        f"{f'the same, {exactly}' if same else 'NOT the same'} in both."
    )


def summary(
    pieces: pd.DataFrame,
    alone: BatchResult[InferenceBatchResponse],
    together: BatchResult[InferenceBatchResponse],
) -> str:
    """The tour in two sentences."""
    times = timeline_sentence(alone.responses[0])
    return (
        f"{len(pieces)} tokens went in; {times[0].lower()}{times[1:]} "
        f"{batch_sentence(alone, together)}"
    )
