"""The HTTP engine against a tiny server that misbehaves, and against a real one."""

from __future__ import annotations

import base64
import importlib.util
import json
import math
import re
import socket
import socketserver
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest

pytest.importorskip("httpx")

import httpx
from tests.tiny_model import write_tiny_model
from tests.tiny_openai_server import TinyServer, tiny_server

from batchgauge.adapters.gguf_copy import float32_copy
from batchgauge.adapters.openai_http import OpenAIEngine
from batchgauge.adapters.openai_transport import Address, Patience, Transport, retry_after
from batchgauge.core.default_model import default_model_path
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.errors import UserError
from batchgauge.experiments.tour import sections as tour
from batchgauge.protocols import Engine
from batchgauge.registry import open_engine, open_tokenizer
from batchgauge.request import BatchItem, InferenceBatchRequest, generated_tokens

QUICK = Patience(connect=1.0, read=5.0, attempts=3, backoff=0.001)


@pytest.fixture(scope="module")
def server():
    """A tiny server with one model."""
    with tiny_server() as running:
        yield running


@pytest.fixture(scope="module")
def engine(server: TinyServer):
    """The engine on it, with little patience."""
    engine = OpenAIEngine(server.url, patience=QUICK)
    yield engine
    engine.close()


def ask(engine, *prompts, **options):
    """The result of a batch of these prompts."""
    items = [
        BatchItem(f"i{n}", InferenceBatchRequest(prompt, **{"max_tokens": 8, **options}))
        for n, prompt in enumerate(prompts)
    ]
    return engine.infer_batch(items)


def test_a_batch_is_answered_in_order_with_counts_and_times(engine):
    """Every item gets its own text, token counts from the server's usage, and token times."""
    result = ask(engine, "a b c", "d e")
    assert [r.id for r in result.responses] == ["i0", "i1"]
    first, second = (r.data for r in result.responses)
    assert (first.text, first.tokens_generated, first.prompt_tokens) == ("a b c ", 3, 7)
    assert (second.text, second.finish_reason) == ("d e ", "stop")
    assert len(first.inter_token_ms) == 2
    assert 0 < first.ttft_ms <= result.stats.total_duration_ms
    assert result.counters == {"prompt_tokens": 14, "generated_tokens": 5}
    assert isinstance(engine, Engine)


def test_length_ends_an_answer(engine):
    """An answer cut at max_tokens says so."""
    (response,) = ask(engine, "a b c d", max_tokens=2).responses
    assert (response.data.text, response.data.finish_reason) == ("a b ", "length")


def test_a_batch_is_concurrent_requests(engine, server):
    """All requests of a batch are under way at once, so waiting is shared."""
    result = ask(engine, *(f"slow {n}" for n in range(6)))
    assert result.all_succeeded()
    assert server.most_at_once >= 6


def test_parameters_reach_the_server(engine, server):
    """Temperature, top_p, seed, stop and ignore_eos are sent; chat goes as a message."""
    result = ask(
        engine, "tell me", temperature=0.5, top_p=0.9, seed=3, stop=("x",), ignore_eos=True,
        chat=True,
    )  # fmt: skip
    body = server.seen[-1]
    sent = {key: body[key] for key in ("temperature", "top_p", "seed", "stop", "ignore_eos")}
    assert sent == {"temperature": 0.5, "top_p": 0.9, "seed": 3, "stop": ["x"], "ignore_eos": True}
    assert body["messages"] == [{"role": "user", "content": "tell me"}]
    assert result.responses[0].data.text == "tell me "


@pytest.mark.parametrize("status", [429, 500, 503])
def test_a_busy_server_is_asked_again(engine, server, status):
    """429 and 5xx are retried, and the answer is then whole."""
    prompt = f"fail={status}x2 then fine"
    (response,) = ask(engine, prompt).responses
    assert response.data.text == f"{prompt} "
    assert server.tries[prompt] == 3


def test_patience_ends(engine, server):
    """A server that stays busy is given up after the agreed attempts; the neighbour is fine."""
    bad, good = ask(engine, "fail=500x9", "fine").responses
    assert bad.data is None
    assert "after 3 attempts (500: busy)" in bad.error
    assert server.tries["fail=500x9"] == 3
    assert good.data.text == "fine "


