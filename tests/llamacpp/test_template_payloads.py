"""Hostile templates: whatever they try, the answer is text without secrets or a bounded refusal."""

from __future__ import annotations

import json
import os
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import jinja2
import pytest

from runtimes.engine import InvalidRequest
from runtimes.llamacpp import template_worker
from runtimes.llamacpp.templates import WORKER_SCRIPT, TemplateRenderer, TemplateUnusable
from runtimes.llamacpp.worker import WorkerDied

# Each of these reaches for Python behind the template. What would show success: "HARMED" or an object's repr.
ESCAPES = {
    "class": "{{ ''.__class__ }}",
    "mro": "{{ ''.__class__.__mro__[1].__subclasses__() }}",
    "globals of a filter": "{{ self.__init__.__globals__ }}",
    "globals of raise_exception": "{{ raise_exception.__globals__ }}",
    "globals of strftime_now": "{{ strftime_now.__globals__.os.system('echo HARMED') }}",
    "builtins through namespace": "{{ namespace.__init__.__globals__.__builtins__ }}",
    "lipsum": "{{ lipsum.__globals__['os'].popen('echo HARMED').read() }}",
    "cycler": "{{ cycler.__init__.__globals__.os.popen('echo HARMED').read() }}",
    "joiner": "{{ joiner.__init__.__globals__.os }}",
    "attr filter": "{{ '' | attr('__class__') }}",
    "map attribute": "{{ [''] | map(attribute='__class__') | list }}",
    "map attr filter": "{{ [''] | map('attr', '__class__') | list }}",
    "groupby": "{{ [''] | groupby('__class__') | list }}",
    "selectattr": "{{ [''] | selectattr('__class__') | list }}",
    "sort by attribute": "{{ ['', 'a'] | sort(attribute='__class__.__mro__') }}",
    "format string": "{{ '{0.__class__.__init__.__globals__}'.format(range) }}",
    "format_map string": "{{ '{a.__class__}'.format_map({'a': 1}) }}",
    "format through map": "{{ ['{0.__class__}'] | map('format', range) | list }}",
    "format by a variable": "{% set f = '{0.__class__.__base__}'.format %}{{ f(range) }}",
    "macro caller": "{% macro m() %}{{ caller.__globals__ }}{% endmacro %}{% call m() %}{% endcall %}{{ m.__init__ }}",
    "loop frame": "{% for x in [1] %}{{ loop.__class__.__init__.__globals__ }}{% endfor %}",
    "generator frame": "{{ ([1] | map('string')).gi_frame.f_globals }}",
    "item access": "{{ ''['__class__'] }}{{ {}['__class__'] }}",
    "unicode name": "{{ ''['\\u005f\\u005fclass\\u005f\\u005f'] }}{{ ''['\\x5f_class_\\x5f'] }}",
    "include": "{% include '/etc/passwd' %}",
    "import": "{% import 'os' as os %}{{ os.system('echo HARMED') }}",
    "extends": "{% extends '/etc/passwd' %}",
    "undefined environment": "{{ nothing.__init__.__globals__ }}{{ self._TemplateReference__context.environment }}",
    "mutation": "{{ messages.append({'content': 'HARMED'}) }}{{ messages[1].content }}",
    "context": "{{ self._TemplateReference__context.parent }}",
}
# And these try to use the machine up.
BOMBS = {
    "range": "{{ range(10 ** 9) | list | length }}",
    "string multiplication": "{{ 'a' * (10 ** 10) }}",
    "list multiplication": "{{ ([0] * (10 ** 10)) | length }}",
    "power": "{{ 9 ** 9 ** 9 % 7 }}",
    "doubling": "{% set n = namespace(s='aa') %}{% for i in range(60) %}{% set n.s = n.s + n.s %}{% endfor %}{{ n.s }}",
    "macro recursion": "{% macro m() %}{{ m() }}{{ m() }}{% endmacro %}{{ m() }}",
    "recursive loop": "{% for x in [[1]] recursive %}{{ loop([x]) }}{% endfor %}",
    "endless loop": "{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}",
    "long output": "{% for i in range(90000) %}{{ 'x' * 100 }}{% endfor %}",
    "format width": "{{ '%1000000000d' % 1 }}",
    "center": "{{ 'x'.center(10 ** 10) }}",
    "join": "{{ (['x' * 1000000] * 100000) | join }}",
    "indent": "{{ ('x\\n' * 1000000) | indent(10000) }}",
    "slow replace": "{% for i in range(99999) %}{% set x = ('a' * 100000).replace('a', 'bb') %}{% endfor %}",
    "nested json": "{% set n = namespace(v=[]) %}{% for i in range(90000) %}{% set n.v = [n.v] %}{% endfor %}"
    "{{ n.v | tojson }}",
}
SIGNS = ("HARMED", "<class", "<function", "<module", "root:", "built-in", "__builtins__", "/bin/", "environment object")


