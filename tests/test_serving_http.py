"""OpenAI's interface over HTTP: real clients, the engine's own tokens, and bad requests."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import pytest

pytest.importorskip("starlette")
pytest.importorskip("uvicorn")
pytest.importorskip("prometheus_client")
httpx = pytest.importorskip("httpx")

from prometheus_client.parser import text_string_to_metric_families  # noqa: E402
from tests.tiny_model import write_tiny_model  # noqa: E402
from tests.tiny_serving import serving, until  # noqa: E402

from batchgauge.core.engine import BatchInferenceEngine  # noqa: E402
from batchgauge.registry import open_engine  # noqa: E402
from batchgauge.request import BatchItem, InferenceBatchRequest  # noqa: E402
from batchgauge.serving import server as server_module  # noqa: E402
from batchgauge.serving.async_engine import AsyncEngine  # noqa: E402
from batchgauge.serving.replies import Limits, Reply, ServedAnswer  # noqa: E402
from batchgauge.serving.schemas import Call  # noqa: E402
from batchgauge.serving.server import read_model  # noqa: E402
from batchgauge.serving.starters import Threads  # noqa: E402
from batchgauge.serving.worker import Opener, WorkerPlan  # noqa: E402
from batchgauge.serving.workers import Workers  # noqa: E402

LONG: dict[str, Any] = {"max_tokens": 60_000, "ignore_eos": True}  # half a minute at least
USER = [{"role": "user", "content": "hello world"}]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny model."""
    return write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=8192)


@pytest.fixture(scope="module")
def roomy(tmp_path_factory):
    """The same, with room for answers that take long."""
    return write_tiny_model(tmp_path_factory.mktemp("m") / "tiny.gguf", context_length=65_536)


@pytest.fixture(scope="module")
def long_server(roomy):
    """A server for requests that take long, which tests cancel."""
    with serving(roomy, grace_s=0.0) as opened:
        yield opened


@pytest.fixture(scope="module")
def engine(model):
    """The engine itself, whose answers are the ones to expect."""
    return BatchInferenceEngine.from_gguf(model)


@pytest.fixture(scope="module")
def server(model):
    """One server for all tests that leave it as it was."""
    with serving(model, limits=Limits(body_bytes=100_000, body_s=1.0)) as opened:
        yield opened


def alone(engine, request):
    """The engine's answer to a request on its own."""
    answer = engine.infer_batch([BatchItem("a", request)]).responses[0].data
    assert answer is not None
    return answer


def post(server, said, path="completions", **how):
    """A request's status, headers and JSON."""
    body = said if isinstance(said, bytes) else json.dumps(said).encode()
    reply = httpx.post(f"{server.url}/{path}", content=body, timeout=60, **how)
    return reply.status_code, reply.headers, reply.json()


def events_of(text):
    """The data of a stream's events; the last one is [DONE]."""
    found = [block.removeprefix("data: ") for block in text.split("\n\n") if block]
    assert found.pop() == "[DONE]"
    return [json.loads(one) for one in found]


REQUESTS = [
    InferenceBatchRequest("hello", max_tokens=12),
    InferenceBatchRequest("the world and", max_tokens=30, temperature=1.0, seed=7),
    InferenceBatchRequest("a", max_tokens=25, temperature=0.7, top_p=0.8, seed=3),
    InferenceBatchRequest("hello", max_tokens=40, temperature=1.5, seed=5, stop=("a", "in")),
    InferenceBatchRequest((5, 6, 7), max_tokens=9, ignore_eos=True, temperature=1.0),
    InferenceBatchRequest("hello", max_tokens=20, temperature=1.0, seed=1, chat=True),
]  # fmt: skip


