from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.engine import PositionLogprobs, TokenLogprob
from runtimes.llamacpp.text import LogprobQueue, StopFilter, TextStream, held_back, token_logprob

# Few different characters, so that stop strings really occur and overlap.
letters = st.text("abc", max_size=12)
stops = st.lists(st.text("abc", min_size=1, max_size=4), max_size=3)
awkward = st.one_of(st.binary(max_size=24), st.text("aé€😀\u0000", max_size=8).map(str.encode))


def cut(data: bytes, places: list[int]) -> list[bytes]:
    edges = [0, *sorted(p % (len(data) + 1) for p in places), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def run(stream: TextStream, pieces: list[bytes]) -> tuple[str, bool]:
    out = ""
    for piece in pieces:
        text, _ = stream.feed(piece)
        out += text
    return out + stream.flush(), stream.stopped


@given(awkward, st.lists(st.integers(0, 1000), max_size=8))
def test_decoding_does_not_depend_on_the_cutting(data: bytes, places: list[int]) -> None:
    whole = data.decode("utf-8", "replace")
    assert run(TextStream(), cut(data, places)) == (whole, False)
    assert run(TextStream(), [data[i : i + 1] for i in range(len(data))]) == (whole, False)


@given(letters, stops, st.lists(st.integers(0, 1000), max_size=8))
def test_stop_strings_do_not_depend_on_the_cutting(text: str, words: list[str], places: list[int]) -> None:
    data = text.encode()
    whole = run(TextStream(words), [data])
    assert run(TextStream(words), cut(data, places)) == whole
    assert run(TextStream(words), [data[i : i + 1] for i in range(len(data))]) == whole
    out, stopped = whole
    assert stopped == any(word in text for word in words)
    assert text.startswith(out)
    assert not any(word in out for word in words)


@given(letters, stops)
def test_nothing_is_held_that_could_be_shown(text: str, words: list[str]) -> None:
    stream = StopFilter(words)
    out = ""
    for char in text:
        shown, stopped = stream.feed(char)
        out += shown
        if stopped:
            return
        held = text[len(out) : len(out) + held_back(text[: len(out)] + char, words)]
        assert len(held) < max((len(w) for w in words), default=1)
    assert out + stream.flush() == text


def test_a_code_point_is_never_shown_in_halves() -> None:
    stream = TextStream()
    euro = "€".encode()
    assert [stream.feed(euro[i : i + 1])[0] for i in range(3)] == ["", "", "€"]
    assert stream.feed(euro[:2])[0] == ""
    assert stream.flush() == "\ufffd"


def test_a_stop_string_split_over_tokens_is_never_released() -> None:
    stream = TextStream(["\nUser:"])
    shown = [stream.feed(piece)[0] for piece in (b"Fine.", b"\n", b"Us", b"e", b"r", b": hello")]
    assert shown == ["Fine.", "", "", "", "", ""]
    assert stream.stopped
    assert stream.feed(b"more") == ("", True)
    assert stream.flush() == ""


def test_the_held_text_comes_out_when_it_was_no_stop_string() -> None:
    stream = TextStream(["STOP"])
    assert stream.feed(b"a ST")[0] == "a "
    assert stream.feed(b"ART")[0] == "START"
    assert stream.feed(b"S")[0] == ""
    assert stream.flush() == "S"


def test_the_stop_string_that_is_complete_first_counts() -> None:
    for pieces in ([b"xabcd"], [b"x", b"a", b"b", b"c", b"d"]):
        assert run(TextStream(["abcd", "bc"]), pieces) == ("xa", True)


def test_of_two_that_are_complete_together_the_longer_counts() -> None:
    assert run(TextStream(["c", "abc"]), [b"xabc"]) == ("x", True)


def test_held_back_is_the_longest_possible_beginning() -> None:
    assert held_back("say <tool", ["<tool_call>"]) == 5
    assert held_back("abab", ["ababc"]) == 4
    assert held_back("<tool_call>", ["<tool_call>"]) == 0
    assert held_back("", ["x"]) == 0


def test_token_logprob_shows_text_and_bytes() -> None:
    assert token_logprob(b" Paris", -0.5) == TokenLogprob(" Paris", -0.5, list(b" Paris"))
    assert token_logprob(b"\xe2\x82", -1.0) == TokenLogprob("\ufffd", -1.0, [0xE2, 0x82])


def test_logprobs_wait_for_their_text() -> None:
    queue = LogprobQueue()
    entries = [PositionLogprobs(TokenLogprob(c, -1.0, []), []) for c in "abc"]
    for start, entry in enumerate(entries):
        queue.add(start, entry)
    assert queue.take(0) == []
    assert queue.take(2) == entries[:2]
    assert queue.take_all() == entries[2:]
    queue.add(3, entries[0])
    queue.clear()
    assert queue.take_all() == []


@pytest.mark.parametrize("empty", [[], [""]])
def test_without_stop_strings_all_text_passes_at_once(empty: list[str]) -> None:
    assert TextStream(empty).feed(b"anything") == ("anything", False)
