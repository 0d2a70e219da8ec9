"""Event streams to the letter of the standard, and completions in every servers' shapes."""

from __future__ import annotations

import json
import math
import random
from typing import Any

import pytest
from tests.fuzzing import seeds

from batchgauge.adapters import openai_stream
from batchgauge.adapters.event_stream import LONGEST, Event, EventStream
from batchgauge.adapters.openai_stream import CompletionStream
from batchgauge.errors import UserError


def events(*chunks: bytes) -> list[Event]:
    """The events of a stream that comes in these chunks."""
    stream = EventStream()
    return [event for chunk in chunks for event in stream.feed(chunk)]


def data(*chunks: bytes) -> list[str]:
    """Their data."""
    return [event.data for event in events(*chunks)]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: a\n\ndata: b\r\n\r\ndata: c\r\rdata: d\n\r\n", ["a", "b", "c", "d"]),
        (b"data: a\ndata: b\n\n", ["a\nb"]),
        (b"data: a\r\ndata: b\r\n\r\n", ["a\nb"]),  # cut between CR and LF too
        (b"data\n\ndata\ndata\n\ndata:", ["", "\n"]),  # the standard's own example
        (b"data:test\n\ndata: test\n\ndata:  test\n\n", ["test", "test", " test"]),
        (b": hello\n:\ndata: a\n: between\ndata: b\n\n", ["a\nb"]),
        (b"\xef\xbb\xbfdata: a\n\n", ["a"]),
        (b"\xef\xbb\xbf\xef\xbb\xbfdata: a\n\ndata: b\n\n", ["b"]),  # one mark, only at the start
        (b"data: a\n\n\xef\xbb\xbfdata: b\n\n", ["a"]),
        (b"data: a\xe2\x80\xa8b\xc2\x85c\x0bd\x0ce\x1cf\n\n", ["a\u2028b\x85c\vd\fe\x1cf"]),
        (b"data: \xff\xc3(\n\n", ["\ufffd\ufffd("]),
        (b"id: 7\nretry: 10\ndata: a\n\nid: 8\n\n", ["a"]),
        (b"data: a:b: c\n\n", ["a:b: c"]),
        (b"Data: a\n data: b\ndata : c\n\n", []),  # names are exact
        (b"data: whole\n\ndata: unfinished\n", ["whole"]),
        (b"\n\n\r\n", []),
    ],
)
def test_the_standard_to_the_letter(stream, expected):
    """Each rule of the standard, whole and byte by byte."""
    assert data(stream) == expected
    assert data(*(stream[i : i + 1] for i in range(len(stream)))) == expected


def test_events_have_types():
    """`event:` names the type of one event; the next is a message again."""
    assert events(b"event: error\ndata: a\n\ndata: b\n\nevent: x\n\ndata: c\n\n") == [
        Event("error", "a"),
        Event("message", "b"),
        Event("message", "c"),
    ]


