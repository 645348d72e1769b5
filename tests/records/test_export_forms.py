"""Records written for others: one line each whatever a caller wrote, and readable by the forms' own rules."""

from __future__ import annotations

import csv
import io
import json
import re
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from appliance.errors import BadRequest
from appliance.records.export.cef import head_text, value_text
from appliance.records.export.forms import CSV_COLUMNS, FORMATS, forms, jsonl
from appliance.records.export.moments import parse_moment
from appliance.records.export.ocsf import ocsf
from appliance.records.export.source import Record, RecordedEvent, Window, event_of, organization_of, within
from appliance.records.rows import Attempt, Charge, RecordedExchange
from tests.records.ocsf_schema import API_ACTIVITY

NASTY = [
    "a\r\nb", "\x1b[31mred", "\u2028", "\u2029", "\x85", "\x9b2J", "\x7f", "\u202e", "=1+1", "+1", "-1", "@x", "\tx",
    "＝x", " =x", "a|b", "a=b", "a\\b", "\\", "\\n", '"', "'", ",", ";", "é😀", "\0", "CEF:0|x", "key=value msg=x", "",
]  # fmt: skip
TEXT = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=("Cs",)), max_size=20))
MAYBE = st.none() | TEXT
COUNT = st.integers(0, 10**9)
SECONDS = st.floats(0, 10**6)
MOMENT = st.floats(1, 4e9)

EXCHANGES = st.builds(
    RecordedExchange,
    seq=st.integers(1, 2**53),
    id=TEXT,
    kind=TEXT,
    started_at=MOMENT,
    key_id=MAYBE,
    key_name=MAYBE,
    route=MAYBE,
    target=MAYBE,
    stream=st.booleans(),
    status=st.integers(100, 599),
    outcome=st.sampled_from(["completed", "refused", "client_closed", "upstream_error", "internal_error"]),
    error_code=MAYBE,
    finish_reasons=st.lists(TEXT, max_size=2),
    attempts=st.lists(st.builds(Attempt, target=TEXT, started_s=SECONDS, duration_s=SECONDS, outcome=TEXT), max_size=2),
    prompt_tokens=COUNT,
    cached_tokens=COUNT,
    completion_tokens=COUNT,
    queue_s=st.none() | SECONDS,
    ttft_s=st.none() | SECONDS,
    duration_s=SECONDS,
    client=st.sampled_from(["10.0.0.1", "2001:db8::1", "unix", ""]),
    organization_id=MAYBE,
    team_id=MAYBE,
    user_id=MAYBE,
    service_account_id=MAYBE,
    tags=st.lists(TEXT, max_size=2),
    priority=MAYBE,
    cost_nanousd=COUNT,
    charges=st.lists(st.builds(Charge, counter=TEXT, amount=COUNT, at=MOMENT), max_size=2),
    content_digest=MAYBE,
)
BODY = st.dictionaries(TEXT, TEXT | st.integers(-(2**53) + 1, 2**53 - 1) | st.booleans(), max_size=4)
ACTORS = st.fixed_dictionaries({"key": TEXT, "role": st.sampled_from(["owner", "member", "x"]), "organization": TEXT})
EVENTS = st.builds(
    RecordedEvent,
    seq=st.integers(1, 2**53),
    kind=st.sampled_from(["admin.key.create", "admin.content.erase", "admin.limit.update", "records.dropped", "x"]),
    at=MOMENT,
    body=st.builds(
        lambda body, actor, thing: {**body, **actor, **thing},
        BODY,
        st.just({}) | ACTORS.map(lambda actor: {"actor": actor}) | st.just({"actor": "odd"}),
        st.just({}) | TEXT.map(lambda name: {"object": name}),
    ),
)
RECORDS = EXCHANGES | EVENTS
FORMS = forms("1.2|=3")
ROW = RecordedExchange(seq=7, id="req_7", kind="chat.completions", started_at=1_700_000_000.123, client="10.0.0.1")


@pytest.mark.parametrize("form", FORMATS)
@bounds(deadline=None, max_examples=80)
@given(record=RECORDS)
def test_a_record_is_one_line_without_controls(form: str, record: Record) -> None:
    line = FORMS[form].line(record).decode()  # type: ignore[index]
    end = "\r\n" if form == "csv" else "\n"
    assert line.endswith(end)
    inner = line.removesuffix(end)
    assert inner.splitlines() == [inner], "nothing in it ends a line"
    for char in inner:
        assert char.isprintable() or (form in ("jsonl", "ocsf") and ord(char) >= 0xA0), hex(ord(char))
    assert not re.search("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]", inner)


