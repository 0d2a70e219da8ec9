"""Chat templates: what HF's renderer offers, bounds on time, memory and output, bad templates."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import threading
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from tests.fuzzing import seeds

from batchgauge.core import chat
from batchgauge.core.chat import ChatTemplate
from batchgauge.errors import UserError

CHATML = (
    "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SMOLLM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n' }}{% endif %}"
    "{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}"
    "{% set content = '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    "+ message['content'] | trim + '<|eot_id|>' %}"
    "{% if loop.index0 == 0 %}{% set content = bos_token + content %}{% endif %}{{ content }}"
    "{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL = """{%- if messages[0]["role"] == "system" %}
    {%- set system_message = messages[0]["content"] %}
    {%- set loop_messages = messages[1:] %}
{%- else %}
    {%- set loop_messages = messages %}
{%- endif %}
{%- if not tools is defined %}
    {%- set tools = none %}
{%- endif %}
{%- set ns = namespace() %}
{%- set ns.index = 0 %}
{%- for message in loop_messages %}
    {%- if not (message.role == "tool" or (message.tool_calls is defined)) %}
        {%- if (message["role"] == "user") != (ns.index % 2 == 0) %}
            {{- raise_exception("roles must alternate") }}
        {%- endif %}
        {%- set ns.index = ns.index + 1 %}
    {%- endif %}
{%- endfor %}
{{- bos_token }}
{%- for message in loop_messages %}
    {%- if message["role"] == "user" %}
        {{- "[INST] " + message["content"] + "[/INST]" }}
    {%- elif message["role"] == "assistant" %}
        {% generation %}{{- " " + message["content"]|trim + eos_token}}{% endgeneration %}
    {%- endif %}
{%- endfor %}
"""
QWEN = """{%- if tools %}
    {{- '<|im_start|>system\\n' }}
{%- endif %}
{%- set ns = namespace(multi_step_tool=true, last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if ns.multi_step_tool and message.role == "user" and message.content is string %}
        {%- set ns.last_query_index = index %}
        {%- break %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = message.content %}
    {%- if '</think>' in content %}
        {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
    {%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
{%- endfor %}
{%- if enable_thinking is defined and enable_thinking is false %}
    {{- '<think>\\n\\n</think>\\n\\n' }}
{%- endif %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""
REAL = {
    "ChatML": CHATML,
    "SmolLM": SMOLLM,
    "Llama 3": LLAMA3,
    "Mistral": MISTRAL,
    "Qwen": QWEN,
    "json": "{{ messages | tojson }} {{ messages | tojson(indent=2) }}"
    "{{ {'b': '<é&>', 'a': 1} | tojson }}",
    "blocks": "  {% if true %}\n  yes\n  {% endif %}\nno{# gone #}\n",
    "loop": "{% for i in range(9) %}{% if i == 2 %}{% continue %}{% endif %}"
    "{% if i == 5 %}{% break %}{% endif %}{{ i }}{% endfor %}",
    "none": "{{ tools is none }} {{ documents is none }} {{ tools }} {{ pad_token is defined }}",
    "macro": "{% macro turn(m) %}<{{ m.role }}>{{ m.content }}{% endmacro %}"
    "{% for m in messages %}{{ turn(m) }}{% endfor %}",
    "dict": "{{ dict(a=1) }}{% for k, v in messages[0].items() %}{{ k }}={{ v }};{% endfor %}",
}
PROMPTS = ["hi", "", " Ünï \n <b>&amp;</b> '\"\\ {{ 1 }} {% raw %} 字🙂\u2028", "</think>\n\nx"]
SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def test_real_templates_give_these_texts():
    """The layouts of families of models, spelled out."""
    assert ChatTemplate(SMOLLM)("hi") == (
        "<|im_start|>system\nYou are a helpful AI assistant<|im_end|>\n"
        "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    )
    assert ChatTemplate(LLAMA3, {"bos_token": "<B>"})(" hi ") == (
        "<B><|start_header_id|>user<|end_header_id|>\n\nhi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    assert ChatTemplate(MISTRAL, SPECIAL)("hi") == "<s>[INST] hi[/INST]"
    assert ChatTemplate(QWEN)("hi") == "<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
    assert ChatTemplate(REAL["loop"])("hi") == "0134"
    assert ChatTemplate(REAL["blocks"])("hi") == "  yes\nno"
    assert ChatTemplate(REAL["none"])("hi") == "True True None False"
    assert ChatTemplate("{{ {'b': '<é&>', 'a': [1.0, none]}|tojson }}")("x") == (
        '{"b": "<é&>", "a": [1.0, null]}'
    )
    assert ChatTemplate("{% generation %}{% set x = 1 %}a{% endgeneration %}{{ x }}")("x") == "a"


def test_a_conversation_has_several_messages():
    """Roles and contents in their order; a prompt alone is what the user says."""
    said = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "Hello."},
        {"role": "user", "content": "Why?"},
    ]
    turns = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in said)
    assert ChatTemplate(SMOLLM)(said) == f"{turns}<|im_start|>assistant\n"
    assert ChatTemplate(CHATML).render([said[1:2], "hi"]) == [ChatTemplate(CHATML)("hi")] * 2
    refused = ChatTemplate(MISTRAL, SPECIAL).render([[said[1], said[1]]])[0]
    assert "roles must alternate" in str(refused)


@pytest.mark.peers
@pytest.mark.parametrize("name", REAL)
def test_texts_are_those_of_transformers(name):
    """HF's own renderer gives the same."""
    utilities = pytest.importorskip("transformers.utils.chat_template_utils")
    for prompt in PROMPTS:
        texts, _ = utilities.render_jinja_template(
            conversations=[[{"role": "user", "content": prompt}]],
            chat_template=REAL[name], add_generation_prompt=True, **SPECIAL,
        )  # fmt: skip
        assert ChatTemplate(REAL[name], SPECIAL)(prompt) == texts[0]


BOMBS = {
    "power": "{{ 9**(9**(9**9)) }}",
    "digits": "{{ 10**5000 }}",
    "repetition": "{{ 'a' * 10**10 }}",
    "list repetition": "{{ [1] * 10**10 }}",
    "width": "{{ '%1000000000d' % 1 }}",
    "format": "{{ '{:>10000000000}'.format(1) }}",
    "center": "{{ 'a' | center(10**10) }}",
    "indent": "{{ 'a\nb' | indent(10**10) }}",
    "bytes": "{{ (1).to_bytes(10**10, 'big') }}",
    "replace": "{{ ('a' * 10**6) | replace('a', 'b' * 10**6) }}",
    "join": "{{ range(99999) | join('a' * 10**6) }}",
    "range": "{{ range(10**9) | list }}",
    "nested ranges": "{% for a in range(99999) %}{% for b in range(99999) %}"
    "{% endfor %}{% endfor %}",
    "doubling": "{% set ns = namespace(x='ab') %}{% for i in range(60) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}{{ ns.x }}",
    "shared lists": "{% set ns = namespace(x=[1]) %}{% for i in range(60) %}"
    "{% set ns.x = [ns.x, ns.x] %}{% endfor %}{{ ns.x | tojson }}",
    "lipsum": "{{ lipsum(10**9) }}",
    "macro": "{% macro m(x) %}{{ m(x) }}{% endmacro %}{{ m(1) }}",
    "recursive loop": "{% for x in [1] recursive %}{{ loop([1]) }}{% endfor %}",
    "brackets": "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
    "ifs": "{% if 1 %}" * 5000 + "{% endif %}" * 5000,
    "long output": "{% for i in range(99999) %}{{ 'x' * 1000 }}{% endfor %}",
    "long source": "x" * (chat.MAX_SOURCE + 1),
    "include": "{% include 'a' %}",
    "import": "{% import 'a' as b %}",
    "extends": "{% extends 'a' %}",
    "division": "{{ 1 / 0 }}",
    "undefined": "{{ a.b.c }}",
    "syntax": "{% for %}",
    "back door": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "append": "{{ messages.append(1) }}",
    "regex": "{{ ('a' * 100000) | urlize }}{{ ('<' * 100000) | striptags }}{{ 1 / 0 }}",
    "sort": "{{ [1, 'a'] | sort }}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_bad_template_is_one_sentence_in_bounded_time(name, monkeypatch):
    """Powers, repetition, widths, nesting and the rest: a UserError, and soon."""
    monkeypatch.setattr(chat, "MAX_CPU_S", 0.2)
    template = ChatTemplate(BOMBS[name])
    begin = monotonic()
    with pytest.raises(UserError) as said:
        template("hi")
    assert monotonic() - begin < 20  # about half a second where nothing else runs
    text = str(said.value)
    assert text.startswith("The model's chat template ")
    assert text.endswith(".")
    assert "\n" not in text
    assert "Traceback" not in text
    assert ChatTemplate(CHATML)("hi").startswith("<|im_start|>user\nhi")


def test_memory_stays_within_its_bound():
    """The process that renders never holds more than it is given."""
    if not sys.platform.startswith("linux"):
        pytest.skip("only Linux bounds a process's memory")
    for bomb in ("{{ 'a' * 10**10 }}", BOMBS["doubling"], BOMBS["replace"]):
        with pytest.raises(UserError, match="memory"):
            ChatTemplate(bomb)("x")
    process = chat._renderer._process
    assert process is not None
    status = Path(f"/proc/{process.pid}/status").read_text(encoding="ascii").splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    assert peak * 1024 < chat.MAX_MEMORY + (72 << 20)


def test_a_bomb_for_one_prompt_fails_that_prompt_only(monkeypatch):
    """What takes too long for one text is no reason to refuse another."""
    monkeypatch.setattr(chat, "MAX_CPU_S", 0.2)
    template = ChatTemplate(
        "{% if messages[0].content == 'bad' %}{% for a in range(99999) %}"
        "{% for b in range(99999) %}{% endfor %}{% endfor %}{% endif %}{{ messages[0].content }}"
    )
    answers = template.render(["a", "bad", "b"])
    assert answers[0] == "a"
    assert isinstance(answers[1], UserError)
    assert answers[2] == "b"
    hopeless = ChatTemplate(BOMBS["lipsum"])
    assert all(isinstance(answer, UserError) for answer in hopeless.render(["a"] * 50))
    begin = monotonic()
    assert all(isinstance(answer, UserError) for answer in hopeless.render(["a"] * 50))
    assert monotonic() - begin < chat.MAX_CPU_S, "tried once, not again"


def test_a_killed_renderer_is_started_again():
    """Whoever ends the process costs nobody an answer."""
    template = ChatTemplate(CHATML)
    text = template("hi")
    process = chat._renderer._process
    assert process is not None
    process.kill()
    process.wait()
    assert template("hi") == text


def test_templates_from_many_threads_and_after_a_fork():
    """Threads share the process; a forked child gets one of its own."""
    template = ChatTemplate("{{ messages[0].content }}")
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda n=n: found.append(template(f"prompt {n}")))
        for n in range(20)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(found) == sorted(f"prompt {n}" for n in range(20))
    if hasattr(os, "fork"):
        program = (
            "import os\n"
            "from batchgauge.core.chat import ChatTemplate\n"
            "t = ChatTemplate('{{ messages[0].content }}')\n"
            "assert t('a') == 'a'\n"
            "child = os.fork()\n"
            "if not child:\n"
            "    os._exit(0 if t('b') == 'b' else 1)\n"
            "assert os.waitpid(child, 0)[1] == 0\n"
            "print(t('c'))\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, timeout=60
        )
        assert done.stdout == "c\n", done.stderr


def from_file(**more: Any) -> Any:
    """The template of a file with these keys, `__` for the dot after `chat_template`."""
    tokens = {"tokenizer.ggml.tokens": ["<s>", "</s>", "a"], "tokenizer.ggml.bos_token_id": 0}
    named = {f"tokenizer.{key.replace('__', '.')}": value for key, value in more.items()}
    return ChatTemplate.from_metadata(tokens | named)


def test_named_templates():
    """The nameless one or `default` counts; without either the names are said, when asked."""
    both = {"chat_template": "{{ bos_token }}A", "chat_template__tool_use": "B"}
    assert from_file(**both, chat_templates=["tool_use"])("x") == "<s>A"
    assert from_file(chat_template__default="D")("x") == "D"
    neither = from_file(chat_template__rag="R", chat_template__tools="T")
    with pytest.raises(UserError, match="named rag, tools; expected one"):
        neither("x")
    assert from_file() is None
    with pytest.raises(UserError, match="of type list; expected text"):
        from_file(chat_template=["a"])("x")


PIECES = [
    "{{", "}}", "{%", "%}", "for i in range(99999)", "endfor", "if", "endif", "else", "set x =",
    "x", "x ~ x", "'a' *", "10**9", "messages", "[0]", ".content", "| join('a'*9999)", "| list",
    "macro m(x)", "endmacro", "m(x)", "loop(x)", "recursive", "namespace(x=1)", "ns.x", "((", "))",
    "| tojson", "| indent(10**9)", "| center(99999999)", "lipsum(10**6)", "'%99999999d' %", "**",
    "raise_exception('no')", "strftime_now('%Y')", "generation", "endgeneration", "break",
    "__class__", "-", "\n", "{#", "#}", "{% for i in range(99999) %}", "{% endfor %}", "{{ x }}",
    "{% set x = [x, x] %}", "{% set x = x ~ 'ab' ~ x %}", "{{ messages[0]['content'] }}", "é\ud800",
]  # fmt: skip


def random_template(rng):
    """Pieces in any order, or a real one with some of its text changed, cut or doubled."""
    if rng.random() < 0.5:
        return " ".join(rng.choices(PIECES, k=rng.randrange(1, 25)))
    text = rng.choice(list(REAL.values()) + list(BOMBS.values()))[:4000]
    for _ in range(rng.randrange(1, 6)):
        at, to = sorted(rng.randrange(len(text) + 1) for _ in range(2))
        text = rng.choice(
            [
                text[:at] + rng.choice(PIECES) + text[at:],
                text[:at] + text[to:],
                text[:to] + text[at:to] * rng.randrange(1, 9) + text[to:],
                text[:at] + chr(rng.randrange(0x300)) + text[at:],
            ]
        )[:20000]
    return text


@pytest.mark.fuzz
def test_any_template_is_a_text_or_one_sentence():
    """Random programs end as text or as a UserError, within the bounds."""
    for seed in seeds("templates"):
        rng = random.Random(seed)
        source, prompt = random_template(rng), rng.choice(PROMPTS)
        begin = monotonic()
        (answer,) = ChatTemplate(source, SPECIAL).render([prompt])
        assert monotonic() - begin < 25, f"seed {seed}"
        if isinstance(answer, UserError):
            text = str(answer)
            assert text.startswith("The model's chat template "), f"seed {seed}: {text}"
            assert text.endswith("."), f"seed {seed}: {text}"
            assert "\n" not in text, f"seed {seed}: {text}"
        else:
            assert len(answer) <= chat.MAX_TEXT + 8 * len(prompt), f"seed {seed}"
