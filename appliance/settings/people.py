"""Who may ask: fixed keys, identity providers, client certificates."""

from __future__ import annotations

import re
from collections.abc import Mapping
from ipaddress import ip_network
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, WithJsonSchema, model_validator

from appliance.settings.secrets import SecretRef
from appliance.settings.section import Section
from appliance.settings.units import quote
from appliance.settings.values import (
    BaseUrl,
    Duration,
    FilePath,
    Form,
    ModelName,
    Name,
    Text,
    Whom,
    Word,
    read_base_url,
    read_text,
    refuse,
)

ROLE_NAMES = ("owner", "admin", "operator", "auditor", "member")
"""As `identity.permissions.Role`, the most powerful first; a test holds the two together."""

RoleName = Annotated[Literal["owner", "admin", "operator", "auditor", "member"], Word]
MAX_ISSUER_NAME = 48
"""Records keep `jwt:NAME` in 64 characters."""
MAX_FIXED_NAME = 58
"""Records keep `fixed:NAME` in 64 characters."""

# --- forms ------------------------------------------------------------------------------------------

NETWORK = Form("an address or a network", "10.1.0.0/16")
ISSUER = Form("an issuer's address", "https://login.example.com/realms/lab")
ZONES = Form("one of on_box, on_prem, cloud", "on_box")
ALGORITHM = Form("one of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA, Ed25519", "RS256")
ROLES_BY_VALUE = Form("a mapping from a claim's value to a role", "{outpost-admins: admin}")
TEAMS_BY_VALUE = Form("a mapping from a claim's value to a team", "{lab-users: lab}")


def _read_network(value: Any) -> str:
    text = read_text(value)
    try:
        return str(ip_network(text, strict=True))
    except ValueError:
        pass
    try:
        wider = ip_network(text, strict=False)
    except ValueError:
        message = f"expected {NETWORK.expected}, found {quote(text)}"
        raise refuse(message, f"write an IP address or a network, e.g. {NETWORK.example}") from None
    raise refuse(f"{quote(text)} has bits set beyond its prefix", f"write {wider}, or the address alone")


def _read_issuer(value: Any) -> str:
    """Kept to the letter: tokens must name exactly this issuer, also with its trailing slash."""
    text = read_text(value).strip()
    read_base_url(text)
    return text


def _read_roles(value: Any) -> dict[str, str]:
    found = _read_mapping(value, ROLES_BY_VALUE)
    for name, role in found.items():
        if role not in ROLE_NAMES:
            raise refuse(
                f"{quote(name)} leads to {quote(role)}, which is no role", f"use one of {', '.join(ROLE_NAMES)}"
            )
    return found


def _read_teams(value: Any) -> dict[str, str]:
    return _read_mapping(value, TEAMS_BY_VALUE)


def _read_mapping(value: Any, form: Form) -> dict[str, str]:
    if not isinstance(value, Mapping):
        raise refuse(f"expected {form.expected}", f"write e.g. {form.example}")
    return {read_text(name): read_text(member) for name, member in value.items()}


def _one_or_several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Network = Annotated[str, BeforeValidator(_read_network), NETWORK]
IssuerUrl = Annotated[
    str,
    BeforeValidator(_read_issuer),
    WithJsonSchema({"type": "string", "format": "uri", "pattern": r"^https?://[^@?#\s]+$"}),
    ISSUER,
]
Algorithm = Annotated[
    Literal["RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA", "Ed25519"],
    Word,
    ALGORITHM,
]
ZoneName = Annotated[Literal["on_box", "on_prem", "cloud"], Word, ZONES]
_MAPPING = WithJsonSchema({"type": "object", "additionalProperties": {"type": "string"}})
RolesByValue = Annotated[dict[str, RoleName], BeforeValidator(_read_roles), _MAPPING, ROLES_BY_VALUE]
TeamsByValue = Annotated[dict[str, str], BeforeValidator(_read_teams), _MAPPING, TEAMS_BY_VALUE]
Audiences = Annotated[
    tuple[Text, ...],
    BeforeValidator(_one_or_several),
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}, "minItems": 1}]}),
]
CLAIM = Form("the name of a claim; dots lead into objects", "realm_access.roles")
_CLAIM = re.compile(r"[^\s\x00-\x1f]{1,200}")


def _read_claim(value: Any) -> str:
    text = read_text(value)
    if not _CLAIM.fullmatch(text):
        raise refuse(f"{quote(text)} is not the name of a claim", f"write e.g. {CLAIM.example}")
    return text


ClaimName = Annotated[str, BeforeValidator(_read_claim), CLAIM]

# --- keys -------------------------------------------------------------------------------------------