@bounds(deadline=None, max_examples=100)
@given(RECORDS)
def test_jsonl_says_it_all(record: Record) -> None:
    said = json.loads(jsonl(record))
    assert said["seq"] == record.seq
    if isinstance(record, RecordedEvent):
        assert said == {"seq": record.seq, "type": "event", "kind": record.kind, "at": record.at, "body": record.body}
    else:
        assert said["type"] == "exchange"
        assert (said["id"], said["tags"], said["status"]) == (record.id, record.tags, record.status)
        assert said["attempts"] == [
            {name: getattr(attempt, name) for name in Attempt.__struct_fields__} for attempt in record.attempts
        ]


@bounds(deadline=None, max_examples=80)
@given(st.lists(RECORDS, max_size=4))
def test_csv_has_one_row_a_record_and_no_formula(records: list[Record]) -> None:
    text = (FORMS["csv"].head + b"".join(map(FORMS["csv"].line, records))).decode()
    rows = list(csv.DictReader(io.StringIO(text, newline=""), strict=True))
    assert len(rows) == len(records)
    assert text.split("\r\n")[0] == ",".join(CSV_COLUMNS)
    for row, record in zip(rows, records, strict=True):
        assert None not in row
        assert None not in row.values()
        assert int(row["seq"]) == record.seq
        for cell in row.values():
            assert not cell.lstrip(" ").startswith(("=", "+", "-", "@", "\t", "\r", "＝", "＋", "－", "＠"))
        if isinstance(record, RecordedExchange):
            assert (row["prompt_tokens"], row["stream"]) == (str(record.prompt_tokens), str(record.stream).lower())


def test_csv_of_a_plain_row() -> None:
    rows = list(csv.DictReader(io.StringIO((FORMS["csv"].head + FORMS["csv"].line(ROW)).decode())))
    assert rows[0]["time"] == "2023-11-14T22:13:20.123Z"
    assert (rows[0]["type"], rows[0]["client"], rows[0]["key_id"], rows[0]["tags"]) == (
        "exchange",
        "10.0.0.1",
        "",
        "[]",
    )


# --- OCSF ---

VALIDATOR = jsonschema.Draft202012Validator(API_ACTIVITY, format_checker=jsonschema.FormatChecker(["ipv4", "ipv6"]))


@bounds(deadline=None, max_examples=80)
@given(RECORDS)
def test_ocsf_is_an_api_activity(record: Record) -> None:
    event = json.loads(FORMS["ocsf"].line(record))
    assert [error.message for error in VALIDATOR.iter_errors(event)] == []
    assert event["metadata"]["sequence"] == record.seq


@pytest.mark.parametrize(
    "harm",
    [
        lambda event: event.pop("actor"),
        lambda event: event["api"].pop("operation"),
        lambda event: event.update(type_uid=600302),
        lambda event: event["metadata"]["product"].pop("vendor_name"),
        lambda event: event["src_endpoint"].clear(),
        lambda event: event["src_endpoint"].update(ip="nowhere"),
        lambda event: event.update(time="now"),
        lambda event: event["actor"]["user"].clear(),
    ],
)
def test_the_schema_refuses_what_the_standard_does(harm: Any) -> None:
    event = json.loads(json.dumps(ocsf(ROW, "1")))
    assert VALIDATOR.is_valid(event)
    harm(event)
    assert not VALIDATOR.is_valid(event)


@pytest.mark.parametrize(
    ("kind", "activity"),
    [("admin.key.create", 1), ("admin.content.read", 2), ("admin.team.update", 3), ("admin.key.revoke", 4),
     ("admin.content.erase", 4), ("records.dropped", 99)],
)  # fmt: skip
def test_a_change_says_what_it_did_to_what(kind: str, activity: int) -> None:
    actor = {"key": "key_1", "role": "admin", "organization": "org_default"}
    event = ocsf(RecordedEvent(3, kind, 5.0, {"actor": actor, "object": "team_1"}), "1")
    assert event["activity_id"] == activity
    assert event["resources"] == [{"uid": "team_1", "type": kind.split(".")[-2]}]
    assert event["actor"]["user"]["uid"] == "key_1"


# --- CEF ---