def test_a_refusal_is_not_retried(engine, server):
    """A 400 is the request's own fault: said at once, in the server's words."""
    (response,) = ask(engine, "fail=400x9").responses
    assert "400: busy" in response.error
    assert server.tries["fail=400x9"] == 1


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("a b half c d", "stream broke after 2 chunks"),
        ("a silent", "ended after 2 chunks without saying that it was done"),
        ("a garbage b", "what is no completion"),
        ("a broken b", "broke off: out of memory"),
    ],
)
def test_a_broken_stream_fails_its_own_item_only(engine, server, prompt, said):
    """A stream that breaks is an error of its item, never tried again, and no half answer."""
    bad, good = ask(engine, prompt, "fine").responses
    assert bad.data is None
    assert said in bad.error
    assert server.tries[prompt] == 1
    assert good.data.text == "fine "


def test_a_slow_server_times_out(server):
    """Silence beyond the read timeout is an error in a sentence, without another try."""
    engine = OpenAIEngine(server.url, patience=Patience(read=0.1, attempts=3, backoff=0.001))
    (response,) = ask(engine, "slow timeout").responses
    assert "did not answer" in response.error
    assert server.tries["slow timeout"] == 1
    engine.close()


def test_no_server():
    """An address where nobody listens is said when the engine is opened."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{free.getsockname()[1]}/v1"
    with pytest.raises(UserError, match="No server answers at http"):
        OpenAIEngine(url, patience=QUICK)


def test_the_server_goes_away():
    """A server that stops between opening and asking gives errors per item, not an exception."""
    with tiny_server() as gone:
        engine = OpenAIEngine(gone.url, patience=QUICK)
        assert ask(engine, "a", "b").all_succeeded()
    result = ask(engine, "a", "b")
    assert result.success_count() == 0
    assert all("after 3 attempts" in r.error for r in result.responses)


def test_load_is_asked_once():
    """Whoever measures load sees a refusal at once: neither request nor options are tried again."""
    with tiny_server() as gone:
        engine = OpenAIEngine(
            gone.url, patience=Patience(attempts=9, backoff=1e6, longest_wait=1e6)
        )
    with pytest.raises(UserError, match="did not answer") as said:
        engine.ask(InferenceBatchRequest("a", 4))
    assert "attempts" not in str(said.value)


def test_the_wrong_model_name(server):
    """A model that the server does not have is said with those it has."""
    with pytest.raises(UserError, match="has no model 'other'; expected one of tiny"):
        OpenAIEngine(server.url, "other", patience=QUICK)


def test_several_models_need_a_name():
    """A server with several models must be asked for one of them; one is enough to go on."""
    with tiny_server(("one", "two")) as several:
        with pytest.raises(UserError, match=r"has 2 models.*#one"):
            OpenAIEngine(several.url, patience=QUICK)
        assert OpenAIEngine(several.url, "two", patience=QUICK).model == "two"


def test_a_server_without_a_list_of_models():
    """Without a list the name must be given, and is then taken on trust; the server refuses it."""
    with tiny_server(()) as bare:
        with pytest.raises(UserError, match="does not list its models"):
            OpenAIEngine(bare.url, patience=QUICK)
        engine = OpenAIEngine(bare.url, "any", patience=QUICK)
        (response,) = ask(engine, "a").responses
        assert "404: no model any" in response.error


def test_the_registry_opens_a_server(server, tmp_path):
    """`openai:URL#MODEL` names server and model; prompts of ids go as the model's own text."""
    model = write_tiny_model(tmp_path / "tiny.gguf")
    engine = open_engine(f"openai:{server.url}#tiny", model=model)
    assert isinstance(engine, OpenAIEngine)
    assert engine.tokenizer is not None
    ids = tuple(engine.tokenizer.encode("hello world"))
    result = engine.infer_batch([BatchItem("a", InferenceBatchRequest(ids, max_tokens=4))])
    answer = result.responses[0].data
    assert answer is not None
    assert answer.text == "hello world "
    with pytest.raises(UserError, match="has no address"):
        open_engine("openai:127.0.0.1:80", model=model)


REFUSED = {"error": {"message": "Unsupported parameter", "param": "", "code": "unsupported"}}


def refusal(option: str) -> bytes:
    """How OpenAI refuses an option."""
    named = {**REFUSED["error"], "message": f"Unsupported parameter: '{option}'.", "param": option}
    return json.dumps({"error": named}).encode()


