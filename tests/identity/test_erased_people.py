"""People who were erased: what the directory of a running process still knows of them."""

from __future__ import annotations

from appliance.identity.snapshot import User
from appliance.records.erase import erase
from tests.identity.conftest import OWNER, Box


async def test_who_is_erased_is_forgotten_by_processes_that_run(box: Box) -> None:
    issuer, subject = "https://issuer.example", "sub-ann"
    known = await box.directory.signed_in(issuer, subject, "ann@example.org", "member")
    assert known.user is not None
    assert await box.directory.changed_elsewhere() is False
    actor = {"key": OWNER.key_id, "role": OWNER.role, "organization": OWNER.organization}
    await erase(box.recorder, box.database, None, known.user, actor)
    assert await box.directory.changed_elsewhere()
    await box.ring.reload()
    left = box.directory.snapshot.get(User, known.user)
    assert left is not None
    assert (left.name, left.issuer, left.subject) == (f"erased-{known.user.removeprefix('user_')}", None, None)
    again = await box.directory.signed_in(issuer, subject, "ann@example.org", "member")
    assert again.user != known.user, "whoever comes back is somebody new"
