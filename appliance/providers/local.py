"""A deployment of this box as an upstream: engine events in, OpenAI's answers out."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, aclosing
from functools import partial
from typing import Any, cast

import msgspec

from appliance import errors
from appliance.dialects import chat, completions, embeddings
from appliance.dialects.answer import StreamRenderer
from appliance.dialects.kinds import Request
from appliance.dialects.naming import told
from appliance.dialects.parameters import as_stop_list
from appliance.providers.upstream import Call, Capabilities, GeneratedStream, Readiness, told_by
from runtimes import engine as e

FEW_VECTORS = 32
"""More than these are written as JSON off the event loop."""

Lease = Callable[[Request, str], AbstractAsyncContextManager[e.Engine]]
"""The use of an engine for a request of a partition."""


class LocalUpstream:
    """Asks whatever replica `lease` hands out. `state` says whether there is one that is ready."""

    def __init__(
        self,
        deployment: str,
        lease: Lease,
        capabilities: Capabilities,
        state: Callable[[], Readiness],
        defaults: Mapping[str, float] | None = None,
    ) -> None:
        """`defaults`: values of request fields that the client did not send, such as temperature."""
        self._name = deployment
        self._lease = lease
        self._capabilities = capabilities
        self._state = state
        self._defaults = defaults or {}

    @property
    def name(self) -> str:
        return self._name

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    def readiness(self) -> Readiness:
        return self._state()

    def _completed(self, call: Call) -> Call:
        """The call with the model's own values for what the client left open.

        The makers' top_p goes with their temperature: a client that names its own means OpenAI's top_p of 1 with it.
        """
        missing = {name: value for name, value in self._defaults.items() if getattr(call.request, name) is None}
        if getattr(call.request, "temperature", None) is not None:
            missing.pop("top_p", None)
        if not missing:
            return call
        return msgspec.structs.replace(call, request=msgspec.structs.replace(call.request, **missing))

    async def whole(self, call: Call) -> bytes:
        try:
            async with self._lease(call.request, call.partition) as engine:
                if isinstance(call.request, embeddings.EmbeddingRequest):
                    return await _embed(engine, call, call.request)
                answer = call.whole_renderer()
                async with aclosing(_events(engine, self._completed(call))) as events:
                    async for batch in events:
                        answer.feed(batch)
                _check_complete(call)
                body = answer.body()
                call.response = told_by(answer)
                return body
        except e.EngineError as error:
            raise told(translate(error, self._name), call.kind.field_name) from error

    async def count(self, request: Request) -> int | None:
        """The prompt's tokens, by the model's own tokenizer and template; None where it cannot be asked."""
        if isinstance(request, embeddings.EmbeddingRequest):
            return None
        try:
            async with self._lease(request, "") as engine:
                asked = (
                    [chat_request(request, "")]
                    if isinstance(request, chat.ChatRequest)
                    else completion_requests(request, "")
                )
                return sum([await engine.count(e.CountRequest(each)) for each in asked])
        except e.EngineError as error:
            raise translate(error, self._name) from error

    async def stream(self, call: Call) -> GeneratedStream:
        renderer = call.renderer()
        pieces = self._pieces(call, renderer)
        try:
            first = await anext(pieces)
        except StopAsyncIteration:  # it had nothing to add to what others had said
            first = b""
        return GeneratedStream(first, pieces, renderer)

    async def _pieces(self, call: Call, answer: StreamRenderer) -> AsyncGenerator[bytes, None]:
        try:
            async with self._lease(call.request, call.partition) as engine:
                # All slots may be busy: how long others' answers take says nothing about this engine's health.
                call.queued()
                async with aclosing(_events(engine, self._completed(call))) as events:
                    async for batch in events:
                        if data := answer.feed(batch):
                            yield data
                _check_complete(call)
        except e.EngineError as error:
            raise told(translate(error, self._name), call.kind.field_name) from error


def _events(engine: e.Engine, call: Call) -> AsyncGenerator[list[e.Event], None]:
    if isinstance(call.request, chat.ChatRequest):
        return _single(engine, chat_request(call.request, call.partition), call)
    prompts = completion_requests(cast(completions.CompletionRequest, call.request), call.partition)
    if len(prompts) == 1:
        return _single(engine, prompts[0], call)
    return _several(engine, prompts, call)


async def _single(engine: e.Engine, request: e.GenerateRequest, call: Call) -> AsyncGenerator[list[e.Event], None]:
    """One request's events. Until the engine reports, what it has sent is counted as an estimate."""
    events = engine.generate(request)
    try:
        async for batch in events:
            if kept := _estimate(batch, call):
                if isinstance(kept[-1], e.Usage):
                    _believe(call)
                yield kept
    finally:
        await _close(events)