@pytest.mark.parametrize(
    ("refuses", "said"),
    [
        ({}, "all taken"),
        (
            {"max_tokens": b"Use 'max_completion_tokens' instead of max_tokens"},
            "max_completion_tokens in place of max_tokens",
        ),
        ({"seed": refusal("seed")}, "seed left out"),
        ({"stream_options": refusal("stream_options")}, "stream_options left out"),
        (
            {"continuous_usage_stats": refusal("stream_options.continuous_usage_stats")},
            "continuous_usage_stats left out",
        ),
        ({"ignore_eos": b'{"detail": "Unrecognized request argument: ignore_eos"}'}, "ignore_eos"),
        (
            {"top_p": b'{"detail": [{"type": "extra_forbidden", "loc": ["body", "top_p"], '
                      b'"msg": "Extra inputs", "input": "seed"}]}'},
            "top_p left out",
        ),
        ({"temperature": refusal("temperature"), "seed": refusal("seed")}, "seed.*; temperature"),
        ({"seed": b"bad request", "top_p": b"\xff"}, "stream_options.*seed.*ignore_eos.*top_p"),
    ],
)  # fmt: skip
def test_one_fall_back_is_found_once_and_stated(refuses, said):
    """What a server refuses is left out or renamed for all requests, and `conditions` says so."""
    with tiny_server() as picky:
        picky.refuses = refuses
        engine = OpenAIEngine(picky.url, patience=QUICK)
        with ThreadPoolExecutor(4) as pool:  # decided once, whoever asks first
            results = list(
                pool.map(lambda n: ask(engine, f"a {n}", "b", ignore_eos=True), range(4))
            )
        assert all(result.all_succeeded() for result in results), results[0].responses
        assert re.search(said, engine.conditions()["options"])
        real = [body for body in picky.seen if "Hello" not in json.dumps(body)]
        assert len(real) == 8, "no request of a batch was refused"
        assert len({tuple(sorted(body)) for body in real}) == 1
        engine.close()


def test_a_fall_back_that_does_not_help_is_not_taken():
    """A request that is itself at fault is said as such; options stay as they were."""
    with tiny_server() as picky:
        picky.refuses = {"model": b'{"error": "seed? no: the model is broken"}'}
        broken = OpenAIEngine(picky.url, patience=QUICK)
        (response,) = ask(broken, "a").responses
        assert "400: seed? no: the model is broken" in response.error
        assert broken.conditions()["options"] == "all taken by the server"
        picky.refuses = {}
        assert ask(broken, "a").all_succeeded()
        broken.close()


def test_every_slot_is_warm_before_it_is_timed():
    """The first request of a connection is slow and in no figure; larger batches warm more."""
    with tiny_server() as cold:
        cold.slow_first_s = 1.5
        engine = OpenAIEngine(cold.url, patience=QUICK)
        for size in (1, 4):
            result = ask(engine, *(f"p{size}{n} x" for n in range(size)))
            assert max(r.data.ttft_ms for r in result.responses) < 1400
            assert result.stats.total_duration_ms < 1400
        warmed = sum("Hello" in json.dumps(body) for body in cold.seen)
        ask(engine, "again")
        assert sum("Hello" in json.dumps(body) for body in cold.seen) == warmed
        assert "4 requests at once" in engine.conditions()["warm-up"]
        engine.close()


@pytest.mark.parametrize("variable", ["HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1"])
def test_a_server_on_this_machine_is_asked_directly(server, monkeypatch, variable, host):
    """No proxy of the environment stands before the loopback, whatever its kind."""
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv(
        variable, "socks5://127.0.0.1:9" if "ALL" in variable else "http://127.0.0.1:9"
    )
    engine = OpenAIEngine(server.url.replace("127.0.0.1", host), patience=QUICK)
    assert engine.model == "tiny"
    engine.close()


@pytest.mark.parametrize(
    ("url", "here"),
    [
        ("http://127.8.9.1:1/v1", True),
        ("http://[::1]:1/v1", True),
        ("http://[::ffff:127.0.0.1]:1/v1", True),
        ("http://LocalHost.:1", True),
        ("http://api.localhost", True),
        ("http://0.0.0.0:1", True),
        ("http://2130706433:1", True),
        ("http://127.example.org", False),
        ("http://10.0.0.1", False),
        ("http://localhost.example.org", False),
    ],
)
def test_addresses_of_this_machine(url, here):
    """The whole of 127.0.0.0/8, ::1 and localhost are this machine, look-alikes are not."""
    assert Address.of(url).is_here() is here


