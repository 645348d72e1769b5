"""Contents: which are kept, that only their subject's key opens them, and that nothing outlives an erasure."""

from __future__ import annotations

import asyncio
import dataclasses
import gc
import hashlib
import secrets
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import product
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st
from sqlalchemy import select

from appliance.records.content import (
    ContentDamaged,
    Keeper,
    choose_content,
    open_sealed,
    seal,
)
from appliance.records.database import Database
from appliance.records.erase import erase
from appliance.records.recorder import Recorder
from appliance.records.rows import ExchangeRow
from appliance.records.subject_keys import ContentKeyError, SubjectKey, subject_name
from appliance.records.tables import contents, subject_keys
from appliance.settings.recording import Records

WRAPPING = bytes(range(32))
ACTOR = {"key": "key_admin", "role": "admin", "organization": "org_default"}


@dataclasses.dataclass
class Box:
    database: Database
    recorder: Recorder
    keeper: Keeper

    async def keep(self, subject: str, exchange: str, policy: Any = "full", **parts: bytes) -> int:
        kept = await self.keeper.keep(subject, exchange, policy, parts or {"request": b'{"a":"hello"}'})
        assert kept is not None
        row = ExchangeRow(id=exchange, kind="chat", started_at=1.0, content_digest=kept.digest)
        written = self.recorder.write(self.keeper.insert_content(kept), durable=False)
        await self.recorder.submit(row)
        return await written

    async def read(self, exchange: str) -> list[str]:
        return [part.text for part in await self.keeper.read(exchange)]

    async def count(self, table: Any) -> int:
        async with self.database.read() as connection:
            return len((await connection.execute(select(table))).all())


@asynccontextmanager
async def opened(database: Database) -> AsyncIterator[Box]:
    recorder = Recorder(database)
    await recorder.start()
    yield Box(database, recorder, Keeper(database, WRAPPING))
    await recorder.close()


def key(subject: str = "user_a", secret: bytes = bytes(32)) -> SubjectKey:
    return SubjectKey(subject, secret, b"", fresh=True)


# --- which texts ---


def test_the_rule_that_names_most_counts() -> None:
    """Against a model: every set of rules over two teams, routes and organisations."""
    names = {"team": ("t1", None), "route": ("r1", None), "organization": ("o1", None)}
    rules = [
        {"team": team, "route": route, "organization": organization}
        for team, route, organization in product(*names.values())
        if (team, route, organization) != (None, None, None)
    ]
    order = [  # the most specific first
        ("team", "route", "organization"), ("team", "route"), ("team", "organization"), ("route", "organization"),
        ("team",), ("route",), ("organization",),
    ]  # fmt: skip
    for mask in range(1 << len(rules)):
        chosen = [rule for bit, rule in enumerate(rules) if mask >> bit & 1]
        given_rules = [
            {**{k: v for k, v in rule.items() if v}, "content": "full" if number % 2 else "redacted"}
            for number, rule in enumerate(chosen)
        ]
        records = Records.model_validate({"content": "none", "content_rules": given_rules})
        for team, route, organization in product(("t1", "t2"), ("r1", "r2"), ("o1", "o2")):
            fits = {"team": team == "t1", "route": route == "r1", "organization": organization == "o1"}
            expected = "none"
            for named in order:
                rule = next((r for r in given_rules if r.keys() - {"content"} == set(named)), None)
                if rule is not None and all(fits[each] for each in named):
                    expected = rule["content"]
                    break
            found = choose_content(records, route=route, team={team, "team_x"}, organization={organization})
            assert found == expected, (given_rules, team, route, organization)


# --- sealing ---

PARTS = st.dictionaries(st.sampled_from(["request", "answer"]), st.binary(min_size=1, max_size=300), min_size=1)


