"""An engine for jobs whose answers cost nothing; prompts have it wait, fail or end its process."""

from __future__ import annotations

import os
import signal
import time
from hashlib import sha256
from pathlib import Path

from batchgauge.request import BatchResponse, BatchResult, InferenceBatchResponse


class EchoEngine:
    """Answers each prompt by a digest of it.

    `wait` in a prompt sleeps a little, `die` ends the process, `die once FILE` only where FILE
    does not exist yet, `raise` raises.
    """

    name = "echo"

    def infer_batch(self, items):
        """Answers in request order."""
        answers = []
        for item in items:
            prompt = item.data.prompt
            if "wait" in prompt:
                time.sleep(0.02)
            if "raise" in prompt:
                raise RuntimeError("this prompt is not for me")
            if "die" in prompt:
                _, once, mark = prompt.partition("die once ")
                if not once or not Path(mark).exists():
                    if once:
                        Path(mark).touch()
                    os.kill(os.getpid(), signal.SIGKILL)
            text = sha256(prompt.encode()).hexdigest()[: item.data.max_tokens]
            data = InferenceBatchResponse(text, item.data.max_tokens, prompt_tokens=len(prompt))
            answers.append(BatchResponse(item.id, data, 1.0))
        return BatchResult.of(answers, 1.0)

    def max_batch_size(self):
        """Small, so that jobs make several batches."""
        return 7


def make():
    """What a spec names."""
    return EchoEngine()
