"""What a stream that was gone on with has used: on record for each attempt, and told to the client once."""

from __future__ import annotations

import threading
from typing import Any

import msgspec
import pytest

from appliance.dialects.chat import AssistantMessage, ChatRequest, TextPart, ToolCall, UserMessage
from appliance.dialects.chat import FunctionCall as Function
from appliance.dialects.kinds import CHAT
from appliance.dialects.splice import Sent
from appliance.errors import UpstreamFailed
from appliance.pricing import Prices
from appliance.rescue import GO_ON, GO_ON_TOKENS, SHORT, Mode, Rescue, _asking_for_the_rest, _modes
from appliance.routing.candidate import Candidate
from appliance.routing.routes import Deadlines, Target
from appliance.settings.limiting import Price
from tests.exchange.test_limits_in_the_exchange import limit, nothing_is_left, standing
from tests.fakes.answers import events_of, text_of
from tests.fakes.house import House
from tests.fakes.tongue_openai import chunk, usage_chunk
from tests.fakes.upstream import Reply

SHORT_TIMES = Deadlines(first_token=2.0, idle=2.0, total=20.0)
BEGINNING = ["The answer ", "to all of ", "this is "]


def says(house: House, model: str, *texts: str, end: str = "clean", usage: tuple[int, int] | None = None) -> None:
    events = [chunk({"content": text}) for text in texts]
    if end == "clean":
        events += [chunk({}, "stop"), *([usage_chunk(*usage)] if usage else [])]
    house.upstream.behave(model, lambda seen: Reply(events=events, end=end))  # type: ignore[arg-type]


def route(house: House, *targets: str | Target, **more: Any) -> None:
    house.route("m", *targets, **{"rescue": "resume", "deadlines": SHORT_TIMES, **more})


def prefilled(house: House, model: str) -> Target:
    return msgspec.structs.replace(house.provider(model), prefill=True)


async def ask(house: House, **fields: Any) -> list[Any]:
    return await events_of(await house.chat("m", stream=True, stream_options={"include_usage": True}, **fields))


def usage_of(events: list[Any]) -> dict[str, Any]:
    (found,) = [event["usage"] for event in events if isinstance(event, dict) and event.get("usage")]
    return dict(found)


# --- the record -----------------------------------------------------------------------------------


async def test_what_came_to_nothing_is_on_record_and_charged(house: House) -> None:
    """Both targets fail; what each has used is the row's, the limits' and the money's."""
    says(house, "first", *BEGINNING, end="cut")
    says(house, "second", *BEGINNING[:2], end="cut")
    house.gateway.limits.prices = Prices([Price(target=name, output="1") for name in ("fake/first", "fake/second")])
    limit(house, {"scope": "key", "output_tokens": "100000/hour", "input_tokens": "100000/hour"})
    route(house, "first", "second", retries=1)
    events = await ask(house)
    assert "error" in events[-1]
    row = await house.recorder.wait_for(1)
    assert (row.outcome, row.error_code) == ("upstream_error", "upstream_error")
    assert [(each.prompt_tokens, each.completion_tokens) for each in row.attempts] == [(64, 3), (64, 2)]
    assert (row.prompt_tokens, row.completion_tokens, row.usage_source) == (128, 5, "estimated")
    assert row.cost_nanousd == sum(each.cost_nanousd for each in row.attempts) > 0
    assert standing(house)["k-user:output_tokens"].used == 5
    assert standing(house)["k-user:input_tokens"].used == 128
    nothing_is_left(house)


@pytest.mark.parametrize("second", ["503", "resting"])
async def test_what_the_first_has_used_stays_where_the_second_gives_nothing(house: House, second: str) -> None:
    says(house, "first", *BEGINNING, end="cut")
    if second == "resting":
        health, second = house.gateway.health, "503"
        health.board.keep({"fake/503": False})

        def begin(seen: Any) -> Reply:
            # It begins to rest only now: else the plan would be without it.
            for _ in range(5):
                health.ended(health.began("fake/503", 0), UpstreamFailed("500"), 0)
            return Reply(events=[chunk({"content": text}) for text in BEGINNING], end="cut")

        house.upstream.behave("first", begin)
    limit(house, {"scope": "key", "output_tokens": "100000/hour"})
    route(house, "first", second, retries=1)
    await ask(house)
    row = await house.recorder.wait_for(1)
    assert (row.completion_tokens, row.usage_source) == (3, "estimated")
    assert standing(house)["k-user:output_tokens"].used == 3
    nothing_is_left(house)


async def test_a_target_that_no_way_is_left_for_leaves_the_record_as_it_was(house: House) -> None:
    """It was not asked, so it is no attempt."""
    beginning = [chunk({"content": text}) for text in BEGINNING]
    house.upstream.behave("first", lambda seen: Reply(events=beginning, hold_after=3))
    says(house, "other", "Something else.")
    route(house, "first", "other", retries=5, deadlines=Deadlines(first_token=2.0, idle=0.2, total=20.0))
    events = await ask(house, response_format={"type": "json_object"})  # nobody can be told to go on
    assert events[-1]["error"]["code"] == "answer_diverged"
    row = await house.recorder.wait_for(1)
    assert [(each.target, each.error_code) for each in row.attempts] == [
        ("fake/first", "upstream_timeout"),
        ("fake/other", "answer_diverged"),
    ]
    assert (row.outcome, row.error_code) == ("upstream_error", "answer_diverged")
    assert row.completion_tokens == sum(each.completion_tokens for each in row.attempts) > 0


