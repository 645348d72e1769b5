from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance import errors
from appliance.dialects.errors import stream_event
from appliance.dialects.passing import PassThrough, read_whole
from appliance.dialects.sse import event
from appliance.dialects.tally import Tally, count_unreported
from appliance.errors import UpstreamFailed
from tests.fakes import upstream as fake

EVENTS = fake.chat_events()
STREAM = b"".join(map(event, EVENTS)) + event(b"[DONE]")
WITH_USAGE = b"".join(map(event, EVENTS))
WITHOUT_USAGE = b"".join(map(event, EVENTS[:-1]))


def run(pieces: list[bytes], *, keep_usage: bool = False) -> tuple[bytes, Tally, bool]:
    tally = Tally()
    reader = PassThrough("up", tally, keep_usage=keep_usage)
    out = b""
    for piece in pieces:
        out += reader.feed(piece)
        if reader.done:
            break
    return out, tally, reader.done


@pytest.mark.parametrize("keep_usage", [True, False])
def test_every_cut_gives_the_same_answer(keep_usage: bool) -> None:
    expected = WITH_USAGE if keep_usage else WITHOUT_USAGE
    for i in range(1, len(STREAM)):
        out, tally, done = run([STREAM[:i], STREAM[i:]], keep_usage=keep_usage)
        assert out == expected
        assert done
        assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (5, 4, "reported")
        assert tally.reasons() == ["stop"]


def test_byte_by_byte() -> None:
    out, _, done = run([STREAM[i : i + 1] for i in range(len(STREAM))])
    assert out == WITHOUT_USAGE
    assert done


def test_a_read_in_the_middle_passes_as_the_same_object() -> None:
    reader = PassThrough("up", Tally(), keep_usage=False)
    assert reader.feed(event(EVENTS[0]) + event(EVENTS[1]))
    piece = event(EVENTS[2]) + event(EVENTS[3])
    assert reader.feed(piece) is piece


def test_nothing_leaves_before_the_first_token() -> None:
    reader = PassThrough("up", Tally(), keep_usage=False)
    assert reader.feed(event(EVENTS[0])) == b""
    assert reader.feed(b": comment\n\n") == b""
    assert reader.feed(event(EVENTS[1])) == event(EVENTS[0]) + event(EVENTS[1])


@pytest.mark.parametrize(
    "delta",
    [
        {"tool_calls": [{"index": 0, "id": "c", "type": "function", "function": {"name": "f", "arguments": ""}}]},
        {"refusal": "no"},
        {"reasoning_content": "hm"},
        {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}]},
        {"content": {"parts": ["hm"]}},
        {"reasoning": {"text": "hm"}},
    ],
)
def test_other_things_than_text_count_as_first_token(delta: dict[str, object]) -> None:
    assert run([event(fake.chunk(delta))])[0]


@pytest.mark.parametrize("delta", [{"content": []}, {"content": None}, {"content": ""}, {"tool_calls": []}, {}])
def test_what_shows_nothing_is_no_first_token(delta: dict[str, object]) -> None:
    assert run([event(fake.chunk(delta))])[0] == b""


jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=4),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)
fields = st.sampled_from(
    ["role", "content", "refusal", "reasoning", "reasoning_content", "tool_calls", "function_call", "audio"]
)


@given(st.lists(st.dictionaries(fields, jsons, max_size=4), max_size=4))
def test_whatever_a_delta_holds_passes_unchanged(deltas: list[dict[str, Any]]) -> None:
    events = [fake.chunk(delta) for delta in deltas]
    out, tally, done = run([event(data) for data in events] + [STREAM])
    assert out == b"".join(map(event, events)) + WITHOUT_USAGE
    assert done
    assert tally.reasons() == ["stop"]


@given(st.fixed_dictionaries({}, optional={"index": jsons, "finish_reason": jsons, "delta": jsons, "text": jsons}))
def test_whatever_a_choice_is_it_passes_or_is_a_failure_of_the_target(choice: dict[str, Any]) -> None:
    data = json.dumps({"choices": [choice]}).encode()
    try:
        out, _, _ = run([event(data), STREAM])
    except UpstreamFailed as error:
        assert "not of the expected form" in error.message
    else:
        assert out == event(data) + WITHOUT_USAGE


DEEP = b"[" * 50_000 + b"]" * 50_000


