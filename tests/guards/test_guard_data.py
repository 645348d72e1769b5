"""What trains and judges the guard models: no text on two sides, files that can be read, generators that keep word."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard_models.pipeline import compose, disguise
from guard_models.pipeline.dataset import GROUP, MADE, MIXTURE, Data, as_taught, calibrates, epoch, family, load
from guard_models.pipeline.fill import Template, documents, filled, known_slots
from guard_models.pipeline.people import World, load_lists
from guard_models.pipeline.rows import (
    ENTITIES,
    TAGS,
    BadBlock,
    Row,
    Seen,
    blocks,
    same_text,
    unmarked,
    without_brackets,
)
from guard_models.pipeline.sources import SOURCES, joined
from guard_models.pipeline.written import DOCUMENT_TYPES, HERE, dev, held

PLAIN = st.text(st.characters(exclude_characters="[]()⟦⟧\r", exclude_categories=("Cs",)), min_size=1, max_size=40)


@pytest.fixture(scope="module")
def data() -> Data:
    return load(HERE / "public", limit=1500)


@pytest.fixture(scope="module")
def world() -> World:
    return World(load_lists(HERE / "written"), Random(3))


def test_no_text_is_on_two_sides(data: Data) -> None:
    train = {same_text(row.text) for rows in data.train.values() for row in rows}
    calibrate = {same_text(row.text) for row in data.calibrate}
    judge = {same_text(row.text) for rows in (*held().values(), *dev().values()) for row in rows}
    assert not train & judge
    assert not train & calibrate
    assert not calibrate & judge


def test_every_training_set_is_there_and_has_a_licence(data: Data) -> None:
    assert {source.name for source in SOURCES} <= data.train.keys()
    assert all(len(rows) > 20 for rows in data.train.values())
    for source in SOURCES:
        assert source.licence
        assert "NC" not in source.licence.replace("-", " ").split()
        assert source.origin


def test_each_share_of_the_mixture_is_of_a_set_that_exists(data: Data) -> None:
    assert MIXTURE.keys() <= {*data.train, *map(family, data.train)}


def test_written_rows_are_of_both_kinds(data: Data) -> None:
    labels = Counter(row.injection for rows in data.train.values() for row in rows if row.set.startswith("inj_"))
    assert labels[0.0] > 3000
    assert labels[1.0] > 3000
    toxic = Counter(
        (row.toxicity or {}).get("toxic") for name, rows in data.train.items() if name[:4] == "tox_" for row in rows
    )
    assert toxic[0.0] > 1500
    assert toxic[1.0] > 1500


def test_an_epoch_depends_on_its_seed_and_number_alone(data: Data) -> None:
    one = [row.text for row in epoch(data, 0, seed=5, scale=0.02)]
    assert one == [row.text for row in epoch(data, 0, seed=5, scale=0.02)]
    assert one != [row.text for row in epoch(data, 1, seed=5, scale=0.02)]
    assert one != [row.text for row in epoch(data, 0, seed=6, scale=0.02)]


def test_an_epoch_has_what_generators_make(data: Data) -> None:
    sets = Counter(row.set for row in epoch(data, 0, seed=5, scale=0.1))
    assert {name: sets[name] for name in MADE} == {name: round(count * 0.1) for name, count in MADE.items()}


def test_whole_runs_of_neighbours_calibrate() -> None:
    for name in ("inj_lang_1", "tox_short"):
        told = [calibrates(name, number) for number in range(4000)]
        assert all(len(set(told[at : at + GROUP])) == 1 for at in range(0, 3996, GROUP))
        assert 0.05 < sum(told) / len(told) < 0.16


# --- files of text blocks ------------------------------------------------------------------------


def test_every_written_file_can_be_read() -> None:
    for path in sorted((HERE / "written").glob("*.txt")) + sorted((HERE / "held").glob("*.txt")):
        assert sum(1 for _ in blocks(path)) > 20, path.name


@pytest.mark.parametrize("header", ["=== 1 | a", "=== ", "=== 1 | a | en | x", "=== 1 |  | en"])
def test_a_wrong_header_is_named_with_its_line(tmp_path: Path, header: str) -> None:
    path = tmp_path / "rows.txt"
    path.write_text(f"=== 1 | a | en\ntext\n{header}\nmore\n", encoding="utf-8")
    with pytest.raises(BadBlock, match=r"rows\.txt:3"):
        list(blocks(path))


@given(st.lists(st.tuples(PLAIN, st.sampled_from(["", "PERSON", "ORG"])), max_size=8))
def test_marks_come_off_and_say_where_they_were(parts: list[tuple[str, str]]) -> None:
    marked = "".join(f"[{text}]({kind})" if kind else text for text, kind in parts)
    plain, spans = unmarked(marked, DOCUMENT_TYPES)
    assert plain == "".join(text for text, _ in parts)
    assert [plain[a:b] for a, b, _ in spans] == [text for text, kind in parts if kind]


@given(st.lists(st.tuples(PLAIN, st.booleans()), max_size=8))
def test_brackets_come_off_and_say_where_they_were(parts: list[tuple[str, bool]]) -> None:
    plain, spans = without_brackets("".join(f"⟦{text}⟧" if inside else text for text, inside in parts))
    assert plain == "".join(text for text, _ in parts)
    assert [plain[a:b] for a, b in spans] == [text for text, inside in parts if inside]


def test_nearly_equal_texts_are_seen() -> None:
    text = "Please send the quarterly report to the whole team before noon on Friday and confirm that you did"
    seen = Seen([Row(text, "x")])
    assert seen.has(text.upper() + "!!!")
    assert seen.has(text + " today")
    assert not seen.has("Please send the yearly report to nobody at all, and do not confirm anything to anybody ever")
    assert seen.has(f"Before that: nothing. {text}, as we said before, and thank you all for the work of this week")


def test_short_texts_with_another_word_are_seen() -> None:
    seen = Seen([Row("Lesbians are bitter women no man would ever touch", "x"), Row("आज मौसम बहुत अच्छा है", "x")])
    assert seen.has("lesbians are ugly women no man would ever touch.")
    assert seen.has("आज का मौसम बहुत अच्छा है")
    assert not seen.has("Women are touched that no man would ever call them bitter")


@pytest.mark.parametrize(("one", "other"), [("👍", "👎"), ("कि", "की"), ("5", "6"), ("مرحبا", "سلام")])
def test_signs_that_matter_tell_texts_apart(one: str, other: str) -> None:
    assert same_text(one) != same_text(other)
    assert not Seen([Row(one, "x")]).has(other)
    assert same_text("Crème  brûlée!") == same_text("creme brulee")


@given(st.text(max_size=300), st.lists(st.text(max_size=300), max_size=4))
def test_what_was_added_is_seen(text: str, others: list[str]) -> None:
    seen = Seen(Row(one, "x") for one in others)
    seen.add(text)
    assert seen.has(text)
    assert all(seen.has(one) for one in others)


def test_tokens_become_prose_with_the_same_spans() -> None:
    text, spans = joined(
        ["Anna", "Keller", ",", "of", "Graz", "(", "Austria", ")", "."],
        ["B-PER", "I-PER", "O", "O", "B-LOC", "O", "B-LOC", "O", "O"],
    )
    assert text == "Anna Keller, of Graz (Austria)."
    assert [(text[a:b], kind) for a, b, kind in spans] == [
        ("Anna Keller", "PERSON"), ("Graz", "LOCATION"), ("Austria", "LOCATION"),
    ]  # fmt: skip
    assert joined(["New", "York"], ["I-LOC", "I-LOC"])[1] == [(0, 8, "LOCATION")]
    assert joined(["Ann", "Bob"], ["B-PER", "B-PER"])[1] == [(0, 3, "PERSON"), (4, 7, "PERSON")]


# --- generators ----------------------------------------------------------------------------------


def test_a_post_without_any_harsh_word_is_harmless_and_of_others_nothing_is_said() -> None:
    (read,) = (source.read for source in SOURCES if source.name == "ner_wnut17")
    kind = read({"tokens": ["Wow", ",", "lovely", "Graz", "!"], "tags": ["O", "O", "O", "B-location", "O"]})
    harsh = read({"tokens": ["I", "hate", "Mondays"], "tags": ["O", "O", "O"]})
    assert kind is not None
    assert harsh is not None
    assert kind.toxicity is not None
    assert max(kind.toxicity.values()) < 0.1
    assert kind.entities == [(12, 16, "LOCATION")]
    assert harsh.toxicity is None


def test_the_model_is_taught_only_types_that_it_has(data: Data) -> None:
    rows = [row for rows in data.train.values() for row in rows] + data.calibrate
    assert {kind for row in rows for _, _, kind in row.entities or []} == set(ENTITIES)
    row = as_taught(Row("a@b.org, 4111", "x", entities=[(0, 7, "EMAIL"), (9, 13, "CARD")], ignored=[]))
    assert row.entities == [(9, 13, "ACCOUNT")]
    assert row.ignored == [(0, 7)]


def test_a_poisoned_text_says_where_its_payload_is(data: Data) -> None:
    made = compose.poisoned(data.carriers, data.payloads, 300, Random(1), set_name="x")
    for row in made:
        ((begin, end),) = row.planted or []
        assert row.injection == 1.0
        assert 0 <= begin < end <= len(row.text)
        assert row.text[begin:end].strip()
    assert len({row.text for row in made}) > 290


def test_an_honest_text_has_nothing_planted(data: Data) -> None:
    sentences = compose.honest_sentences(data.carriers)
    assert len(sentences) > 200
    made = compose.honest(data.carriers, sentences, 300, Random(1), set_name="x")
    assert all(row.injection == 0.0 and row.planted == [] for row in made)


@given(st.text(max_size=400), PLAIN, st.randoms(use_true_random=False))
def test_what_is_inserted_is_there_and_the_rest_is_kept(carrier: str, what: str, random: Random) -> None:
    text, (begin, end) = compose.inserted(carrier, what, random)
    assert text[begin:end] == what
    kept = (text[:begin] + text[end:]).split()
    assert "".join(kept) == "".join(carrier.split())


def test_hosts_that_only_authors_use_are_replaced_alike() -> None:
    text = compose.OtherHosts(Random(1))("go to a.example and www.b.example.com, then A.EXAMPLE")
    assert "example" not in text.lower()
    assert text.split()[2] == text.split()[-1]


def test_every_template_has_only_slots_that_are_filled(data: Data) -> None:
    assert len(data.templates) > 700
    assert [(t.text[:60], slots) for t in data.templates if (slots := known_slots(t.text))] == []


def test_documents_say_where_their_data_is(data: Data, world: World) -> None:
    made = documents(data.templates, 600, world)
    kinds: Counter[str] = Counter()
    for row in made:
        assert "{{" not in row.text or "}}" not in row.text
        last = 0
        for begin, end, kind in row.entities or []:
            assert last <= begin < end <= len(row.text)
            assert row.text[begin:end].strip()
            kinds[kind] += 1
            last = end
    assert kinds.keys() == set(ENTITIES)


def test_the_same_slot_is_the_same_person(world: World) -> None:
    row = filled(
        Template("{{person:1}} / {{last:1}} / {{person:2}} / {{first:1}} / {{person:1}}", "prose", "any", "en"), world
    )
    one, last, two, first, again = row.text.split(" / ")
    assert one == again
    assert last in one
    assert first in one
    assert two != one


@given(st.text(max_size=200), st.randoms(use_true_random=False))
def test_disguises_take_any_text(text: str, random: Random) -> None:
    for change in (*disguise.LIGHT, *disguise.HEAVY):
        assert isinstance(change(text, random), str)


def test_tags_are_those_of_the_entities() -> None:
    assert TAGS[0] == "O"
    assert len(TAGS) == 2 * len(ENTITIES) + 1


def test_what_is_drawn_does_not_depend_on_the_order_of_hashes() -> None:
    draw = (
        "from random import Random; from guard_models.pipeline.people import World; "
        "print([World(None, Random(n)).ask(place, 'city') for n in range(20) for place in ('it_IT', 'de_DE')])"
    )
    seen = {
        subprocess.run(
            [sys.executable, "-c", draw], env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True,
            cwd=Path(__file__).parents[2], timeout=100,
        ).stdout
        for seed in ("1", "2")
    }  # fmt: skip
    assert len(seen) == 1