async def test_an_answer_that_diverges_to_the_end_of_the_attempts_says_so(house: House) -> None:
    says(house, "first", *BEGINNING, end="cut")
    says(house, "other", "Something else.")
    route(house, "first", "other", retries=1)
    events = await ask(house)
    assert events[-1]["error"]["code"] == "answer_diverged"
    row = await house.recorder.wait_for(1)
    assert (row.outcome, row.error_code, len(row.attempts)) == ("upstream_error", "answer_diverged", 2)
    assert row.attempts[-1].error_code == "answer_diverged"


async def test_where_the_budget_is_used_up_nobody_is_asked_twice_and_another_goes_on(house: House) -> None:
    says(house, "first", *BEGINNING, end="cut")
    says(house, "other", "Something else.")
    says(house, "third", *BEGINNING, "42.", usage=(5, 4))
    health = house.gateway.health
    while health.may_retry("m", None, True):  # type: ignore[arg-type]
        pass
    route(house, "first", "other", "third")
    events = await ask(house)
    assert (text_of(events), events[-1]) == ("".join(BEGINNING) + "42.", "[DONE]")
    row = await house.recorder.wait_for(1)
    assert [each.target for each in row.attempts] == ["fake/first", "fake/other", "fake/third"]
    assert len(house.upstream.asked("other")) == 1


# --- what the client is told ----------------------------------------------------------------------


async def test_who_says_it_again_tells_what_the_whole_answer_used(house: House) -> None:
    says(house, "first", *BEGINNING, end="cut")
    says(house, "again", *BEGINNING, "42.", usage=(5, 9))
    route(house, "first", "again")
    usage = usage_of(await ask(house))
    assert (usage["prompt_tokens"], usage["completion_tokens"], usage["total_tokens"]) == (5, 9, 14)
    row = await house.recorder.wait_for(1)
    assert [each.completion_tokens for each in row.attempts] == [3, 9]


@pytest.mark.parametrize("repeats", [False, True])
async def test_the_answer_and_the_prompt_are_counted_once(house: House, repeats: bool) -> None:
    """The second target is given the beginning, and either goes on from there or says it again."""
    said = [*BEGINNING, "42."] if repeats else ["42."]
    says(house, "first", *BEGINNING, end="cut")
    says(house, "second", *said, usage=(5 + 3, len(said)))
    route(house, "first", prefilled(house, "second"))
    events = await ask(house)
    assert text_of(events) == "".join(BEGINNING) + "42."
    usage = usage_of(events)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 4)
    row = await house.recorder.wait_for(1)
    assert [each.completion_tokens for each in row.attempts] == [3, len(said)], "each has its own work"
    assert row.attempts[1].prompt_tokens == 8


async def test_three_targets_are_counted_once_each(house: House) -> None:
    says(house, "first", *BEGINNING, end="cut")
    says(house, "second", "four", "ty", end="cut")
    says(house, "third", "-two.", usage=(5 + 3 + 2, 1))
    route(house, "first", prefilled(house, "second"), prefilled(house, "third"))
    events = await ask(house)
    assert text_of(events) == "".join(BEGINNING) + "fourty-two."
    usage = usage_of(events)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 3 + 2 + 1)
    told = house.upstream.asked("third")[0].body["messages"][-1]
    assert told == {"role": "assistant", "content": "".join(BEGINNING) + "fourty"}


async def test_who_is_told_to_go_on_is_not_counted_with_what_it_was_told(house: House) -> None:
    says(house, "first", *BEGINNING, end="cut")
    answers = [["Something else."], ["42."]]
    counts = [(5, 1), (5 + 3 + GO_ON_TOKENS, 1)]

    def reply(seen: Any) -> Reply:
        texts, usage = answers.pop(0), counts.pop(0)
        return Reply(events=[*[chunk({"content": text}) for text in texts], chunk({}, "stop"), usage_chunk(*usage)])

    house.upstream.behave("second", reply)
    route(house, "first", "second")
    events = await ask(house)
    assert text_of(events) == "".join(BEGINNING) + "42."
    usage = usage_of(events)
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (5, 4)


async def test_estimates_are_added_up_where_nobody_counts(house: House) -> None:
    says(house, "first", *BEGINNING, end="cut")
    says(house, "second", "42", ".")
    route(house, "first", prefilled(house, "second"))
    usage = usage_of(await ask(house))
    row = await house.recorder.wait_for(1)
    assert usage["completion_tokens"] == row.completion_tokens
    assert row.completion_tokens == sum(each.completion_tokens for each in row.attempts)


