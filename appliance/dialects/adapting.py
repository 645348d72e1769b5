"""Between what a target says and the client's renderer: what was asked for and the target had no notion of. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from appliance.dialects.custom_tools import Inputs, first_calls
from appliance.dialects.tools import customs
from appliance.errors import OutpostError
from runtimes.engine import Event

R = TypeVar("R")
Step = Callable[[Sequence[Event]], list[Event]]


def adapted(renderer: R, request: Any) -> R:
    """The renderer for the answer to a canonical request; the very one where there is nothing to do."""
    tools = getattr(request, "tools", None)
    if not tools:
        return renderer
    steps: list[Step] = []
    if request.parallel_tool_calls is False:
        steps.append(first_calls)
    if names := customs(tools):
        steps.append(Inputs(names).read)
    return _Adapted(renderer, steps) if steps else renderer  # type: ignore[return-value]  # it has all that R has


class _Adapted:
    """A renderer of either kind, behind some steps."""

    __slots__ = ("_renderer", "_steps")

    def __init__(self, renderer: Any, steps: Sequence[Step]) -> None:
        self._renderer = renderer
        self._steps = steps

    def feed(self, events: Sequence[Event]) -> Any:
        for step in self._steps:
            events = step(events)
        return self._renderer.feed(events)

    def end(self) -> bytes:
        ended: bytes = self._renderer.end()
        return ended

    def fail(self, error: OutpostError) -> bytes:
        failed: bytes = self._renderer.fail(error)
        return failed

    def body(self) -> bytes:
        body: bytes = self._renderer.body()
        return body

    def response(self) -> Any:
        """See appliance.providers.upstream.told_by."""
        response = getattr(self._renderer, "response", None)
        return None if response is None else response()
