"""A limit that names a key holds for it until it ends, also while another has its name already."""

from __future__ import annotations

import pytest

from appliance.account import Limits
from appliance.errors import RateLimited
from appliance.identity.people_work import USER
from appliance.identity.principal import Principal
from appliance.limits.book import Book
from appliance.limits.rules import Bound, Context, Rule
from appliance.pricing import Prices
from tests.exchange.test_account import Store, candidate
from tests.identity.conftest import OWNER, Box
from tests.limits.book_samples import DAY, REQUESTS, limit, now

TARGET = candidate("lab/x", 10)


class Counted:
    """The limits as the gateway asks them."""

    def __init__(self, *rules: Rule) -> None:
        self.limits = Limits(Book(rules, now()), Store(), Prices(), now, lambda request: 30)

    async def allows(self, who: Principal) -> bool:
        """Whether they allow one more request."""
        try:
            await self.limits.account(who, "chat", (), 60.0).reserve([TARGET])
        except RateLimited:
            return False
        return True

    def context(self, who: Principal) -> Context:
        return self.limits.context(who, "chat", (), TARGET)


def presented(box: Box, text: str) -> Principal:
    found = box.ring.identify(text)
    assert found is not None
    return found


@pytest.fixture(params=["service", "person"])
async def owner(request: pytest.FixtureRequest, box: Box) -> dict[str, str]:
    """Whose keys they are; a person's are personal access tokens."""
    if request.param == "service":
        return {}
    await box.directory.create(OWNER, USER, {"name": "Ada", "role": "member"})
    return {"user": "Ada"}


@pytest.mark.parametrize("name", ["app", "app+one", "a" * 55, "a" * 64])
async def test_a_limit_that_names_a_key_holds_while_it_is_rotated(box: Box, owner: dict[str, str], name: str) -> None:
    first, one = await box.key(name, **owner)
    second, two = await box.ring.rotate(OWNER, first.id, overlap_s=60.0)
    _, three = await box.ring.rotate(OWNER, second.id, overlap_s=60.0)
    _, other = await box.key("b" * 63, **owner)
    counted = Counted(limit("key", Bound(REQUESTS, 1, DAY), key=name))
    for text in (one, two, three):
        who = presented(box, text)
        assert [await counted.allows(who) for _ in range(2)] == [True, False], who
    assert [await counted.allows(presented(box, other)) for _ in range(2)] == [True, True]


async def test_a_limit_that_names_a_key_by_its_id_holds_for_that_key_only(box: Box, owner: dict[str, str]) -> None:
    first, one = await box.key("app", **owner)
    _, two = await box.ring.rotate(OWNER, first.id, overlap_s=60.0)
    counted = Counted(limit("key", Bound(REQUESTS, 1, DAY), key=first.id))
    assert [await counted.allows(presented(box, one)) for _ in range(2)] == [True, False]
    assert [await counted.allows(presented(box, two)) for _ in range(2)] == [True, True]


async def test_people_with_tokens_of_one_issuer_are_counted_apart() -> None:
    ada, bob = (Principal("jwt:issuer", "issuer", "member", user=user) for user in ("user_a", "user_b"))
    counted = Counted(limit("key", Bound(REQUESTS, 1, DAY), key="jwt:issuer"))
    assert [await counted.allows(who) for who in (ada, bob, ada, bob)] == [True, True, False, False]


@pytest.mark.parametrize("name", ["app+iv5pr2dh", "app+", "app+pr2dh", "+", "app"])
def test_a_name_that_only_looks_like_that_of_a_rotated_key_is_none(name: str) -> None:
    rule = limit("key", Bound(REQUESTS, 1, DAY), key="ap,,app-2")

    def applies(rule: Rule, key: str, name: str) -> bool:
        return rule.applies(Counted().context(Principal(key, name, "member")), lambda scope, id: None)

    assert not applies(rule, "key_7kpyux55iv5pr2dh", name)
    assert not applies(limit("key", key="app"), "key_aaaaaaaaaaaaaaaa", "app+iv5pr2dh")