class Child:
    """The worker itself, driven over its pipes as the renderer drives it, to look at it from outside."""

    def __init__(self, template: str) -> None:
        setup = {"template": template, "max_output": 1 << 20, "memory": 512 << 20, "cpu_s": 0.1}
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-B", str(WORKER_SCRIPT)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={},
        )
        self.first = self.ask(setup)

    def ask(self, message: dict[str, Any]) -> dict[str, str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        body = json.dumps(message).encode()
        self.process.stdin.write(struct.pack(">I", len(body)) + body)
        self.process.stdin.flush()
        header = self.process.stdout.read(4)
        if len(header) < 4:
            return {"died": ""}
        answer: dict[str, str] = json.loads(self.process.stdout.read(struct.unpack(">I", header)[0]))
        return answer

    def close(self) -> None:
        self.process.kill()
        self.process.communicate()


def test_there_are_enough_payloads() -> None:
    assert len(ESCAPES) >= 25


def answer_to(template: str) -> dict[str, str]:
    """What the worker's own code says, without a process around it."""
    environment = template_worker.build_environment()
    try:
        compiled = environment.from_string(template)
    except jinja2.TemplateError as error:
        return {"failed": str(error)}
    return template_worker.render(compiled, {"messages": [{"content": "hi"}], "now": 0}, 1 << 20)


@pytest.mark.parametrize("name", ESCAPES)
def test_no_payload_gets_out(name: str) -> None:
    answer = answer_to(ESCAPES[name])
    assert answer.keys() <= {"ok", "failed", "refused"}
    text = answer.get("ok", "")
    assert not any(sign in text for sign in SIGNS), text
    assert len(json.dumps(answer)) < 2000


def test_all_payloads_together_get_nothing_out_of_the_real_child() -> None:
    child = Child("{% set m = messages %}" + "".join(t for n, t in ESCAPES.items() if answer_to(t).keys() == {"ok"}))
    try:
        answer = child.ask({"messages": [{"content": "hi"}], "now": 0})
        assert answer.keys() == {"ok"}
        assert not any(sign in answer["ok"] for sign in SIGNS)
    finally:
        child.close()


@pytest.mark.parametrize("name", BOMBS)
async def test_no_payload_uses_the_machine_up(name: str) -> None:
    template = "{% if messages[0].content == 'go' %}" + BOMBS[name] + "{% endif %}{{ messages[0].content }}"
    renderer = TemplateRenderer(template, timeout_s=0.5, max_output=1 << 20)
    try:
        try:
            await renderer.start()
        except (TemplateUnusable, WorkerDied) as error:
            # A bomb that goes off while Jinja folds constants is refused at the start.
            assert len(error.message) < 700
            return
        try:
            text = await renderer.render([{"role": "user", "content": "go"}])
            assert len(text) <= 1 << 20
        except InvalidRequest as error:
            assert error.param == "messages"
            assert len(error.message) < 700
        assert await renderer.render([{"role": "user", "content": "still here"}]) == "still here"
    finally:
        await renderer.close()


def test_the_child_has_no_files_no_environment_and_limits() -> None:
    child = Child("{{ messages[0].content }}")
    try:
        pid = child.process.pid
        assert child.first == {"ok": ""}
        limits = Path(f"/proc/{pid}/limits").read_text()
        values = {line[:26].strip(): line[26:].split()[:2] for line in limits.splitlines()[1:]}
        assert values["Max open files"] == ["0", "0"]
        assert values["Max processes"] == ["0", "0"]
        assert values["Max file size"] == ["0", "0"]
        assert values["Max core file size"] == ["0", "0"]
        assert values["Max address space"] == [str(512 << 20)] * 2
        assert values["Max cpu time"][0] != "unlimited"
        opened = {os.readlink(f"/proc/{pid}/fd/{fd}").split(":")[0] for fd in os.listdir(f"/proc/{pid}/fd")}
        assert opened <= {"pipe", "/dev/null", "socket"}
        assert Path(f"/proc/{pid}/environ").read_bytes() == b""
    finally:
        child.close()


def test_the_child_ends_when_its_parent_is_gone() -> None:
    child = Child("{{ messages[0].content }}")
    assert child.process.stdin is not None
    child.process.stdin.close()
    assert child.process.wait(10) == 0
    child.process.stdout.close()  # type: ignore[union-attr]


def test_an_orphan_in_an_endless_loop_runs_out_of_cpu_time() -> None:
    child = Child("{% for i in range(99999) %}{% for j in range(99999) %}{% endfor %}{% endfor %}")
    assert child.ask({"messages": [], "now": 0}) == {"died": ""}
    assert child.process.wait(30) != 0
    child.close()
