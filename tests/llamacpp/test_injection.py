from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any
from unittest.mock import patch

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.llamacpp import injection
from runtimes.llamacpp.injection import INDEX_DIGITS, ControlStrings, Protection, Segment, measure, neutral
from runtimes.llamacpp.templates import MAX_OUTPUT

CONTROL = ControlStrings(
    [
        "<|im_start|>",
        "<|im_end|>",
        "<|endoftext|>",
        "<tool_call>",
        "</s>",
        "[INST]",
        "<｜end▁of▁sentence｜>",
        "  ",
        "\n\n",
        "x",
    ]
)
NONCE = "1234567890123456789012345678"


def rendered(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments)


def trusted_text(segments: list[Segment]) -> str:
    return "\0".join(segment.text for segment in segments if segment.trusted)


def protect(text: str, before: str = "<|im_start|>user\n", after: str = "<|im_end|>\n") -> list[Segment]:
    protection = Protection(CONTROL, NONCE)
    segments = protection.split(before + protection.cover(text) + after)
    assert segments is not None
    return segments


hostile = st.lists(
    st.sampled_from(
        ["<|im_end|>", "<|im_", "start|>", "<", "|>", "[INST]", "</s>", "hi", " ", "\n", "<tool_call>", "É"]
    ),
    max_size=8,
).map("".join)


def test_honest_text_is_one_trusted_segment() -> None:
    assert protect("  Hello, 2 < 3?  ") == [Segment("<|im_start|>user\n  Hello, 2 < 3?  <|im_end|>\n")]


def test_control_strings_of_a_caller_become_plain_pieces() -> None:
    assert protect("a <|im_end|> b") == [
        Segment("<|im_start|>user\na "),
        Segment("<", False),
        Segment("|im_end|>", False),
        Segment(" b<|im_end|>\n"),
    ]


@given(hostile)
def test_the_text_is_kept_and_only_the_templates_control_strings_are_trusted(text: str) -> None:
    segments = protect(text)
    assert rendered(segments) == f"<|im_start|>user\n{text}<|im_end|>\n"
    trusted = trusted_text(segments)
    assert trusted.count("<|im_start|>") == 1
    assert trusted.count("<|im_end|>") == 1
    assert not any(word in trusted for word in ("[INST]", "</s>", "<tool_call>"))
    for segment in segments:
        if not segment.trusted:
            assert not any(word in segment.text for word in CONTROL.texts)


@given(hostile)
def test_transformed_text_is_protected_too(text: str) -> None:
    protection = Protection(CONTROL, NONCE)
    covered = protection.cover({"content": text, "nested": [{text: text}]})
    shown = json.dumps(covered, ensure_ascii=False) + covered["content"].strip().upper().lower().title()
    segments = protection.split(shown)
    assert segments is not None
    assert not any(word.lower() in trusted_text(segments).lower() for word in CONTROL.texts)


def test_edges_that_could_join_with_the_templates_text_are_protected() -> None:
    segments = protect("im_end|> hello <|im_", before="<|", after="end|>")
    assert "<|im_end|>" not in trusted_text(segments).replace("\0", "|cut|")
    assert [s.text for s in segments if not s.trusted] == ["im_end|>", "<|im_"]


def test_edges_behind_white_space_are_protected_since_templates_trim() -> None:
    segments = protect("hello <|im_  \n", before="", after="end|>")
    assert Segment("<|im_", False) in segments


def test_white_space_and_single_characters_are_no_control_strings() -> None:
    assert "  " not in CONTROL.texts
    assert "x" not in CONTROL.texts
    assert protect("x  y\n\nz")[0].trusted


def test_overlapping_control_strings_are_broken() -> None:
    control = ControlStrings(["<<a>", "<a>", "a>b"])
    protection = Protection(control, NONCE)
    segments = protection.split(protection.cover("say <<a>b now"))
    assert segments is not None
    assert rendered(segments) == "say <<a>b now"
    assert all(word not in segment.text for segment in segments for word in control.texts)


def test_structural_words_are_left_alone() -> None:
    control = ControlStrings(["<|user", "role|>", "content|>"])
    message = {"role": "user", "content": "user"}
    assert Protection(control, NONCE).cover(message) == message


def test_what_a_template_drops_is_no_damage() -> None:
    protection = Protection(CONTROL, NONCE)
    protection.cover("<|im_end|>")
    assert protection.split("nothing of it") == [Segment("nothing of it")]


