"""The engine process: loads one model and serves it on a Unix socket.

    python -m runtimes.llamacpp.server LAUNCH_SETTINGS_AS_JSON

Two threads: asyncio does sockets, templates, tokenising and grammars; the loop thread computes. The
process ends on SIGTERM, at the end of its lifeline, and with an error when the loop thread fails.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import msgspec
import numpy as np

from runtimes.catalogue.errors import CatalogueError
from runtimes.catalogue.facts import read_facts
from runtimes.catalogue.gguf import read_header
from runtimes.engine import (
    ContextLengthExceeded,
    CountRequest,
    Delta,
    Embeddings,
    EmbedRequest,
    EngineError,
    EngineStatus,
    Event,
    Finished,
    GenerateRequest,
    InvalidRequest,
    Started,
    Unsupported,
    Usage,
)
from runtimes.llamacpp import wire
from runtimes.llamacpp.bounds import check_fits, check_prompt, check_request, check_room, check_size
from runtimes.llamacpp.constraints import build_tokenizer
from runtimes.llamacpp.embed import EmbedJob, EmbedLoop, Frame, frame, sequences_for
from runtimes.llamacpp.launch import LaunchSettings
from runtimes.llamacpp.loop import DecodeLoop, Delivery
from runtimes.llamacpp.machine import Compute
from runtimes.llamacpp.native import Native, NativeSettings
from runtimes.llamacpp.plan import ModelTraits, TextPlan, TextSide
from runtimes.llamacpp.work import Job

log = logging.getLogger("engine")

LARGE_TEXT = 16_384
"""Texts longer than this are tokenised off the event loop."""

Send = Callable[[wire.Reply], None]


@dataclass(frozen=True)
class Route:
    """Whom the replies to a request go to, and by which number the client knows it."""

    connection: int
    client_id: int
    send: Send


class Service:
    """What the socket offers, over whichever loop the model's task needs."""

    def __init__(self, settings: LaunchSettings, native: Native, text: TextSide | None) -> None:
        self._settings = settings
        self._native = native
        self._text = text
        self._loop = asyncio.get_running_loop()
        self._routes: dict[int, Route] = {}
        self._by_client: dict[tuple[int, int], int] = {}
        self._next = 0
        self._in_hand: dict[int, int] = {}
        """Choices of each admitted request that have not ended; 1 for an embedding. Kept here and not asked of the
        loop, since a burst arrives before any of it has reached the loop."""
        self._preparing: dict[int, asyncio.Task[None]] = {}
        self.decode: DecodeLoop | None = None
        self.embed: EmbedLoop | None = None
        if settings.task == "embed":
            self.embed = EmbedLoop(native, self._embedded)
            self._frame = _frame_of(native)
        else:
            self._longest_piece = native.longest_piece()
            compute = Compute(native.settings.threads)
            self.decode = DecodeLoop(
                native, self._deliver, clock=time.monotonic, compute=compute, max_prefill=settings.prefill_chunk
            )

    # --- calls from a connection ----------------------------------------------------------------

    def call(self, connection: int, message: wire.Call, send: Send) -> None:
        """Take one call; its replies go to `send`, now or later."""
        if isinstance(message, wire.Cancel):
            self._cancel(connection, message.id)
            return
        if isinstance(message, wire.Status):
            send(wire.State(message.id, self.status()))
            return
        self._next += 1
        number = self._next
        self._routes[number] = Route(connection, message.id, send)
        self._by_client[connection, message.id] = number
        task = self._loop.create_task(self._prepare(number, message))
        self._preparing[number] = task
        task.add_done_callback(lambda _: self._preparing.pop(number, None))

    def hang_up(self, connection: int) -> None:
        """A client has gone: cancel all that it had asked for."""
        for owner, request_id in [key for key in self._by_client if key[0] == connection]:
            self._cancel(owner, request_id)

    def _cancel(self, connection: int, request_id: int) -> None:
        number = self._by_client.get((connection, request_id))
        if number is None:
            return
        self._forget(number)
        task = self._preparing.get(number)
        if task is not None:
            task.cancel()
        (self.decode or self.embed).cancel(number)  # type: ignore[union-attr]

    def _forget(self, number: int) -> None:
        self._in_hand.pop(number, None)
        route = self._routes.pop(number, None)
        if route is not None:
            self._by_client.pop((route.connection, route.client_id), None)

    def status(self) -> EngineStatus:
        """The state of this process now."""
        decode, embed = self.decode, self.embed
        counters = decode.counters if decode else None
        return EngineStatus(
            model=self._settings.name,
            task=self._settings.task,
            context_length=self._native.context_length,
            slots=self._native.settings.sequences,
            busy=decode.busy if decode else 0,
            waiting=decode.waiting if decode else 0,
            tokens_generated=counters.generated if counters else 0,
            tokens_prefilled=counters.prefilled if counters else (embed.tokens if embed else 0),
            tokens_reused=counters.reused if counters else 0,
            steps=counters.steps if counters else (embed.steps if embed else 0),
            # A text's embedding is computed in one piece, whatever its length: that says nothing about hanging.
            computing_s=self._native.computing_s() if decode else 0.0,
            open_requests=len(self._routes),
            descriptors=sum(1 for _ in Path("/proc/self/fd").iterdir()),
            native_tools=self._text.native_tools if self._text else False,
        )

    # --- preparing ------------------------------------------------------------------------------

    async def _prepare(self, number: int, message: wire.Generate | wire.Embed | wire.Count) -> None:
        try:
            if isinstance(message, wire.Generate):
                await self._generate(number, message.request)
            elif isinstance(message, wire.Embed):
                await self._start_embedding(number, message.request)
            else:
                await self._count(number, message.request)
        except EngineError as error:
            self._fail(number, error)
        except Exception:
            log.exception("request %d could not be prepared", number)
            self._fail(number, EngineError("the engine failed on this request; its log says why"))

    async def _generate(self, number: int, request: GenerateRequest) -> None:
        arrived = time.monotonic()
        if self.decode is None:
            raise Unsupported(f"{self._settings.name} makes embeddings, not text", param="model")
        check_request(request, n_vocab=self._native.n_vocab)
        slots, max_waiting = self._native.settings.sequences, self._settings.max_waiting
        check_fits(request.n, slots=slots, max_waiting=max_waiting)
        self._admit(number, request.n, slots)
        plan, tokens = await self._plan(request)
        check_prompt(len(tokens), self._native.context_length, "messages" if request.messages else "prompt")
        seed = request.sampling.seed
        first: list[Event] = [Started(len(tokens))]
        if request.echo:
            text = request.prompt if isinstance(request.prompt, str) else self._text_of(tokens)
            first.extend(Delta(index, text) for index in range(request.n))
        self.decode.submit(
            Job(
                id=number,
                request=request,
                prompt=np.array(tokens, dtype=np.int32),
                plan=plan,
                seed=secrets.randbits(31) if seed is None else seed,
                arrived=arrived,
                first=first,
            )
        )

    def _text_of(self, tokens: list[int]) -> str:
        return b"".join(map(self._native.piece, tokens)).decode("utf-8", "replace")

    def _admit(self, number: int, n: int, slots: int) -> None:
        """Count a request among those in hand, until it is forgotten. Raises EngineOverloaded."""
        in_hand = sum(self._in_hand.values())
        check_room(n, in_hand=in_hand, slots=slots, max_waiting=self._settings.max_waiting)
        self._in_hand[number] = n

    async def _plan(self, request: GenerateRequest, *, prompt_only: bool = False) -> tuple[TextPlan, list[int]]:
        if self._text is None:
            raise Unsupported(f"{self._settings.name} makes embeddings, not text", param="model")
        plan = await self._text.plan(request, prompt_only=prompt_only)
        if plan.tokens is not None:
            for position, token in enumerate(plan.tokens):
                if not 0 <= token < self._native.n_vocab:
                    raise InvalidRequest(
                        f"prompt[{position}]: token id {token} is outside the vocabulary "
                        f"(0 … {self._native.n_vocab - 1})",
                        param="prompt",
                    )
        size = sum(len(segment.text) for segment in plan.segments)
        check_size(size, self._longest_piece, self._native.context_length, "messages" if request.messages else "prompt")
        if size > LARGE_TEXT:
            tokens = await asyncio.to_thread(plan.tokenize, self._native.tokenize)
        else:
            tokens = plan.tokenize(self._native.tokenize)
        if not tokens:
            # The native library cannot continue nothing; a model without BOS has no neutral beginning.
            tokens = [self._native.bos if self._native.bos >= 0 else self._native.eos]
        return plan, tokens

    async def _count(self, number: int, request: CountRequest) -> None:
        _, tokens = await self._plan(request.request, prompt_only=True)
        self._answer(number, lambda client_id: wire.Counted(client_id, len(tokens)))

    async def _start_embedding(self, number: int, request: EmbedRequest) -> None:
        if self.embed is None:
            raise Unsupported(f"{self._settings.name} makes text, not embeddings", param="model")
        if not request.inputs:
            raise InvalidRequest("input holds no text", param="input")
        # Its requests share batches and have no slots; one counts as running, so that one is always taken.
        self._admit(number, 1, slots=1)
        self.embed.submit(EmbedJob(number, await self._texts(request)))

    async def _texts(self, request: EmbedRequest) -> list[list[int]]:
        """The token ids of each input. Raises InvalidRequest, ContextLengthExceeded."""
        inputs: list[list[int]] = []
        for index, item in enumerate(request.inputs):
            if isinstance(item, str):
                tokens = self._native.tokenize(item.encode(), False, True)
                if index % 64 == 63:
                    await asyncio.sleep(0)  # let others in between
            else:
                tokens = self._given(item, f"input[{index}]")
            if len(tokens) > self._native.context_length:
                raise ContextLengthExceeded(
                    f"input[{index}] has {len(tokens)} tokens; this model reads at most {self._native.context_length}. "
                    "Split the text.",
                    param="input",
                )
            inputs.append(tokens)
        return inputs

    def _given(self, tokens: list[int], where: str) -> list[int]:
        """A caller's token ids as the model reads a text: with the special tokens around it."""
        if not tokens:
            raise InvalidRequest(f"{where} is empty", param="input")
        for token in tokens:
            if not 0 <= token < self._native.n_vocab:
                raise InvalidRequest(
                    f"{where}: token id {token} is outside the vocabulary (0 … {self._native.n_vocab - 1}). Token ids "
                    "must come from this model's own tokenizer; send the text instead "
                    "(LangChain: check_embedding_ctx_length=False)",
                    param="input",
                )
        return self._frame.around(tokens)

    # --- replies --------------------------------------------------------------------------------

    def _deliver(self, delivery: Delivery) -> None:
        self._loop.call_soon_threadsafe(self._dispatch, delivery)

    def _dispatch(self, delivery: Delivery) -> None:
        batches: dict[int, tuple[Send, list[tuple[int, list[Event]]]]] = {}
        for number, outcome in delivery:
            if isinstance(outcome, EngineError):
                self._fail(number, outcome)
                continue
            route = self._routes.get(number)
            if route is None:
                continue
            batches.setdefault(route.connection, (route.send, []))[1].append((route.client_id, outcome))
            if isinstance(outcome[-1], Usage):
                self._forget(number)
            elif self._in_hand.get(number, 0) > 1:  # of a single choice nothing but the usage follows its end
                self._in_hand[number] -= sum(isinstance(event, Finished) for event in outcome)
        for send, items in batches.values():
            send(wire.Events(items))

    def _embedded(self, number: int, result: Embeddings | EngineError) -> None:
        def deliver() -> None:
            if isinstance(result, EngineError):
                self._fail(number, result)
            else:
                self._answer(number, lambda client_id: wire.Embedded(client_id, result))

        self._loop.call_soon_threadsafe(deliver)

    def _answer(self, number: int, build: Callable[[int], wire.Reply]) -> None:
        route = self._routes.get(number)
        self._forget(number)
        if route is not None:
            route.send(build(route.client_id))

    def _fail(self, number: int, error: EngineError) -> None:
        self._answer(number, lambda client_id: wire.failure(client_id, error))


