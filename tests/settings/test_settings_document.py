"""YAML as data with lines: what is understood, what is refused, and that nothing can hang or crash it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from appliance.settings.document import MAX_BYTES, MAX_DEPTH, Document, Plain, parse

EXAMPLE = Path(__file__).parents[2] / "outpost.example.yaml"


def only(document: Document) -> tuple[int | None, str, str]:
    assert len(document.findings) == 1, document.findings
    found = document.findings[0]
    return found.line, found.message, found.cure


def test_every_key_and_entry_knows_its_line() -> None:
    document = parse(
        "# c\nserver:\n  listen: a\n\nroutes:\n- model: x\n  aliases:\n    - one\n    - two\n- {model: y}\n"
    )
    assert document.lines == {
        ("server",): 2,
        ("server", "listen"): 3,
        ("routes",): 5,
        ("routes", 0): 6,
        ("routes", 0, "model"): 6,
        ("routes", 0, "aliases"): 7,
        ("routes", 0, "aliases", 0): 8,
        ("routes", 0, "aliases", 1): 9,
        ("routes", 1): 10,
        ("routes", 1, "model"): 10,
    }
    assert document.line_of(("routes", 1, "targets", 0, "provider")) == 10
    assert document.line_of(("absent",)) is None


def test_scalars_stay_the_text_that_was_written() -> None:
    data = parse("a: no\nb: 10:30\nc: 1_000\nd: 1.10\ne: 'x'\nf: ~\ng:\nh: \"\"\ni: 2026-01-02\nj: 0777\non: y\n").data
    assert data == {
        "a": "no", "b": "10:30", "c": "1_000", "d": "1.10", "e": "x", "f": None, "g": None, "h": "",
        "i": "2026-01-02", "j": "0777", "on": "y",
    }  # fmt: skip
    assert isinstance(data["a"], Plain)
    assert not isinstance(data["e"], Plain)


@pytest.mark.parametrize("text", ["", "\n", "# only a comment\n", "---\n", "---\n...\n", "\ufeff"])
def test_an_empty_file_has_no_data_and_no_faults(text: str) -> None:
    document = parse(text.encode())
    assert (document.data, document.findings) == (None, [])


def test_a_key_written_twice_is_told_with_both_lines() -> None:
    line, message, cure = only(parse("a: 1\nb: 2\na: 3\n"))
    assert (line, cure) == (3, "keep one of the two")
    assert message == "'a' is written twice; the first is on line 1"


def test_a_file_full_of_faults_is_given_up() -> None:
    document = parse("".join(f"k{index}: 1\nk{index}: 2\n" for index in range(5000)))
    assert len(document.findings) == 101
    assert document.findings[-1].message == "more than 100 faults up to here"
    assert document.data is None


def test_a_fault_in_an_aliased_mapping_is_told_once() -> None:
    assert only(parse("a: &x {k: 1, k: 2}\nb: *x\nc: *x\n"))[0] == 1


def test_anchors_aliases_and_merges() -> None:
    document = parse(
        "base: &base\n  engine: llamacpp\n  args: &args {slots: 4, context: 512}\n"
        "list:\n  - <<: *base\n    name: a\n  - name: b\n    args:\n      <<: [{slots: 2}, *args]\n      threads: 1\n"
    )
    assert document.findings == []
    assert document.data["list"] == [
        {"name": "a", "engine": "llamacpp", "args": {"slots": "4", "context": "512"}},
        {"name": "b", "args": {"threads": "1", "slots": "2", "context": "512"}},
    ]
    assert document.lines["list", 0, "engine"] == 2
    assert document.lines["list", 1, "args", "threads"] == 10


@pytest.mark.parametrize(
    ("text", "line", "message", "cure"),
    [
        ("a: 1\n\tb: 2\n", 2, "not valid YAML", "spaces"),
        ("a: [1, 2\n", 2, "not valid YAML", "brackets"),
        ("a: b: c\n", 1, "mapping values", "quotes"),
        ("a: @x\n", 1, "not valid YAML", "quotes"),
        ("a: 1\n---\nb: 2\n", 2, "second document", "remove"),
        ("a: *nowhere\n", 1, "no anchor", "&nowhere"),
        ("a: &a [*a]\n", 1, "no anchor", "before its first use"),
        ("a: 1\nb: !!python/object/apply:os.system [x]\n", 2, "tag", "remove the tag"),
        ("a: !secret x\n", 1, "tag", "remove the tag"),
        ("? [a]\n: 1\n", 1, "used as a key", "before the colon"),
        ("a: {<<: 5}\n", 1, "needs a mapping", "&name"),
        ("a: 1\nb: \x07\n", 2, "does not allow", "control character"),
        ("a: " + "[" * 200 + "]" * 200, 1, f"deeper than {MAX_DEPTH}", "deep"),
        ("a: " + "[" * 100_000, 1, f"deeper than {MAX_DEPTH}", "deep"),
        ("x" * (MAX_BYTES + 1), 1, "larger than 512 KiB", "right file"),
    ],
)
def test_what_cannot_be_used_is_refused_at_its_line(text: str, line: int, message: str, cure: str) -> None:
    found = only(parse(text.encode()))
    assert found[0] == line
    assert message in found[1]
    assert cure in found[2]


def test_text_that_is_not_utf8_is_refused_at_its_line() -> None:
    assert only(parse(b"a: 1\nb: \xff\xfe\n"))[:2] == (2, "the file is not UTF-8 text")


def bomb(first: str, each: str) -> str:
    rows = [f"a0: &a0 {first}"]
    rows += [f"a{level}: &a{level} " + each.format(", ".join([f"*a{level - 1}"] * 10)) for level in range(1, 12)]
    return "\n".join(rows)


@pytest.mark.parametrize(
    "text",
    [
        bomb("[x]", "[{}]"),
        bomb("{k: v}", "{{<<: [{}]}}"),
        "a: &a {" + ", ".join(f"k{i}: 1" for i in range(5000)) + "}\nb: {<<: [" + ", ".join(["*a"] * 3000) + "]}",
    ],
)
def test_files_that_would_unfold_without_end_are_refused(text: str) -> None:
    document = parse(text)
    assert "once aliases are followed" in only(document)[1]
    assert document.data is None


def test_a_file_cut_anywhere_is_understood_or_refused_but_never_crashes() -> None:
    raw = EXAMPLE.read_bytes()
    for end in range(0, len(raw), 19):
        document = parse(raw[:end])
        assert document.findings or document.data is None or isinstance(document.data, dict | str)


@bounds(deadline=None, max_examples=100)
@given(st.text(st.sampled_from("ab:- \n{}[],&*<'\"#|>!%@~?1\t"), max_size=60))
def test_no_text_raises(text: str) -> None:
    document = parse(text)
    assert all(found.message and found.cure for found in document.findings)


def known_lines(value: Any, path: tuple[str | int, ...], document: Document) -> None:
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, member in inner:
        assert (*path, name) in document.lines
        known_lines(member, (*path, name), document)


def test_every_value_of_the_example_has_a_line() -> None:
    document = parse(EXAMPLE.read_bytes())
    known_lines(document.data, (), document)
    assert document.findings == []
