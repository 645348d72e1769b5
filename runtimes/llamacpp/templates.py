"""A model's chat template: rendering it safely, and finding out what it can do.

The template runs in `template_worker` (a child process, see there). Its input is data that a caller wrote;
`injection` keeps that data from turning into control tokens.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from runtimes.engine import EngineError, InvalidRequest
from runtimes.llamacpp.injection import ControlStrings, Protection, Segment, neutral
from runtimes.llamacpp.worker import Worker, WorkerBroken, WorkerDied

MAX_OUTPUT = 4 << 20
WORKER_MEMORY = 512 << 20
RENDER_TIMEOUT_S = 1.0
START_TIMEOUT_S = 15.0
WORKER_SCRIPT = Path(__file__).with_name("template_worker.py")


class TemplateInfo(msgspec.Struct, frozen=True):
    """What a template showed when it was tried out."""

    system: bool
    """It accepts a system message and shows it."""
    alternates: bool
    """It insists on user and assistant taking turns."""
    tools: bool
    """It shows the tools that it is given."""
    tool_history: bool
    """It shows earlier calls and their results."""
    arguments_as_text: bool
    """In history it wants a call's arguments as JSON text, not as an object."""


class TemplateUnusable(EngineError):
    """The template does not compile, or cannot render even the simplest chat."""


class TemplateRenderer:
    """One chat template in its own process. Renders one prompt at a time; callers queue up."""

    def __init__(
        self,
        template: str,
        *,
        variables: dict[str, Any] | None = None,
        control: ControlStrings | None = None,
        now: Callable[[], float] = time.time,
        nonce: Callable[[], str] = lambda: f"{secrets.randbelow(10**28):028d}",
        timeout_s: float = RENDER_TIMEOUT_S,
        max_output: int = MAX_OUTPUT,
        memory: int = WORKER_MEMORY,
    ) -> None:
        """`variables` are always defined (bos_token, eos_token …); `control` are the vocabulary's control strings."""
        self._variables = variables or {}
        self._control = control or ControlStrings([])
        self._now = now
        self._nonce = nonce
        # CPU time is for the case that nobody is left to look at the clock, so it is larger.
        setup = {"template": template, "max_output": max_output, "memory": memory, "cpu_s": timeout_s + 1.0}
        self._worker = Worker(WORKER_SCRIPT, setup, timeout_s=timeout_s, start_timeout_s=START_TIMEOUT_S)
        self.info = TemplateInfo(
            system=True, alternates=False, tools=False, tool_history=False, arguments_as_text=False
        )

    @property
    def worker_starts(self) -> int:
        """How often a child was started (more than once: templates had to be killed)."""
        return self._worker.starts

    async def start(self) -> None:
        """Start the child and probe the template. Raises TemplateUnusable."""
        try:
            await self._worker.start()
        except WorkerBroken as error:
            raise TemplateUnusable(f"the model's chat template cannot be used: {error.message}") from None
        except WorkerDied as error:
            raise TemplateUnusable(f"the model's chat template cannot be compiled: {error.message}") from None
        self.info = await probe(self)

    async def close(self) -> None:
        await self._worker.close()

    async def render(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> str:
        """The prompt as the template writes it. Raises InvalidRequest when the template refuses or fails."""
        call = {
            **self._variables,
            **variables,
            "messages": messages,
            "add_generation_prompt": add_generation_prompt,
            "now": self._now(),
        }
        # Templates ask `tools is defined` or `if tools`; an absent name and None serve both.
        if tools:
            call["tools"] = tools
        try:
            answer = await self._worker.call(call)
        except WorkerDied as error:
            raise InvalidRequest(
                f"the model's chat template could not render these messages: {error.message}", param="messages"
            ) from None
        except (ValueError, TypeError):
            raise InvalidRequest("a message holds text that is no valid Unicode", param="messages") from None
        if "ok" in answer:
            return str(answer["ok"])
        if "refused" in answer:
            raise InvalidRequest(f"the model's chat template refused: {answer['refused']}", param="messages")
        raise InvalidRequest(
            f"the model's chat template could not render these messages: {answer['failed']}", param="messages"
        )

    async def render_segments(
        self,
        messages: list[dict[str, Any]],
        tools: list[dict[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        **variables: Any,
    ) -> list[Segment]:
        """The prompt in segments; control strings that a caller wrote stand in untrusted ones."""
        protection = Protection(self._control, self._nonce())
        covered = protection.cover({"messages": messages, "tools": tools or []})
        text = await self.render(covered["messages"], covered["tools"], add_generation_prompt, **variables)
        segments = protection.split(text)
        if segments is not None:
            return segments
        plain = neutral({"messages": messages, "tools": tools or []}, self._control)
        text = await self.render(plain["messages"], plain["tools"], add_generation_prompt, **variables)
        return [Segment(text)] if text else []


# --- probing ------------------------------------------------------------------------------------

_MARKS = ("zq1system", "zq2user", "zq3tool", "zq4result", "zq5city")
_TOOL = {
    "type": "function",
    "function": {
        "name": _MARKS[2],
        "description": "Probe.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string", "description": "Probe."}}},
    },
}


def _user(text: str = _MARKS[1]) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _history(arguments: Any) -> list[dict[str, Any]]:
    call = {"id": "call00001", "type": "function", "function": {"name": _MARKS[2], "arguments": arguments}}
    return [
        _user(),
        {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "name": _MARKS[2], "content": _MARKS[3]},
    ]


async def probe(renderer: TemplateRenderer) -> TemplateInfo:
    """Try the template out with chats of known content. Raises TemplateUnusable."""

    async def attempt(messages: list[dict[str, Any]], tools: list[dict[str, Any]] | None = None) -> str:
        try:
            return await renderer.render(messages, tools)
        except InvalidRequest:
            return ""

    try:
        plain = await renderer.render([_user()])
    except InvalidRequest as error:
        raise TemplateUnusable(f"the model's chat template cannot render a simple chat: {error.message}") from None
    if _MARKS[1] not in plain:
        raise TemplateUnusable("the model's chat template does not show the user's message")
    system = await attempt([{"role": "system", "content": _MARKS[0]}, _user()])
    twice = await attempt([_user(), _user("again")])
    tools = await attempt([_user()], [_TOOL])
    as_object = await attempt(_history({"city": _MARKS[4]}), [_TOOL])
    as_text = await attempt(_history(json.dumps({"city": _MARKS[4]})), [_TOOL])

    def shows_history(text: str) -> bool:
        return all(mark in text for mark in (_MARKS[2], _MARKS[3], _MARKS[4]))

    # An object that was printed the Python way, or JSON text that was quoted once more, is the wrong form.
    object_fits = shows_history(as_object) and f"'{_MARKS[4]}'" not in as_object
    text_fits = shows_history(as_text) and f'\\"{_MARKS[4]}' not in as_text
    return TemplateInfo(
        system=_MARKS[0] in system and _MARKS[1] in system,
        alternates=twice == "",
        tools=_MARKS[2] in tools,
        tool_history=_MARKS[2] in tools and (object_fits or text_fits),
        arguments_as_text=text_fits and not object_fits,
    )
