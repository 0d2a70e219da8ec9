"""The program that renders chat templates in a process of its own; `chat` starts it.

A template comes from a file that anyone can write. Jinja's sandbox keeps it from Python's
insides, this process keeps it from time and memory: the operating system ends it when one
text takes more than the computing time it is given, and refuses memory beyond a bound
(both where the system has them: not on Windows; macOS bounds time only).

Lines of JSON go in and out: `{"source", "special", "prompts", "cpu_s", "memory"}` gives a
line `{"text"}` or `{"error"}` for every prompt, a text or a list of messages. What a template
finds is what HF's `apply_chat_template` gives it: its `tojson`, `raise_exception`,
`strftime_now`, loop controls, `{% generation %}`, `tools` and `documents` (none).

Left out: tools. Imports nothing of the package: it must start fast.
"""

import json
import sys
from collections.abc import Callable
from datetime import datetime
from functools import lru_cache
from pathlib import Path

sys.path += sys.argv[1:]  # where Jinja is, since this runs isolated from the environment

import jinja2
from jinja2 import nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.sandbox import ImmutableSandboxedEnvironment

try:
    import resource
    import signal
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]


class Generation(Extension):
    """`{% generation %}` marks what the model said; for the text it does nothing."""

    tags = {"generation"}  # noqa: RUF012  (Jinja's own declaration)

    def parse(self, parser: Parser) -> nodes.Node:
        """The block's body, in a scope of its own as in HF."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_body"), [], [], body).set_lineno(line)

    def _body(self, caller: Callable[[], str]) -> str:
        return caller()


def tojson(
    x: object,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """HF's filter: keeps order and characters, and escapes nothing for HTML."""
    return json.dumps(
        x, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def raise_exception(message: str) -> str:
    """How a template refuses a conversation."""
    raise jinja2.TemplateError(message)


def strftime_now(form: str) -> str:
    """The local time, as the template wants it written."""
    return datetime.now().strftime(form)  # noqa: DTZ005  (HF's definition)


@lru_cache(maxsize=8)
def compiled(source: str) -> jinja2.Template:
    """A template, ready to render."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {"raise_exception": raise_exception, "strftime_now": strftime_now}
    return environment.from_string(source)


def answer(job: dict[str, object], messages: list[object], limit: int) -> dict[str, str]:
    """The text of a conversation in which the model is next."""
    try:
        template = compiled(str(job["source"]))
    except (jinja2.TemplateError, SyntaxError, ValueError) as error:
        return {"error": f"cannot be read: {error}"}
    except (RecursionError, MemoryError):
        return {"error": "cannot be read: it is nested too deeply, or too large"}
    try:
        variables = dict(job["special"])  # type: ignore[call-overload]
        variables |= {"messages": messages, "tools": None, "documents": None}
        size, parts = 0, []
        for part in template.generate(**variables, add_generation_prompt=True):
            parts.append(part)
            size += len(part)
            if size > limit:
                return {"error": f"failed: it writes more than {limit} characters"}
        return {"text": "".join(parts)}
    except RecursionError:
        return {"error": "failed: it calls itself too deeply"}
    except MemoryError:
        return {"error": "failed: it needs more memory than a template is given"}
    except Exception as error:  # noqa: BLE001  (whatever a template does, it is the template's)
        return {"error": f"failed: {error or type(error).__name__}"}


def bound_memory(more: int) -> None:
    """Refuse memory beyond what is held now and `more` bytes."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    try:
        pages = Path("/proc/self/statm").read_text(encoding="ascii").split()[0]
        held = int(pages) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (held + more, resource.RLIM_INFINITY))
    except (OSError, ValueError):
        pass  # no such count or bound here, or a lower one is set already


def main() -> None:
    """Answer jobs until there are no more."""
    out = sys.stdout.buffer
    out.write(b"ready\n")
    out.flush()
    bounded = False
    for line in sys.stdin.buffer:
        job = json.loads(line)
        if resource and not bounded:
            bound_memory(job["memory"])
            bounded = True
        for prompt in job["prompts"]:
            if resource:
                signal.setitimer(signal.ITIMER_PROF, job["cpu_s"])  # its signal ends the process
            messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
            size = sum(len(text) for message in messages for text in message.values())
            reply = answer(job, messages, job["characters"] + 8 * size)
            if resource:
                signal.setitimer(signal.ITIMER_PROF, 0)
            out.write(json.dumps(reply).encode() + b"\n")
            out.flush()


if __name__ == "__main__":
    main()