@pytest.mark.parametrize(
    "delta", [b'{"content": %s}' % DEEP, b'{"other": %s}' % DEEP, b'{"content": "\xff"}', b'"text"', b"[]"]
)
def test_a_first_delta_that_is_not_sound_is_a_failure(delta: bytes) -> None:
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        run([event(b'{"choices": [{"index": 0, "delta": %s}]}' % delta)])


def test_a_chunk_in_several_lines_stays_one_event() -> None:
    lines = json.dumps(json.loads(EVENTS[1]), indent=1).encode()
    sent = b"".join(b"data: " + line + b"\n" for line in lines.split(b"\n")) + b"\n"
    for pieces, at in (([sent + STREAM], 0), ([event(EVENTS[0]) + event(EVENTS[1]), sent, STREAM], 2)):
        out, _, _ = run(pieces)
        found = out.split(b"\n\n")[at]
        assert b"\n" not in found
        assert json.loads(found.removeprefix(b"data: ")) == json.loads(EVENTS[1])


@pytest.mark.parametrize("keep_usage", [True, False])
def test_a_chunk_that_is_kept_back_may_stand_anywhere(keep_usage: bool) -> None:
    *others, usage = EVENTS
    for at in range(len(others) + 1):
        events = [*others[:at], usage, *others[at:]]
        out, _, _ = run([b"".join(map(event, events)) + event(b"[DONE]")], keep_usage=keep_usage)
        assert out == b"".join(map(event, events if keep_usage else others))


BEFORE_REASON = len(b"".join(map(event, EVENTS[:-2])))
"""Where the last event begins without which the answer is not complete."""
AFTER_REASON = len(WITHOUT_USAGE)


def test_an_end_without_marker_is_a_failure_until_every_choice_has_ended() -> None:
    for at in range(len(STREAM)):
        reader = PassThrough("up", Tally(), keep_usage=False)
        out = reader.feed(STREAM[:at]) if at else b""
        assert reader.complete is (at >= AFTER_REASON)
        # The empty line after an event may be missing.
        if at >= AFTER_REASON - 2:
            assert out + reader.feed(b"") == WITHOUT_USAGE
            assert reader.done
        else:
            with pytest.raises(UpstreamFailed):
                reader.feed(b"")
            assert not reader.done


def test_each_of_several_choices_has_to_end() -> None:
    events = [fake.chunk({"content": "x"}, index=i) for i in range(3)]
    reader = PassThrough("up", Tally(), keep_usage=False, choices=3)
    for data in events:
        reader.feed(event(data))
    for i in (2, 0, 0, 2):
        reader.feed(event(fake.chunk({}, "stop", index=i)))
        assert not reader.complete
    reader.feed(event(fake.chunk({}, "stop", index=1)))
    assert reader.complete
    assert not reader.done


def test_the_end_and_a_failure_in_openais_form() -> None:
    reader = PassThrough("up", Tally(), keep_usage=False)
    assert reader.end() == b"data: [DONE]\n\n"
    assert reader.fail(UpstreamFailed("broke off")) == stream_event(UpstreamFailed("broke off"))


# --- empty answers --------------------------------------------------------------------------------


def only(reason: str | None, tokens: int | None) -> bytes:
    """A stream of one choice that says nothing."""
    usage = [] if tokens is None else [json.dumps({"choices": [], "usage": {"completion_tokens": tokens}}).encode()]
    events = [fake.chunk({"role": "assistant", "content": ""}), fake.chunk({}, reason), *usage]
    return b"".join(map(event, events)) + event(b"[DONE]")


@pytest.mark.parametrize(
    ("reason", "tokens", "empty"),
    [
        ("stop", None, True),
        ("stop", 0, True),
        ("tool_calls", None, True),
        (None, None, True),
        ("stop", 7, False),
        ("length", None, False),
        ("length", 0, False),
        ("content_filter", None, False),
    ],
)
def test_an_answer_with_nothing_in_it(reason: str | None, tokens: int | None, empty: bool) -> None:
    sent = only(reason, tokens)
    for at in range(1, len(sent)):
        reader = PassThrough("up", Tally(), keep_usage=True)
        if empty:
            with pytest.raises(UpstreamFailed, match="empty answer"):
                reader.feed(sent[:at]) + reader.feed(sent[at:])
        else:
            assert reader.feed(sent[:at]) + reader.feed(sent[at:]) == sent.removesuffix(event(b"[DONE]"))