@bounds(deadline=None, max_examples=60)
@given(PARTS, st.integers(1, 400))
def test_what_is_sealed_opens_cut_to_its_size(parts: dict[str, bytes], most: int) -> None:
    kept = seal(key(), "req_1", "full", parts, most=most, now=5.0, random=secrets.token_bytes)
    for sealed in kept.contents:
        opened = open_sealed(key(), sealed)
        whole = parts[sealed.part]
        assert opened.cut == (len(whole) > most)
        expected = whole if len(whole) <= most else whole[:most].decode("utf-8", "ignore").encode()
        assert opened.text == expected.decode("utf-8", "replace")
        assert opened.kept_at == 5.0
        if len(whole) > 8:
            assert whole not in sealed.data


def test_a_cut_leaves_no_half_character() -> None:
    kept = seal(key(), "r", "full", {"request": "äöü".encode()}, most=3, now=0.0, random=secrets.token_bytes)
    assert open_sealed(key(), kept.contents[0]).text == "ä"


@pytest.mark.parametrize("field", ["exchange_id", "part", "subject", "nonce", "data"])
def test_what_is_altered_or_moved_does_not_open(field: str) -> None:
    sealed = seal(key(), "r", "full", {"request": b"x" * 50}, most=99, now=0.0, random=secrets.token_bytes).contents[0]
    value = getattr(sealed, field)
    other = value + "x" if isinstance(value, str) else bytes([value[0] ^ 1]) + value[1:]
    with pytest.raises(ContentDamaged):
        open_sealed(key(), msgspec.structs.replace(sealed, **{field: other}))
    with pytest.raises(ContentDamaged):
        open_sealed(key(secret=b"1" * 32), sealed)


def test_the_digest_is_keyed_and_covers_every_part() -> None:
    def digest(parts: dict[str, bytes], exchange: str = "r", secret: bytes = bytes(32)) -> str:
        return seal(key(secret=secret), exchange, "full", parts, most=99, now=0.0, random=secrets.token_bytes).digest

    base = digest({"request": b"a", "answer": b"b"})
    assert base == digest({"answer": b"b", "request": b"a"})
    others = [
        digest({"request": b"a", "answer": b"c"}),
        digest({"request": b"ab"}),
        digest({"request": b"a"}),
        digest({"request": b"a", "answer": b"b"}, exchange="s"),
        digest({"request": b"a", "answer": b"b"}, secret=b"1" * 32),
        hashlib.sha256(b"ab").hexdigest(),
    ]
    assert len({base, *others}) == 1 + len(others)


async def test_redacted_content_holds_no_secret(box: Box) -> None:
    secret = "sk-" + "abcd1234" * 4
    body = msgspec.json.encode({"messages": [{"role": "user", "content": f"my key {secret}, mail a@b.example"}]})
    await box.keep("user_a", "req_1", "redacted", request=body)
    assert msgspec.json.decode((await box.read("req_1"))[0]) == {
        "messages": [{"role": "user", "content": "my key [SECRET], mail [EMAIL]"}]
    }


async def test_nothing_is_kept_by_the_policy_none_or_of_nothing(box: Box) -> None:
    assert await box.keeper.keep("user_a", "req_1", "none", {"request": b"x"}) is None
    assert await box.keeper.keep("user_a", "req_1", "full", {"request": b"", "answer": b""}) is None
    assert await box.count(subject_keys) == 0


# --- kept and read ---


async def test_request_and_answer_come_back_in_their_order(any_box: Box) -> None:
    big = b"x" * 500_000
    assert await any_box.keep("user_a", "req_1", request=b"question", answer=big) == 2
    assert await any_box.read("req_1") == ["question", big.decode()]
    assert await any_box.read("req_2") == []


async def test_many_first_contents_at_once_share_one_key(any_box: Box) -> None:
    await asyncio.gather(*(any_box.keep("user_a", f"req_{number}") for number in range(20)))
    assert await any_box.count(subject_keys) == 1
    assert [len(await any_box.read(f"req_{number}")) for number in range(20)] == [1] * 20


async def test_a_new_process_opens_what_an_old_one_kept(box: Box) -> None:
    await box.keep("user_a", "req_1")
    again = Keeper(box.database, WRAPPING)
    assert [part.text for part in await again.read("req_1")] == ['{"a":"hello"}']