def said_of(request, **more):
    """A request as the API has it, and its path."""
    names = ("max_tokens", "temperature", "top_p", "seed", "ignore_eos")
    said: dict[str, Any] = {"model": "tiny", "return_token_ids": True}
    said |= {name: getattr(request, name) for name in names} | more
    if request.stop:
        said["stop"] = list(request.stop)
    if request.chat:
        return said | {
            "messages": [{"role": "user", "content": request.prompt}]
        }, "chat/completions"
    return said | {"prompt": request.prompt}, "completions"


@pytest.fixture(scope="module")
def expected(engine):
    """What the engine answers to each of them on its own."""
    return [alone(engine, request) for request in REQUESTS]


def test_tokens_are_those_of_the_engine(server, expected):
    """All at once, in one body and as streams: text, ids, usage and finish of each run alone."""

    def ask(which):
        request, is_stream = REQUESTS[which // 2], which % 2
        if not is_stream:
            said, path = said_of(request)
            _, _, answer = post(server, said, path)
            (choice,) = answer["choices"]
            text = choice["message"]["content"] if request.chat else choice["text"]
            return text, choice["token_ids"], answer["usage"], choice["finish_reason"]
        said, path = said_of(request, stream=True, stream_options={"include_usage": True})
        reply = httpx.post(f"{server.url}/{path}", json=said, timeout=60)
        *chunks, last = events_of(reply.text)
        assert last["choices"] == []
        choices = [chunk["choices"][0] for chunk in chunks]
        text = "".join(
            c["delta"].get("content", "") if request.chat else c["text"] for c in choices
        )
        ids = [i for c in choices for i in c.get("token_ids", [])]
        return text, ids, last["usage"], choices[-1]["finish_reason"]

    with ThreadPoolExecutor(12) as pool:
        for which, (text, ids, usage, finish) in enumerate(pool.map(ask, range(12))):
            wanted = expected[which // 2]
            assert (text, tuple(ids)) == (wanted.text, wanted.token_ids)
            assert finish == wanted.finish_reason
            assert usage == {
                "prompt_tokens": wanted.prompt_tokens,
                "completion_tokens": wanted.tokens_generated,
                "total_tokens": wanted.prompt_tokens + wanted.tokens_generated,
            }


def test_the_openai_client(server, expected):
    """Models, a completion, a chat and its stream, and errors as the client knows them."""
    openai = pytest.importorskip("openai")
    client = openai.OpenAI(base_url=server.url, api_key="none", max_retries=0)
    assert [one.id for one in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").id == "tiny"
    done = client.completions.create(
        model="tiny", prompt="the world and", max_tokens=30, temperature=1.0, seed=7
    )
    assert done.choices[0].text == expected[1].text
    options = {"model": "tiny", "max_completion_tokens": 20, "temperature": 1.0, "seed": 1}
    said = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    chat = client.chat.completions.create(messages=said, **options)
    assert chat.choices[0].message.content == expected[5].text
    pieces = client.chat.completions.create(
        messages=said, stream=True, stream_options={"include_usage": True}, **options
    )
    *chunks, last = list(pieces)
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == expected[5].text
    assert last.usage.completion_tokens == expected[5].tokens_generated
    with pytest.raises(openai.NotFoundError, match="does not exist"):
        client.completions.create(model="nix", prompt="a")
    with pytest.raises(openai.BadRequestError, match="temperature") as problem:
        client.completions.create(model="tiny", prompt="a", temperature=9)
    assert problem.value.param == "temperature"


def test_our_own_adapter(server, model, expected):
    """`openai:` engine: the same texts, its options all taken, a time for every token."""
    engine: Any = open_engine(f"openai:{server.url}", model)
    texts = [(r, e) for r, e in zip(REQUESTS, expected, strict=True) if isinstance(r.prompt, str)]
    result = engine.infer_batch([BatchItem(str(i), r) for i, (r, _) in enumerate(texts)])
    for response, (_, wanted) in zip(result.responses, texts, strict=True):
        assert response.error is None
        assert response.data.text == wanted.text
        assert response.data.tokens_generated == wanted.tokens_generated
        assert response.data.prompt_tokens == wanted.prompt_tokens
    said = engine.conditions()
    assert said["options"] == "all taken by the server"
    assert said["generated tokens counted by"] == "the server's own usage"
    engine.close()


@pytest.mark.peers
def test_a_public_load_generator(server, tmp_path):
    """guidellm, wherever BATCHGAUGE_GUIDELLM or PATH has it: no errors, all tokens counted."""
    program = os.environ.get("BATCHGAUGE_GUIDELLM") or shutil.which("guidellm")
    if program is None:
        pytest.skip("guidellm is not installed")
    rows = [{"prompt": f"hello world {i}", "output_tokens_count": 20} for i in range(40)]
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("\n".join(map(json.dumps, rows)))
    options = {
        "backend": f"kind=openai_http,target={server.url.removesuffix('/v1')}",
        "profile": "kind=concurrent,streams=4",
        "constraint": "kind=max_requests,count=20",
        "data": f"kind=json_file,path={prompts}",
        "output": f"kind=json,path={tmp_path / 'report.json'}",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", value)]
    quiet = os.environ | {"HF_HUB_OFFLINE": "1", "NO_PROXY": "127.0.0.1"}
    subprocess.run([program, "run", *words, "--disable-progress"], check=True, timeout=300,
                   env=quiet, capture_output=True)  # fmt: skip
    report = json.loads((tmp_path / "report.json").read_text())
    (run,) = report["benchmarks"]
    totals = run["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (20, 0)
    assert run["metrics"]["output_token_count"]["successful"]["total_sum"] == 400


def test_a_conversation_goes_through_the_template(server, engine):
    """Several messages; the answer is that to the text that the model's template makes of them."""
    said = [
        {"role": "developer", "content": "hello"},
        {"role": "user", "content": "and"},
        {"role": "assistant", "content": "the"},
        {
            "role": "user",
            "content": [{"type": "text", "text": "wor"}, {"type": "text", "text": "ld"}],
        },
    ]
    laid_out = (
        "<|im_start|>system\nhello<|im_end|>\n<|im_start|>user\nand<|im_end|>\n"
        "<|im_start|>assistant\nthe<|im_end|>\n<|im_start|>user\nworld<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tuple(engine.tokenizer.encode(laid_out, allow_special=True))
    wanted = alone(engine, InferenceBatchRequest(ids, max_tokens=8))
    body = {"model": "tiny", "messages": said, "max_tokens": 8, "temperature": 0}
    answer = post(server, body, "chat/completions")[2]
    assert answer["choices"][0]["message"]["content"] == wanted.text
    assert answer["usage"]["prompt_tokens"] == len(ids)


BAD = [
    (b"{", 400, None, "not JSON"),
    (b"", 400, None, "not JSON"),
    (b"\xff", 400, None, "not UTF-8"),
    (b"[1]", 400, None, "expected an object"),
    (b'{"model": "tiny", "prompt": "a", "prompt": "b"}', 400, None, "twice"),
    (b"[" * 50_000, 400, None, "nested too deeply"),
    (b'{"model": NaN}', 400, None, "no number of JSON"),
    ({"prompt": "a"}, 400, "model", "model"),
    ({"model": 5, "prompt": "a"}, 400, "model", "model"),
    ({"model": "gpt-4", "prompt": "a"}, 404, "model", "'gpt-4' does not exist; expected 'tiny'"),
    ({"model": "tiny"}, 400, "prompt", "prompt is None"),
    ({"model": "tiny", "prompt": 3}, 400, "prompt", "prompt is 3"),
    ({"model": "tiny", "prompt": ["a", "b"]}, 400, "prompt", "2 prompts; expected one"),
    ({"model": "tiny", "prompt": [1, "b"]}, 400, "prompt", "2 prompts"),
    ({"model": "tiny", "prompt": [True]}, 400, "prompt", "prompt is True"),
    ({"model": "tiny", "prompt": [10**9]}, 400, "prompt", "unknown token id"),
    ({"model": "tiny", "prompt": [-1]}, 400, "prompt", "unknown token id"),
    ({"model": "tiny", "prompt": ""}, 400, "prompt", "prompt is empty"),
    ({"model": "tiny", "prompt": "\ud800"}, 400, "prompt", "lone surrogate"),
    ({"model": "tiny", "prompt": "a b" * 9000}, 400, "prompt", "the model's context of 8192"),
    ({"model": "tiny", "prompt": [5] * 8192}, 400, "prompt", "8192 tokens; expected at most 8191"),
    ({"model": "tiny", "prompt": "a", "max_tokens": 0}, 400, "max_tokens", "at least 1"),
    ({"model": "tiny", "prompt": "a", "max_tokens": -5}, 400, "max_tokens", "at least 1"),
    ({"model": "tiny", "prompt": "a", "max_tokens": 1.5}, 400, "max_tokens", "whole number"),
    ({"model": "tiny", "prompt": "a", "max_tokens": "9"}, 400, "max_tokens", "whole number"),
    ({"model": "tiny", "prompt": "a", "temperature": "hot"}, 400, "temperature", "number"),
    ({"model": "tiny", "prompt": "a", "temperature": -1}, 400, "temperature", "0.0 to 2.0"),
    ({"model": "tiny", "prompt": "a", "top_p": 0}, 400, "top_p", "above 0"),
    ({"model": "tiny", "prompt": "a", "seed": -1}, 400, "seed", "at least 0"),
    ({"model": "tiny", "prompt": "a", "stop": ["a", ""]}, 400, "stop", "1 to 256 characters"),
    ({"model": "tiny", "prompt": "a", "stop": "a" * 300}, 400, "stop", "1 to 256 characters"),
    ({"model": "tiny", "prompt": "a", "stop": ["a"] * 99}, 400, "stop", "at most 16"),
    ({"model": "tiny", "prompt": "a", "stream": 1}, 400, "stream", "true or false"),
    ({"model": "tiny", "prompt": "a", "stream_options": {}}, 200, None, ""),
    ({"model": "tiny", "prompt": "a", "stream_options": {"include_usage": True}}, 400,
     "stream_options", "expected stream=true"),
    ({"model": "tiny", "prompt": "a", "priority": 0.5}, 400, "priority", "whole number"),
    ({"model": "tiny", "prompt": "a", "priority": 10**30}, 400, "priority", "whole number"),
    ({"model": "tiny", "prompt": "a", "n": 2}, 400, "n", "does not serve n=2"),
    ({"model": "tiny", "prompt": "a", "echo": True}, 400, "echo", "does not serve echo=True"),
    ({"model": "tiny", "prompt": "a", "logprobs": 0}, 400, "logprobs", "does not serve logprobs"),
    ({"model": "tiny", "prompt": "a", "logit_bias": {"5": 1}}, 400, "logit_bias", "logit_bias"),
    ({"model": "tiny", "prompt": "a", "foo": 1}, 400, "foo", "Unrecognized request argument"),
    ({"model": "tiny", "prompt": "a", "n": 1, "echo": False, "best_of": None, "user": "me",
      "presence_penalty": 0.0, "logprobs": None}, 200, None, ""),
]  # fmt: skip
BAD_CHATS = [
    ({}, "messages", "messages is missing"),
    ({"messages": []}, "messages", "messages is missing or empty"),
    ({"messages": "hi"}, "messages", "expected a list"),
    ({"messages": [5]}, "messages[0]", "expected an object"),
    ({"messages": [{"role": "cat", "content": ""}]}, "messages[0]", "role is 'cat'"),
    ({"messages": [{"role": "user"}]}, "messages[0]", "content is None"),
    ({"messages": [{"role": "user", "content": [{"type": "x"}]}]}, "messages[0]", "no text"),
    ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0]", "lone surrogate"),
    ({"messages": USER, "tools": [{}]}, "tools", "does not serve tools"),
    ({"messages": USER, "response_format": {"type": "json_object"}}, "response_format", "serve"),
    ({"messages": USER, "max_tokens": 3, "max_completion_tokens": 4}, "max_tokens", "differ"),
    ({"messages": USER, "prompt": "a"}, "prompt", "Unrecognized"),
]  # fmt: skip


@pytest.mark.parametrize("case", BAD, ids=lambda case: str(case[0])[:50])
def test_bad_completions_are_said_in_the_apis_own_shape(server, case):
    """What was wrong, which field, and the server goes on."""
    said, status, param, words = case
    found, _, answer = post(server, said)
    assert found == status
    if status != 200:
        error = answer["error"]
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert words in error["message"]
    assert httpx.get(server.url.replace("/v1", "/health")).json()["status"] == "ok"


@pytest.mark.parametrize("case", BAD_CHATS, ids=lambda case: str(case[0])[:50])
def test_bad_chats_are_said_too(server, case):
    """Where in the messages."""
    said, param, words = case
    status, _, answer = post(server, {"model": "tiny", **said}, "chat/completions")
    assert (status, answer["error"]["param"]) == (400, param)
    assert words in answer["error"]["message"]


def test_what_is_not_served(server):
    """Other paths and methods, in the API's shape too."""
    for method, path, status in (
        ("GET", "completions", 405), ("POST", "embeddings", 404), ("GET", "models/nix", 404),
    ):  # fmt: skip
        reply = httpx.request(method, f"{server.url}/{path}")
        assert (reply.status_code, set(reply.json())) == (status, {"error"})


def test_absurd_limits_are_cut_to_the_context(server):
    """A billion tokens are as many as the context has room for."""
    said = {"model": "tiny", "prompt": [5] * 8180, "max_tokens": 10**9, "ignore_eos": True}
    answer = post(server, said)[2]
    assert answer["usage"]["completion_tokens"] <= 13
    assert answer["choices"][0]["finish_reason"] == "length"


def test_a_body_that_is_too_large_or_too_slow(server):
    """413 by its length or by what comes, 408 for one that does not come."""
    assert post(server, {"model": "tiny", "prompt": "a" * 200_000})[0] == 413
    pieces = (b"x" * 1000 for _ in range(10**6))
    reply = httpx.post(f"{server.url}/completions", content=pieces, timeout=60)
    assert reply.status_code == 413
    with socket.create_connection(address_of(server)) as one:
        one.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 90\r\n\r\n{")
        one.settimeout(20)
        said = b"".join(iter(lambda: one.recv(9999), b""))  # until the server closes
    assert said.startswith(b"HTTP/1.1 408")
    assert b"more than 1 s" in said


def test_a_client_that_does_not_read_is_cancelled(roomy):
    """Once a chunk has waited for so long."""

    async def reads_the_first_chunk_only(message):
        if message["type"] == "http.response.body":
            read.append(message)
            if len(read) > 1:
                await asyncio.Event().wait()

    async def stays(*_):
        await asyncio.Event().wait()

    async def answer(request):
        pieces = engine.stream(request)
        call = Call("tiny", (5,), is_stream=True)
        reply = Reply(call, ServedAnswer("cmpl-1", "tiny", False), 1, pieces, Limits(send_s=0.05))
        await reply({"type": "http"}, stays, reads_the_first_chunk_only)

    read: list[Any] = []
    workers = Workers(Threads(Opener(WorkerPlan(str(roomy), slots=1))))
    engine = AsyncEngine(workers, read_model(str(roomy))[0], 4)
    try:
        workers.wait_ready(60)
        asyncio.run(answer(InferenceBatchRequest((5,), max_tokens=60_000, ignore_eos=True)))
        until(lambda: engine.state().running == 0)
        assert len(read) == 2
    finally:
        asyncio.run(engine.close())


def test_a_connection_that_says_nothing_is_closed(model, monkeypatch):
    """Or that says the beginning of a request, byte by byte; one that is used stays."""
    monkeypatch.setattr(server_module, "HEAD_S", 0.5)
    with serving(model) as server, httpx.Client() as client:
        assert client.get(f"{server.url}/models").status_code == 200
        for head in (b"", b"GET /v1/models HTTP/1.1\r\nHost"):
            with socket.create_connection(address_of(server)) as one:
                one.settimeout(0.1)
                for turn in range(200):
                    if head:
                        with suppress(OSError):
                            one.sendall(head if not turn else b"t")
                    try:
                        assert one.recv(9) == b""
                        break
                    except ConnectionError:
                        break
                    except TimeoutError:
                        continue
                else:
                    pytest.fail("the connection stays open")
        assert client.get(f"{server.url}/models").status_code == 200


def address_of(server):
    """Host and port."""
    host, _, port = server.url.removeprefix("http://").removesuffix("/v1").partition(":")
    return host, int(port)


def ended(server):
    """How many requests ended in which way, by /metrics."""
    text = httpx.get(server.url.replace("/v1", "/metrics")).text
    return {
        sample.labels["ended"]: sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
        if sample.name == "batchgauge_requests_total"
    }


def test_a_client_that_goes_away_is_cancelled(long_server):
    """In a stream and while it waits for one body; its room is given back."""
    before = ended(long_server).get("cancelled", 0)
    for said in ({"stream": True}, {}):
        body = json.dumps({"model": "tiny", "prompt": "a", **LONG, **said}).encode()
        with socket.create_connection(address_of(long_server)) as one:
            one.sendall(
                b"POST /v1/completions HTTP/1.1\r\nHost: x\r\n"
                b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
            )
            if said:
                assert b"text/event-stream" in one.recv(4096)
            else:
                until(lambda: long_server.engine.state().running)
    until(lambda: ended(long_server).get("cancelled", 0) == before + 2)
    until(lambda: long_server.engine.state().running == 0)
    assert long_server.engine.state().waiting == 0


def test_ids_that_are_in_use(long_server):
    """A client may name its request; two of one name at once are told apart by an error."""
    said = {"model": "tiny", "prompt": "a", "stream": True, **LONG}
    headers = {"X-Request-Id": "mine"}
    with httpx.stream("POST", f"{long_server.url}/completions", json=said, headers=headers) as one:
        lines = one.iter_lines()
        assert next(lines).startswith('data: {"id":"cmpl-mine"')
        status, _, answer = post(long_server, {"model": "tiny", "prompt": "a"}, headers=headers)
        assert status == 400
        assert "A request of this id is under way" in answer["error"]["message"]
    until(lambda: long_server.engine.state().running == 0)
    assert post(long_server, {"model": "tiny", "prompt": "a"}, headers=headers)[0] == 200
    bad = {"X-Request-Id": "a b"}
    assert post(long_server, {"model": "tiny", "prompt": "a"}, headers=bad)[0] == 400


def test_metrics_are_prometheus_text(server):
    """Requests, tokens, times, queue, batch and cache, all with types; text that parses."""
    post(server, {"model": "tiny", "prompt": "a", "max_tokens": 5, "ignore_eos": True})
    reply = httpx.get(server.url.replace("/v1", "/metrics"))
    assert reply.headers["content-type"].startswith("text/plain; version=")
    found = {f.name: f for f in text_string_to_metric_families(reply.text)}
    kinds = {name.removeprefix("batchgauge_"): family.type for name, family in found.items()}
    assert kinds.items() >= {
        "requests": "counter", "requests_refused": "counter", "generated_tokens": "counter",
        "time_to_first_token_seconds": "histogram", "inter_token_latency_seconds": "histogram",
        "requests_waiting": "gauge", "batch_size": "gauge", "kv_cache_bytes": "gauge",
        "kv_cache_used_bytes": "gauge",
    }.items()  # fmt: skip
    tokens = found["batchgauge_generated_tokens"].samples[0].value
    counts = {
        s.name: s.value for f in found.values() for s in f.samples if s.name.endswith("_count")
    }
    times = [counts[f"batchgauge_{n}_seconds_count"] for n in ("time_to_first_token",
                                                               "inter_token_latency")]  # fmt: skip
    assert sum(times) >= tokens > 5
    assert found["batchgauge_kv_cache_bytes"].samples[0].value > 0


def test_a_key_is_asked_for(model):
    """Of what is under /v1; health needs none."""
    with serving(model, api_key="sesame") as server:
        for headers, status in (
            ({}, 401), ({"Authorization": "Bearer nix"}, 401), ({"Authorization": "sesame"}, 401),
            ({"Authorization": "Bearer sesame"}, 200),
        ):  # fmt: skip
            reply = httpx.get(f"{server.url}/models", headers=headers)
            assert reply.status_code == status
            if status == 401:
                assert reply.json()["error"]["code"] == "invalid_api_key"
        assert httpx.get(server.url.replace("/v1", "/health")).status_code == 200


def test_more_than_there_is_room_for(roomy):
    """Refused with 429 and when to come again; what is under way goes on, then there is room."""
    with serving(roomy, slots=1, queue=1, grace_s=0.0) as server:
        said = {"model": "tiny", "prompt": "a", "stream": True, **LONG}
        with (
            httpx.stream("POST", f"{server.url}/completions", json=said) as one,
            ThreadPoolExecutor(1) as pool,
        ):
            lines = one.iter_lines()
            next(lines)
            short = {"model": "tiny", "prompt": "a", "max_tokens": 3}
            waiting = pool.submit(post, server, short)
            until(lambda: server.engine.state().waiting)
            for _ in range(20):
                status, headers, answer = post(server, short)
                assert status == 429
                assert 1 <= int(headers["retry-after"]) <= 60
                assert answer["error"]["type"] == "rate_limit_error"
            one.close()
            assert waiting.result()[0] == 200
        assert post(server, short)[0] == 200


def test_a_request_that_takes_too_long(roomy):
    """Ends with 504, or with an error in its stream, and gives its room back."""
    with serving(roomy, limits=Limits(request_s=0.3)) as server:
        said = {"model": "tiny", "prompt": "a", "max_tokens": 60_000, "ignore_eos": True}
        status, _, answer = post(server, said)
        assert (status, answer["error"]["type"]) == (504, "server_error")
        reply = httpx.post(f"{server.url}/completions", json=said | {"stream": True}, timeout=60)
        last = [line for line in reply.text.split("\n\n") if line][-1]
        assert "error" in json.loads(last.removeprefix("data: "))
        until(lambda: server.engine.state().running == 0)


def test_the_end_of_a_server(roomy):
    """What is under way is finished; what takes longer than the grace is handed back."""
    with serving(roomy, grace_s=20.0) as server, ThreadPoolExecutor(1) as pool:
        said = {"model": "tiny", "prompt": "a", "max_tokens": 600, "ignore_eos": True}
        waiting = pool.submit(post, server, said)
        until(lambda: server.engine.state().running)
        server.stop()
        status, _, answer = waiting.result()
        assert (status, answer["usage"]["completion_tokens"]) == (200, 600)
    with serving(roomy, grace_s=0.0) as server, ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(post, server, said | {"max_tokens": 60_000})
        until(lambda: server.engine.state().running)
        server.stop()
        status, headers, answer = waiting.result()
        assert (status, answer["error"]["code"]) == (503, "shutting_down")
        assert headers["retry-after"] == "1"