@pytest.mark.parametrize(
    ("choice", "tokens", "empty"),
    [
        (None, 0, True),
        (None, 5, True),
        ({"message": {"role": "assistant", "content": ""}, "finish_reason": "stop"}, 0, True),
        ({"message": {"role": "assistant", "content": None, "tool_calls": []}, "finish_reason": "stop"}, 0, True),
        ({"message": {"role": "assistant", "content": None}, "finish_reason": "stop"}, 5, False),
        ({"message": {"role": "assistant", "content": ""}, "finish_reason": "length"}, 0, False),
        ({"message": {"role": "assistant", "content": ""}, "finish_reason": "content_filter"}, 0, False),
        ({"message": {"role": "assistant", "content": "x"}, "finish_reason": "stop"}, 0, False),
        ({"message": {"role": "assistant", "refusal": "no"}, "finish_reason": "stop"}, 0, False),
        ({"message": {"role": "assistant", "tool_calls": [{"id": "c"}]}, "finish_reason": "tool_calls"}, 0, False),
        ({"text": "", "finish_reason": "stop"}, 0, True),
        ({"text": "x", "finish_reason": "stop"}, 0, False),
        ({"text": "", "finish_reason": "length"}, 0, False),
    ],
)
def test_a_whole_answer_with_nothing_in_it(choice: dict[str, Any] | None, tokens: int, empty: bool) -> None:
    choices = [] if choice is None else [{"index": 0, **choice}]
    body = json.dumps({"choices": choices, "usage": {"prompt_tokens": 1, "completion_tokens": tokens}}).encode()
    if empty:
        with pytest.raises(UpstreamFailed, match="empty answer"):
            read_whole(body, Tally(), "up")
    else:
        read_whole(body, Tally(), "up")


@pytest.mark.parametrize(
    ("told", "kind"),
    [
        ({"code": 429, "message": "m"}, errors.TargetLimited),
        ({"type": "rate_limit_exceeded"}, errors.TargetLimited),
        ({"code": "overloaded_error"}, errors.UpstreamUnavailable),
        ({"code": "content_filter"}, errors.ContentFiltered),
        ({"code": "context_length_exceeded"}, errors.ContextLengthExceeded),
        ({"code": 402}, errors.TargetUsedUp),
        ({"code": 500}, UpstreamFailed),
        ("words", UpstreamFailed),
        ({"code": {"x": []}}, UpstreamFailed),
    ],
)
def test_what_the_target_reports_keeps_its_kind(told: Any, kind: type[errors.OutpostError]) -> None:
    streamed = event(json.dumps({"error": told, "choices": []}).encode())
    whole = json.dumps({"error": told}).encode()
    asks: list[Callable[[], object]] = [
        lambda: PassThrough("up", Tally(), keep_usage=False).feed(streamed),
        lambda: read_whole(whole, Tally(), "up"),
    ]
    for ask in asks:
        with pytest.raises(errors.OutpostError) as caught:
            ask()
        assert type(caught.value) is kind


def test_an_end_marker_without_its_empty_line_counts() -> None:
    out, _, done = run([STREAM[:-2], b""])
    assert out == WITHOUT_USAGE
    assert done


@pytest.mark.parametrize(
    "data",
    [b"{nonsense", b'"text"', b"[]", b"{}", b'{"choices": 5}', b'{"choices": null}', b"\xff", b'{"choices":[{"index":'],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_chunk_of_another_form_is_a_failure(data: bytes, first: bool) -> None:
    reader = PassThrough("up", Tally(), keep_usage=False)
    if not first:
        reader.feed(event(EVENTS[0]) + event(EVENTS[1]))
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        reader.feed(event(data))


def test_an_error_in_the_stream_is_told_without_the_targets_words() -> None:
    reader = PassThrough("up", Tally(), keep_usage=False)
    with pytest.raises(UpstreamFailed) as caught:
        reader.feed(event(b'{"error": {"message": "sk-secret"}}'))
    assert "sk-secret" not in caught.value.message


def test_empty_choices_in_the_middle_do_no_harm() -> None:
    odd = json.dumps({"id": "x", "choices": [], "prompt_filter_results": []}).encode()
    out, _, done = run([event(odd) + STREAM])
    assert out == event(odd) + WITHOUT_USAGE
    assert done


def test_usage_beside_choices_is_counted_and_passes() -> None:
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "prompt_tokens_details": {"cached_tokens": 2}}
    last = fake.chunk({"content": "x"}, "stop", usage=usage)
    out, tally, _ = run([event(last) + event(b"[DONE]")])
    assert out == event(last)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens) == (3, 1, 2)


