"""The workload: prompts, texts and lengths."""

import json
import random

import numpy as np
import pytest
from tests.fuzzing import seeds

from batchgauge import UserError
from batchgauge.simulate.arrivals import read_trace
from batchgauge.workload import (
    Prompt,
    corpus,
    exact_requests,
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


def test_exact_requests_have_these_lengths():
    """Prompts are ids that any vocabulary has, of the length asked for; no end token ends them."""
    items = exact_requests([7, 0, 3], [3, 1, 2], seed=4)
    assert [len(item.data.prompt) for item in items] == [7, 0, 3]
    assert [item.data.max_tokens for item in items] == [3, 1, 2]
    assert all(0 < int(i) < 200 for item in items for i in item.data.prompt)
    assert len({item.id for item in items}) == 3
    assert all(item.data.ignore_eos and item.data.temperature == 0.0 for item in items)
    assert (
        items
        == exact_requests([7, 0, 3], [3, 1, 2], seed=4)
        != exact_requests([7, 0, 3], [3, 1, 2])
    )


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


ODD = "a\u2028b\u2029c\x85d\x0be\x0cf\x1cg"  # what str.splitlines, but not JSON, calls a line's end


@pytest.mark.parametrize("begin", ["", "\ufeff"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_lines_end_at_line_feeds_only(tmp_path, begin, end):
    """A byte order mark and carriage returns do not count; other separators are text."""
    path = tmp_path / "mine.txt"
    path.write_bytes((begin + ODD + end + "two" + end).encode())
    assert [p.prompt for p in load_prompts(path)] == [ODD, "two"]
    rows = [json.dumps({"prompt": text}, ensure_ascii=False) for text in ("a\u2028b\x85c", "two")]
    path = tmp_path / "mine.JSONL"
    path.write_bytes((begin + end.join(rows)).encode())
    assert [p.prompt for p in load_prompts(path)] == ["a\u2028b\x85c", "two"]


def test_files_of_openai_batches_are_read(tmp_path):
    """`custom_id` is the id; messages and their parts become one text; every name of a length."""
    user = {"role": "user", "content": "Why?"}
    parts = [{"type": "text", "text": "See"}, {"type": "text", "text": "here"}]
    rows: list[dict[str, object]] = [
        {"custom_id": "r1", "method": "POST", "body": {"messages": [user], "max_tokens": 9}},
        {"body": {"messages": [{"role": "system", "content": "Be brief."}, user]}},
        {"body": {"messages": [{"role": "user", "content": parts}], "max_completion_tokens": 3}},
        {"body": {"prompt": "Once", "max_tokens": None}},
        {"custom_id": 5, "body": {"input": "Said", "max_output_tokens": 2}},
        {"messages": [user], "id": "plain", "kind": "chat"},
        {"id": None, "custom_id": "r7", "prompt": "x"},
    ]
    path = tmp_path / "batch.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    found = [(p.id, p.kind, p.prompt, p.max_tokens) for p in load_prompts(path)]
    assert found == [
        ("r1", "text", "Why?", 9),
        ("line-2", "text", "Be brief.\n\nWhy?", 64),
        ("line-3", "text", "See\n\nhere", 3),
        ("line-4", "text", "Once", 64),
        ("5", "text", "Said", 2),
        ("plain", "chat", "Why?", 64),
        ("r7", "text", "x", 64),
    ]


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.csv", b"x", "neither a .txt nor a .jsonl"),
        ("a.txt", b"\n \n", "is empty"),
        ("a.txt", b"\xff\xff", "line 1 is not UTF-8"),
        ("a.txt", b"fine\n\xff", "line 2 is not UTF-8"),
        ("a.txt", "x".encode("utf-16"), "is UTF-16"),
        ("a.txt", b"one\ntwo\0", "NUL character in line 2"),
        ("a.jsonl", b"{", "not JSON"),
        ("a.jsonl", b"[1]", "is a list; expected an object"),
        ("a.jsonl", b'"text"', "is a str; expected an object"),
        ("a.jsonl", b"[" * 100_000, "nested too deeply|not JSON"),
        ("a.jsonl", b'{"prompt": ' + b"9" * 5000 + b"}", "not JSON"),
        ("a.jsonl", b'{"prompt": "x", "max_tokens": NaN}', "NaN is no number"),
        ("a.jsonl", b'{"prompt": "x", "prompt": "y"}', "the key 'prompt' twice"),
        ("a.jsonl", b'{"prompt": "\\ud800"}', "line 1, has a lone surrogate"),
        ("a.jsonl", b'{"prompt": "x", "id": "\\udfff"}', "lone surrogate"),
        ("a.jsonl", b'{"prompt": "x", "id": [1]}', r"has id \[1\]; expected a text"),
        ("a.jsonl", b'{"prompt": "x", "kind": true}', "has kind true; expected a text"),
        *(
            ("a.jsonl", b'{"prompt": "x", "max_tokens": %s}' % value, "has max_tokens .* number")
            for value in (b"0", b"-1", b"true", b"1.5", b'"8"', b"[]", b"9999999999")
        ),
        ("a.jsonl", b'{"prompt": null}', "not a prompt"),
        ("a.jsonl", b'{"prompt": [1, 2]}', "not a prompt"),
        ("a.jsonl", b'{"body": []}', "a body that is no object"),
        ("a.jsonl", b'{"body": {"messages": []}}', "not a prompt"),
        ("a.jsonl", b'{"messages": ["x"]}', "content that is empty"),
        ("a.jsonl", b'{"messages": [{"content": null}]}', "content that is empty"),
        ("a.jsonl", b'{"messages": [{"content": [{"type": "image_url"}]}]}', "of type image_url"),
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
    (tmp_path / "folder.txt").mkdir()
    with pytest.raises(UserError, match="no regular file"):
        load_prompts(tmp_path / "folder.txt")


@pytest.mark.fuzz
def test_changed_files_are_read_or_refused_in_one_sentence(tmp_path):
    """Whatever becomes of a workload or a trace: prompts and arrivals, or one UserError."""
    whole = [
        ("a.txt", "one\ntwo – drei\n".encode()),
        ("a.jsonl", b'{"id": "a", "prompt": "x", "max_tokens": 3}\n{"text": "y", "kind": "k"}\n'),
        ("a.jsonl", b'{"custom_id": "r", "body": {"messages": [{"content": "Why?"}]}}\n'),
        ("t.csv", b"timestamp,context_tokens,generated_tokens\n0.5,7,1\n2,9,0\n"),
        ("t.csv", b"Timestamp;Request tokens;Response tokens\n1700000000000;7;1\n"),
        ("t.jsonl", b'{"timestamp": 27, "input_length": 69, "output_length": 5}\n'),
    ]
    pieces = [b'"', b"\0", b"\r", b"\n", b"\xff", b"true", b"null", b"1e999", b"-1", b"[[[[", b"{",
              b"NaN", b"\\ud800", b",", b";", b"0", b"9" * 30, "\u2028".encode()]  # fmt: skip
    for seed in seeds("workload files"):
        rng = random.Random(seed)
        name, content = whole[seed % len(whole)]
        data = bytearray(content)
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(data) + 1)
            data[at : at + rng.choice([0, 1, 1, 5])] = rng.choice(pieces)
        path = tmp_path / name
        path.write_bytes(data)
        try:
            if name.startswith("t"):
                arrivals = read_trace(path)
                assert len(arrivals) >= 1
                assert arrivals.context.min() >= 1
            else:
                for prompt in load_prompts(path):
                    assert prompt.prompt.encode() is not None
                    assert prompt.max_tokens >= 1
        except UserError:
            continue
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {bytes(data)!r}") from problem


def test_sampling_goes_round_under_new_ids():
    """More prompts than there are go round again, with unique ids and the same seed order."""
    prompts = load_prompts()[:3]
    chosen = sample_prompts(prompts, 7, seed=1)
    assert len({p.id for p in chosen}) == 7
    assert [p.prompt for p in chosen[:3]] == [p.prompt for p in chosen[3:6]]
    assert chosen == sample_prompts(prompts, 7, seed=1)
    with pytest.raises(UserError):
        sample_prompts(prompts, 0)
    numbered = [Prompt("a", "text", "x"), Prompt("a#2", "text", "y")]  # a file's own ids
    assert len({p.id for p in sample_prompts(numbered, 6)}) == 6


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
