"""The user's own function: profiled in child processes, and refused in one sentence."""

import time
from pathlib import Path

import pytest

from batchgauge.errors import UserError
from batchgauge.profiling.target import load_target, profile_target

SOURCE = """
import os, sys, time
kept = []

def inner(n):
    total = 0
    for i in range(n):
        total += i * i  # the hot line
    return total

def work(batch_size):
    kept.append(bytearray(20_000))  # the leak
    return inner(batch_size * 2_000)

def raises():
    raise ValueError("no such luck")

def leaves():
    os._exit(7)

def hangs():
    time.sleep(600)

def needs(something):
    return something

number = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A module of the user's in the current folder; its name."""
    name = f"mine_{tmp_path.name.replace('-', '_')}"
    (tmp_path / f"{name}.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return name


def test_own_function_is_profiled_by_every_tool(mine):
    """Hot line, leak and stacks of a user's function are found from its import path alone."""
    found = profile_target(f"{mine}:work", batch_size=8, limit_s=60)
    assert found.notes == {}
    assert found.plain_s > 0
    assert found.lines is not None
    assert set(found.lines.hottest(2)["function"]) == {"inner"}
    assert found.calls is not None
    assert found.calls.by_owner()["function"].iloc[0] == "inner"
    assert found.allocations is not None
    source = Path(f"{mine}.py").read_text(encoding="utf-8").splitlines()
    assert "bytearray" in source[found.allocations.growth()["line"].iloc[0] - 1]
    assert found.memory_lines is not None
    assert not found.memory_lines.empty
    assert found.memory_timeline is not None


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("no_such_module_here:f", "does not import"),
        ("{m}:raises", "raised ValueError: no such luck"),
        ("{m}:leaves", "exit code 7"),
        ("{m}:needs", "needs something"),
        ("{m}:number", "no Python function"),
        ("{m}:absent", "no Python function"),
        ("{m}", "expected module:callable"),
    ],
)
def test_bad_targets_are_refused_in_one_sentence(mine, path, says):
    """A target that cannot be used says why, without a traceback."""
    with pytest.raises(UserError, match=says):
        profile_target(path.format(m=mine), tools=[], limit_s=30)


def test_a_target_that_never_returns_meets_the_time_limit(mine):
    """A hanging target is ended at the limit and named."""
    begin = time.monotonic()
    with pytest.raises(UserError, match="had not returned after 3 s"):
        profile_target(f"{mine}:hangs", limit_s=3)
    assert time.monotonic() - begin < 20


def test_unknown_tools_are_refused(mine):
    """A tool that does not exist is named before anything runs."""
    with pytest.raises(UserError, match="Unknown tool 'gdb'"):
        profile_target(f"{mine}:work", tools=["gdb"])


def test_batch_size_is_given_only_where_it_is_a_parameter(mine):
    """`load_target` binds batch_size by name."""
    call, function = load_target(f"{mine}:work", batch_size=2)
    assert function.__name__ == "work"
    assert call() == sum(i * i for i in range(4_000))
