"""What a credential is limited to, as pure functions: checked, narrowed, compared, applied to an address."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address, ip_network

import msgspec

from appliance.errors import BadRequest
from appliance.identity.principal import PRIORITIES, Restrictions
from appliance.redact import looks_secret
from appliance.settings.people import Limited

Network = IPv4Network | IPv6Network
_MAPPED = IPv6Network("::ffff:0:0/96")
MOST = 100
"""Entries of one list."""


def restrictions_of(limited: Limited) -> Restrictions:
    """What the settings limit a fixed key or a certificate to."""
    return Restrictions(
        routes=limited.routes,
        models=limited.models,
        zones=limited.zones,
        addresses=limited.addresses,
        priority=limited.priority,
    )


def checked(restrictions: Restrictions, path: str = "restrictions") -> Restrictions:
    """The same with networks in their usual form. Raises BadRequest that names the field."""
    for field in ("routes", "models", "zones", "addresses"):
        values = getattr(restrictions, field)
        if values is None:
            continue
        name = f"{path}.{field}"
        if not values:
            raise BadRequest(
                f"{name}: an empty list would allow nothing; name at least one, or leave it out", param=name
            )
        if len(values) > MOST:
            raise BadRequest(f"{name}: at most {MOST} entries; use another key for the rest", param=name)
        for value in values:
            if not 0 < len(value) <= 200 or not value.isprintable():
                raise BadRequest(f"{name}: every entry must have 1 to 200 printable characters", param=name)
            if looks_secret(value):
                raise BadRequest(f"{name}: an entry looks like a key, and these lists are shown; remove it", param=name)
    if restrictions.addresses is None:
        return restrictions
    found = [str(_network(text, f"{path}.addresses")) for text in restrictions.addresses]
    return msgspec.structs.replace(restrictions, addresses=tuple(dict.fromkeys(found)))


def _network(text: str, name: str) -> Network:
    try:
        return _plain(ip_network(text))
    except ValueError:
        pass
    try:
        cure = f"write {ip_network(text, strict=False)}"
    except ValueError:
        cure = "write an address or a network, e.g. 10.0.0.0/8 or 2001:db8::/32"
    raise BadRequest(f"{name}: {text!r} is not a network; {cure}", param=name)


def _plain(network: Network) -> Network:
    """IPv4 as such, also where it is written in its mapped form: that is how `admits` sees clients."""
    if isinstance(network, IPv6Network) and network.subnet_of(_MAPPED):
        return IPv4Network((int(network.network_address) & 0xFFFF_FFFF, network.prefixlen - 96))
    return network


def inherited(wished: Restrictions, own: Restrictions) -> Restrictions:
    """`wished`, with what it does not speak of taken from the grantor's `own`."""
    filled = {field: value for field in own.__struct_fields__ if (value := getattr(own, field)) is not None}
    filled |= {field: value for field in wished.__struct_fields__ if (value := getattr(wished, field)) is not None}
    return Restrictions(**filled)


def exceeding(inner: Restrictions, outer: Restrictions) -> str | None:
    """The first field in which `inner` allows what `outer` does not; None if there is none. Both are `checked`."""
    for field in ("routes", "models", "zones"):
        allowed, wished = getattr(outer, field), getattr(inner, field)
        if allowed is not None and (wished is None or not set(wished) <= set(allowed)):
            return field
    if outer.addresses is not None:
        roofs = networks(outer)
        if inner.addresses is None or not all(any(_inside(n, roof) for roof in roofs) for n in networks(inner)):
            return "addresses"
    if outer.priority is not None and (
        inner.priority is None or PRIORITIES.index(inner.priority) < PRIORITIES.index(outer.priority)
    ):
        return "priority"
    return None


def _inside(network: Network, roof: Network) -> bool:
    return network.version == roof.version and network.subnet_of(roof)  # type: ignore[arg-type]


def networks(restrictions: Restrictions) -> tuple[Network, ...]:
    """The networks that the credential may be used from; empty where it is not limited."""
    return tuple(ip_network(text) for text in restrictions.addresses or ())


def admits(allowed: Sequence[Network], address: str | None) -> bool:
    """Whether a client's address is in one of the networks; an address that cannot be told is in none."""
    found = None if address is None else _client(address)
    return found is not None and any(found.version == network.version and found in network for network in allowed)


@lru_cache(maxsize=4096)
def _client(address: str) -> IPv4Address | IPv6Address | None:
    try:
        found = ip_address(address.partition("%")[0])
    except ValueError:
        return None
    # A listener on all of IPv6 sees IPv4 clients in their mapped form.
    if isinstance(found, IPv6Address) and found.ipv4_mapped is not None:
        return found.ipv4_mapped
    return found
