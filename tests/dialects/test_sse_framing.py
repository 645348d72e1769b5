from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects import sse

EVENTS = [b'{"a":1}', "wörld 🌍".encode(), b"x", b"[DONE]"]


def frame(events: list[bytes], eol: bytes = b"\n", *, comments: bool = False) -> bytes:
    lead = b": keep-alive" + eol + eol if comments else b""
    return b"".join(lead + b"data: " + data + eol + eol for data in events)


def feed(pieces: list[bytes]) -> list[bytes]:
    """All events; what may pass as it came has to be just these events."""
    framer = sse.Framer()
    found: list[bytes] = []
    for piece in pieces:
        events, verbatim = framer.feed(piece)
        found += events
        assert not verbatim or piece == b"".join(map(sse.event, events))
    return found


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
@pytest.mark.parametrize("comments", [False, True])
def test_every_cut_gives_the_same_events(eol: bytes, comments: bool) -> None:
    text = frame(EVENTS, eol, comments=comments)
    for i in range(len(text) + 1):
        assert feed([text[:i], text[i:]]) == EVENTS


@pytest.mark.parametrize("eol", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
def test_byte_by_byte(eol: bytes) -> None:
    text = frame(EVENTS, eol, comments=True)
    assert feed([text[i : i + 1] for i in range(len(text))]) == EVENTS


def test_a_read_that_ends_with_an_event_may_pass_as_it_came() -> None:
    assert sse.Framer().feed(frame(EVENTS)) == (EVENTS, True)


@given(
    st.lists(st.binary(max_size=20).filter(lambda b: b"\n" not in b and b"\r" not in b), max_size=8),
    st.data(),
)
def test_any_events_any_cuts(events: list[bytes], data: st.DataObject) -> None:
    text = frame(events)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=6)))
    pieces = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    assert feed(pieces) == events


@given(st.lists(st.binary(max_size=30), max_size=6))
def test_any_bytes_in_any_pieces_give_the_same_as_in_one(pieces: list[bytes]) -> None:
    assert feed(pieces) == feed([b"".join(pieces)])


def test_other_fields_are_skipped_and_data_lines_are_joined() -> None:
    text = b"\xef\xbb\xbfevent: x\nid: 1\nretry: 5\ndata: a\ndata:b\ndata\n\nevent: no data\n\n"
    assert feed([text]) == [b"a\nb\n"]


def test_the_end_completes_an_event_without_its_empty_line() -> None:
    framer = sse.Framer()
    assert framer.feed(b"data: [DONE]")[0] == []
    assert framer.end() == [b"[DONE]"]
    assert framer.end() == []


def test_an_event_without_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    framer = sse.Framer()
    framer.feed(b"data: " + b"x" * 80)
    with pytest.raises(sse.EventTooLarge):
        framer.feed(b"x" * 80)


def test_small_events_do_not_add_up_to_a_large_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sse, "MAX_EVENT", 100)
    framer = sse.Framer()
    for _ in range(50):
        assert framer.feed(b"data: " + b"x" * 20 + b"\r\n\r\n")[0] == [b"x" * 20]
