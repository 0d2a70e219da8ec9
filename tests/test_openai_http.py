"""The HTTP engine against a tiny server that misbehaves, and against a real one."""

from __future__ import annotations

import importlib.util
import math
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytest.importorskip("httpx")

from tests.tiny_model import write_tiny_model
from tests.tiny_openai_server import TinyServer, tiny_server

from batchgauge.adapters.float32_file import float32_copy
from batchgauge.adapters.openai_http import OpenAIEngine, Patience
from batchgauge.core.default_model import default_model_path
from batchgauge.core.gguf_file import GGUFFile
from batchgauge.errors import UserError
from batchgauge.protocols import Engine
from batchgauge.registry import open_engine
from batchgauge.request import BatchItem, InferenceBatchRequest

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
            return OpenAIEngine(url, patience=Patience(connect=1.0, attempts=1))
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
