"""What must hold between keys. Pure: settings in, findings out; files and variables are in `machine`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from ipaddress import ip_address
from typing import NamedTuple
from urllib.parse import urlsplit

from appliance.settings import checks_limiting, checks_people, checks_recording, checks_routing, checks_telemetry
from appliance.settings.document import Finding, Path
from appliance.settings.problems import suggest
from appliance.settings.providers import ANY, OPENAI_BASE_URL, Provider
from appliance.settings.routing import DeploymentTarget, Route
from appliance.settings.schema import Settings
from appliance.settings.values import Address

_WILDCARDS = frozenset({"0.0.0.0", "::"})


class ModelFacts(NamedTuple):
    """What the checks have to know of a model in the catalogue."""

    task: str
    """generate or embed."""
    context_length: int
    """Tokens."""


def check(settings: Settings) -> list[Finding]:
    """Names that lead nowhere, names used twice, combinations that cannot work."""
    return [
        *_listeners(settings),
        *_data_dir(settings),
        *_duplicates("deployments", [each.name for each in settings.deployments], "deployment"),
        *_duplicates("providers", [each.name for each in settings.providers], "provider"),
        *_duplicates(("identity", "keys"), [each.name for each in settings.identity.keys], "key"),
        *_model_names(settings.routes),
        *_providers(settings),
        *checks_routing.check(settings),
        *checks_limiting.check(settings),
        *checks_people.check(settings),
        *checks_recording.check(settings),
        *checks_telemetry.check(settings),
    ]


def warn(settings: Settings) -> list[Finding]:
    """What works, but is probably not meant."""
    found = []
    if not settings.server.tls and not is_local(settings.server.listen.host):
        found.append(Finding(("server", "listen"), "keys and texts cross the network unencrypted", "set server.tls"))
    if not is_local(settings.console.listen.host):
        found.append(
            Finding(("console", "listen"), "the operator API is reachable from other machines", "use 127.0.0.1:8081")
        )
    for index, provider in enumerate(settings.providers):
        parts = urlsplit(provider.base_url or "")
        if provider.kind != ANY and provider.base_url is None and not (provider.all_keys or provider.signers):
            message = f"{provider.name} has no key, which {provider.kind} asks for"
            found.append(Finding(("providers", index), message, "add api_key: {env: NAME}"))
        if provider.all_keys and parts.scheme == "http" and not is_local(parts.hostname or ""):
            message = f"the key of {provider.name} crosses the network unencrypted"
            found.append(Finding(("providers", index, "base_url"), message, "use https"))
    used = {
        target.deployment
        for route in settings.routes
        for target in route.own_targets
        if isinstance(target, DeploymentTarget)
    }
    for index, deployment in enumerate(settings.deployments):
        if deployment.name not in used:
            cure = "add it to a route, or remove it"
            if "deployments" not in settings.model_fields_set:
                cure = "it is there by default: add it to a route, or write deployments: []"
            found.append(Finding(("deployments", index), f"no route uses the deployment {deployment.name}", cure))
    for part in (checks_people, checks_recording, checks_routing, checks_telemetry):
        found += part.warn(settings)
    if not settings.routes:
        found.append(Finding(("routes",), "there is no route, so that no request can be answered", "add a route"))
    return found


def check_against_catalogue(settings: Settings, models: Mapping[str, ModelFacts]) -> list[Finding]:
    """What only the catalogue knows. `models`: by manifest id."""
    found = []
    by_deployment: dict[str, str] = {}
    for index, deployment in enumerate(settings.deployments):
        model = models.get(deployment.model)
        if model is None:
            message = f"the catalogue has no model {deployment.model!r} (deployment {deployment.name})"
            cure = _did_you_mean(deployment.model, models, "see `outpost models list`, or import the model")
            found.append(Finding(("deployments", index, "model"), message, cure))
            continue
        by_deployment[deployment.name] = model.task
        context = deployment.args.context
        if context is not None and context > model.context_length:
            message = (
                f"{context} tokens are more than the {model.context_length} that {deployment.model} was made for "
                f"(deployment {deployment.name})"
            )
            cure = f"write {model.context_length} or less"
            found.append(Finding(("deployments", index, "args", "context"), message, cure))
    for index, route in enumerate(settings.routes):
        first: tuple[str, str] | None = None
        for place, target in enumerate(route.targets):
            if not isinstance(target, DeploymentTarget) or target.deployment not in by_deployment:
                continue
            task = by_deployment[target.deployment]
            first = first or (target.deployment, task)
            if task != first[1]:
                message = (
                    f"{target.deployment} can {_ability(task)}, but {first[0]} in this route can {_ability(first[1])}"
                )
                path: Path = ("routes", index, "targets", place)
                found.append(Finding(path, message, "make two routes, one for each"))
    return found


def is_local(host: str) -> bool:
    """Whether an address stays on this machine."""
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def _ability(task: str) -> str:
    return {"generate": "write text", "embed": "only make embeddings"}.get(task, task)


def _listeners(settings: Settings) -> Iterator[Finding]:
    public, operator = settings.server.listen, settings.console.listen
    if _collide(public, operator):
        yield Finding(
            ("console", "listen"),
            f"{operator} and server.listen ({public}) cannot both be listened on",
            f"choose another port, e.g. {Address(operator.host, public.port % 65535 + 1)}",
        )


def _data_dir(settings: Settings) -> Iterator[Finding]:
    # The database's address is made from the path, and an address takes what follows '?' as options.
    if "?" in str(settings.data_dir):
        yield Finding(("data_dir",), "holds a '?'", "choose a path without it")


def _collide(one: Address, other: Address) -> bool:
    if one.port != other.port or one.port == 0:
        return False
    hosts = [{"localhost": "127.0.0.1"}.get(each.host, each.host) for each in (one, other)]
    same_family = (":" in hosts[0]) == (":" in hosts[1])
    return hosts[0] == hosts[1] or (same_family and any(host in _WILDCARDS for host in hosts))


def _duplicates(section: str | tuple[str, ...], names: list[str], what: str) -> Iterator[Finding]:
    path: Path = (section,) if isinstance(section, str) else section
    seen: set[str] = set()
    for index, name in enumerate(names):
        if name in seen:
            yield Finding((*path, index, "name"), f"there are two of the {what} {name!r}", "give one another name")
        seen.add(name)


def _model_names(routes: tuple[Route, ...]) -> Iterator[Finding]:
    owner: dict[str, str] = {}
    for index, route in enumerate(routes):
        places: list[tuple[Path, str]] = [(("routes", index, "model"), route.model)]
        places += [(("routes", index, "aliases", place), alias) for place, alias in enumerate(route.aliases)]
        for path, name in places:
            if name in owner:
                message = f"{name!r} already stands for the route {owner[name]!r}"
                yield Finding(path, message, "one name leads to one route: remove or rename one")
            owner.setdefault(name, route.model)


def _providers(settings: Settings) -> Iterator[Finding]:
    for index, provider in enumerate(settings.providers):
        if provider.zone == "cloud" and settings.offline:
            message = f"{provider.name} is in a cloud, but offline is true"
            yield Finding(("providers", index, "zone"), message, "remove the provider, or write offline: false")
        if provider.zone != "cloud" and _is_makers_own(provider):
            message = (
                f"{provider.name} is said to be {provider.zone}, but its address is that of {provider.kind} itself"
            )
            yield Finding(("providers", index, "zone"), message, "set base_url, or write zone: cloud")


def _is_makers_own(provider: Provider) -> bool:
    return provider.kind != ANY and provider.base_url in (None, OPENAI_BASE_URL)


def _did_you_mean(name: str, known: Iterable[str], otherwise: str) -> str:
    meant = suggest(name, known)
    return f"did you mean {meant}? Otherwise {otherwise}" if meant else otherwise