def test_an_endless_line_or_event_is_refused():
    """Neither a line without end nor an event without end fills the memory."""
    for piece in (b"x" * 2**20, b"data:\n" * 2**18):
        with pytest.raises(UserError, match="expected an event stream"):
            events(*([piece] * (LONGEST // 2**18 + 2)))


def chunk(text: str | None = None, **more: object) -> bytes:
    """One chunk of a completion as a server sends it."""
    choice: dict[str, object] = {"index": 0, "text": text, "finish_reason": None}
    choice |= {k: more.pop(k) for k in ("delta", "finish_reason", "message", "error") if k in more}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
STOP = chunk(finish_reason="stop")


def read(*chunks: bytes) -> CompletionStream:
    """A completion that comes in these chunks."""
    stream = CompletionStream()
    stream.read(chunks)
    return stream


@pytest.mark.parametrize(
    "noise",
    [
        b'data: {"error": null, "choices": []}\n\n',
        b'data: {"choices": null}\n\n',
        b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 0}}\n\n',
        b'data: {"usage": null}\n\n',
        b"data:\n\n",
        b"data\n\n",
        b": keep-alive\n\n",
        b"event: ping\ndata: {}\n\n",
        b"id: 5\n\n",
        chunk(None, delta={"role": "assistant", "content": ""}),
        chunk(None, delta={"role": "assistant"}),
        chunk(None, delta=None),
        b'data: {"choices": [{"index": 1, "text": "another choice"}]}\n\n',
        b'data: {"choices": [],\ndata: "prompt_filter_results": []}\n\n',
    ],
)
def test_what_is_no_token_changes_nothing(noise):
    """Chunks without text are neither failures nor tokens, wherever they stand."""
    stream = read(noise, chunk("a"), noise, chunk("b"), noise, STOP, noise, DONE, noise)
    answer, source = stream.answer(0)
    assert (answer.text, answer.finish_reason) == ("ab", "stop")
    assert len(stream.pieces) == 2
    assert (answer.tokens_generated, source) == (None, "unknown")


@pytest.mark.parametrize(
    ("failure", "said"),
    [
        (chunk(finish_reason="abort"), "'abort'"),
        (chunk(finish_reason="error"), "'error'"),
        (chunk(finish_reason="cancelled"), "'cancelled'"),
        (chunk("last", finish_reason="content_filter"), "filtered the answer.*'content_filter'"),
        (chunk(finish_reason="SAFETY"), "filtered the answer.*'SAFETY'"),
        (chunk(finish_reason={"type": "abort", "message": "too long"}), "abort: too long"),
        (chunk(error={"code": 502, "message": "upstream"}, finish_reason="error"), "502: upstream"),
        # vLLM, SGLang, OpenAI
        (b'data: {"error": {"message": "boom", "type": "BadRequest", "code": 400}}\n\n', "boom"),
        (b'data: {"object": "error", "message": "boom", "code": 500}\n\n', "500: boom"),
        (b'event: error\ndata: {"error": {"message": "boom", "type": "server_error"}}\n\n',
         "server_error: boom"),
        (b"event: error\ndata: boom\n\n", "boom"),
        (b'event: error\ndata: {"message": "boom"}\n\n', "boom"),
        # TGI
        (b'data: {"error": "boom", "error_type": "generation"}\n\n', "generation: boom"),
        (b'event: error\ndata: {"error":"boom","error_type":"overloaded"}\n\n', "overloaded: boom"),
        # llama.cpp, which once wrote a field of its own
        (b'error: {"code": 500, "message": "boom", "type": "server_error"}\n\n', "boom"),
        (b'data: {"code": 503, "message": "boom", "type": "unavailable_error"}\n\n', "boom"),
        # Ollama, whose errors are lines without a field
        (b'{"error": "boom"}\n', "boom"),
        (b'{"error":{"message":"boom","type":"api_error","code":null}}', "boom"),
        (b'data: {"error": "boom"}\n\n', "boom"),
        (b'data: [{"error": {"code": 429, "message": "boom"}}]\n\n', "429: boom"),
        (b'data: {"detail": "boom"}\n\n', "boom"),
        (b'data: {"error": ""}\n\n', "no reason given"),
    ],
)  # fmt: skip
def test_every_shape_of_a_failure_is_one(failure, said):
    """A failure inside an answer is an error in the server's words, before or behind tokens."""
    for before in ((), (chunk("a"), chunk("b"))):
        with pytest.raises(UserError, match=said):
            read(*before, failure, *(() if failure.startswith(b"{") else (DONE,)))


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"error": {"message": "boom"}}', "broke off: boom"),
        (b'{"error": "boom"}', "broke off: boom"),
        (b'\xef\xbb\xbf\n {"detail": "boom"}', "broke off: boom"),
        (b'{"a": 1}\n{"error": "boom"}\n', "broke off: boom"),
        (b"<html>busy</html>", "no completion: '<html>busy</html>'"),
        (b"[" * 100_000, "no completion"),
        (b'{"choices": [{"message": 5}]}', "no completion"),
        (b'{"choices": []}', "no completion"),
        (b"", "ended after 0 chunks"),
        (b"data: null\n\n", "no completion"),
        (b'data: {"choices": [null]}\n\n', "no completion"),
        (b'data: {"choices": [{"finish_reason": 5}]}\n\n', "no completion"),
        (b'data: {"choices": [{"delta": "x"}]}\n\n', "no completion"),
        (b'data: {"usage": []}\n\n' + DONE, None),
        (b'data: {"usage": "many"}\n\n', "no completion"),
        (b"data: \xff\xff\n\n", "no completion"),
        (chunk("a"), "ended after 1 chunks without"),
    ],
)
def test_what_is_no_answer_is_one_sentence(body, said):
    """A body of another kind is named, whatever its status and content type were."""
    if said is None:
        assert read(body).answer(0)[0].text == ""
        return
    with pytest.raises(UserError, match=said):
        read(body)