class Limited(Section):
    """Whom a credential works for and what it is limited to."""

    organization: Whom | None = Field(
        default=None,
        description="Name or id of the organisation that it belongs to; left out, the one that runs the box.",
    )
    team: Whom | None = Field(
        default=None, description="Name or id of the team that it works for; left out, none.", examples=["lab"]
    )
    routes: tuple[ModelName, ...] | None = Field(
        default=None, description="Model names that it may ask for; left out, all.", examples=[["chat"]]
    )
    models: tuple[ModelName, ...] | None = Field(
        default=None,
        description="Targets that may answer it, as a deployment or provider/model; left out, all.",
        examples=[["small", "lab/llama-3.3-70b"]],
    )
    zones: tuple[ZoneName, ...] | None = Field(
        default=None,
        description="Where those that answer may be; left out, anywhere.",
        examples=[["on_box", "on_prem"]],
    )
    addresses: tuple[Network, ...] | None = Field(
        default=None, description="Networks that it may be used from; left out, any.", examples=[["10.1.0.0/16"]]
    )
    priority: Annotated[Literal["interactive", "normal", "batch"], Word] | None = Field(
        default=None, description="Most urgent class that it may ask for; left out, any.", examples=["normal"]
    )


class FixedKey(Limited):
    """An API key that the file declares, for automation."""

    name: Name = Field(max_length=MAX_FIXED_NAME, description="Name of the key, as records show it.", examples=["ci"])
    key: SecretRef = Field(
        description="Where the key's text is found; at least 20 characters.", examples=[{"env": "CI_KEY"}]
    )
    role: RoleName = Field(default="member", description="What the key may do; a member may only ask models.")


# --- identity providers -----------------------------------------------------------------------------


class Jwks(Section):
    """Where an issuer's public keys are found: exactly one of `file` and `url`."""

    file: FilePath | None = Field(
        default=None,
        description="File with the keys (JWK set); read again at a reload.",
        examples=["/etc/outpost/issuer.jwks.json"],
    )
    url: BaseUrl | None = Field(
        default=None,
        description="Address of the keys; may be another host than the issuer's.",
        examples=["https://login.example.com/realms/lab/certs"],
    )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.file is None) == (self.url is None):
            raise refuse("needs either file or url", "write {file: PATH} or {url: ADDRESS}, or leave out jwks")
        return self


class ClaimNames(Section):
    """Which claims say who somebody is."""

    user: ClaimName = Field(
        default="sub",
        description="Claim that tells persons apart for good; email counts only with email_verified.",
        examples=["sub"],
    )
    name: ClaimName = Field(
        default="preferred_username",
        description="Claim with the name that records show; where it is missing, that of `user`.",
        examples=["preferred_username"],
    )
    role: ClaimName | None = Field(
        default=None, description="Claim whose values `roles` turns into a role.", examples=["realm_access.roles"]
    )
    team: ClaimName | None = Field(
        default=None, description="Claim with the team, by way of `teams` if that has entries.", examples=["groups"]
    )
    organization: ClaimName | None = Field(
        default=None, description="Claim with the organisation's name; who lacks it is refused.", examples=["tenant"]
    )


class Login(Section):
    """Browser login to the operator's listener (authorization code with PKCE)."""

    client_id: Text = Field(
        min_length=1, max_length=256, description="The client that the provider knows.", examples=["outpost-console"]
    )
    client_secret: SecretRef | None = Field(
        default=None,
        description="Where the client's secret is found; left out, the client is a public one.",
        examples=[{"env": "OIDC_CLIENT_SECRET"}],
    )
    scopes: tuple[Text, ...] = Field(
        default=("openid", "profile"), description="Scopes that are asked for; openid is needed."
    )
    redirect_base: BaseUrl = Field(
        description="Address of the operator's listener as browsers see it; register /login/callback below it with the "
        "provider.",
        examples=["https://outpost.example.com:8081"],
    )
    authorization_endpoint: BaseUrl | None = Field(
        default=None,
        description="Where browsers are sent; left out, what discovery says, on the issuer's own host.",
        examples=["https://login.example.com/authorize"],
    )
    token_endpoint: BaseUrl | None = Field(
        default=None,
        description="Where codes are exchanged; left out, what discovery says, on the issuer's own host.",
        examples=["https://login.example.com/token"],
    )


