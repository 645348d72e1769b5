"""Responses that are kept: what an exchange of /v1/responses asks for before it begins, and leaves when it has ended.

`begin` puts the earlier conversation in front of a request, `admitted` lets one in the background go on without its
caller, `finish` stores what was answered. The doors read, delete and cancel through the same object.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

import msgspec

from appliance.dialects.answer import Frame
from appliance.dialects.asked import Asked
from appliance.dialects.responses import compact, listing, request, resource
from appliance.dialects.responses.compact import CompactRequest
from appliance.dialects.responses.request import ResponsesRequest
from appliance.dialects.wire import encode
from appliance.errors import BadRequest, BodyTooLarge, InternalError, NotFound, OutpostError, UnsupportedParameter
from appliance.identity.principal import Principal
from appliance.records.subject_keys import Random, SubjectKey
from appliance.responses.background import Places
from appliance.responses.conversation import items_of, read_items, read_turns, resolved
from appliance.responses.prepared import Compacting, Prepared
from appliance.responses.reach import noted
from appliance.responses.sealing import seal_text
from appliance.responses.store import LIVE, MOST_BYTES, Owner, ResponseStore, Stored, Turn, owner_of
from appliance.routing.residency import Demand, Residency
from appliance.settings.recording import Records

PREFIX = "resp_"
"""Before an exchange's id: the response's."""

_RESTARTED = "The gateway was stopped while it worked on this response; ask again."

Order = Literal["asc", "desc"]


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
        self._places = Places()
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
            prepared.own = await read_items(len(own.items()), lambda: encode(listing.items_of(own, prepared.id)))
            if len(prepared.own) > MOST_BYTES:
                raise BodyTooLarge(
                    f"input: is more than the {MOST_BYTES} bytes that are stored; send store: false.", param="input"
                )
        if stored != native.stored:
            native = msgspec.structs.replace(native, store=stored)
            prepared.asked = asked._replace(native=native)
        if native.pending:
            native, canonical, prepared.demands = await resolved(self._store, owner, native, request.canonical)
            prepared.asked = Asked(canonical, native)
        return prepared

    async def admitted(self, prepared: Prepared, route: str, within: Sequence[Residency]) -> None:
        prepared.route = route
        prepared.reach = noted(within, prepared.zones, prepared.demands)
        if not prepared.background:
            return
        id = prepared.id
        self._places.take(id, prepared.owner)
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
            items = items_of(chain.turns, whole=False)
            if resource.ENCRYPTED not in include:
                items = [resource.public_item(item) for item in items]
            return encode(listing.page(items, after=after, limit=limit, order=order))

        return await read_turns(chain.turns, page)

    async def delete(self, principal: Principal, id: str) -> bytes:
        """Raises NotFound."""
        if not await self._store.delete(id, owner_of(principal), principal.actor):
            raise _not_found(id)
        self._places.end(id)
        return encode({"id": id, "object": "response", "deleted": True})

    async def cancel(self, principal: Principal, id: str) -> bytes:
        """End a response in the background; gives it as it then is, as JSON. Raises NotFound, BadRequest."""
        stored = await self._store.find(id, owner_of(principal))
        if stored is None:
            raise _not_found(id)
        if not stored.background:
            raise BadRequest(f"{id} is not worked on in the background; only such a response can be cancelled.")
        if stored.status in LIVE and await (await self._store.settle(stored, "cancelled")):
            self._places.end(id)
        return await self.get(principal, id)

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

    async def _compaction(self, owner: Owner, native: CompactRequest, row_id: str, now: int) -> Prepared:
        key = await self._store.keys.get(owner.subject)
        demands: Sequence[Demand] = ()
        whole = native.as_request()
        if whole.pending:
            self._stores(whole)
            whole, wanted, demands = await resolved(self._store, owner, whole, compact.compact_request)
        else:
            own = whole
            wanted = await read_items(len(own.items()), lambda: compact.compact_request(own))
        if key.fresh:
            await self._store.keep_key(key)
        compacting = Compacting(whole, self._sealer(key))
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
            status = "in_progress" if turn.stored.id in self._places else status
        if found["status"] != status:
            found["status"] = status
            if status == "failed":
                found = resource.failed(found, InternalError(_RESTARTED))
        return found


def _not_found(id: str) -> NotFound:
    return NotFound(
        f"There is no response {id[:80]!a}; it was never stored, or is deleted or too old by now.", param="id"
    )
