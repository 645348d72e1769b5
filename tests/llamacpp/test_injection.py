from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtimes.llamacpp.injection import ControlStrings, Protection, Segment, neutral

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


@pytest.mark.parametrize("torn", ["1234567890123456", f"{NONCE}0000", f"{NONCE}999999", f"{NONCE[3:]}000000"])
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
