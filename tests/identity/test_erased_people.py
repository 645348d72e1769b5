"""People who were erased: what a running process still knows of them, and what records say of those who sign in."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import msgspec
import pytest

from appliance.identity.authenticator import Authenticator
from appliance.identity.claims import Forgotten
from appliance.identity.oidc import build_providers
from appliance.identity.principal import Principal
from appliance.identity.snapshot import User
from appliance.records.erase import erase
from appliance.settings import from_mapping
from tests.fakes.issuer import open_issuer, sign
from tests.identity.conftest import OWNER, Box

ISSUER, SUBJECT = "https://issuer.example", "sub-ann"


async def erased(box: Box, known: Principal) -> None:
    """Erase them, as another process would."""
    assert known.user is not None
    actor = {"key": OWNER.key_id, "role": OWNER.role, "organization": OWNER.organization}
    await erase(box.recorder, box.database, None, known.user, actor)
    assert await box.directory.changed_elsewhere()
    await box.ring.reload()


@asynccontextmanager
async def anns_token(box: Box) -> AsyncIterator[tuple[Authenticator, str]]:
    """Who identifies at this box, and a token of Ann Lee's by the provider that it trusts."""
    async with open_issuer() as issuer, aiohttp.ClientSession() as http:
        entry: dict[str, Any] = {"name": "corp", "issuer": issuer.url, "audience": "outpost", "default_role": "member"}
        providers = build_providers(from_mapping({"identity": {"oidc": [entry]}}).identity, {}, http, time.monotonic)
        who = Authenticator(box.ring, box.directory, providers, clock=time.time)
        now = time.time()
        body = {"iss": issuer.url, "aud": "outpost", "sub": "ann", "iat": now, "exp": now + 300}
        yield who, sign({**body, "preferred_username": "Ann Lee"}, issuer.keys[0])


async def test_who_is_erased_is_forgotten_by_processes_that_run(box: Box) -> None:
    known = await box.directory.signed_in(ISSUER, SUBJECT, "ann@example.org", "member")
    assert known.user is not None
    assert await box.directory.changed_elsewhere() is False
    await erased(box, known)
    left = box.directory.snapshot.get(User, known.user)
    assert left is not None
    assert (left.name, left.issuer, left.subject) == (f"erased-{known.user.removeprefix('user_')}", None, None)
    again = await box.directory.signed_in(ISSUER, SUBJECT, "ann@example.org", "member")
    assert again.user != known.user, "whoever comes back is somebody new"


async def test_sessions_and_tokens_of_who_is_erased_end(any_box: Box) -> None:
    box = any_box
    async with anns_token(box) as (who, token):
        known = await who.identify(token)
        assert who.identify_now(token) == known
        session = msgspec.structs.replace(known, key_id="session")
        _, key = await box.key("her-laptop", user=known.user)
        await erased(box, known)
        assert who.identify_now(token) is None
        with pytest.raises(Forgotten, match="was erased; sign in again"):
            box.directory.standing(session)
        again = await who.identify(token)
        assert again.user not in (None, known.user), "whoever comes back is somebody new"
        assert who.identify_now(token) == again
        held = box.ring.identify(key)
        assert held is not None
        assert held.user == known.user, "a key of theirs is ended by disabling them"


async def test_no_record_gets_the_name_of_who_signs_in(box: Box) -> None:
    """It could not be erased from there."""
    async with anns_token(box) as (who, token):
        found = await who.identify(token)
    assert (found.key_id, found.key_name) == ("jwt:corp", "jwt:corp")
    assert "Ann" not in str(found)
    user = box.directory.snapshot.get(User, found.user)
    assert user is not None
    assert user.name == "Ann Lee"