class Connection(asyncio.Protocol):
    """One client on the socket."""

    _count = 0

    def __init__(self, service: Service) -> None:
        self._service = service
        self._frames = wire.Frames()
        Connection._count += 1
        self._number = Connection._count
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass of it

    def send(self, reply: wire.Reply) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(wire.frame(reply))

    def data_received(self, data: bytes) -> None:
        try:
            for body in self._frames.feed(data):
                self._service.call(self._number, wire.call_decoder.decode(body), self.send)
        except (wire.FrameError, msgspec.MsgspecError) as error:
            log.error("closing a connection that breaks the protocol: %s", error)
            if self._transport is not None:
                self._transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        self._service.hang_up(self._number)


def _frame_of(native: Native) -> Frame:
    return frame(native.tokenize(b"a", False), native.tokenize(b"a", False, True))


def _embedding_sequences(settings: LaunchSettings) -> int:
    # Read from the header, since the native library tells only when it has reserved the memory.
    try:
        facts = read_facts(read_header(Path(settings.model_path)), settings.name)
    except (CatalogueError, OSError) as error:
        raise EngineError(f"{settings.model_path} cannot be read: {error}") from error
    return sequences_for(settings.context, facts.kv_bytes_per_token)


def _load(settings: LaunchSettings) -> Native:
    threads = settings.threads or len(os.sched_getaffinity(0))
    embed = settings.task == "embed"
    return Native(
        NativeSettings(
            path=settings.model_path,
            context=settings.context,
            sequences=_embedding_sequences(settings) if embed else settings.slots,
            # A text is read in one piece, so a batch must hold the longest one.
            batch=max(settings.context, 512) if embed else max(settings.prefill_chunk, settings.slots),
            threads=threads,
            gpu_layers=settings.gpu_layers,
            flash_attention=settings.flash_attention,
            embeddings=embed,
        )
    )


