"""What system and processor count for a call: switches and faults, instructions and misses.

The processor's events are counted outside this process. Each piece of work runs in a child
process twice, without a call and with some; the difference is the calls' own, start-up left
out. Where the kernel offers no hardware events the columns are empty with the reason, or
simulated where that was asked for.
"""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping

import pandas as pd

from batchgauge.clock import Elapsed, repeated
from batchgauge.experiments.bottlenecks.parts import Subject
from batchgauge.measuring.system import Events, Usage, hardware_events, usage
from batchgauge.text import Markdown, escaped

CALLS = 20
COUNTED = ("involuntary_switches", "voluntary_switches", "minor_faults", "major_faults")
COUNTS = ("instructions", "cache_misses", "branch_misses")

# What a child prepares; it then calls `call` as often as its argument says.
_WORK: Mapping[str, str] = {
    "tokenizing (baseline)": (
        "from batchgauge.baseline.tokenizer import BaselineTokenizer\n"
        "from batchgauge.workload import texts\n"
        "tokenizer, pages = BaselineTokenizer.from_gguf(MODEL), texts('prose', 200, 4)\n"
        "call = lambda: tokenizer.encode_many(pages)\n"
    ),
    "statistics (baseline)": (
        "from batchgauge.baseline.stats import baseline_stats\n"
        "times = [float(i % 97) for i in range(1000)]\n"
        "call = lambda: baseline_stats(times, 1.0)\n"
    ),
    "statistics (numpy)": (
        "import numpy as np\n"
        "from batchgauge.request import BatchStats\n"
        "times = np.arange(1000.0) % 97\n"
        "call = lambda: BatchStats.from_durations(times, 1.0)\n"
    ),
}
_LOOP = "import sys\ncall()\nfor _ in range(int(sys.argv[1])): call()\n"


def system_counters(subject: Subject) -> pd.DataFrame:
    """What the operating system counted per call of each part, no profiler attached.

    Columns part, calls, wall_ms, cpu_utilisation (CPU seconds over wall seconds; 1 is one core),
    involuntary_switches and voluntary_switches (of the processor), minor_faults and major_faults
    (pages given, pages read from disk; missing on Windows), all per call.
    """
    seconds = subject.context.budget.choose(smoke=0.1, default=0.5, thorough=3.0)
    rows = []
    for part in subject.parts:
        used, calls = _repeated(part.call, seconds)
        counts = {name: getattr(used, name) for name in COUNTED}
        rows.append(
            {
                "part": part.name,
                "calls": calls,
                "wall_ms": used.wall_ms / calls,
                "cpu_utilisation": used.cpu_utilisation,
                **{name: n / calls if n >= 0 else math.nan for name, n in counts.items()},
            }
        )
    return pd.DataFrame(rows)


def _repeated(call: Callable[[], object], seconds: float) -> tuple[Usage, int]:
    """What calls used together that filled so many seconds, and how many they were."""
    done: list[Elapsed] = []
    used = usage(lambda: done.append(repeated(call, seconds)))
    return used, done[0].loops


def hardware_table(model: str = "", *, simulate: bool = False) -> pd.DataFrame:
    """One row a piece of work: part, source, the counts a call, and why they are missing."""
    nothing = _count("", 0, simulate)
    if not nothing.counts:
        return pd.DataFrame([{"part": part, **_a_call(nothing, nothing)} for part in _WORK])
    rows = []
    for part, work in _WORK.items():
        program = f"MODEL = {model!r} or None\n{work}{_LOOP}"
        if simulate or shutil.which("perf"):  # a first import writes bytecode: unobserved
            subprocess.run([sys.executable, "-c", program, "0"], capture_output=True)
        found = [_count(program, calls, simulate) for calls in (0, CALLS)]
        rows.append({"part": part, **_a_call(*found)})
    return pd.DataFrame(rows)


def _count(program: str, calls: int, simulate: bool) -> Events:  # one of two ways
    command = [sys.executable, "-c", program, str(calls)]
    return hardware_events(command, simulate=simulate, timeout_s=300.0)


def _a_call(without: Events, with_calls: Events) -> dict[str, object]:
    """Counts of one call: the difference of the two processes ÷ calls, NaN where not counted.

    Start-ups that differed by more than the calls cost leave no count.
    """
    whole, start = (
        {name.replace("-", "_"): count for name, count in events.counts.items()}
        for events in (with_calls, without)
    )
    nan, reason = math.nan, with_calls.reason
    counts = {name: (whole.get(name, nan) - start.get(name, nan)) / CALLS for name in COUNTS}
    if any(count < 0.0 for count in counts.values()):
        counts = {name: nan if count < 0.0 else count for name, count in counts.items()}
        reason = "the start-ups differed by more than the calls cost"
    return {"source": with_calls.source or "none", **counts, "reason": reason}


def hardware_sentence(table: pd.DataFrame) -> Markdown:
    """What was counted, or why nothing was."""
    counted = table.dropna(subset=["instructions"])
    if counted.empty:
        reason = table["reason"].iloc[0]
        return Markdown(
            "Hardware events are not to be had here: {}. `simulate_counters=True` counts "
            "instructions, cache misses and branches by simulation, where valgrind is installed."
        ).format(reason)
    parts = [f"{row['part']} {row['instructions']:,.0f}" for _, row in counted.iterrows()]
    return escaped(f"Instructions a call ({counted['source'].iloc[0]}): {'; '.join(parts)}.")
