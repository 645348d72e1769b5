"""The same key goes to the same place, evenly, and stays when others go."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects import chat as chats
from appliance.dialects import completions, embeddings
from appliance.routing.hashing import bounded, digest, prefix_key, rendezvous, room, unit

NAMES = st.lists(st.text(min_size=1, max_size=8), min_size=1, max_size=12, unique=True)
LOADS = st.lists(st.integers(0, 1000), min_size=1, max_size=12)


def chat(*messages: Any, **fields: Any) -> Any:
    return chats.parse(json.dumps({"model": "m", "messages": list(messages), **fields}).encode())


def said(role: str, content: Any) -> dict[str, Any]:
    return {"role": role, "content": content}


def test_numbers_are_the_same_in_every_process() -> None:
    assert unit(digest("a session"), "openai/gpt") == 0.962305968725078
    assert digest("") != b""


@given(st.binary(max_size=80), st.text(max_size=20))
@settings(deadline=None)
def test_numbers_are_inside_zero_and_one(key: bytes, name: str) -> None:
    assert 0.0 < unit(key, name) < 1.0


@given(st.binary(min_size=1, max_size=16), NAMES)
@settings(deadline=None)
def test_an_order_is_of_all_names_whatever_their_order(key: bytes, names: list[str]) -> None:
    order = rendezvous(key, names)
    assert sorted(order) == list(range(len(names)))
    turned = list(reversed(names))
    assert [turned[at] for at in rendezvous(key, turned)] == [names[at] for at in order]


@given(st.binary(min_size=1, max_size=16), NAMES.filter(lambda names: len(names) > 1), st.data())
@settings(deadline=None)
def test_when_a_name_goes_only_its_keys_move_each_to_its_next(
    key: bytes, names: list[str], data: st.DataObject
) -> None:
    order = [names[at] for at in rendezvous(key, names)]
    gone = data.draw(st.sampled_from(names))
    left = [name for name in names if name != gone]
    assert [left[at] for at in rendezvous(key, left)] == [name for name in order if name != gone]


def test_keys_are_spread_evenly_or_by_weight() -> None:
    names = ["a", "b", "c", "d"]
    first = Counter(rendezvous(digest(str(number)), names)[0] for number in range(8000))
    assert all(abs(count - 2000) < 200 for count in first.values())
    weighted = Counter(rendezvous(digest(str(number)), names, [1, 1, 2, 0])[0] for number in range(8000))
    assert abs(weighted[2] - 4000) < 250
    assert weighted[3] == 0


@given(LOADS, st.floats(1.0, 3.0), st.randoms())
@settings(deadline=None)
def test_nobody_gets_more_than_the_bound_while_there_is_room(loads: list[int], slack: float, random: Any) -> None:
    order = list(range(len(loads)))
    random.shuffle(order)
    chosen = bounded(order, loads, slack)
    assert sorted(chosen) == sorted(order)
    most = room(loads, slack)
    assert loads[chosen[0]] + 1 <= most
    free = [at for at in order if loads[at] < most]
    assert chosen[: len(free)] == free  # in the key's order, as far as there is room


@given(st.lists(st.integers(0, 15), min_size=1, max_size=300), st.integers(1, 8))
@settings(max_examples=50, deadline=None)
def test_a_popular_key_never_fills_a_place_beyond_the_bound(keys: list[int], places: int) -> None:
    names, loads = [f"replica-{at}" for at in range(places)], [0] * places
    for key in keys:
        most = room(loads)
        at = bounded(rendezvous(digest(str(key)), names), loads)[0]
        loads[at] += 1
        assert loads[at] <= most


def test_nothing_has_an_order_too() -> None:
    assert bounded([], []) == []
    assert rendezvous(b"k", []) == []


# --- what a conversation begins with -----------------------------------------------------------------


def test_all_turns_of_a_conversation_have_the_same_key() -> None:
    begin = [said("system", "You help."), said("user", "Hi")]
    later = [*begin, said("assistant", "Hello"), said("user", "And now?")]
    assert prefix_key(chat(*begin)) == prefix_key(chat(*later))
    assert prefix_key(chat(*begin), "other") != prefix_key(chat(*begin))
    assert prefix_key(chat(said("system", "You help."), said("user", "Ho"))) != prefix_key(chat(*begin))
    assert prefix_key(chat(said("system", "You do."), said("user", "Hi"))) != prefix_key(chat(*begin))


def test_tools_and_parts_belong_to_the_beginning() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    hi = said("user", "Hi")
    assert prefix_key(chat(hi, tools=[tool])) != prefix_key(chat(hi))
    parts = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}]
    assert prefix_key(chat(said("user", parts))) != prefix_key(chat(said("user", parts[:1])))
    assert prefix_key(chat(said("user", parts))) == prefix_key(chat(said("user", parts), said("assistant", "Yes")))


@given(st.lists(st.text(max_size=5), min_size=2, max_size=4), st.lists(st.text(max_size=5), min_size=2, max_size=4))
@settings(deadline=None)
def test_texts_are_told_apart_from_their_parts(one: list[str], other: list[str]) -> None:
    keys = [
        prefix_key(chat(*(said("system", text) for text in texts[:-1]), said("user", texts[-1])))
        for texts in (one, other)
    ]
    assert (keys[0] == keys[1]) == (one == other)


def test_other_requests_have_keys_as_well() -> None:
    def completion(prompt: Any) -> bytes:
        return prefix_key(completions.parse(json.dumps({"model": "m", "prompt": prompt}).encode()))

    assert completion("Once") == completion("Once") != completion("Twice")
    assert completion([1, 2, 3]) != completion([1, 2, 4])
    embedding = embeddings.parse(b'{"model": "m", "input": ["Once", "more"]}')
    assert prefix_key(embedding) == completion("Once")