async def _text_side(settings: LaunchSettings, native: Native) -> TextSide:
    def text_of(token: int) -> str:
        return native.token_text(token) if token >= 0 else ""

    traits = ModelTraits(
        name=settings.name,
        template=native.chat_template(),
        special_tokens=native.special_tokens(),
        bos_text=text_of(native.bos),
        eos_text=text_of(native.eos),
        add_bos=native.add_bos,
        default_system=settings.default_system,
    )
    tokenizer = await asyncio.to_thread(build_tokenizer, native.vocab_pointer, sorted(native.eog))
    text = TextSide(traits, tokenizer, native.n_vocab)
    await text.start()
    return text


async def serve(settings: LaunchSettings) -> int:
    """Load, listen, run until told to stop. Returns the exit status."""
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def end(status: int) -> None:
        if not stop.done():
            stop.set_result(status)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, end, 0)
    began = time.monotonic()
    log.info("loading %s", settings.model_path)
    native = await asyncio.to_thread(_load, settings)
    text = None if settings.task == "embed" else await _text_side(settings, native)
    service = Service(settings, native, text)
    worker = service.decode or service.embed
    assert worker is not None

    def compute() -> None:
        try:
            worker.run()
        except BaseException:
            log.exception("the compute loop failed")
            loop.call_soon_threadsafe(end, 70)

    thread = threading.Thread(target=compute, name="compute", daemon=True)
    thread.start()
    path = Path(settings.socket)
    path.unlink(missing_ok=True)
    server = await loop.create_unix_server(lambda: Connection(service), str(path))
    path.chmod(0o600)
    log.info(
        "ready after %.1f s: %d slots of %d tokens, %d threads",
        time.monotonic() - began,
        native.settings.sequences,
        native.context_length,
        native.settings.threads,
    )
    status: int = await stop
    server.close()
    worker.close()
    await asyncio.to_thread(thread.join, 5.0)
    if text is not None:
        await text.close()
    path.unlink(missing_ok=True)
    return status


def main() -> None:
    """Entry point of the engine process."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    settings = msgspec.json.decode(sys.argv[1], type=LaunchSettings)
    try:
        status = asyncio.run(serve(settings))
    except EngineError as error:
        log.error("%s", error.message)
        status = 1
    # The native library's own threads may still run; nothing is left that is worth waiting for.
    logging.shutdown()
    os._exit(status)


if __name__ == "__main__":
    main()