def test_a_proxy_is_used_for_other_machines_and_its_password_stays_hidden(monkeypatch):
    """A server elsewhere is asked through the proxy; one that cannot be used is one sentence."""
    with tiny_server() as proxy:
        monkeypatch.setenv("HTTP_PROXY", proxy.url.removesuffix("/v1"))
        assert OpenAIEngine("http://model.invalid/v1", patience=QUICK).model == "tiny"
        assert proxy.asked[-1][0] == "http://model.invalid/v1/models"
    monkeypatch.setenv("HTTP_PROXY", "gopher://ann:s3cret@127.0.0.1:9")
    with pytest.raises(UserError, match="proxy") as said:
        OpenAIEngine("http://model.invalid/v1", patience=QUICK)
    assert "s3cret" not in str(said.value)


def test_credentials_reach_the_server_and_nobody_else(server, monkeypatch):
    """Basic access and keys work; errors, names and conditions never show them."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    host = server.url.removeprefix("http://")
    engine = OpenAIEngine(f"http://ann:s3c%2Fret@{host}?api_key=k3y-value", patience=QUICK)
    assert ask(engine, "a").all_succeeded()
    path, headers = server.asked[-1]
    assert path == "/v1/completions?api_key=k3y-value"
    assert base64.b64decode(headers["authorization"].split()[1]) == b"ann:s3c/ret"
    server.scripts["echo"] = (
        "text/event-stream",
        [b'data: {"error": "ann s3c/ret k3y-value"}\n\n'],
    )
    (response,) = ask(engine, "echo").responses
    shown = f"{response.error} {engine!r} {engine.name} {engine.url} {engine.conditions()}"
    assert "broke off: ann *** ***" in response.error
    assert not re.search("s3c|ret|k3y", shown)
    request = InferenceBatchRequest("echo", max_tokens=4, chat=False)
    server.refuses["temperature"] = b'{"error": "no: ann s3c/ret k3y-value"}'
    with pytest.raises(UserError, match=r"ann \*\*\* \*\*\*"):
        engine.ask(request)
    server.refuses.clear()
    with pytest.raises(UserError, match=r"broke off: ann \*\*\* \*\*\*"):
        engine.ask(request)
    monkeypatch.setenv("OPENAI_API_KEY", " k3y-of-the-environment\n")
    keyed = OpenAIEngine(server.url, patience=QUICK)
    assert server.asked[-1][1]["authorization"] == "Bearer k3y-of-the-environment"
    keyed.close()
    monkeypatch.setenv("OPENAI_API_KEY", "kéy")
    with pytest.raises(UserError, match="no HTTP header can carry"):
        OpenAIEngine(server.url, patience=QUICK)
    engine.close()


@pytest.mark.parametrize("url", ["http://ann:s3c/ret@host:80", "http://", "http://ann:s3cret",
                                 "http://ann:s3cret@ho st",
                                 "http://ann:s3cret@host:port", "http://[::1"])  # fmt: skip
def test_an_address_that_is_none_is_said_without_its_password(url):
    """A malformed address is one sentence that does not show what may be a password."""
    with pytest.raises(UserError) as said:
        OpenAIEngine(url, patience=QUICK)
    assert "s3c" not in str(said.value)


@pytest.mark.parametrize(
    ("listed", "model"),
    [
        ({"data": None, "models": [{"name": "llama3:latest"}]}, "llama3:latest"),
        ({"models": [{"name": "a", "model": "a"}], "data": [{"id": "a"}]}, "a"),
        ([{"id": "a"}], "a"),
        ({"data": ["a"]}, "a"),
        ({"data": [{"id": "a"}, {"id": "a"}, {"id": None}, 5.5, None]}, "a"),
        ({"data": None}, None),
        ({"data": {}}, None),
        ([], None),
        (7, None),
        ((200, {}, b"\xff\xfe{"), None),
        ((200, {}, b"[" * 100_000), None),
        ((404, {}, b"<html>\xff</html>"), None),
        ((401, {}, b'{"error": {"message": "who are you?"}}'), None),
    ],
)
def test_lists_of_models_of_every_shape(listed, model):
    """A list is read in the shapes that servers have; without one the name must be given."""
    with tiny_server() as odd:
        odd.listed = listed
        if model is None:
            with pytest.raises(UserError, match="does not list its models"):
                OpenAIEngine(odd.url, patience=QUICK)
            assert OpenAIEngine(odd.url, "mine", patience=QUICK).model == "mine"
        else:
            assert OpenAIEngine(odd.url, patience=QUICK).model == model


def test_a_redirect_is_said_and_not_followed():
    """A detour would be in every figure (and carry keys elsewhere): its end is named instead."""
    with tiny_server() as moved:
        moved.listed = (307, {"Location": "http://elsewhere/v1/models"}, b"")
        with pytest.raises(UserError, match="redirects to 'http://elsewhere/v1/models'"):
            OpenAIEngine(moved.url, patience=QUICK)


@pytest.mark.parametrize(
    ("headers", "least", "most"),
    [
        ({"retry-after": "2"}, 2.0, 2.0),
        ({"retry-after": "0.5"}, 0.5, 0.5),
        ({"retry-after-ms": "250"}, 0.25, 0.25),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0.0, 0.0),
        ({"retry-after": "Wed, 21 Oct 2015 07:28:00"}, 0.0, 0.0),
        ({"retry-after": format_datetime(datetime.now(UTC) + timedelta(days=9))}, 6e5, 8e5),
        *(({"retry-after": s}, None, None) for s in ("nan", "-1", "inf", "soon", "", "1_0", "1e3")),
        ({}, None, None),
    ],
)
def test_what_a_server_asks_to_wait(headers, least, most):
    """Seconds or a date; what is neither is not believed."""
    found = retry_after(httpx.Headers(headers))
    if least is None:
        assert found is None
    else:
        assert least <= found <= most


def test_tokens_are_counted_by_usage_or_the_models_own_tokenizer_or_not_at_all(server, tmp_path):
    """Where nobody counts, the counters are absent; a stated model's tokenizer counts the text."""
    body = b'data: {"choices": [{"text": "hello world", "finish_reason": "stop"}]}\n\n'
    server.scripts["uncounted"] = ("text/event-stream", [body])
    unknown = OpenAIEngine(server.url, patience=QUICK)
    result = ask(unknown, "uncounted", "a b")
    assert [r.data.tokens_generated for r in result.responses] == [None, 2]
    assert generated_tokens(result) is None
    assert "generated_tokens" not in result.counters
    assert "nobody" in unknown.conditions()["generated tokens counted by"]
    stated = open_engine(f"openai:{server.url}", model=write_tiny_model(tmp_path / "tiny.gguf"))
    assert isinstance(stated, OpenAIEngine)
    assert stated.tokenizer is not None
    (answer,) = ask(stated, "uncounted").responses
    assert answer.data.tokens_generated == len(stated.tokenizer.encode("hello world"))
    assert "tokenizer" in stated.conditions()["generated tokens counted by"]


