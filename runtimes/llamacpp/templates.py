"""A model's chat template: rendering it safely, and finding out what it can do.

The template runs in `template_worker` (a child process, see there). Its input is data that a caller wrote;
`injection` keeps that data from turning into control tokens.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from runtimes.engine import ContextLengthExceeded, EngineError, EngineOverloaded, InvalidRequest
from runtimes.llamacpp.injection import ControlStrings, Protection, Segment, measure, neutral
from runtimes.llamacpp.worker import ChildLost, Worker, WorkerBroken, WorkerDied

MAX_OUTPUT = 4 << 20
"""Characters of a rendered prompt, and so of what it is rendered from."""
MAX_DEPTH = 100
"""Levels of nesting in messages and tools: what follows is recursive, here and in the child."""
LARGE = 1 << 16
"""Characters from which on the search for control strings runs off the event loop."""
WORKER_MEMORY = 512 << 20
RENDER_TIMEOUT_S = 1.0
"""Seconds of processor time for one prompt."""
PATIENCE_S = 4.0
"""Seconds that a child may take beyond its processor time, since others may be using the processors."""
START_TIMEOUT_S = 15.0
WORKER_SCRIPT = Path(__file__).with_name("template_worker.py")
LOST = (
    "the chat template could not be rendered now: its process is late, was killed or could not be started; "
    "try again soon"
)


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
    late_system: bool = False
    """It shows a system message that comes later in the chat, and where it stands."""


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
        patience_s: float = PATIENCE_S,
        max_output: int = MAX_OUTPUT,
        memory: int = WORKER_MEMORY,
    ) -> None:
        """`variables` are always defined (bos_token, eos_token …); `control` are the vocabulary's control strings."""
        self._variables = variables or {}
        self._control = control or ControlStrings([])
        self._now = now
        self._nonce = nonce
        self._max_output = max_output
        # The child gives up by itself after `timeout_s` of processor time. The kernel's limit is for what does not let
        # it, and the clock here, which others' load runs down too, for what uses no processor time at all.
        limits = {"max_output": max_output, "memory": memory, "render_s": timeout_s, "cpu_s": timeout_s + 0.5}
        self._worker = Worker(
            WORKER_SCRIPT,
            {"template": template, **limits},
            timeout_s=timeout_s + patience_s,
            start_timeout_s=START_TIMEOUT_S,
        )
        self.info = TemplateInfo(
            system=True, alternates=False, tools=False, tool_history=False, arguments_as_text=False
        )

    @property
    def worker_starts(self) -> int:
        """How often a child was started (more than once: templates had to be killed)."""
        return self._worker.starts

    async def start(self) -> None:
        """Start the child and probe the template. Raises TemplateUnusable, and EngineOverloaded as `render` does."""
        try:
            await self._worker.start()
        except ChildLost:
            raise EngineOverloaded(LOST) from None
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
        """The prompt as the template writes it.

        Raises InvalidRequest when the template refuses or fails, EngineOverloaded when its process is lost.
        """
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
        except ChildLost:
            raise EngineOverloaded(LOST) from None
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
        """The prompt in segments; control strings that a caller wrote stand in untrusted ones.

        Raises what `render` raises, and ContextLengthExceeded for more text than can be rendered.
        """
        given = {"messages": messages, "tools": tools or []}
        size = check_size(given, self._max_output)

        async def apart(work: Callable[..., Any], *args: Any) -> Any:
            return await asyncio.to_thread(work, *args) if size > LARGE else work(*args)

        protection = Protection(self._control, self._nonce())
        covered = await apart(protection.cover, given)
        text = await self.render(covered["messages"], covered["tools"], add_generation_prompt, **variables)
        segments: list[Segment] | None = await apart(protection.split, text)
        if segments is not None:
            return segments
        plain = await apart(neutral, given, self._control)
        text = await self.render(plain["messages"], plain["tools"], add_generation_prompt, **variables)
        return [Segment(text)] if text else []


def check_size(given: dict[str, Any], most: int) -> int:
    """The size of messages and tools in characters, before anything else looks at them.

    Raises ContextLengthExceeded for more than `most`, InvalidRequest for data that is nested too deeply.
    """
    total = 0
    for field, value in given.items():
        size, depth = measure(value, most)
        total += size
        if total > most:
            raise ContextLengthExceeded(
                f"This model reads at most {most} characters of messages and tools, and here are more. "
                "Shorten the prompt.",
                param=field,
            )
        if depth > MAX_DEPTH:
            what = "the `function.arguments` of a tool call in `messages`" if field == "messages" else f"`{field}`"
            raise InvalidRequest(f"{what} are nested deeper than {MAX_DEPTH} levels; make them flatter", param=field)
    return total


# --- probing ------------------------------------------------------------------------------------

_MARKS = ("zq1system", "zq2user", "zq3tool", "zq4result", "zq5city", "zq6late", "zq7answer", "zq8again")
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


def _late(role: str) -> list[dict[str, Any]]:
    return [
        {"role": "system", "content": _MARKS[0]},
        _user(),
        {"role": "assistant", "content": _MARKS[6]},
        {"role": role, "content": _MARKS[5]},
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
    at_the_end = await attempt(_late("system"))
    between = await attempt([*_late("system"), _user(_MARKS[7])])
    as_others = [await attempt([*_late(role), _user(_MARKS[7])]) for role in ("user", "assistant")]

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
        # A template that knows no such message may show it in place, but as somebody else's.
        late_system=_in_order(at_the_end, (0, 1, 6, 5))
        and _in_order(between, (0, 1, 6, 5, 7))
        and between not in as_others,
    )


def _in_order(text: str, marks: tuple[int, ...]) -> bool:
    """Whether each of these marks is shown once, one after the other."""
    places = [text.find(_MARKS[mark]) for mark in marks]
    return min(places) >= 0 and places == sorted(places) and all(text.count(_MARKS[mark]) == 1 for mark in marks)
