"""Responses that are kept: what an exchange of /v1/responses asks for before it begins, and leaves when it has ended.

`begin` puts the earlier conversation in front of a request, `admitted` lets one in the background go on without its
caller, `finish` stores what was answered. The doors read, delete and cancel through the same object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol, TypeVar

import msgspec

from appliance.dialects.answer import Frame
from appliance.dialects.asked import Asked
from appliance.dialects.responses import compact, listing, request, resource
from appliance.dialects.responses.compact import CompactRequest
from appliance.dialects.responses.request import ResponsesRequest
from appliance.dialects.tally import Tally, WireUsage
from appliance.dialects.wire import encode
from appliance.errors import (
    BadRequest,
    BodyTooLarge,
    InternalError,
    NotFound,
    OutpostError,
    Overloaded,
    RateLimited,
    UnsupportedParameter,
    UpstreamFailed,
)
from appliance.identity.principal import Principal
from appliance.records.subject_keys import Random, SubjectKey
from appliance.responses.reach import demanded, noted
from appliance.responses.sealing import open_text, seal_text
from appliance.responses.store import LIVE, MOST_BYTES, MOST_TURNS, Chain, Owner, ResponseStore, Stored, Turn, owner_of
from appliance.routing.residency import Demand, Residency
from appliance.routing.strategies import Zone
from appliance.settings.recording import Records

MOST_RUNNING = 1000
"""Responses that may be worked on in the background at a time."""
MOST_OF_ONE = 100
"""The same, of one owner: so that one who asks for many leaves places to the others."""
PREFIX = "resp_"
"""Before an exchange's id: the response's."""

_GOES_ON = ("completed", "incomplete")
"""The states of a response that can be gone on from."""
_RESTARTED = "The gateway was stopped while it worked on this response; ask again."

FEW_ITEMS = 250
"""More of a conversation are read off the event loop: a thousand take 20 ms."""
_SMALL = 64 * 1024
"""The same of bytes that are stored, of which nobody knows yet how many items they are."""

T = TypeVar("T")

Item = dict[str, Any]
Order = Literal["asc", "desc"]


class Prepared(msgspec.Struct):
    """One request under way. asked: with the earlier conversation in front; what the exchange goes on with."""

    id: str
    owner: Owner
    asked: Asked
    created: int
    """Unix seconds."""
    team: str | None = None
    stored: bool = False
    background: bool = False
    previous_id: str | None = None
    own: bytes = b""
    """The items of the request itself, as JSON; empty where nothing is stored."""
    route: str = ""
    begun: bool = False
    """It is stored as one that is being worked on."""
    compacting: _Compacting | None = None
    zones: Sequence[Zone] | None = None
    """Those that the credential is limited to; None = all."""
    demands: Sequence[Demand] = ()
    """Where the data must stay by what it goes on from."""
    reach: str | None = None
    """How far its data may go, as it is kept; known once it is admitted."""

    def answer(self, body: bytes) -> bytes:
        """A whole answer as the caller gets it. Raises UpstreamFailed for a summary that says nothing."""
        return body if self.compacting is None else self.compacting.answer(self, body)


class _Compacting(msgspec.Struct):
    """asked: with the whole conversation that is summed up. seal: makes a summary, given with its reach, unreadable for
    all but its owner."""

    asked: ResponsesRequest
    seal: Callable[[str, str], str]

    def answer(self, prepared: Prepared, body: bytes) -> bytes:
        """The target's answer (of the chat dialect) as a compacted conversation."""
        said = msgspec.json.decode(body, type=_Said)
        choice = said.choices[0]
        if not choice.message.content or choice.finish_reason == "length":
            raise UpstreamFailed("The model gave no whole summary of the conversation; try again, or another model.")
        tally = Tally()
        if said.usage is not None:
            tally.take(said.usage)
        reach, summary = prepared.reach, choice.message.content
        assert reach is not None  # it was admitted
        made = compact.compact_answer(
            prepared.id, prepared.created, self.asked, summary, tally, lambda text: self.seal(text, reach)
        )
        return encode(made)


class _Message(msgspec.Struct):
    content: str | None = None


class _Choice(msgspec.Struct):
    message: _Message
    finish_reason: str | None = None


class _Said(msgspec.Struct):
    """What matters of a chat completion."""

    choices: list[_Choice]
    usage: WireUsage | None = None