def test_a_request_that_cannot_be_sent_fails_alone(engine):
    """Half of a surrogate pair is no text: an error of its item, not of the batch."""
    bad, good = ask(engine, "\ud800", "fine").responses
    assert "cannot be sent" in bad.error
    assert good.data.text == "fine "


def test_a_retry_is_counted(engine):
    """The wait for a busy server is in its item's times, so that it happened is counted."""
    assert ask(engine, "fail=503x1 counted").counters["retries"] == 1
    assert "retries" not in ask(engine, "fine").counters


class ClosingServer(socketserver.ThreadingTCPServer):
    """Answers the first request of a connection, and hangs up on the next one without a word."""

    daemon_threads = True
    answers = 0


class _ClosesKept(socketserver.StreamRequestHandler):
    server: ClosingServer

    def handle(self):
        """One answer, and the whole of another request."""
        body = b'data: {"choices": [{"text": "yes"}]}\n\ndata: [DONE]\n\n'
        kind = b"Content-Type: text/event-stream"
        answer = b"HTTP/1.1 200 OK\r\n%s\r\nContent-Length: %d\r\n\r\n%s"
        for is_first in (True, False):
            head = b""
            while not head.endswith(b"\r\n\r\n"):
                if not (line := self.rfile.readline()):
                    return
                head += line
            size = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            self.rfile.read(int(size[1]) if size else 0)
            if is_first:
                self.server.answers += 1
                self.wfile.write(answer % (kind, len(body), body))


