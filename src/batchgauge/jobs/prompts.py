"""Answering prompts: one line of JSON for each line of a shard."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

from batchgauge import registry
from batchgauge.errors import UserError
from batchgauge.jobs.source import Shard, decoded, read
from batchgauge.jobs.work import ShardOutput, check_whole, model_identity
from batchgauge.protocols import Engine
from batchgauge.redaction import redacted
from batchgauge.request import BatchItem, BatchResponse, InferenceBatchRequest
from batchgauge.sizing.automatic import (
    LARGEST,
    is_calibrated,
    measured_size,
    shows_its_model,
    suggest_for_engine,
)
from batchgauge.sizing.lengths import Lengths
from batchgauge.sizing.suggestion import SizingConfig
from batchgauge.workload import Prompt, prompt_from_json

_FIRST = 8
_CALIBRATION_S = 15.0  # what one takes, about: no job is held up by more than it lasts
_CHARACTERS_PER_TOKEN = 4  # of English text, to sort prompts by; no result depends on it


@dataclass(frozen=True, slots=True)
class PromptWork:
    """Answer prompts: one line of JSON for each line of the input, in its order.

    engine, model  as in `batchgauge.registry`
    batch_size     prompts at once; 0: what the sizing advisor says on the worker's machine for
                   prompts of a shard's lengths, from a calibration that is kept for the machine.
                   Where there is none, prompts are answered `_FIRST` at once until that took as
                   long as a calibration does: only then is one made
    max_tokens     for prompts that name none; 0: 64

    A prompt that the engine refuses is answered by its error. Where all prompts of a part fail
    for one and the same reason, the engine is what failed, and the part is not done.
    """

    engine: str = "numpy"
    model: str = ""
    batch_size: int = 0
    max_tokens: int = 0
    temperature: float = 0.0
    seed: int = 0
    chat: bool = True
    most_lines: int = 512
    name: str = "run"
    whole_files: bool = False

    def __post_init__(self) -> None:
        for name, least in (("batch_size", 0), ("max_tokens", 0), ("most_lines", 1), ("seed", 0)):
            check_whole(name, getattr(self, name), least)
        InferenceBatchRequest("", temperature=self.temperature)

    def settings(self) -> dict[str, Any]:
        """Everything but the batch size, which decides how fast, not what."""
        return {
            "engine": redacted(self.engine),
            "model": model_identity(self.model, self.engine),
            "max_tokens": self.max_tokens or 64,
            "temperature": self.temperature,
            "seed": self.seed,
            "chat": self.chat,
            "lines_per_part": self.most_lines,
        }

    def places(self, threads: int) -> tuple[int, int]:
        """One engine with all threads."""
        return 1, threads

    def open(self, threads: int) -> Callable[[Shard], ShardOutput]:
        """The engine, loaded."""
        return PromptWorker(self, registry.open_engine(self.engine, self.model or None, threads))


class PromptWorker:
    """An engine that answers shards.

    Where `auto` has no calibration, it waits for `patience_s` seconds of work before it makes one.
    """

    def __init__(
        self, work: PromptWork, engine: Engine, *, patience_s: float = _CALIBRATION_S
    ) -> None:
        self.work = work
        self.engine = engine
        self.size = min(work.batch_size, engine.max_batch_size())  # 0: not known yet
        self._most = engine.max_batch_size()
        self._patience_s = patience_s
        self._calibrated: bool | None = None  # not looked at yet

    def __call__(self, shard: Shard) -> ShardOutput:
        """Its answers, in the order of its lines."""
        texts, errors = decoded(read(shard))
        rows: dict[int, dict[str, Any]] = {}  # by line, in order; a blank line has none
        prompts: list[tuple[int, Prompt]] = []
        for position, text in enumerate(texts):
            line, error = shard.first + position, errors.get(position)
            if error is None and not text.strip():
                continue
            rows[line] = {"line": line}
            if error is None:
                try:
                    prompts.append((line, self._prompt(shard, text, line)))
                except UserError as problem:
                    error = str(problem)
            if error is not None:
                rows[line]["error"] = error
        for line, answer in self._answers(prompts):
            rows[line] |= answer
        done = list(rows.values())
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in done)
        return ShardOutput(
            {".jsonl": text.encode("utf-8", "backslashreplace")},
            {
                "documents": len(done),
                "errors": sum("error" in row for row in done),
                "tokens": sum(row.get("tokens") or 0 for row in done),
            },
        )

    def _prompt(self, shard: Shard, text: str, line: int) -> Prompt:
        default = self.work.max_tokens or 64
        if not shard.source.lower().endswith(".jsonl"):
            return Prompt(f"line-{line}", "text", text, default)
        return prompt_from_json(text, f"line {line}", line, default)

    def _answers(self, prompts: list[tuple[int, Prompt]]) -> list[tuple[int, dict[str, Any]]]:
        """(line, answer) of every prompt, in batches of like lengths."""
        if not prompts:
            return []
        order = sorted(prompts, key=lambda p: (p[1].max_tokens, len(p[1].prompt), p[0]))
        found: list[tuple[int, dict[str, Any]]] = []
        at_once = iter(order)
        while group := list(islice(at_once, self._size([prompt for _, prompt in prompts]))):
            items = [BatchItem(str(at), self._request(prompt)) for at, prompt in group]
            begin = perf_counter()
            result = self.engine.infer_batch(items)
            self._patience_s -= perf_counter() - begin
            found += [
                (at, {"id": prompt.id, **_row(answer)})
                for (at, prompt), answer in zip(group, result.responses, strict=True)
            ]
        reasons = {row.get("error") for _, row in found}
        if len(found) > 1 and len(reasons) == 1 and (reason := reasons.pop()) is not None:
            raise UserError(f"Every prompt failed alike: {reason}")  # a server that is gone, say
        return found

    def _size(self, prompts: Sequence[Prompt]) -> int:
        """Prompts of the next batch: as asked for, or the advisor's size, or the first one."""
        if not self.size:
            largest = min(LARGEST, self._most)
            if self._calibrated is None:
                self._calibrated = is_calibrated(self.engine, largest)
            if not self._calibrated and self._patience_s > 0:
                return min(_FIRST, self._most)
            self.size = self._advised(prompts, largest)
        return self.size

    def _advised(self, prompts: Sequence[Prompt], largest: int) -> int:
        """The size with the most throughput for these prompts on this machine.

        By the cost model where an engine shows its model, else by running some of the prompts as
        the job does; the first size where that fails.
        """
        if not shows_its_model(self.engine):
            items = [BatchItem(str(at), self._request(p)) for at, p in enumerate(prompts)]
            try:
                return measured_size(self.engine, items, largest)
            except UserError:  # the job's own answers will say what is wrong
                return min(_FIRST, self._most)
        lengths = Lengths(
            tuple(max(1, len(p.prompt) // _CHARACTERS_PER_TOKEN) for p in prompts),
            tuple(p.max_tokens for p in prompts),
        )
        config = SizingConfig(max_batch_size=largest, wait_price=0.0)  # nobody waits for one
        return suggest_for_engine(self.engine, config, workload=lengths).size

    def _request(self, prompt: Prompt) -> InferenceBatchRequest:
        return InferenceBatchRequest(
            prompt.prompt,
            max_tokens=prompt.max_tokens,
            temperature=self.work.temperature,
            seed=self.work.seed,
            chat=self.work.chat,
        )


def _row(answer: BatchResponse[Any]) -> dict[str, Any]:
    """One answer as it is written: its text and counts, or its error."""
    if answer.data is None:
        return {"error": answer.error or "no answer"}
    row = {
        "text": answer.data.text,
        "tokens": answer.data.tokens_generated,
        "prompt_tokens": answer.data.prompt_tokens,
        "finish_reason": answer.data.finish_reason,
    }
    return {**row, "reasoning": answer.data.reasoning} if answer.data.reasoning else row