class ResponseKeeper(Protocol):
    """What an exchange and the doors need of it; see `Responses`. `begin` raises 4xx errors that name the field, and
    RecordsUnavailable."""

    async def begin(self, principal: Principal, asked: Asked, row_id: str) -> Prepared:
        """At the end of parsing: the request with what it goes on from."""
        ...

    async def admitted(self, prepared: Prepared, route: str, within: Sequence[Residency]) -> None:
        """Behind the limits: the work begins. One in the background is stored, and its caller has its answer. within:
        what is demanded of each target that may be tried."""
        ...

    async def finish(
        self, prepared: Prepared, response: Mapping[str, Any] | None, error: OutpostError | None = None
    ) -> asyncio.Future[bool] | None:
        """At the record: the final response on its way to the disk, or the error in its place. The future is done once
        it is durable, or raises RecordsUnavailable; None where there is nothing to keep."""
        ...

    def expect(self, row_id: str) -> asyncio.Future[bytes]: ...
    def forget(self, row_id: str) -> None: ...
    async def get(self, principal: Principal, id: str, include: Sequence[str] = ()) -> bytes: ...
    async def items(
        self, principal: Principal, id: str, *, after: str | None, limit: int, order: Order, include: Sequence[str] = ()
    ) -> bytes: ...
    async def delete(self, principal: Principal, id: str) -> bytes: ...
    async def cancel(self, principal: Principal, id: str) -> bytes: ...