async def test_another_secret_opens_nothing_and_says_what_to_do(box: Box) -> None:
    await box.keep("user_a", "req_1")
    with pytest.raises(ContentKeyError, match=r"secrets/master\.key"):
        await Keeper(box.database, bytes(32)).read("req_1")


async def test_a_key_moved_to_another_subject_does_not_open(box: Box) -> None:
    await box.keep("user_a", "req_1")

    def move(transaction: Any) -> None:
        transaction.connection.execute(subject_keys.update().values(subject="user_b"))

    await box.recorder.write(move)
    with pytest.raises(ContentKeyError):
        await Keeper(box.database, WRAPPING).keys.find("user_b")


async def test_few_keys_stay_in_memory_and_all_go_on_working(box: Box) -> None:
    keeper = Keeper(box.database, WRAPPING, capacity=2)
    box.keeper = keeper
    for number in range(6):
        await box.keep(f"user_{number}", f"req_{number}")
    gc.collect()
    assert len(keeper.keys._alive) <= 2
    for number in range(6):
        assert len(await box.read(f"req_{number}")) == 1


@pytest.mark.parametrize("subject", ["x" * 129, "jwt:https://issuer.example/" + "y" * 300, "a\nb", "\udc80"])
async def test_subjects_of_any_form_can_be_kept_and_erased(box: Box, subject: str) -> None:
    assert len(subject_name(subject)) <= 128
    await box.keep(subject, "req_1")
    assert len(await box.read("req_1")) == 1
    assert (await erase(box.recorder, box.database, box.keeper.keys, subject, ACTOR)).key


# --- races with an erasure ---


async def test_what_was_sealed_before_an_erasure_is_not_written_after_it(any_box: Box) -> None:
    await any_box.keep("user_a", "req_1")
    late = await any_box.keeper.keep("user_a", "req_2", "full", {"request": b"late"})
    assert late is not None
    await erase(any_box.recorder, any_box.database, any_box.keeper.keys, "user_a", ACTOR)
    assert await any_box.recorder.write(any_box.keeper.insert_content(late)) == 0
    assert await any_box.count(contents) == await any_box.count(subject_keys) == 0


async def test_a_key_read_just_before_an_erasure_does_not_come_back(any_box: Box) -> None:
    await any_box.keep("user_a", "req_1")
    other = Keeper(any_box.database, WRAPPING)  # read, but not yet known to whoever erases
    late = await other.keep("user_a", "req_2", "full", {"request": b"late"})
    assert late is not None
    await erase(any_box.recorder, any_box.database, any_box.keeper.keys, "user_a", ACTOR)
    assert await any_box.recorder.write(other.insert_content(late)) == 0
    assert await any_box.count(subject_keys) == 0
    # And what comes later is a new beginning, not lost for ever.
    fresh = await other.keep("user_a", "req_3", "full", {"request": b"new"})
    assert fresh is not None
    assert await any_box.recorder.write(other.insert_content(fresh)) == 1
    assert [part.text for part in await other.read("req_3")] == ["new"]


async def test_any_order_of_keeping_and_erasing_leaves_only_what_opens(any_box: Box) -> None:
    async def keep(number: int) -> None:
        await any_box.keep("user_a", f"req_{number}")

    async def wipe() -> None:
        await erase(any_box.recorder, any_box.database, any_box.keeper.keys, "user_a", ACTOR)

    await keep(0)
    tasks: list[Callable[[], Any]] = []
    for number in range(1, 30):
        tasks += [lambda number=number: keep(number), *([wipe] if number % 7 == 0 else [])]
    results = await asyncio.gather(*(task() for task in tasks), return_exceptions=True)
    assert all(result is None or type(result).__name__ == "NotFound" for result in results)
    again = Keeper(any_box.database, WRAPPING)
    async with any_box.database.read() as connection:
        left = list(await connection.scalars(select(contents.c.exchange_id)))
    for exchange in left:
        assert len(await again.read(exchange)) == 1