def _estimate(batch: list[e.Event], call: Call) -> list[e.Event]:
    """Counts what passes; gives the events that are more than a sign of life."""
    tally = call.tally
    for item in batch:
        if isinstance(item, e.Delta):
            tally.completion_tokens += 1
        elif isinstance(item, e.Finished):
            call.ended()
        elif isinstance(item, e.Working):
            call.alive()
            batch = [each for each in batch if not isinstance(each, e.Working)]
        elif isinstance(item, e.Started):
            tally.prompt_tokens += item.prompt_tokens
            if tally.source == "none":  # of several prompts, the first that runs
                tally.source = "estimated"
                call.started()
    return batch


def _believe(call: Call) -> None:
    """What an engine of ours counts is so, also where it is nothing: a prompt that is only repeated was not made."""
    call.tally.completion_tokens = 0


async def _close(events: AsyncIterator[list[e.Event]]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


async def _several(
    engine: e.Engine, requests: list[e.GenerateRequest], call: Call
) -> AsyncGenerator[list[e.Event], None]:
    """Several prompts side by side: their events with the choices renumbered, one `Usage` for all at the end."""
    arrived: asyncio.Queue[list[e.Event] | Exception | None] = asyncio.Queue(maxsize=64)
    usage = e.Usage(prompt_tokens=0)

    async def run(at: int, request: e.GenerateRequest) -> None:
        """Ends with None in the queue, or with what went wrong."""
        nonlocal usage
        outcome: Exception | None = None
        events = engine.generate(request)
        try:
            async for batch in events:
                shifted: list[e.Event] = []
                for item in _estimate(batch, call):
                    if isinstance(item, e.Usage):
                        usage = _sum(usage, item)
                    elif not isinstance(item, (e.Started, e.Working)):
                        shifted.append(msgspec.structs.replace(item, index=item.index + at * request.n))
                if shifted:
                    await arrived.put(shifted)
        except Exception as error:  # noqa: BLE001 - it is raised again where the events are read
            outcome = error
        finally:
            await _close(events)
        await arrived.put(outcome)

    tasks = [asyncio.create_task(run(i, request)) for i, request in enumerate(requests)]
    running = len(tasks)
    try:
        while running:
            item = await arrived.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
        _believe(call)
        yield [usage]
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _sum(a: e.Usage, b: e.Usage) -> e.Usage:
    return e.Usage(
        prompt_tokens=a.prompt_tokens + b.prompt_tokens,
        completion_tokens=a.completion_tokens + b.completion_tokens,
        cached_tokens=a.cached_tokens + b.cached_tokens,
        queue_s=max(a.queue_s, b.queue_s),
    )


async def _embed(engine: e.Engine, call: Call, request: embeddings.EmbeddingRequest) -> bytes:
    answer = await engine.embed(e.EmbedRequest(inputs=request.inputs()))
    call.tally.prompt_tokens = answer.prompt_tokens
    call.tally.source = "reported"
    as_base64 = request.encoding_format == "base64"
    render = partial(embeddings.render, call.model, answer.vectors, answer.prompt_tokens, as_base64=as_base64)
    return render() if len(answer.vectors) <= FEW_VECTORS else await asyncio.to_thread(render)


def chat_request(request: chat.ChatRequest, partition: str) -> e.GenerateRequest:
    """The engine's form of a canonical chat request."""
    logprobs = (request.top_logprobs or 0) if request.logprobs else None
    form = request.response_format
    choice = request.tool_choice
    return e.GenerateRequest(
        messages=[_for_template(msgspec.to_builtins(message)) for message in request.messages],
        tools=[{"type": tool.type, "function": msgspec.to_builtins(tool.function)} for tool in request.tools or ()],
        tool_choice="auto" if choice is None else msgspec.to_builtins(choice),
        parallel_tool_calls=request.parallel_tool_calls is not False,
        response_format=None if form is None or isinstance(form, chat.TextFormat) else msgspec.to_builtins(form),
        max_tokens=request.token_limit,
        stop=as_stop_list(request.stop),
        n=request.n or 1,
        sampling=_sampling(request),
        logprobs=logprobs,
        cache_partition=partition,
    )


def _for_template(message: dict[str, Any]) -> dict[str, Any]:
    """A message without what only other dialects know."""
    for name in ("reasoning_details", "is_error"):
        message.pop(name, None)
    if isinstance(message.get("content"), list):
        for part in message["content"]:
            part.pop("cache_control", None)
            part.pop("prompt_cache_breakpoint", None)
    return message


def completion_requests(request: completions.CompletionRequest, partition: str) -> list[e.GenerateRequest]:
    """The engine's form of a completion request: one a prompt."""
    sampling = _sampling(request)
    return [
        e.GenerateRequest(
            prompt=prompt,
            max_tokens=request.token_limit,
            stop=as_stop_list(request.stop),
            n=request.n or 1,
            sampling=sampling,
            logprobs=request.logprobs,
            echo=bool(request.echo),
            cache_partition=partition,
        )
        for prompt in request.prompts()
    ]


def _sampling(request: chat.ChatRequest | completions.CompletionRequest) -> e.Sampling:
    return e.Sampling(
        temperature=1.0 if request.temperature is None else request.temperature,
        top_p=1.0 if request.top_p is None else request.top_p,
        top_k=max(request.top_k or 0, 0),
        min_p=request.min_p or 0.0,
        presence_penalty=request.presence_penalty or 0.0,
        frequency_penalty=request.frequency_penalty or 0.0,
        repeat_penalty=1.0 if request.repetition_penalty is None else request.repetition_penalty,
        seed=request.seed,
        logit_bias={int(token): value for token, value in (request.logit_bias or {}).items()},
    )


def _check_complete(call: Call) -> None:
    """An engine that stops talking before every choice has ended has failed, whatever it said before."""
    reasons = call.tally.finish_reasons
    if len(reasons) < call.request.choices or "cancelled" in reasons.values() or call.tally.source != "reported":
        raise errors.EngineLost("The engine ended the answer before it was complete; try again.")


_SAME: dict[str, type[errors.OutpostError]] = {
    e.InvalidRequest.code: errors.BadRequest,
    e.Unsupported.code: errors.UnsupportedParameter,
    e.ContextLengthExceeded.code: errors.ContextLengthExceeded,
    e.EngineOverloaded.code: errors.Overloaded,
    e.EngineLost.code: errors.EngineLost,
}


def translate(error: e.EngineError, deployment: str) -> errors.OutpostError:
    """An engine's error in the gateway's tree."""
    kind = _SAME.get(error.code)
    if kind is None:
        return errors.UpstreamError(f"{deployment}: the engine failed; try again.")
    retry_after = error.retry_after_s if isinstance(error, e.EngineOverloaded) else None
    return kind(error.message, param=error.param, retry_after_s=retry_after)