class Responses:
    """See ResponseKeeper. `change` the settings at a reload."""

    def __init__(self, store: ResponseStore, settings: Records, random: Random) -> None:
        self._store = store
        self._random = random
        self._expected: dict[str, asyncio.Future[bytes]] = {}
        self._running: dict[str, asyncio.Task[Any]] = {}
        self._running_of: dict[Owner, int] = {}
        self.change(settings)

    def change(self, settings: Records) -> None:
        """Go by these from now on."""
        self._keeps = settings.store_responses
        self._store.kept_s = settings.retention.responses

    async def recover(self) -> int:
        """Once, at the start: what the last process has left unfinished has failed. Gives how many."""
        return await self._store.fail_unfinished()

    # --- for the exchange -------------------------------------------------------------------------------

    async def begin(self, principal: Principal, asked: Asked, row_id: str) -> Prepared:
        native, owner, now = asked.native, owner_of(principal), int(self._store.clock())
        if isinstance(native, CompactRequest):
            prepared = await self._compaction(owner, native, row_id, now)
            prepared.zones = principal.restrictions.zones
            return prepared
        assert isinstance(native, ResponsesRequest)
        stored = self._stores(native)
        if native.background and native.stream:
            raise UnsupportedParameter(
                "stream: a response in the background is not streamed here; leave stream out and ask for it by its id.",
                param="stream",
            )
        prepared = Prepared(
            PREFIX + row_id,
            owner,
            asked,
            now,
            team=principal.team,
            stored=stored,
            background=stored and bool(native.background),
            previous_id=native.previous_response_id,
            zones=principal.restrictions.zones,
        )
        if stored:
            own = native  # what the request itself brings
            prepared.own = await _read(len(own.items()), lambda: encode(listing.items_of(own, prepared.id)))
            if len(prepared.own) > MOST_BYTES:
                raise BodyTooLarge(
                    f"input: is more than the {MOST_BYTES} bytes that are stored; send store: false.", param="input"
                )
        if stored != native.stored:
            native = msgspec.structs.replace(native, store=stored)
            prepared.asked = asked._replace(native=native)
        if native.pending:
            native, canonical, prepared.demands = await self._resolved(owner, native, request.canonical)
            prepared.asked = Asked(canonical, native)
        return prepared

    async def admitted(self, prepared: Prepared, route: str, within: Sequence[Residency]) -> None:
        prepared.route = route
        prepared.reach = noted(within, prepared.zones, prepared.demands)
        if not prepared.background:
            return
        self._take_place(prepared)
        id = prepared.id
        queued = encode(self._blank(prepared, "queued"))
        await (await self._store.add(self._row(prepared, "queued"), prepared.own, queued))
        prepared.begun = True
        told = self._expected.get(id)
        if told is not None and not told.done():
            told.set_result(encode(resource.public(msgspec.json.decode(queued), prepared.asked.native.include)))

    async def finish(
        self, prepared: Prepared, response: Mapping[str, Any] | None, error: OutpostError | None = None
    ) -> asyncio.Future[bool] | None:
        if not prepared.stored:
            return None
        if prepared.begun:
            if response is None:
                blank = self._blank(prepared, "in_progress")
                response = resource.failed(blank, error or InternalError(_RESTARTED))
            return await self._store.settle(self._row(prepared, "queued"), str(response["status"]), encode(response))
        if response is None or prepared.background:
            return None
        return await self._store.add(self._row(prepared, str(response["status"])), prepared.own, encode(response))

    # --- for the doors ----------------------------------------------------------------------------------

    def expect(self, row_id: str) -> asyncio.Future[bytes]:
        """Gives the first answer of an exchange that goes on in the background, as soon as it does. `forget` it."""
        told = self._expected[PREFIX + row_id] = asyncio.get_running_loop().create_future()
        return told

    def forget(self, row_id: str) -> None:
        del self._expected[PREFIX + row_id]

    async def get(self, principal: Principal, id: str, include: Sequence[str] = ()) -> bytes:
        """The response as JSON. Raises NotFound."""
        turn = await self._store.read(id, owner_of(principal))
        if turn is None:
            raise _not_found(id)
        return encode(resource.public(self._present(turn), include))

    async def items(
        self, principal: Principal, id: str, *, after: str | None, limit: int, order: Order, include: Sequence[str] = ()
    ) -> bytes:
        """A page of what a response was made from, as JSON: the earlier conversation, and its own input. Raises
        NotFound, BadRequest."""
        chain = await self._store.chain(id, owner_of(principal))
        if chain.too_large:
            raise BadRequest(f"{id} is of a conversation that is too long to be listed.")
        if not chain.turns:
            raise _not_found(id)
        if chain.missing is not None:
            raise NotFound(
                f"There is no response {chain.missing!a}, which {id} goes on from; it is deleted or too old by now, "
                "so not all items can be listed.",
                param="id",
                code="previous_response_not_found",
            )

        def page() -> bytes:
            items = _decoded(chain.turns, whole=False)
            if resource.ENCRYPTED not in include:
                items = [resource.public_item(item) for item in items]
            return encode(listing.page(items, after=after, limit=limit, order=order))

        return page() if _size(chain.turns) <= _SMALL else await asyncio.to_thread(page)

    async def delete(self, principal: Principal, id: str) -> bytes:
        """Raises NotFound."""
        if not await self._store.delete(id, owner_of(principal), principal.actor):
            raise _not_found(id)
        if (task := self._running.get(id)) is not None:
            task.cancel()
        return encode({"id": id, "object": "response", "deleted": True})

    async def cancel(self, principal: Principal, id: str) -> bytes:
        """End a response in the background; gives it as it then is, as JSON. Raises NotFound, BadRequest."""
        stored = await self._store.find(id, owner_of(principal))
        if stored is None:
            raise _not_found(id)
        if not stored.background:
            raise BadRequest(f"{id} is not worked on in the background; only such a response can be cancelled.")
        if stored.status in LIVE and await (await self._store.settle(stored, "cancelled")):
            task = self._running.get(id)
            if task is not None:
                # As if its caller had left: the target's work ends, and what it has done is on record.
                task.cancel()
        return await self.get(principal, id)

    # --- places in the background -----------------------------------------------------------------------

    def _take_place(self, prepared: Prepared) -> None:
        """For as long as the exchange lasts. Raises RateLimited, Overloaded."""
        id, owner, task = prepared.id, prepared.owner, asyncio.current_task()
        assert task is not None
        if (own := self._running_of.get(owner, 0)) >= MOST_OF_ONE:
            raise RateLimited(
                f"background: {own} responses of yours are worked on in the background already, and no more may be at "
                "a time; wait until one is done, or cancel one.",
                param="background",
                retry_after_s=5.0,
            )
        if len(self._running) >= MOST_RUNNING:
            raise Overloaded(
                f"{MOST_RUNNING} responses are worked on in the background already; try again.", retry_after_s=5.0
            )
        self._running[id], self._running_of[owner] = task, own + 1
        task.add_done_callback(lambda _: self._leave_place(id, owner))

    def _leave_place(self, id: str, owner: Owner) -> None:
        del self._running[id]
        self._running_of[owner] -= 1
        if not self._running_of[owner]:
            del self._running_of[owner]

    # --- the pieces -------------------------------------------------------------------------------------

    def _stores(self, native: ResponsesRequest) -> bool:
        """Whether the response is kept. Raises BadRequest where it has to be, and must not."""
        if self._keeps:
            return native.stored
        for field, asked in (
            ("store", native.store is True),
            ("background", bool(native.background)),
            ("previous_response_id", native.previous_response_id is not None),
        ):
            if asked:
                raise UnsupportedParameter(
                    f"{field}: this gateway stores no responses (records.store_responses); send all items, and "
                    "store: false.",
                    param=field,
                )
        return False

    async def _resolved(
        self, owner: Owner, native: ResponsesRequest, read: Callable[[ResponsesRequest], T]
    ) -> tuple[ResponsesRequest, T, Sequence[Demand]]:
        """With the earlier conversation in front, and what was compacted opened; what `read` makes of that; and what
        these demand."""
        key = await self._store.keys.find(owner.subject)
        earlier: list[Item] = []
        reaches: set[str | None] = set()

        def opened(sealed: str) -> str | None:
            if (found := open_text(key, sealed)) is None:
                return None
            reaches.add(found.reach)
            return found.text

        if native.previous_response_id is not None:
            turns = self._going_on(await self._store.chain(native.previous_response_id, owner))
            reaches.update(turn.stored.reach for turn in turns)
            earlier = await _items_of(turns)

        def work() -> tuple[ResponsesRequest, T]:
            resolved = request.resolve(native, earlier, opened=opened)
            return resolved, read(resolved)

        resolved, found = await _read(len(earlier) + len(native.items()), work)
        # Sorted, so that a refusal always names the same one.
        return resolved, found, [each for reach in sorted(reaches, key=str) for each in demanded(reach)]

    def _going_on(self, chain: Chain) -> Sequence[Turn]:
        """The turns, if they can be gone on from. Raises BadRequest."""
        if chain.too_large:
            raise BadRequest(
                f"previous_response_id: the conversation has more than {MOST_TURNS} responses or {MOST_BYTES} bytes; "
                "sum it up with POST /v1/responses/compact and go on from that.",
                param="previous_response_id",
            )
        if chain.missing is not None:
            raise BadRequest(
                f"previous_response_id: there is no response {chain.missing!r}; it was never stored, or is deleted or "
                "too old by now. Send the conversation as input.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        last = chain.turns[-1].stored
        if last.status not in _GOES_ON:
            cure = "wait until it is completed" if last.status in LIVE else "go on from the one before it"
            raise BadRequest(
                f"previous_response_id: the response is {last.status}; {cure}.", param="previous_response_id"
            )
        return chain.turns

    async def _compaction(self, owner: Owner, native: CompactRequest, row_id: str, now: int) -> Prepared:
        key = await self._store.keys.get(owner.subject)
        demands: Sequence[Demand] = ()
        resolved = native.as_request()
        if resolved.pending:
            self._stores(resolved)
            resolved, wanted, demands = await self._resolved(owner, resolved, compact.compact_request)
        else:
            whole = resolved
            wanted = await _read(len(whole.items()), lambda: compact.compact_request(whole))
        if key.fresh:
            await self._store.keep_key(key)
        compacting = _Compacting(resolved, self._sealer(key))
        return Prepared(PREFIX + row_id, owner, Asked(wanted), now, compacting=compacting, demands=demands)

    def _sealer(self, key: SubjectKey) -> Callable[[str, str], str]:
        return lambda text, reach: seal_text(key, text, reach, self._random)

    def _row(self, prepared: Prepared, status: str) -> Stored:
        return Stored(
            prepared.id,
            prepared.owner,
            prepared.route,
            prepared.team,
            prepared.previous_id,
            status,
            prepared.background,
            created_at=float(prepared.created),
            reach=prepared.reach,
        )

    def _blank(self, prepared: Prepared, status: resource.Status) -> dict[str, Any]:
        """The response before anything is answered."""
        asked = prepared.asked
        frame = Frame(prepared.id, prepared.created, prepared.route, asked.request, asked.native)
        return resource.skeleton(frame, status)

    def _present(self, turn: Turn) -> dict[str, Any]:
        """The response as it is now: its status may have changed since it was written down."""
        found: dict[str, Any] = msgspec.json.decode(turn.answer)
        status = turn.stored.status
        if status in LIVE:
            status = "in_progress" if turn.stored.id in self._running else status
        if found["status"] != status:
            found["status"] = status
            if status == "failed":
                found = resource.failed(found, InternalError(_RESTARTED))
        return found


async def _items_of(turns: Sequence[Turn]) -> list[Item]:
    """What was said in these turns, as items of an input."""
    return _decoded(turns) if _size(turns) <= _SMALL else await asyncio.to_thread(_decoded, turns)


def _decoded(turns: Sequence[Turn], *, whole: bool = True) -> list[Item]:
    """whole: with the answer of the last one."""
    items: list[Item] = []
    for turn in turns:
        items += msgspec.json.decode(turn.input)
        if whole or turn is not turns[-1]:
            items += listing.output_items(msgspec.json.decode(turn.answer))
    return items


def _size(turns: Sequence[Turn]) -> int:
    return sum([turn.stored.size for turn in turns])


async def _read(items: int, work: Callable[[], T]) -> T:
    """What `work` gives, which goes through so many items."""
    return work() if items <= FEW_ITEMS else await asyncio.to_thread(work)


def _not_found(id: str) -> NotFound:
    return NotFound(
        f"There is no response {id[:80]!a}; it was never stored, or is deleted or too old by now.", param="id"
    )