class Issuer(Section):
    """An identity provider whose tokens are accepted."""

    name: Name = Field(
        max_length=MAX_ISSUER_NAME, description="Name of the provider, as records show it.", examples=["corp"]
    )
    issuer: IssuerUrl = Field(
        description="Address that tokens name as `iss`, to the letter.",
        examples=["https://login.example.com/realms/lab"],
    )
    audience: Audiences = Field(
        min_length=1, description="What tokens must name as `aud`; of several, one.", examples=["outpost"]
    )
    jwks: Jwks | None = Field(
        default=None,
        description="Where the issuer's keys are found; left out, by discovery.",
        examples=[{"file": "/etc/outpost/issuer.jwks.json"}],
    )
    ca: FilePath | None = Field(
        default=None,
        description="PEM file with the certificates that vouch for the provider; left out, the system's.",
        examples=["/etc/outpost/ca.crt"],
    )
    algorithms: tuple[Algorithm, ...] = Field(
        default=("RS256", "ES256", "EdDSA"), min_length=1, description="Signatures that are accepted."
    )
    claims: ClaimNames = Field(default_factory=ClaimNames, description="Which claims say who somebody is.")
    roles: RolesByValue = Field(
        default_factory=dict,
        description="Role by value of the claim `claims.role`; of several the most powerful.",
        examples=[{"outpost-admins": "admin"}],
    )
    teams: TeamsByValue = Field(
        default_factory=dict,
        description="Team by value of the claim `claims.team`, the first that fits; without entries, the claim itself.",
        examples=[{"lab-users": "lab"}],
    )
    default_role: Annotated[Literal["operator", "auditor", "member"], Word] | None = Field(
        default=None, description="Role of whom `roles` gives none; left out, they are refused.", examples=["member"]
    )
    organization: Whom | None = Field(
        default=None,
        description="Name or id of the organisation of everybody from this issuer; left out, the claim's or the one "
        "that runs the box.",
    )
    max_age: Duration | None = Field(
        default=None, ge=60.0, le=2_592_000.0, description="Longest time since a token was made; left out, any."
    )
    skew: Duration = Field(default=60.0, ge=0.0, le=300.0, description="Difference between clocks that is tolerated.")
    max_stale: Duration = Field(
        default=86400.0,
        ge=60.0,
        le=2_592_000.0,
        description="Longest time that keys are used after they were last confirmed, while the provider is down.",
    )
    login: Login | None = Field(
        default=None,
        description="Browser login to the operator's listener; left out, none.",
        examples=[{"client_id": "outpost-console", "redirect_base": "https://outpost.example.com:8081"}],
    )

    @property
    def jwks_host(self) -> str | None:
        """The host that keys are fetched from; None for a file."""
        if self.jwks is not None and self.jwks.file is not None:
            return None
        return urlsplit(self.jwks.url if self.jwks and self.jwks.url else self.issuer).hostname


# --- client certificates ----------------------------------------------------------------------------


class CertificateSubject(Limited):
    """Whose certificate it is. Exactly one of common_name, dns, uri and email says which."""

    name: Name = Field(description="Name that records show.", examples=["scheduler"])
    common_name: Text | None = Field(default=None, description="The subject's common name.", examples=["scheduler"])
    dns: Text | None = Field(
        default=None, description="A DNS name among the alternative names.", examples=["scheduler.example.com"]
    )
    uri: Text | None = Field(
        default=None, description="A URI among the alternative names.", examples=["spiffe://example.com/scheduler"]
    )
    email: Text | None = Field(
        default=None, description="An address among the alternative names.", examples=["ann@example.com"]
    )
    role: RoleName = Field(default="member", description="What its owner may do; a member may only ask models.")

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(each is not None for each in (self.common_name, self.dns, self.uri, self.email)) != 1:
            raise refuse(
                "needs exactly one of common_name, dns, uri and email", "keep the one that the certificates carry"
            )
        return self


class Identity(Section):
    """Who may ask, besides the keys that `outpost keys create` makes."""

    keys: tuple[FixedKey, ...] = Field(
        default=(),
        description="Fixed keys, for automation.",
        examples=[[{"name": "ci", "key": {"env": "CI_KEY"}, "role": "admin"}]],
    )
    oidc: tuple[Issuer, ...] = Field(
        default=(),
        description="Identity providers whose tokens are accepted.",
        examples=[[{"name": "corp", "issuer": "https://login.example.com", "audience": "outpost"}]],
    )
    client_ca: FilePath | None = Field(
        default=None,
        description="PEM file with the certificates of those that issue certificates to clients (mutual TLS); left "
        "out, clients are asked for none.",
        examples=["/etc/outpost/clients-ca.crt"],
        json_schema_extra={"restart": True},
    )
    client_certificates: tuple[CertificateSubject, ...] = Field(
        default=(),
        description="Who may come in by a certificate, on both listeners; the first entry that fits counts.",
        examples=[[{"name": "cron", "dns": "cron.example.com"}]],
    )
