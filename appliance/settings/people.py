"""Who may ask: fixed keys, identity providers, client certificates."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from appliance.settings.secrets import SecretRef
from appliance.settings.section import Section
from appliance.settings.values import Name, Word


class FixedKey(Section):
    """An API key that the file declares, for automation."""

    name: Name = Field(description="Name of the key, as records show it.", examples=["ci"])
    key: SecretRef = Field(
        description="Where the key's text is found; at least 20 characters.", examples=[{"env": "CI_KEY"}]
    )
    role: Annotated[Literal["owner", "admin", "operator", "auditor", "member"], Word] = Field(
        default="member", description="What the key may do; a member may only ask models."
    )


class Identity(Section):
    """Who may ask, besides the keys that `outpost keys create` makes."""

    keys: tuple[FixedKey, ...] = Field(
        default=(),
        description="Fixed keys, for automation.",
        examples=[[{"name": "ci", "key": {"env": "CI_KEY"}, "role": "admin"}]],
    )
