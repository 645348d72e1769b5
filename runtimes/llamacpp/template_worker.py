"""The child process that renders one chat template, and nothing else.

A template comes out of a model file, so it is a program by a stranger. It runs in Jinja's immutable
sandbox, in a process without files, with little memory and a CPU limit; the parent keeps the clock
and kills the process when it is late. A prompt that takes more than `render_s` of CPU time is given up here, so that
the parent can tell a template that is slow from a machine that is busy; `cpu_s`, which the kernel enforces, is for code
that does not let itself be interrupted. Started by path with `python -I`, so it imports nothing of ours.

Protocol: 4 bytes big-endian length, then JSON, both ways. The first message is
{"template", "max_output", "memory", "cpu_s"} and perhaps "render_s"; each later one is the template's variables plus
"now" (Unix seconds for strftime_now). Answers: {"ok": text} | {"refused": text} | {"failed": text}.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import resource
import signal
import struct
import sys
import time
from collections.abc import Callable
from typing import Any, BinaryIO

import jinja2
import jinja2.ext
import jinja2.nodes
import jinja2.parser
import jinja2.sandbox

MAX_MESSAGE = 500


class Refused(Exception):
    """The template itself said no (raise_exception)."""


class TooLong(Exception):
    """The output passed its cap."""


class TooSlow(BaseException):
    """The rendering has used up its CPU time. No `except Exception` on the way may take it."""


class GenerationBlock(jinja2.ext.Extension):
    """{% generation %} … {% endgeneration %} marks the assistant's part for training; here it only renders."""

    tags = {"generation"}

    def parse(self, parser: jinja2.parser.Parser) -> jinja2.nodes.Node | list[jinja2.nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def raise_exception(message: Any) -> None:
    raise Refused(str(message)[:MAX_MESSAGE])


def tojson(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    """As the model authors' tooling does it: no HTML escaping, which would put \\u003c into prompts."""
    separators = options.get("separators")
    return json.dumps(
        value,
        ensure_ascii=bool(ensure_ascii),
        indent=indent,
        separators=tuple(separators) if separators else None,
        sort_keys=bool(options.get("sort_keys", False)),
    )


def build_environment() -> jinja2.sandbox.ImmutableSandboxedEnvironment:
    environment = jinja2.sandbox.ImmutableSandboxedEnvironment(
        trim_blocks=True,
        lstrip_blocks=True,
        extensions=[jinja2.ext.loopcontrols, GenerationBlock],
        # Folding constants would set a bomb off while the template is compiled, under the longer clock of the start.
        optimized=False,
    )
    for name in ("lipsum", "cycler", "joiner"):
        del environment.globals[name]
    environment.globals["raise_exception"] = raise_exception
    environment.filters["tojson"] = tojson
    # `attr` reaches any attribute by a computed name; chat templates have no need of it.
    del environment.filters["attr"]
    return environment


def render(template: jinja2.Template, variables: dict[str, Any], max_output: int) -> dict[str, str]:
    now = time.gmtime(float(variables.pop("now", 0.0)))
    parts: list[str] = []
    size = 0
    try:
        for part in template.generate(**variables, strftime_now=lambda form: time.strftime(str(form), now)):
            size += len(part)
            if size > max_output:
                raise TooLong
            parts.append(part)
        return {"ok": "".join(parts)}
    except Refused as error:
        return {"refused": str(error)}
    except TooLong:
        return {"failed": f"the rendered prompt is longer than {max_output} characters"}
    except MemoryError:
        return {"failed": "the template needs more memory than it may have"}
    except RecursionError:
        return {"failed": "the template recurses too deeply"}
    except Exception as error:  # noqa: BLE001 – whatever a stranger's program raises is an answer, not a crash
        return {"failed": f"{type(error).__name__}: {error}"[:MAX_MESSAGE]}


def ring(signum: int, frame: object) -> None:
    raise TooSlow


def within(seconds: float, work: Callable[[], dict[str, str]]) -> dict[str, str]:
    """The answer that `work` gives, or one that says that it used more than this much CPU time. 0 = no limit."""
    try:
        # It rings again and again, since what is raised while an object is taken down is lost.
        signal.setitimer(signal.ITIMER_PROF, seconds, 0.1)
        try:
            return work()
        finally:
            signal.setitimer(signal.ITIMER_PROF, 0)
    except TooSlow:
        signal.setitimer(signal.ITIMER_PROF, 0)
        return {"failed": f"it took longer than {seconds:g} s"}


def limit(memory: int) -> None:
    """No new files or processes, no core dumps, bounded memory. Pipes that are open stay usable."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def warm_up(environment: jinja2.sandbox.ImmutableSandboxedEnvironment) -> None:
    """Make Python and Jinja import what they import late (codecs, error rewriting) while files can be opened."""
    working = "{% set n = namespace(a='\\n') %}{{ [n.a, 'x'|upper]|tojson|trim }}{{ '%s'|format(1)|e }}{{ [2,1]|sort }}"
    render(environment.from_string(working), {}, MAX_MESSAGE)
    render(environment.from_string("{{ a.b.c }}"), {"now": 0.0}, MAX_MESSAGE)
    with contextlib.suppress(jinja2.TemplateSyntaxError):
        environment.from_string("{% broken")


def allow_cpu(seconds: float) -> None:
    """Let this process use `seconds` more CPU; the kernel ends it after that, even if the parent is gone."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def read_message(stream: BinaryIO) -> Any | None:
    header = stream.read(4)
    if len(header) < 4:
        return None
    (size,) = struct.unpack(">I", header)
    body = stream.read(size)
    return json.loads(body) if len(body) == size else None


def write_message(stream: BinaryIO, answer: dict[str, str]) -> None:
    # Templates may cut a surrogate pair's escape in two; such halves cannot travel as UTF-8.
    body = json.dumps(answer, ensure_ascii=True).encode("ascii")
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = read_message(source)
    if setup is None:
        return
    environment = build_environment()
    warm_up(environment)
    limit(int(setup["memory"]))
    allow_cpu(float(setup["cpu_s"]))
    try:
        template = environment.from_string(setup["template"])
    except Exception as error:  # noqa: BLE001 – a stranger's program again: say why it cannot be used
        write_message(sink, {"failed": f"{type(error).__name__}: {error}"[:MAX_MESSAGE]})
        return
    render_s = float(setup.get("render_s", 0.0))
    signal.signal(signal.SIGPROF, ring)
    write_message(sink, {"ok": ""})
    while (variables := read_message(source)) is not None:
        allow_cpu(float(setup["cpu_s"]))
        answer = within(render_s, functools.partial(render, template, variables, int(setup["max_output"])))
        write_message(sink, answer)


if __name__ == "__main__":
    main()
