"""The workload: prompts, texts and lengths."""

import json

import numpy as np
import pytest

from batchgauge import UserError
from batchgauge.workload import (
    corpus,
    load_prompts,
    request_lengths,
    sample_prompts,
    texts,
    to_items,
)


def test_own_prompts_are_many_and_of_many_kinds():
    """The project's set has at least 120 distinct prompts over at least 8 kinds."""
    prompts = load_prompts()
    assert len({p.prompt for p in prompts}) == len(prompts) >= 120
    assert len({p.kind for p in prompts}) >= 8
    lengths = [len(p.prompt) for p in prompts]
    assert min(lengths) < 5
    assert max(lengths) > 4000


def test_text_file_gives_a_prompt_per_line(tmp_path):
    """A .txt workload has one prompt a line; empty lines do not count."""
    path = tmp_path / "mine.txt"
    path.write_text("first\n\nsecond\n", encoding="utf-8")
    assert [p.prompt for p in load_prompts(path)] == ["first", "second"]


def test_jsonl_file_keeps_ids_and_lengths(tmp_path):
    """A .jsonl workload brings its own ids and max_tokens; `text` works as `prompt`."""
    path = tmp_path / "mine.jsonl"
    rows = [{"id": "a", "prompt": "x", "max_tokens": 3}, {"text": "y"}]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    first, second = load_prompts(path)
    assert (first.id, first.max_tokens) == ("a", 3)
    assert (second.id, second.prompt, second.max_tokens) == ("line-2", "y", 64)


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"x", "neither a .txt nor a .jsonl"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.txt", b"\xff\xfe\xff", "cannot be read"),
        ("a.jsonl", b"{", "not JSON"),
        ("a.jsonl", b"[1]", "not a prompt"),
        ("a.jsonl", b'{"prompt": "x", "max_tokens": 0}', "not a prompt"),
        ("a.jsonl", b'{"id":1,"prompt":"x"}\n{"id":1,"prompt":"y"}', "twice"),
    ],
)
def test_a_bad_workload_file_is_named_in_one_sentence(tmp_path, name, content, says):
    """Every kind of unusable workload file gives a UserError that names it."""
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(UserError, match=says):
        load_prompts(path)


def test_a_missing_workload_file_is_said(tmp_path):
    """A workload path that is not there is an error, not the default set."""
    with pytest.raises(UserError, match="cannot be read"):
        load_prompts(tmp_path / "none.txt")


def test_sampling_goes_round_under_new_ids():
    """More prompts than there are go round again, with unique ids and the same seed order."""
    prompts = load_prompts()[:3]
    chosen = sample_prompts(prompts, 7, seed=1)
    assert len({p.id for p in chosen}) == 7
    assert [p.prompt for p in chosen[:3]] == [p.prompt for p in chosen[3:6]]
    assert chosen == sample_prompts(prompts, 7, seed=1)
    with pytest.raises(UserError):
        sample_prompts(prompts, 0)


def test_items_carry_their_own_seeds():
    """Items keep the prompts' ids and get distinct seeds, so that sampling differs by request."""
    items = to_items(load_prompts()[:4], max_tokens=5, temperature=1.0, seed=10)
    assert [i.data.seed for i in items] == [10, 11, 12, 13]
    assert {i.data.max_tokens for i in items} == {5}


@pytest.mark.parametrize("kind", ["prose", "code", "unicode"])
def test_texts_have_the_length_asked_for(kind):
    """Texts are as long as asked, seeded, and taken from the corpus."""
    found = texts(kind, 200, 5, seed=3)
    assert [len(t) for t in found] == [200] * 5
    assert found == texts(kind, 200, 5, seed=3) != texts(kind, 200, 5, seed=4)
    assert len(texts(kind, 3_000_000, 1)[0]) == 3_000_000


def test_text_requests_out_of_range_are_refused():
    """Unknown kinds and sizes below one are user errors."""
    with pytest.raises(UserError, match="unknown"):
        corpus("poetry")
    with pytest.raises(UserError, match="expected 1 or more"):
        texts("prose", 0, 1)


def test_lengths_have_the_shape_of_the_trace():
    """Quantiles come back within sampling error, and the means lie near the published ones."""
    context, generated = request_lengths(20_000, seed=0)
    assert np.quantile(context, [0.25, 0.5, 0.9]) == pytest.approx([396, 1020, 2735], rel=0.05)
    assert np.quantile(generated, [0.25, 0.5, 0.9]) == pytest.approx([85, 129, 424], rel=0.05)
    assert context.mean() == pytest.approx(1155, rel=0.1)
    assert generated.mean() == pytest.approx(211, rel=0.1)


def test_scaled_lengths_keep_their_skew_and_their_bounds():
    """Scaling shrinks all lengths alike; none falls below 1 or above the cap."""
    context, _ = request_lengths(20_000, seed=0)
    small, out = request_lengths(20_000, scale=0.1, longest=300, seed=0)
    assert np.median(small) == pytest.approx(np.median(context) / 10, rel=0.02)
    assert small.min() >= 1
    assert out.min() >= 1
    assert small.max() == 300
    with pytest.raises(UserError):
        request_lengths(0)
