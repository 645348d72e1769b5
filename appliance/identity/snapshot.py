"""Everything that identification needs, as one immutable value: organisations, teams, people, accounts, keys.

A change makes a new snapshot that shares what stayed. What a key is worth is worked out when it is first
presented to a snapshot, and then remembered by its whole digest.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from appliance.identity.permissions import Role, within
from appliance.identity.principal import DEFAULT_ORGANIZATION, Principal, Restrictions
from appliance.identity.restrictions import Network, networks


class Organization(msgspec.Struct, frozen=True):
    """Times are unix seconds."""

    id: str
    name: str
    created_at: float
    disabled_at: float | None = None


class Team(msgspec.Struct, frozen=True):
    id: str
    organization: str
    name: str
    created_at: float
    disabled_at: float | None = None


class User(msgspec.Struct, frozen=True):
    """A person. `issuer` and `subject` are those of the identity provider that they sign in with; `vouched_at` is when
    it made the token that last changed something of them."""

    id: str
    organization: str
    name: str
    role: Role
    created_at: float
    disabled_at: float | None = None
    issuer: str | None = None
    subject: str | None = None
    vouched_at: float | None = None


class ServiceAccount(msgspec.Struct, frozen=True):
    """Who asks without being a person: a program, a pipeline."""

    id: str
    organization: str
    name: str
    role: Role
    created_at: float
    disabled_at: float | None = None
    team: str | None = None


class Member(msgspec.Struct, frozen=True, omit_defaults=True):
    """claimed: by a token of the person, and so until a newer one does not name the team; else given by hand."""

    team: str
    user: str
    claimed: bool = False


class KeyRecord(msgspec.Struct, frozen=True):
    """A key as identification needs it. A key of the settings may name organisation and team by their names."""

    digest: bytes
    id: str
    name: str
    role: Role
    organization: str = DEFAULT_ORGANIZATION
    team: str | None = None
    user: str | None = None
    service_account: str | None = None
    restrictions: Restrictions = Restrictions()
    expires_at: float | None = None
    secret_id: str | None = None
    """Which secret it was hashed under; None: the present one."""


class Standing(msgspec.Struct, frozen=True):
    """What a credential is worth: a principal, or the reason why none any more."""

    principal: Principal | None
    refusal: str = ""
    networks: tuple[Network, ...] = ()
    """Where it may be used from; empty: anywhere."""
    expires_at: float | None = None


Thing = Organization | Team | User | ServiceAccount | Member | KeyRecord
_T = TypeVar("_T", Organization, Team, User, ServiceAccount, Member, KeyRecord)


def _index(thing: Thing) -> Any:
    if isinstance(thing, KeyRecord):
        return thing.digest
    if isinstance(thing, Member):
        return (thing.team, thing.user)
    return thing.id


class Snapshot:
    """`get` and `all` give what is there; `with_` a new snapshot; `standing` what a key is worth."""

    __slots__ = ("_by_name", "_by_subject", "_by_user", "_standings", "_tables")

    def __init__(self, things: Iterable[Thing] = ()) -> None:
        tables: dict[type, dict[Any, Thing]] = {kind: {} for kind in Thing.__args__}
        for thing in things:
            tables[type(thing)][_index(thing)] = thing
        self._begin(tables)

    def _begin(self, tables: Mapping[type, Mapping[Any, Thing]]) -> None:
        self._tables = tables
        self._standings: dict[bytes, Standing] = {}
        self._by_subject: dict[tuple[str, str], User] | None = None
        self._by_user: dict[str, list[Member]] | None = None
        self._by_name: dict[tuple[type, str | None, str], Thing] | None = None

    def with_(self, put: Iterable[Thing] = (), drop: Iterable[Thing] = ()) -> Snapshot:
        """This snapshot with things put in (in the place of those with the same id) and others taken out."""
        tables: dict[type, Mapping[Any, Thing]] = dict(self._tables)
        fresh: dict[type, dict[Any, Thing]] = {}
        for things, inside in ((drop, False), (put, True)):
            for thing in things:
                kind = type(thing)
                if kind not in fresh:
                    tables[kind] = fresh[kind] = dict(self._tables[kind])
                if inside:
                    fresh[kind][_index(thing)] = thing
                else:
                    fresh[kind].pop(_index(thing), None)
        made = Snapshot.__new__(Snapshot)
        made._begin(tables)
        return made

    def get(self, kind: type[_T], index: Any) -> _T | None:
        return self._tables[kind].get(index)  # type: ignore[return-value]

    def all(self, kind: type[_T]) -> Mapping[Any, _T]:
        """Everything of a kind by its id; keys by their digests, members by (team, user)."""
        return self._tables[kind]  # type: ignore[return-value]

    def user_of(self, issuer: str, subject: str) -> User | None:
        """The person that an identity provider means."""
        if self._by_subject is None:
            self._by_subject = {
                (user.issuer, user.subject): user
                for user in self.all(User).values()
                if user.issuer is not None and user.subject is not None
            }
        return self._by_subject.get((issuer, subject))

    def memberships(self, user: str) -> Sequence[Member]:
        """What a user is a member of."""
        if self._by_user is None:
            self._by_user = {}
            for member in self.all(Member).values():
                self._by_user.setdefault(member.user, []).append(member)
        return self._by_user.get(user, ())

    def organization(self, id_or_name: str) -> Organization | None:
        return self.get(Organization, id_or_name) or self._named(Organization, None, id_or_name)

    def team(self, organization: str, id_or_name: str) -> Team | None:
        """A team of one organisation."""
        found = self.get(Team, id_or_name)
        if found is not None and found.organization == organization:
            return found
        return self._named(Team, organization, id_or_name)

    def _named(self, kind: type[_T], organization: str | None, name: str) -> _T | None:
        if self._by_name is None:
            self._by_name = {(Organization, None, o.name): o for o in self.all(Organization).values()}
            self._by_name |= {(Team, t.organization, t.name): t for t in self.all(Team).values()}
        return self._by_name.get((kind, organization, name))  # type: ignore[return-value]

    # --- what a credential is worth ---

    def standing(self, digest: bytes) -> Standing | None:
        """Of a presented key; None for one that nobody has."""
        found = self._standings.get(digest)
        if found is None:
            key = self.get(KeyRecord, digest)
            if key is None:
                return None
            found = self._standings[digest] = self.resolve(key)
        return found

    def resolve(self, key: KeyRecord) -> Standing:
        """Pure: the key's principal with the role that its holder has now, or why there is none."""
        organization = self.organization(key.organization)
        if organization is None:
            return _refused(f"belongs to the organization {key.organization}, which is not there")
        team = None
        if key.team is not None:
            team = self.team(organization.id, key.team)
            if team is None:
                return _refused(f"works for the team {key.team}, which is not there")
        return self.judge(
            Principal(
                key_id=key.id,
                key_name=key.name,
                role=key.role,
                organization=organization.id,
                team=None if team is None else team.id,
                user=key.user,
                service_account=key.service_account,
                restrictions=key.restrictions,
                expires_at=key.expires_at,
            )
        )

    def judge(self, principal: Principal) -> Standing:
        """A principal as things are now: capped by its holder's role, or refused because somebody is disabled."""
        organization = self.get(Organization, principal.organization)
        if organization is None or organization.disabled_at is not None:
            return _refused("belongs to an organization that is disabled")
        if principal.team is not None:
            team = self.get(Team, principal.team)
            if team is None or team.organization != organization.id:
                return _refused(f"works for the team {principal.team}, which is not there")
            if team.disabled_at is not None:
                return _refused(f"works for the team {team.name}, which is disabled")
        role: Role = principal.role
        holders: tuple[tuple[str, str | None, User | ServiceAccount | None], ...] = (
            ("user", principal.user, self.get(User, principal.user)),
            ("service account", principal.service_account, self.get(ServiceAccount, principal.service_account)),
        )
        for word, index, holder in holders:
            if index is None:
                continue
            if holder is None or holder.organization != organization.id:
                return _refused(f"belongs to a {word} that is not there")
            if holder.disabled_at is not None:
                return _refused(f"belongs to the {word} {holder.name}, who is disabled")
            capped = within(role, holder.role)
            if capped is None:
                return _refused(f"has the role {role}, which its {word} has no longer")
            role = capped
        if (
            principal.user is not None
            and principal.team is not None
            and self.get(Member, (principal.team, principal.user)) is None
        ):
            return _refused("works for a team that its user is not a member of")
        if role != principal.role:
            principal = msgspec.structs.replace(principal, role=role)
        return Standing(principal, "", networks(principal.restrictions), principal.expires_at)


def _refused(why: str) -> Standing:
    return Standing(None, why)