def test_usage_as_others_write_it() -> None:
    deepseek = {"prompt_tokens": 9, "completion_tokens": 2, "prompt_cache_hit_tokens": 4}
    xai = {
        "prompt_tokens": 9,
        "completion_tokens": 2,
        "total_tokens": 14,
        "completion_tokens_details": {"reasoning_tokens": 3},
    }
    router = {"prompt_tokens": 9.0, "prompt_tokens_details": {"cached_tokens": 40, "cache_write_tokens": 5}}
    found = []
    for usage in (deepseek, xai, router):
        last = fake.chunk({"content": "x"}, "stop", usage=usage)
        _, tally, _ = run([event(last) + event(b"[DONE]")])
        found.append((tally.completion_tokens, tally.cached_tokens, tally.cache_write_tokens, tally.reasoning_tokens))
    assert found == [(2, 4, 0, 0), (5, 0, 0, 3), (1, 9, 5, 0)]


def test_without_usage_chunks_are_an_estimate() -> None:
    _, tally, _ = run([b"".join(map(event, EVENTS[:-1])) + event(b"[DONE]")])
    assert tally.source == "estimated"
    assert tally.completion_tokens > 0


def test_nothing_after_the_end_marker_passes() -> None:
    out, _, done = run([STREAM + event(EVENTS[1])])
    assert out == WITHOUT_USAGE
    assert done


def test_whole_answers_are_counted() -> None:
    tally = Tally()
    read_whole(fake.chat_whole(), tally, "up")
    assert (tally.prompt_tokens, tally.completion_tokens, tally.cached_tokens) == (5, 4, 2)
    assert tally.reasons() == ["stop"]


@pytest.mark.parametrize("body", [b"", b"<html>", b"[]", b"{}", b'{"choices": 1}', b"\xff\xfe", b'{"x": %s}' % DEEP])
def test_whole_answers_of_another_form_are_failures(body: bytes) -> None:
    with pytest.raises(UpstreamFailed):
        read_whole(body, Tally(), "up")


SAID = {"index": 0, "message": {"role": "assistant", "content": "word " * 50}, "finish_reason": "stop"}
UNREAD: list[Any] = [None, {}, [], "x", {"prompt_tokens": None}, {"prompt_tokens": True}, {"completion_tokens": "3"}]