DIALECTS: dict[str, dict[str, Any]] = {
    "/v1/messages": {"max_tokens": 50, "messages": [{"role": "user", "content": "Hi"}]},
    "/v1/responses": {"input": "Hi", "store": False},
}


@pytest.mark.parametrize("path", DIALECTS)
async def test_it_is_so_in_every_dialect(house: House, path: str) -> None:
    says(house, "first", *BEGINNING, end="cut")
    says(house, "second", "42.", usage=(5 + 3, 1))
    route(house, "first", prefilled(house, "second"))
    response = await house.post(path, {"model": "m", "stream": True, **DIALECTS[path]})
    events = await events_of(response)
    said = "".join(event["delta"].get("text", "") for event in events if event["type"] == "content_block_delta")
    if path == "/v1/responses":
        said = "".join(event["delta"] for event in events if event["type"] == "response.output_text.delta")
    assert said == "".join(BEGINNING) + "42."
    (usage,) = [
        event.get("usage") or event["response"]["usage"]
        for event in events
        if event["type"] in ("message_delta", "response.completed")
    ]
    assert (usage["input_tokens"], usage["output_tokens"]) == (5, 4)
    row = await house.recorder.wait_for(1)
    assert row.finish_reasons == ["stop"]
    assert [each.completion_tokens for each in row.attempts] == [3, 1]


# --- how a target is asked for the rest -----------------------------------------------------------


def request(*messages: Any) -> ChatRequest:
    return ChatRequest(model="m", messages=[UserMessage("Hi"), *messages])


@pytest.mark.parametrize("mode", ["prefill", "instruct"])
@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        ("The", "The answer"),
        (None, " answer"),
        ([TextPart("A."), TextPart("The")], [TextPart("A."), TextPart("The answer")]),
    ],
)
def test_the_callers_beginning_and_ours_are_one_message(mode: Mode, begun: Any, expected: Any) -> None:
    asked = _asking_for_the_rest(request(AssistantMessage(content=begun)), Sent(text=" answer ", pieces=2), mode)
    assert asked.messages[1] == AssistantMessage(content=expected)
    assert [type(each) for each in asked.messages[2:]] == ([] if mode == "prefill" else [UserMessage])
    if mode == "instruct":
        assert asked.messages[2] == UserMessage(GO_ON)


async def test_who_repeats_the_callers_beginning_too_is_heard_once(house: House) -> None:
    says(house, "first", " answer", " is", " surely", " this:", end="cut")
    says(house, "second", "The answer is", " surely this: 42.")
    route(house, "first", prefilled(house, "second"))
    events = await ask(house, messages=[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "The"}])
    assert text_of(events) == " answer is surely this: 42."
    told = house.upstream.asked("second")[0].body["messages"]
    assert told[1:] == [{"role": "assistant", "content": "The answer is surely this:"}]


def candidate(house: House, asked: ChatRequest, *, prefill: bool, known: bool) -> Candidate:
    target = msgspec.structs.replace(house.provider("ok"), prefill=prefill)
    if known:
        upstream: Any = target.upstream
        capabilities = upstream.capabilities
        upstream._capabilities = msgspec.structs.replace(capabilities, features=capabilities.features | {"prefill"})
    return Candidate(target, asked)


async def test_which_way_a_target_is_asked(house: House) -> None:
    long, short = Sent(text="x" * SHORT), Sent(text="x" * (SHORT - 1) + "  ")

    def ways(seen: Sent, prefill: bool, known: bool, *messages: Any) -> list[str]:
        return list(dict.fromkeys(_modes(candidate(house, request(*messages), prefill=prefill, known=known), seen)))

    assert ways(long, True, False) == ["prefill", "repeat", "instruct"]
    assert ways(short, True, False) == ["repeat", "prefill", "instruct"], "too little to tell a repetition by"
    assert ways(short, True, True) == ["prefill", "repeat", "instruct"]
    assert ways(long, False, False) == ["repeat", "instruct"]
    assert ways(Sent(text=" \n"), True, True) == ["repeat"], "no target takes an empty beginning"
    call = AssistantMessage(tool_calls=[ToolCall("c", Function("f", "{}"))])
    assert ways(long, True, True, call) == ["repeat"]


# --- long streams ---------------------------------------------------------------------------------


async def test_a_long_beginning_is_read_off_the_event_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    where: list[bool] = []
    rescue = Rescue(CHAT)
    make_reader = CHAT.make_reader
    assert make_reader is not None

    def watched(target: str, request: Any) -> Any:
        where.append(threading.current_thread() is threading.main_thread())
        return make_reader(target, request)

    rescue._kind = msgspec.structs.replace(CHAT, make_reader=watched)
    piece = b"data: " + chunk({"content": "word "}) + b"\n\n"
    rescue.pieces.append(piece)
    assert await rescue.may_resume()
    rescue.pieces += [piece] * 2000
    assert await rescue.may_resume()
    assert await rescue.may_resume()
    assert where == [True, False], "and once for the same pieces"
