"""Hardware events of a call: differences of two processes, or the reason why there are none."""

import math
from typing import Any

from batchgauge.experiments.bottlenecks import events as bottleneck_events
from batchgauge.measuring.system import Events


def test_counts_are_of_the_calls_alone(monkeypatch):
    """What start-up costs is in both processes and cancels."""

    def counted(command, **_):
        calls = int(command[-1])
        return Events("perf", {"instructions": 10**6 + 500 * calls, "cache-misses": 7 + calls})

    monkeypatch.setattr(bottleneck_events, "hardware_events", counted)
    table = bottleneck_events.hardware_table()
    assert set(table["instructions"]) == {500.0}
    assert set(table["cache_misses"]) == {1.0}
    assert table["branch_misses"].isna().all()
    assert "500" in bottleneck_events.hardware_sentence(table)


def test_start_ups_that_differ_more_than_the_calls_cost_leave_no_count(monkeypatch):
    """A difference below 0 is no count; the row says why it is empty."""

    def counted(command, **_):
        return Events("perf", {"instructions": 1000 - int(command[-1])})

    monkeypatch.setattr(bottleneck_events, "hardware_events", counted)
    table = bottleneck_events.hardware_table()
    assert table["instructions"].isna().all()
    assert table["reason"].str.contains("start-ups differed").all()


def test_a_machine_without_events_says_why(monkeypatch):
    """No counts: NaN, the reason in the row and in the sentence."""
    monkeypatch.setattr(
        bottleneck_events,
        "hardware_events",
        lambda *_, **__: Events("", reason="the kernel counts no events"),
    )
    table = bottleneck_events.hardware_table()
    assert all(math.isnan(x) for x in table["instructions"])
    assert "the kernel counts no events" in bottleneck_events.hardware_sentence(table)


def test_the_pieces_of_work_run():
    """Each piece of work is a program that can be called."""
    for prepare in bottleneck_events._WORK.values():
        scope: dict[str, Any] = {"MODEL": None}
        exec(prepare, scope)  # noqa: S102  # our own text
        assert scope["call"]() is not None