@pytest.mark.parametrize("usage", [*UNREAD, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_a_whole_answer_whose_counts_say_nothing_is_estimated(usage: Any) -> None:
    body = json.dumps({"choices": [SAID], "usage": usage}).encode()
    tally = Tally()
    read_whole(body, tally, "up")
    count_unreported(tally, body, says=True)
    assert (tally.prompt_tokens, tally.source) == (0, "estimated")
    assert tally.completion_tokens >= 50


@pytest.mark.parametrize("completion", [0, None])
def test_no_tokens_for_a_text_are_not_believed(completion: int | None) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": completion}
    body = json.dumps({"choices": [SAID], "usage": usage}).encode()
    tally = Tally()
    read_whole(body, tally, "up")
    count_unreported(tally, body, says=True)
    assert (tally.prompt_tokens, tally.source) == (9, "estimated")
    assert tally.completion_tokens >= 50
    silent = {"index": 0, "message": {"content": ""}, "finish_reason": "length"}
    tally = Tally()
    read_whole(json.dumps({"choices": [silent], "usage": {**usage, "completion_tokens": 0}}).encode(), tally, "up")
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (9, 0, "reported")


@pytest.mark.parametrize("usage", UNREAD)
def test_chunks_whose_counts_say_nothing_are_counted(usage: Any) -> None:
    text = [fake.chunk({"content": "x"}) for _ in range(9)]
    last = fake.chunk({}, "stop", usage=usage)
    alone = json.dumps({"choices": [], "usage": usage}).encode()
    out, tally, done = run([*map(event, text), event(last), event(alone), event(b"[DONE]")], keep_usage=True)
    assert out == b"".join(map(event, [*text, last, alone]))
    assert done
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (0, 10, "estimated")


@pytest.mark.parametrize("first", [{"role": "assistant", "content": ""}, None])
def test_counts_at_the_beginning_are_not_those_of_what_follows(first: dict[str, Any] | None) -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 0}
    choices = [] if first is None else [{"index": 0, "delta": first}]
    head = json.dumps({"choices": choices, "usage": usage}).encode()
    _, tally, _ = run([event(head)])
    assert (tally.prompt_tokens, tally.source) == (9, "estimated")
    cut = [event(head), *(event(fake.chunk({"content": "x"})) for _ in range(9))]
    _, tally, _ = run(cut)
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (9, 9 + len(choices), "estimated")
    whole = {"prompt_tokens": 9, "completion_tokens": 30}
    _, tally, _ = run([*cut, event(fake.chunk({}, "stop", usage=whole)), event(b"[DONE]")])
    assert (tally.prompt_tokens, tally.completion_tokens, tally.source) == (9, 30, "reported")


def test_choices_without_an_index_take_their_places() -> None:
    first, second = ({"message": {"content": "x"}, "finish_reason": reason} for reason in ("stop", "length"))
    tally = Tally()
    read_whole(json.dumps({"choices": [first, {**second, "index": None}]}).encode(), tally, "up")
    assert tally.finish_reasons == {0: "stop", 1: "length"}


@pytest.mark.parametrize("content", ["42", "true", '{"parts": ["x"]}'])
def test_a_whole_content_that_is_no_text_is_a_failure(content: str) -> None:
    body = json.dumps({"choices": [{**SAID, "message": {"content": json.loads(content)}}]})
    with pytest.raises(UpstreamFailed, match="not of the expected form"):
        read_whole(body.encode(), Tally(), "up")


BAD = [b"\xff", b"\xc3", b"\xed\xa0\xbc", b"\xe4\xb8"]


@pytest.mark.parametrize("bad", BAD)
def test_bytes_that_are_no_text_never_pass(bad: bytes) -> None:
    for field in (b"content", b"other"):
        chunk = event(b'{"choices": [{"index": 0, "delta": {"%b": "a%bb"}}]}' % (field, bad))
        for before in ([], [event(EVENTS[0]) + event(EVENTS[1])]):
            with pytest.raises(UpstreamFailed, match="not of the expected form"):
                run([*before, chunk])
        with pytest.raises(UpstreamFailed, match="not of the expected form"):
            read_whole(fake.chat_whole().replace(b'"index"', b'"%b": "%b", "index"' % (field, bad)), Tally(), "up")


def test_text_beyond_ascii_passes_however_it_is_cut() -> None:
    chunk = event(json.dumps(json.loads(fake.chunk({"content": "äß漢🎉"})), ensure_ascii=False).encode())
    sent = chunk + STREAM
    for at in range(1, len(chunk) + 1):
        assert run([sent[:at], sent[at:]])[0] == chunk + WITHOUT_USAGE


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("stop", "stop"),
        ("tool_calls", "tool_calls"),
        ("MAX_TOKENS", "MAX_TOKENS"),
        ("op-0123456789abcdefghijklmnopqrstuvwxyzABCDEFG", "other"),
        ("a sentence", "other"),
        ("sk-0", "other"),
        ("x" * 200, "other"),
    ],
)
def test_the_reason_on_record_is_a_word(said: str, kept: str) -> None:
    tally = Tally(finish_reasons={1: said, 0: "stop"})
    assert tally.reasons() == ["stop", kept]


@given(st.binary(min_size=1, max_size=20), st.lists(st.integers(1, 40), max_size=8), st.integers(0, 2))
def test_a_secret_never_passes_whole_however_it_is_cut(secret: bytes, cuts: list[int], at: int) -> None:
    key = secret.hex().encode()
    texts = ["one", "two", "three"]
    texts[at] = f"it is {key.decode()}, is it not"
    data = b"".join(map(event, fake.chat_events(texts))) + event(b"[DONE]")
    reader, out, rest = PassThrough("up", Tally(), keep_usage=True, secret=key + b","), b"", data
    with pytest.raises(UpstreamFailed, match="credential"):
        for cut in [*cuts, len(data)]:
            piece, rest = rest[:cut], rest[cut:]
            if piece:
                out += reader.feed(piece)
    assert key + b"," not in out


@pytest.mark.parametrize("beat", [b": keep-alive\n\n", b":\n\n", b": PROCESSING\r\n\r\n", b": a\n: b\n\n"])
def test_heartbeats_pass_once_the_answer_has_begun(beat: bytes) -> None:
    first, second = EVENTS[1:3]
    passing = PassThrough("t", Tally(), keep_usage=True)
    assert passing.feed(beat) == b""  # nobody has been answered yet
    assert passing.feed(event(first)) == event(first)
    assert passing.feed(beat) == beat
    assert passing.feed(event(second)) == event(second)
    # One that comes in the middle of an event waits for nobody, and changes nothing.
    whole = event(second)
    assert passing.feed(whole[:9]) == b""
    assert passing.feed(whole[9:]) == whole
