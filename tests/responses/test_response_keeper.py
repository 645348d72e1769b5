"""What an exchange and the doors see of stored responses: conversations that go on, work in the background, ends."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance.dialects.asked import Asked
from appliance.dialects.responses import compact, request
from appliance.errors import (
    BadRequest,
    BodyTooLarge,
    NotFound,
    Overloaded,
    RateLimited,
    RecordsUnavailable,
    UnsupportedParameter,
    UpstreamFailed,
)
from appliance.identity.principal import Principal
from appliance.records.content import Keeper
from appliance.records.erase import erase
from appliance.responses import background
from appliance.responses import keeper as keeper_module
from appliance.responses.keeper import Responses
from appliance.responses.prepared import Prepared
from appliance.responses.store import ResponseStore
from appliance.settings.recording import DAY, Records
from tests.responses.keeper_box import ANN, ANNS_OTHER_KEY, ANYWHERE, BOB, NOW, Box, answer, open_box, refused, said_of


@pytest.fixture
async def box(tmp_path: Path) -> AsyncIterator[Box]:
    async with open_box(tmp_path) as opened:
        yield opened


# --- conversations ---


async def test_a_stored_response_is_read_by_every_key_of_its_owner(box: Box) -> None:
    id = await box.ask("Hi", "Hello.")
    for who in (ANN, ANNS_OTHER_KEY):
        found = await box.get(id, who)
        assert (found["id"], found["status"], found["store"], found["model"]) == (id, "completed", True, "chat")
        assert found["output"][0]["content"][0]["text"] == "Hello."
    asked: list[Callable[[str], Awaitable[object]]] = [
        lambda id: box.get(id, BOB),
        lambda id: box.items(id, BOB),
        lambda id: box.responses.delete(BOB, id),
        lambda id: box.responses.cancel(BOB, id),
    ]
    for each in asked:
        told = []
        for other in (id, "resp_" + "0" * 12):
            with pytest.raises(NotFound) as caught:
                await each(other)
            told.append(caught.value.message.replace(other, ""))
        assert told[0] == told[1], "somebody else's is as one that never was"
    assert msgspec.json.decode(await box.responses.delete(ANN, id)) == {"id": id, "object": "response", "deleted": True}
    with pytest.raises(NotFound):
        await box.get(id)


async def test_a_conversation_goes_on(box: Box) -> None:
    first = await box.ask({"input": "I am Ann.", "instructions": "Be brief."}, "Hello, Ann.")
    second = await box.ask({"input": "Who am I?", "previous_response_id": first}, "Ann.")
    prepared = await box.begin({"input": "Sure?", "previous_response_id": second, "instructions": "Be loud."})
    assert said_of(prepared.asked) == [
        ("system", "Be loud."),
        ("user", "I am Ann."),
        ("assistant", "Hello, Ann."),
        ("user", "Who am I?"),
        ("assistant", "Ann."),
        ("user", "Sure?"),
    ], "the instructions of earlier responses are not carried over"
    assert len(prepared.asked.native.input) == 5, "a target of the same dialect gets all of it"
    assert (await box.get(second))["previous_response_id"] == first
    # Each keeps its own items alone, and lists all that it was made from.
    listed = await box.items(second)
    assert [item["content"][0]["text"] for item in listed["data"]] == ["I am Ann.", "Hello, Ann.", "Who am I?"]
    assert len({item["id"] for item in listed["data"]}) == 3


async def test_calls_go_on_with_their_outputs(box: Box) -> None:
    prepared = await box.begin({"input": "Weather?", "tools": [{"type": "function", "name": "look", "parameters": {}}]})
    call = {"type": "function_call", "id": "fc_1", "call_id": "call_1", "name": "look", "arguments": "{}"}
    response = {**answer(prepared, ""), "output": [{**call, "status": "completed"}]}
    written = await box.responses.finish(prepared, response)
    assert written is not None
    await written
    output = [{"type": "function_call_output", "call_id": "call_1", "output": "rain"}]
    later = await box.begin({"input": output, "previous_response_id": prepared.id})
    assert said_of(later.asked)[-1] == ("tool", "rain")
    assert later.asked.request.messages[1].tool_calls[0].id == "call_1"
    with pytest.raises(BadRequest, match="no function_call"):
        await box.begin({"input": output, "previous_response_id": await box.ask("Hi")})
    # An item that is kept can be named instead of sent.
    named = await box.begin(
        {"input": [{"type": "item_reference", "id": "fc_1"}, *output], "previous_response_id": prepared.id}
    )
    assert len(named.asked.native.input) == 4


@pytest.mark.parametrize("why", ["unknown", "another's", "not stored", "deleted", "an earlier one deleted"])
async def test_what_cannot_be_gone_on_from(box: Box, why: str) -> None:
    first = await box.ask("Hi")
    id = {
        "unknown": "resp_nothing",
        "another's": await box.ask("Hi", who=BOB),
        "not stored": await box.ask({"input": "Hi", "store": False}),
        "deleted": first,
        "an earlier one deleted": await box.ask({"input": "Hi", "previous_response_id": first}),
    }[why]
    if "deleted" in why:
        await box.responses.delete(ANN, first)
    with pytest.raises(BadRequest) as caught:
        await box.begin({"input": "More", "previous_response_id": id})
    assert refused(caught) == (400, "previous_response_not_found", "previous_response_id")
    assert (first if "earlier" in why else id) in caught.value.message


async def test_a_conversation_that_is_too_long_is_refused_with_a_way_out(
    box: Box, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = await box.ask("Hi")
    second = await box.ask({"input": "Hi", "previous_response_id": first})
    monkeypatch.setattr("appliance.responses.store.MOST_TURNS", 1)
    with pytest.raises(BadRequest, match="/v1/responses/compact") as caught:
        await box.begin({"input": "Hi", "previous_response_id": second})
    assert caught.value.param == "previous_response_id"
    with pytest.raises(BadRequest, match="too long to be listed"):
        await box.items(second)
    monkeypatch.setattr(keeper_module, "MOST_BYTES", 100)
    with pytest.raises(BodyTooLarge, match="store: false"):
        await box.begin({"input": "x" * 100})
    assert await box.ask({"input": "x" * 100, "store": False})


async def test_store_false_keeps_nothing(box: Box) -> None:
    first = await box.ask("Hi", "Hello.")
    prepared = await box.begin({"input": "And?", "store": False, "previous_response_id": first})
    assert said_of(prepared.asked) == [("user", "Hi"), ("assistant", "Hello."), ("user", "And?")]
    assert await box.responses.finish(prepared, answer(prepared, "x")) is None
    with pytest.raises(NotFound):
        await box.get(prepared.id)


async def test_a_gateway_that_stores_nothing(box: Box) -> None:
    kept = await box.ask("Hi")
    box.responses.change(Records(store_responses=False))
    prepared = await box.begin({"input": "Hi"})
    assert prepared.asked.native.store is False, "so that the answer says so"
    assert await box.responses.finish(prepared, answer(prepared, "x")) is None
    for field, value in (("store", True), ("background", True), ("previous_response_id", kept)):
        with pytest.raises(UnsupportedParameter, match="store_responses") as caught:
            await box.begin({"input": "Hi", field: value})
        assert caught.value.param == field
    box.responses.change(Records())
    assert (await box.begin({"input": "Hi", "previous_response_id": kept})).stored


async def test_reasoning_goes_on_but_is_shown_to_who_asks_for_it(box: Box) -> None:
    prepared = await box.begin({"input": "Think"})
    written = await box.responses.finish(prepared, answer(prepared, "So.", encrypted="sealed by its maker"))
    assert written is not None
    await written
    plain, full = await box.get(prepared.id), await box.get(prepared.id, include=("reasoning.encrypted_content",))
    assert "sealed by its maker" not in str(plain)
    assert "sealed by its maker" in str(full)
    later = await box.begin({"input": "And?", "previous_response_id": prepared.id})
    assert "sealed by its maker" in str(later.asked.native.input)
    second = await box.ask({"input": "And?", "previous_response_id": prepared.id})
    assert "sealed by its maker" not in str(await box.items(second))
    assert "sealed by its maker" in str(await box.items(second, include=("reasoning.encrypted_content",)))


async def test_items_in_pages(box: Box) -> None:
    texts = [f"part {number}" for number in range(5)]
    id = await box.ask({"input": [{"role": "user", "content": text} for text in texts]})
    for order, wanted in (("asc", texts), ("desc", texts[::-1])):
        found: list[str] = []
        after, more = None, True
        while more:
            page = await box.items(id, order=order, limit=2, after=after)
            found += [item["content"][0]["text"] for item in page["data"]]
            after, more = page["last_id"], page["has_more"]
            assert len(found) <= 5
        assert found == wanted
    with pytest.raises(BadRequest) as caught:
        await box.items(id, after="msg_nothing")
    assert caught.value.param == "after"


async def test_a_database_that_fails_withholds_the_answer(box: Box) -> None:
    prepared = await box.begin({"input": "Hi"})
    await box.recorder.close()
    written = await box.responses.finish(prepared, answer(prepared, "x"))
    assert written is not None
    with pytest.raises(RecordsUnavailable):
        await written


async def test_an_erased_owner_has_nothing(box: Box) -> None:
    id = await box.ask("Hi")
    actor = {"key": "key_admin", "role": "admin", "organization": "org_default"}
    await erase(box.recorder, box.database, box.responses._store.keys, "user_ann", actor)
    with pytest.raises(NotFound):
        await box.get(id)
    with pytest.raises(BadRequest) as caught:
        await box.begin({"input": "Hi", "previous_response_id": id})
    assert caught.value.code == "previous_response_not_found"


# --- in the background ---


async def test_in_the_background(box: Box) -> None:
    prepared = await box.begin({"input": "Hi", "background": True})
    told, exchange, let_go = box.in_background(prepared)
    first = msgspec.json.decode(await told)
    assert (first["id"], first["status"], first["background"], first["output"]) == (prepared.id, "queued", True, [])
    assert (await box.get(prepared.id))["status"] == "in_progress"
    with pytest.raises(BadRequest, match="in_progress|queued") as caught:
        await box.begin({"input": "And?", "previous_response_id": prepared.id})
    assert caught.value.param == "previous_response_id"
    let_go.set()
    await exchange
    box.responses.forget(prepared.id.removeprefix("resp_"))
    done = await box.get(prepared.id)
    assert (done["status"], done["output"][0]["content"][0]["text"]) == ("completed", "Done.")
    assert (await box.begin({"input": "And?", "previous_response_id": prepared.id})).stored
    assert msgspec.json.decode(await box.responses.cancel(ANN, prepared.id))["status"] == "completed", "too late"


async def test_cancelled(box: Box) -> None:
    prepared = await box.begin({"input": "Hi", "background": True})
    told, exchange, _ = box.in_background(prepared)
    await told
    for _ in range(2):
        found = msgspec.json.decode(await box.responses.cancel(ANN, prepared.id))
        assert (found["status"], found["error"]) == ("cancelled", None)
    with pytest.raises(asyncio.CancelledError):
        await exchange
    # What still comes of it changes nothing.
    late = await box.responses.finish(prepared, answer(prepared, "late"))
    assert late is not None
    assert not await late
    assert (await box.get(prepared.id))["output"] == []
    foreground = await box.ask("Hi")
    with pytest.raises(BadRequest, match="background"):
        await box.responses.cancel(ANN, foreground)


async def test_deleting_ends_the_work(box: Box) -> None:
    prepared = await box.begin({"input": "Hi", "background": True})
    told, exchange, _ = box.in_background(prepared)
    await told
    await box.responses.delete(ANN, prepared.id)
    with pytest.raises(asyncio.CancelledError):
        await exchange
    with pytest.raises(NotFound):
        await box.get(prepared.id)


async def test_a_failure_is_stored(box: Box) -> None:
    prepared = await box.begin({"input": "Hi", "background": True})
    await box.responses.admitted(prepared, "chat", ANYWHERE)
    written = await box.responses.finish(prepared, None, RateLimited("Too much.", retry_after_s=1.0))
    assert written is not None
    await written
    found = await box.get(prepared.id)
    assert (found["status"], found["error"]["message"]) == ("failed", "Too much.")
    with pytest.raises(BadRequest, match="failed"):
        await box.begin({"input": "And?", "previous_response_id": prepared.id})
    # One that fails before it was accepted was never there.
    early = await box.begin({"input": "Hi", "background": True})
    assert await box.responses.finish(early, None, RateLimited("Too much.")) is None
    # Nor does one in the foreground leave anything.
    plain = await box.begin({"input": "Hi"})
    assert await box.responses.finish(plain, None, RateLimited("Too much.")) is None
    for each in (early, plain):
        with pytest.raises(NotFound):
            await box.get(each.id)


async def test_after_a_restart_what_was_unfinished_has_failed(box: Box) -> None:
    prepared = await box.begin({"input": "Hi", "background": True})
    told, exchange, _ = box.in_background(prepared)
    await told
    again = Responses(box.responses._store, Records(), secrets.token_bytes)
    assert await again.recover() == 1
    found = msgspec.json.decode(await again.get(ANN, prepared.id))
    assert (found["status"], found["output"]) == ("failed", [])
    assert "stopped" in found["error"]["message"]
    exchange.cancel()


async def test_what_the_background_does_not_take(box: Box, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        await box.begin({"input": "Hi", "background": True, "stream": True})
    assert caught.value.param == "stream"
    with pytest.raises(BadRequest) as refusal:
        await box.begin({"input": "Hi", "background": True, "store": False})
    assert refusal.value.param == "background"
    monkeypatch.setattr(background, "MOST_RUNNING", 1)
    one = await box.begin({"input": "Hi", "background": True})
    told, exchange, let_go = box.in_background(one)
    await told
    another = await box.begin({"input": "Hi", "background": True})
    with pytest.raises(Overloaded):
        await box.responses.admitted(another, "chat", ANYWHERE)
    let_go.set()
    await exchange
    await box.responses.admitted(another, "chat", ANYWHERE)


# --- summing up ---


async def compacted(box: Box, body: dict[str, Any], who: Principal = ANN) -> tuple[Prepared, dict[str, Any]]:
    native = compact.parse_compact(msgspec.json.encode({"model": "chat", **body}))
    prepared = await box.responses.begin(who, Asked(None, native), "compact00001")
    await box.responses.admitted(prepared, "chat", ANYWHERE)
    return prepared, msgspec.json.decode(prepared.answer(completion("Ann said hello.")))


def completion(said: str | None, reason: str = "stop") -> bytes:
    choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": reason}
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    return msgspec.json.encode({"id": "chatcmpl-1", "choices": [choice], "usage": usage})


async def test_a_conversation_is_summed_up_and_gone_on_from(box: Box) -> None:
    first = await box.ask("I am Ann.", "Hello.")
    prepared, found = await compacted(box, {"previous_response_id": first, "input": "Bye."})
    assert "I am Ann." in str(prepared.asked.request.messages)
    assert prepared.asked.native is None
    assert (found["object"], found["usage"]["total_tokens"]) == ("response.compaction", 13)
    *kept, item = found["output"]
    assert [each["content"][0]["text"] for each in kept] == ["I am Ann.", "Bye."]
    assert item["type"] == "compaction"
    assert "hello" not in item["encrypted_content"]
    assert await box.responses.finish(prepared, found) is None, "it is the caller's to keep"
    # A fresh process opens it too: the key is in the database.
    again = Responses(
        ResponseStore(box.database, box.recorder, Keeper(box.database, bytes(32)).keys, kept_s=DAY, clock=lambda: NOW),
        Records(),
        secrets.token_bytes,
    )
    body = msgspec.json.encode({"model": "chat", "input": [*found["output"], {"role": "user", "content": "And?"}]})
    later = await again.begin(ANN, request.parse(body), "000000000099")
    said = said_of(later.asked)
    assert said[-1] == ("user", "And?")
    assert "Ann said hello." in said[2][1]
    # Kept as it came: nothing of the summary lies there in the open, and going on opens it again.
    await again.admitted(later, "chat", ANYWHERE)
    written = await again.finish(later, answer(later, "Yes."))
    assert written is not None
    await written
    assert b"compaction" in later.own
    further = await again.begin(ANN, request.parse(msgspec.json.encode(
        {"model": "chat", "input": "More", "previous_response_id": later.id}
    )), "000000000100")  # fmt: skip
    assert "Ann said hello." in str(said_of(further.asked))


async def test_a_summary_is_its_owners_alone(box: Box) -> None:
    _, found = await compacted(box, {"input": "Hi"})
    await box.ask("Hi", who=BOB)
    for who in (BOB, Principal("key_9", "nine", "member", "org_a")):
        with pytest.raises(BadRequest, match="does not open"):
            await box.begin({"input": found["output"]}, who)
    assert (await box.begin({"input": found["output"]}, ANNS_OTHER_KEY)).stored


@pytest.mark.parametrize("body", [completion(None), completion(""), completion("Half of", "length")])
async def test_a_summary_that_is_not_whole_is_none(box: Box, body: bytes) -> None:
    prepared, _ = await compacted(box, {"input": "Hi"})
    with pytest.raises(UpstreamFailed):
        prepared.answer(body)


async def test_other_answers_pass_as_they_are(box: Box) -> None:
    prepared = await box.begin({"input": "Hi"})
    assert prepared.answer(b"{}") == b"{}"


async def test_the_table_of_who_is_waited_for_is_empty_in_the_end(box: Box) -> None:
    prepared = await box.begin({"input": "Hi", "background": True})
    told, exchange, let_go = box.in_background(prepared)
    await told
    let_go.set()
    await exchange
    box.responses.forget(prepared.id.removeprefix("resp_"))
    await asyncio.sleep(0)
    assert (box.responses._expected, box.responses._places._running) == ({}, {})