def test_a_completion_in_one_piece_is_an_answer_without_times():
    """JSON in a stream's place: text, tokens and finish; when its tokens came nobody knows."""
    said = {
        "choices": [
            {"message": {"content": "ab", "reasoning_content": "r"}, "finish_reason": "length"}
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
    }
    answer, source = read(json.dumps(said, indent=1).encode()).answer(0)
    assert (answer.text, answer.reasoning, answer.finish_reason) == ("ab", "r", "length")
    assert (answer.tokens_generated, answer.prompt_tokens, source) == (4, 3, "usage")
    assert math.isnan(answer.ttft_ms)
    assert math.isnan(answer.first_answer_ms)
    assert answer.inter_token_ms == ()


@pytest.fixture
def clock(monkeypatch):
    """A clock that goes on by a millisecond with every chunk."""
    now = iter(range(1_000_000, 10**12, 1_000_000))
    monkeypatch.setattr(openai_stream, "perf_counter_ns", lambda: next(now))


@pytest.mark.parametrize("name", ["reasoning_content", "reasoning", "thinking"])
@pytest.mark.usefixtures("clock")
def test_reasoning_and_answer_are_timed_apart(name):
    """TTFT is the first token of either kind, the first answer token stands apart."""
    thoughts = [chunk(None, delta={name: "hm "}) for _ in range(5)]
    answer, _ = read(*thoughts, chunk(None, delta={"content": "so"}), STOP).answer(0)
    assert (answer.ttft_ms, answer.first_answer_ms) == (1.0, 6.0)
    assert (answer.text, answer.reasoning) == ("so", "hm " * 5)
    only, _ = read(*thoughts, STOP).answer(0)
    assert only.text == ""
    assert math.isfinite(only.ttft_ms)
    assert math.isnan(only.first_answer_ms)


@pytest.mark.usefixtures("clock")
def test_parts_calls_and_refusals_are_generated_too():
    """Typed parts, calls of tools and refusals are answers; role-only chunks are nothing."""
    parts = [{"type": "thinking", "thinking": [{"type": "text", "text": "t"}]},
             {"type": "text", "text": "a"}]  # fmt: skip
    call = {"index": 0, "function": {"name": "f", "arguments": "{}"}}
    stream = read(
        chunk(None, delta={"role": "assistant", "content": ""}),
        chunk(None, delta={"content": parts}),
        chunk(None, delta={"refusal": "no"}),
        chunk(None, delta={"tool_calls": [call]}),
        chunk(finish_reason="tool_calls"),
    )
    answer, _ = stream.answer(0)
    assert (answer.text, answer.reasoning, answer.ttft_ms) == ("anof{}", "t", 2.0)


def usage(tokens: object) -> dict[str, Any]:
    """The usage of a chunk."""
    return {"usage": {"prompt_tokens": 3, "completion_tokens": tokens}}


@pytest.mark.usefixtures("clock")
def test_usage_with_every_chunk_says_what_a_token_is():
    """Chunks of one token give inter-token times, chunks of several do not claim to."""
    single = [chunk(t, **usage(n)) for n, t in enumerate("abc", start=1)]
    answer, _ = read(*single, chunk(finish_reason="stop", **usage(4))).answer(0)
    assert (answer.tokens_generated, answer.inter_token_ms) == (4, (1.0, 1.0))
    several = [chunk("abcd", **usage(4 * n)) for n in (1, 2, 3)]
    answer, source = read(*several, STOP).answer(0)
    assert (answer.tokens_generated, answer.inter_token_ms, source) == (12, (), "usage")
    assert answer.decode_ms == 2.0


@pytest.mark.usefixtures("clock")
def test_tokens_without_usage_are_retokenized_or_unknown():
    """Three chunks of four tokens are never three tokens."""
    chunks = [chunk("a b c d ") for _ in range(3)]
    answer, source = read(*chunks, STOP).answer(0)
    assert (answer.tokens_generated, source, answer.inter_token_ms) == (None, "unknown", ())
    answer, source = read(*chunks, STOP).answer(0, lambda text: len(text.split()))
    assert (answer.tokens_generated, source, answer.inter_token_ms) == (12, "retokenized", ())


@pytest.mark.parametrize("nonsense", [0, -1, True, 1.5, "12", None, math.nan, [], 1e300])
def test_usage_that_cannot_be_is_none(nonsense):
    """A count that is no count, or 0 where text came, is not believed."""
    answer, _ = read(chunk("a", **usage(nonsense)), STOP).answer(0)
    assert answer.tokens_generated is None


def test_the_timings_of_llama_cpp_count_tokens():
    """llama.cpp says with the last chunk how many it predicted."""
    last = chunk(finish_reason="length", timings={"predicted_n": 2})
    answer, _ = read(chunk("ab"), last).answer(0)
    assert (answer.tokens_generated, answer.finish_reason) == (2, "length")


PIECES = [b"data", b":", b" ", b"\n", b"\r", b"\r\n", b"\n\n", b"event: error", b"id",
          b"\xef\xbb\xbf", b"\xc2\x85", b"x", b"1e999",
          b"\xe2\x80\xa8", b"\xff", b"\xf0\x9f", b"\x98\x80", b'{"choices": [{"text": "a"}]}',
          b'{"error": null}', b"[DONE]", b"{", b"[[", b"null"]  # fmt: skip
NAMES = ["choices", "delta", "text", "content", "usage", "completion_tokens", "error", "message",
         "finish_reason", "reasoning", "tool_calls", "function", "timings", "index", "code", "type",
         "thinking", "refusal", "detail", "object"]  # fmt: skip


def made(rng: random.Random, depth: int = 0) -> object:
    """A JSON value of any shape, with the names that completions have."""
    kind = rng.randrange(9 if depth < 5 else 6)
    if kind >= 7:
        return {rng.choice(NAMES): made(rng, depth + 1) for _ in range(rng.randrange(4))}
    if kind == 6:
        return [made(rng, depth + 1) for _ in range(rng.randrange(3))]
    return rng.choice([None, True, "", "a", "error", "stop", 0, -1, 1.5, 10**30, math.nan])


def outcome(chunks: list[bytes]) -> object:
    """What becomes of a stream: an answer's text and tokens, or a UserError's sentence."""
    try:
        answer, _ = read(*chunks).answer(0, len)
    except UserError as problem:
        return str(problem)
    return (answer.text, answer.reasoning, answer.tokens_generated, answer.finish_reason)


@pytest.mark.fuzz
def test_a_stream_is_the_same_however_it_is_cut():
    """Random bytes give the same events and outcome in any chunks; any JSON gives one sentence."""
    for seed in seeds("event streams"):
        rng = random.Random(seed)
        if seed % 2:
            whole = b"".join(rng.choice(PIECES) for _ in range(rng.randrange(40)))
        else:
            said = [made(rng) for _ in range(rng.randrange(1, 4))]
            whole = b"".join(b"data: " + json.dumps(s).encode() + b"\n\n" for s in said)
            whole = (json.dumps(said[0]).encode() if rng.random() < 0.2 else whole) + DONE
        cuts = sorted(rng.randrange(len(whole) + 1) for _ in range(rng.randrange(8)))
        parts = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
        try:
            assert events(whole) == events(*parts)
            assert outcome([whole]) == outcome(parts)
        except Exception as problem:
            raise AssertionError(f"seed {seed}: {parts!r}") from problem