def test_a_kept_connection_that_the_server_closes_is_no_failure():
    """The request goes out once more, on another, whatever is tried again otherwise."""
    with ClosingServer(("127.0.0.1", 0), _ClosesKept) as closing:
        threading.Thread(target=closing.serve_forever, daemon=True).start()
        address = Address.of(f"http://127.0.0.1:{closing.server_address[1]}/v1")
        transport = Transport(address, QUICK, connections=1)
        for _ in range(4):
            assert transport.post("completions", b"{}", attempts=1).is_whole
        assert closing.answers == 4
        transport.close()
        closing.shutdown()


def test_the_studies_sentences_take_unknown_tokens(server):
    """Tour and tables say that nobody counted, and the same answer is not claimed by token."""
    body = b'data: {"choices": [{"text": "yes", "finish_reason": "stop"}]}\n\n'
    server.scripts["quiet"] = ("text/event-stream", [body])
    engine = OpenAIEngine(server.url, patience=QUICK)
    alone, both = ask(engine, "quiet"), ask(engine, "quiet", "a b")
    assert "unknown length" in tour.timeline(alone).sentence()
    compared = tour.batch(alone, both)
    said = compared.sentence()
    assert "how many tokens came is not known" in said
    assert "the same, as text" in said
    assert compared.shown is not None
    assert compared.shown["tokens_generated"].isna().tolist() == [True, False]


@pytest.fixture(scope="module")
def llama_server(tmp_path_factory):
    """llama-cpp-python's own server on the loopback, with the default model in float32.

    It has no option against llama.cpp's crash with quantised weights on AMX processors.
    """
    for package in ("llama_cpp", "uvicorn", "fastapi", "sse_starlette", "starlette_context"):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed: pip install 'llama-cpp-python[server]'")
    try:
        model = float32_copy(GGUFFile.open(default_model_path()))
    except UserError as problem:
        pytest.skip(str(problem))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable, "-m", "llama_cpp.server", "--model", str(model), "--port", str(port),
        "--host", "127.0.0.1", "--n_ctx", "512", "--n_threads", "1", "--model_alias", "real",
        "--interrupt_requests", "false",  # by default a new request breaks off the running one
    ]  # fmt: skip
    log = Path(tmp_path_factory.mktemp("server")) / "log.txt"
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output)
        try:
            yield _wait_for(f"http://127.0.0.1:{port}/v1", process, log)
        finally:
            process.terminate()
            process.wait(10)


def _wait_for(url, process, log):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        try:
            return OpenAIEngine(
                url,
                tokenizer=open_tokenizer(),  # of the model that it runs; it sends no usage
                is_models_own=True,
                patience=Patience(connect=1.0, attempts=1),
            )
        except UserError:
            time.sleep(0.2)
    pytest.fail(f"the server did not start: {log.read_text()[-2000:]}")


@pytest.mark.peers
def test_a_real_server_answers_as_the_model_does(llama_server):
    """llama.cpp's server continues a plain series just as llama.cpp itself does on that file."""
    request = InferenceBatchRequest("One, two, three, four, five,", max_tokens=8)
    items = [BatchItem(name, request) for name in ("a", "b", "c")]
    result = llama_server.infer_batch(items)
    assert result.all_succeeded(), [r.error for r in result.responses]
    answers = [r.data for r in result.responses if r.data]
    (local,) = open_engine("llama-cpp:f32").infer_batch(items[:1]).responses
    assert local.data is not None
    assert {answer.text for answer in answers} == {local.data.text}
    assert llama_server.model == "real"
    assert all(answer.tokens_generated == 8 for answer in answers)
    assert all(math.isfinite(answer.ttft_ms) for answer in answers)


@pytest.mark.peers
def test_a_real_server_fails_one_item_only(llama_server):
    """A prompt beyond the server's context is an error of that item, its neighbour is answered."""
    long = InferenceBatchRequest("word " * 2000, max_tokens=4)
    short = InferenceBatchRequest("Once upon a time", max_tokens=4)
    bad, good = llama_server.infer_batch([BatchItem("l", long), BatchItem("s", short)]).responses
    assert bad.data is None
    assert bad.error
    assert good.data is not None
    assert good.data.text
