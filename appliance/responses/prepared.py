"""One request to /v1/responses under way, and what its caller gets of the answer."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec

from appliance.dialects.asked import Asked
from appliance.dialects.responses import compact
from appliance.dialects.responses.request import ResponsesRequest
from appliance.dialects.tally import Tally, WireUsage
from appliance.dialects.wire import encode
from appliance.errors import UpstreamFailed
from appliance.responses.store import Owner
from appliance.routing.residency import Demand
from appliance.routing.strategies import Zone


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
    compacting: Compacting | None = None
    zones: Sequence[Zone] | None = None
    """Those that the credential is limited to; None = all."""
    demands: Sequence[Demand] = ()
    """Where the data must stay by what it goes on from."""
    reach: str | None = None
    """How far its data may go, as it is kept; known once it is admitted."""

    def answer(self, body: bytes) -> bytes:
        """A whole answer as the caller gets it. Raises UpstreamFailed for a summary that says nothing."""
        return body if self.compacting is None else self.compacting.answer(self, body)


class Compacting(msgspec.Struct):
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