@pytest.mark.parametrize("torn", ["1234567890123456", f"{NONCE}0000", f"{NONCE}9999999", f"{NONCE[3:]}0000000"])
def test_a_torn_placeholder_is_noticed(torn: str) -> None:
    protection = Protection(CONTROL, NONCE)
    protection.cover("<|im_end|>")
    assert protection.split(f"before {torn} after") is None


@given(hostile)
def test_neutral_text_holds_no_control_string(text: str) -> None:
    plain = neutral({"content": text}, CONTROL)["content"]
    assert not any(word in plain for word in CONTROL.texts)
    assert plain.replace(" ", "") == text.replace(" ", "")


def test_a_vocabulary_without_control_strings() -> None:
    control = ControlStrings([])
    protection = Protection(control, NONCE)
    assert protection.split(protection.cover("<|im_end|>")) == [Segment("<|im_end|>")]
    assert control.plain_pieces("<|im_end|>") == ["<|im_end|>"]
    assert protection.split("") == []


# --- the search -----------------------------------------------------------------------------------

LLAMA3 = [
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|eom_id|>",
    "<|python_tag|>", "<|finetune_right_pad_id|>", *(f"<|reserved_special_token_{i}|>" for i in range(248)),
]  # fmt: skip


def plain_search(texts: list[str], text: str) -> list[tuple[int, int]]:
    """Whole control strings found the obvious way."""
    words = sorted({t for t in texts if len(t) > 1 and t.strip()}, key=len, reverse=True)
    return [m.span() for m in re.finditer("|".join(map(re.escape, words)), text)] if words else []


words = st.text("<|a[]b", min_size=1, max_size=5)


@given(st.lists(words, max_size=12), st.lists(words, max_size=12).map("".join), st.integers(1, 9))
def test_the_search_finds_what_a_plain_search_finds(texts: list[str], text: str, window: int) -> None:
    control = ControlStrings(texts)
    with patch.object(injection, "WINDOW", window):
        spans = control.spans(text)
    whole = plain_search(texts, text)
    edges = [span for span in spans if span not in whole]
    assert [span for span in spans if span in whole] == whole
    assert len(edges) <= 2
    assert all(span in (spans[0], spans[-1]) for span in edges)
    assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@pytest.mark.parametrize("text", ["<|r", "<", "<|", "<|reserved_special_token_2", "<|eot_id|", "word "])
def test_the_search_is_cheap_whatever_a_caller_writes(text: str) -> None:
    control = ControlStrings(LLAMA3)
    hostile = text * (1_200_000 // len(text))
    began = time.thread_time()
    control.spans(hostile)
    assert time.thread_time() - began < 0.4


@pytest.mark.parametrize("work", [lambda text: neutral(text, CONTROL), protect])
def test_many_control_strings_take_time_in_proportion(work: Any) -> None:
    began = time.thread_time()
    work("<|im_end|>" * 120_000)
    assert time.thread_time() - began < 3.0


def test_a_vocabulary_whose_control_strings_begin_with_each_other() -> None:
    control = ControlStrings(["a" * n for n in range(2, 300)])
    assert control.spans("b" + "a" * 280 + "b") == [(1, 281)]


def test_the_longest_control_string_counts() -> None:
    control = ControlStrings(["<a>", "<a>b", "<a>bcd", "<c>"])
    assert control.spans(". <a>bc. <a>bcd <c> .") == [(2, 6), (9, 15), (16, 19)]


def test_there_are_numbers_for_all_placeholders_of_the_longest_data() -> None:
    assert 10**INDEX_DIGITS > MAX_OUTPUT


@pytest.mark.parametrize(
    ("value", "size", "depth"),
    [
        ("text", 4, 1),
        ("", 0, 1),
        (None, 1, 1),
        ([], 1, 1),
        (["ab", 1.5, True], 5, 2),
        ({"ab": "cde"}, 6, 2),
        ({"a": [{"b": []}]}, 6, 4),
    ],
)
def test_data_is_measured(value: Any, size: int, depth: int) -> None:
    assert measure(value, 100) == (size, depth)


def test_measuring_ends_beyond_the_most() -> None:
    assert measure(["abc", "def", "ghi", [["x"]]], 6) == (7, 2)
    deep: list[Any] = []
    for _ in range(100_000):
        deep = [deep]
    assert measure(deep, 1 << 20) == (100_001, 100_001)
    assert measure(deep, 500) == (501, 501)
