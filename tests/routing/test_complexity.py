"""How hard prompts are: agreed with by people who labelled some, explained by parts, in bounded time."""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.dialects.chat import parse
from appliance.routing.complexity import EASY, EDGE, HARD, MOST, MOST_OF, Complexity, assess, assess_text


class Labelled(NamedTuple):
    label: str
    language: str
    prompt: str


def labelled() -> list[Labelled]:
    found = []
    for line in Path(__file__).with_name("complexity_prompts.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            head, _, prompt = line.partition(": ")
            label, language = head.split()
            found.append(Labelled(label, language, prompt.replace("\\n", "\n")))
    return found


PROMPTS = labelled()


def right(each: Labelled) -> bool:
    score = assess_text(each.prompt).score
    return score < EASY if each.label == "easy" else score > HARD


def chat(*messages: dict[str, Any], **fields: Any) -> Complexity:
    return assess(parse(json.dumps({"model": "m", "messages": list(messages), **fields}).encode()))


def user(content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content}


def test_there_are_enough_prompts_of_many_kinds() -> None:
    assert len(PROMPTS) >= 190
    assert len({each.prompt for each in PROMPTS}) == len(PROMPTS)
    assert len({each.language for each in PROMPTS}) >= 12
    assert min(sum(each.label == label for each in PROMPTS) for label in ("easy", "hard")) >= 60


@pytest.mark.parametrize("label", ["easy", "hard"])
def test_people_and_scores_agree(label: str) -> None:
    those = [each for each in PROMPTS if each.label == label]
    wrong = [(assess_text(each.prompt), each.prompt[:60]) for each in those if not right(each)]
    assert len(wrong) <= 0.1 * len(those), wrong


def test_people_and_scores_agree_in_every_language() -> None:
    for language in {each.language for each in PROMPTS}:
        those = [each for each in PROMPTS if each.language == language and each.label != "medium"]
        wrong = [(assess_text(each.prompt), each.prompt[:60]) for each in those if not right(each)]
        assert len(wrong) <= 0.2 * len(those), (language, wrong)


def test_those_in_between_are_in_between() -> None:
    means = [
        mean(assess_text(each.prompt).score for each in PROMPTS if each.label == label)
        for label in ("easy", "medium", "hard")
    ]
    assert means[0] + 10 < means[1] < means[2] - 30
    assert all(assess_text(each.prompt).score < HARD for each in PROMPTS if each.label == "medium")


@given(st.text(max_size=300) | st.sampled_from([each.prompt for each in PROMPTS]))
@settings(max_examples=200, deadline=None)
def test_a_score_is_the_sum_of_its_parts_each_within_its_bound(text: str) -> None:
    complexity = assess_text(text)
    assert complexity.score == min(MOST, sum(points for _, points in complexity.parts))
    assert all(0 < points <= MOST_OF[name] for name, points in complexity.parts)
    assert [points for _, points in complexity.parts] == sorted((p for _, p in complexity.parts), reverse=True)
    assert assess_text(text) == complexity


def test_an_empty_prompt_has_nothing() -> None:
    assert assess_text("") == Complexity(0, ())
    assert chat(user("")) == Complexity(0, ())


def test_both_ways_to_write_an_accent_are_one() -> None:
    assert assess_text("Démontre le théorème") == assess_text("De\u0301montre le the\u0301ore\u0300me")


def test_code_is_asked_about_and_does_not_ask() -> None:
    asked = assess_text("Hm?\n```\nprove design implement analyse must must must\n```")
    assert dict(asked.parts).keys() <= {"code", "questions"}
    assert dict(asked.parts)["code"] > 5


def test_what_surrounds_a_question_counts_too() -> None:
    alone = chat(user("hi")).score
    tool = {"type": "function", "function": {"name": "f"}}
    schema = {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}}
    image = [{"type": "text", "text": "hi"}, {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]
    said = {"role": "assistant", "content": "Hello"}
    for name, more in {
        "tools": chat(user("hi"), tools=[tool]),
        "schema": chat(user("hi"), response_format=schema),
        "media": chat(user(image)),
        "turns": chat(*[user("hi"), said] * 4, user("hi")),
        "context": chat({"role": "system", "content": "x" * 20_000}, user("hi")),
        "effort": chat(user("hi"), reasoning_effort="high"),
    }.items():
        assert dict(more.parts)[name] == more.score - alone > 0, name
    assert chat(user("hi"), reasoning={"effort": "high"}) == chat(user("hi"), reasoning_effort="high")
    assert chat(user("hi"), reasoning={"effort": ["odd"]}).score == alone


def test_only_the_last_question_is_read() -> None:
    hard = next(each.prompt for each in PROMPTS if each.label == "hard")
    said = {"role": "assistant", "content": "Done."}
    assert chat(user(hard), said, user("Thanks!")).score < EASY
    assert chat(user("Hi"), said, user(hard)).score > HARD


def test_the_middle_of_a_long_text_does_not_ask() -> None:
    hard = next(each.prompt for each in PROMPTS if each.label == "hard")
    filler = "word " * (2 * EDGE)
    inside = assess_text(f"Which name is in this text? {filler}{hard}{filler}")
    assert "task" not in dict(inside.parts)
    assert inside.score < HARD
    assert "task" in dict(assess_text(f"{filler}{hard}").parts)


@pytest.mark.parametrize("piece", ["a", "a ", "分析", "é", "{", "1.", "\n- ", "```", "?", "prove ", "\\a", "ก็"])
def test_the_longest_texts_take_no_longer_than_long_ones(piece: str) -> None:
    def seconds(text: str) -> float:
        times = []
        for _ in range(5):
            began = time.process_time()
            assess_text(text)
            times.append(time.process_time() - began)
        return min(times)

    long, longest = piece * (2 * EDGE // len(piece)), piece * (2_000_000 // len(piece))
    assert seconds(longest) < 4 * seconds(long) + 0.01
    assert seconds(longest) < 0.1