def read_cef(line: str) -> tuple[list[str], dict[str, str]]:
    """A reader of CEF by the standard: seven fields in the head, then pairs; a key begins after a space."""
    fields: list[str] = []
    at = 0
    while len(fields) < 7:
        end = at
        while line[end] != "|":
            end += 2 if line[end] == "\\" else 1
        fields.append(re.sub(r"\\(.)", r"\1", line[at:end]))
        at = end + 1
    pairs: dict[str, str] = {}
    extension = line[at:]
    # An escaped sign of equality is none.
    starts = [m for m in re.finditer(r"(?:^| )(\w+)=", extension) if not _escaped(extension, m.end() - 1)]
    for number, match in enumerate(starts):
        end = starts[number + 1].start() if number + 1 < len(starts) else len(extension)
        value = extension[match.end() : end]
        pairs[match[1]] = re.sub(r"\\(.)", lambda m: {"n": "\n", "r": "\r"}.get(m[1], m[1]), value)
    return fields, pairs


def _escaped(text: str, at: int) -> bool:
    return (len(text[:at]) - len(text[:at].rstrip("\\"))) % 2 == 1


@bounds(deadline=None, max_examples=200)
@given(TEXT)
def test_cef_texts_come_back(text: str) -> None:
    plain = "".join(c if c.isprintable() or c in "\r\n" else c.encode("unicode_escape").decode() for c in text)
    line = f"CEF:0|{head_text(text)}|p|v|s|n|1|a={value_text(text)} b={value_text(text)}"
    fields, pairs = read_cef(line)
    assert fields[1] == plain.replace("\r", " ").replace("\n", " ")
    assert pairs == {"a": plain, "b": plain}


@bounds(deadline=None, max_examples=80)
@given(RECORDS)
def test_cef_has_its_head_and_only_keys_of_its_own(record: Record) -> None:
    fields, pairs = read_cef(FORMS["cef"].line(record).decode()[:-1])
    assert fields[:4] == ["CEF:0", "Outpost", "Outpost", "1.2|=3"]
    assert 0 <= int(fields[6]) <= 10
    assert pairs["externalId"] == str(record.seq)
    known = {
        "rt", "externalId", "src", "c6a2", "c6a2Label", "suid", "suser", "spriv", "duid", "request", "act", "outcome",
        "reason", "requestContext", "destinationServiceName", "msg", "flexNumber1", "flexNumber1Label",
        *(f"cn{n}{label}" for n in (1, 2, 3) for label in ("", "Label")),
        *(f"cs{n}{label}" for n in (1, 2, 3, 4, 5) for label in ("", "Label")),
    }  # fmt: skip
    assert pairs.keys() <= known, "no caller's text becomes a key"
    for key in pairs:
        if key.endswith("Label"):
            assert key.removesuffix("Label") in pairs


# --- windows and moments ---


def test_an_event_gives_its_own_words_only_once() -> None:
    text = '{"actor":{"organization":"org_b"},"at_us":5000000,"kind":"k","seq":3,"type":"event"}'
    event = event_of(3, "k", 5_000_000, text)
    assert event == RecordedEvent(3, "k", 5.0, {"actor": {"organization": "org_b"}})
    assert organization_of(event) == "org_b"


@pytest.mark.parametrize(
    ("window", "inside"),
    [
        (Window(), True),
        (Window(since=1_700_000_000.123), True),
        (Window(since=1_700_000_000.2), False),
        (Window(until=1_700_000_000.123), False),
        (Window(until=1_700_000_001), True),
        (Window(organization="org_b"), False),
    ],
)
def test_what_is_within_a_window(window: Window, inside: bool) -> None:
    assert within(ROW, window) is inside


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("2026-11-01", 1793491200.0),
        ("2026-11-01T12:00:00Z", 1793534400.0),
        ("2026-11-01T12:00:00+02:00", 1793527200.0),
        ("1793491200", 1793491200.0),
        ("1793491200.5", 1793491200.5),
        ("20261101", 1793491200.0),
        ("0", 0.0),
        ("7d", 2_000_000_000.0 - 7 * 86400),
        ("1h30m", 2_000_000_000.0 - 5400),
    ],
)
def test_moments_are_read(text: str, wanted: float) -> None:
    assert parse_moment(text, 2_000_000_000.0, "since") == wanted


@pytest.mark.parametrize(
    "text", ["", "yesterday", "-1", "2026-13-01", "9" * 30, "99999d", "nan", "1e9", "٣", "7x", "2026"]
)
def test_what_is_no_moment_is_refused_by_name(text: str) -> None:
    with pytest.raises(BadRequest, match="since: expected a date") as caught:
        parse_moment(text, 2_000_000_000.0, "since")
    assert caught.value.param == "since"


@bounds(deadline=None, max_examples=200)
@given(st.text(max_size=20))
def test_no_text_breaks_the_reading_of_a_moment(text: str) -> None:
    try:
        assert parse_moment(text, 2e9, "since") >= 0
    except BadRequest:
        pass
