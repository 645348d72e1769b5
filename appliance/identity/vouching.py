"""What an identity provider says of somebody, and what the directory makes of it.

The provider's newest word counts for name, role and the teams that it names. A membership that came from a token lasts
as long as tokens name the team; one that somebody gave by hand is nobody else's to take. A token that is older than the
word that was last taken in changes nothing, also after a restart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import msgspec
from sqlalchemy import select

from appliance.errors import PermissionDenied, Unauthenticated
from appliance.identity import people_work
from appliance.identity.people_work import TEAM, USER, Changed
from appliance.identity.permissions import Role
from appliance.identity.principal import Principal
from appliance.identity.snapshot import Member, Organization, Snapshot, Team, User
from appliance.records.tables import team_members
from appliance.records.transaction import Transaction


class Word(msgspec.Struct, frozen=True):
    """What is said of somebody. team: what they work for. teams: names or ids of all teams that are said.
    issued: unix seconds; None for what the settings say, which is never old."""

    issuer: str
    subject: str
    name: str
    role: Role
    place: Organization
    team: Team | None
    teams: frozenset[str]
    issued: float | None

    def is_old(self, user: User) -> bool:
        """Whether something newer has been taken in."""
        return self.issued is not None and user.vouched_at is not None and self.issued < user.vouched_at

    def is_news(self, snapshot: Snapshot, user: User) -> bool:
        """Whether it says something that is not known yet. Touches no database."""
        if user.name not in (self.name, _apart(self)) or user.role != self.role:
            return True
        if self.team is not None and snapshot.get(Member, (self.team.id, user.id)) is None:
            return True
        return any(self.unsaid(_claimed_teams(snapshot, user)))

    def unsaid(self, teams: Iterable[Team]) -> list[Team]:
        """Those of the teams that are not said any more."""
        return [
            team
            for team in teams
            if not ((self.team is not None and team.id == self.team.id) or {team.id, team.name} & self.teams)
        ]


def check_place(user: User, place: Organization) -> None:
    """Raises PermissionDenied for somebody of another organisation."""
    if user.organization != place.id:
        raise PermissionDenied(f"This account belongs to another organization than {place.name}.")


def newest_team(snapshot: Snapshot, user: User, team: Team | None) -> str | None:
    """What somebody works for whose token, which names `team`, is older than what is known: a team's id.

    Raises Unauthenticated where that is not known: it must not be no team, whose limits would be got round.
    """
    if team is not None and snapshot.get(Member, (team.id, user.id)) is not None:
        return team.id
    claimed = _claimed_teams(snapshot, user)
    if len(claimed) > 1:
        raise Unauthenticated(
            "The token is older than what its identity provider has said since about teams; get a new one."
        )
    return claimed[0].id if claimed else None


def _claimed_teams(snapshot: Snapshot, user: User) -> list[Team]:
    found = (snapshot.get(Team, each.team) for each in snapshot.memberships(user.id) if each.claimed)
    return [team for team in found if team is not None]


def _apart(word: Word) -> str:
    """A name that somebody else has already, told apart by a short print of who this is."""
    print_ = hashlib.sha256(f"{word.issuer}\n{word.subject}".encode("utf-8", "replace")).hexdigest()[:8]
    return f"{word.name[:118]} {print_}"


def take(tx: Transaction, word: Word, *, id: str, now: float) -> Changed[User]:
    """Bring somebody's row and memberships up to date; a new row gets the `id`. The actor is the identity provider."""
    connection = tx.connection
    # Not somebody's rights but the settings' decision: the issuer is configured by those who run the box.
    credential = f"jwt:{word.issuer}"[:64]
    provider = Principal(key_id=credential, key_name=credential, role="owner")
    table = USER.table
    same = USER.select().where(table.c.issuer == word.issuer, table.c.subject == word.subject)
    row = connection.execute(same).first()
    known: User | None = None if row is None else USER.made(row)
    if known is not None and (known.organization != word.place.id or word.is_old(known)):
        return Changed(known)  # what is said of them elsewhere, or was said earlier, says nothing of them here and now
    user = known or User(id, word.place.id, word.name, word.role, now, None, word.issuer, word.subject)
    taken = connection.execute(
        select(table.c.id).where(
            table.c.organization_id == user.organization, table.c.name == word.name, table.c.id != user.id
        )
    ).first()
    after = msgspec.structs.replace(
        user,
        name=word.name if taken is None else _apart(word),
        role=word.role,
        vouched_at=user.vouched_at if word.issued is None else word.issued,
    )
    if known is None:
        connection.execute(table.insert().values(**USER.values(after)))
        people_work.note(tx, provider, "user.create", after.id, None, after)
    elif (after.name, after.role) != (known.name, known.role):
        people_work.note(tx, provider, "user.change", after.id, known, after)
    claimed = select(team_members.c.team_id).where(team_members.c.user_id == after.id, team_members.c.claimed)
    teams = [TEAM.made(row) for row in connection.execute(TEAM.select().where(TEAM.table.c.id.in_(claimed))).all()]
    put: list[Member] = []
    drop: list[Member] = []
    if word.team is not None:
        joined = people_work.set_member(tx, provider, word.team.id, after.id, inside=True, claimed=True)
        put += joined.put  # type: ignore[arg-type]
    for team in word.unsaid(teams):
        drop += people_work.set_member(tx, provider, team.id, after.id, inside=False).drop  # type: ignore[arg-type]
    if known is not None:
        if not put and not drop and (after.name, after.role) == (known.name, known.role):
            return Changed(known)  # somebody else with the same news was quicker
        values = {"name": after.name, "role": after.role, "vouched_at": after.vouched_at}
        connection.execute(table.update().where(table.c.id == after.id).values(**values))
    return Changed(after, (after, *put), tuple(drop))
