"""A gateway before a model that is able enough for any judge: the fake upstream's, behind each kind of provider."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.fakes.behaviours import capable
from tests.faults.failover import PROVIDERS
from tests.gateway import Gateway, UpstreamThread, open_gateway

if TYPE_CHECKING:
    from anthropic import Anthropic, AsyncAnthropic

KINDS = tuple(PROVIDERS)
BEHAVIOURS = ("429-after", "500", "503", "401", "400", "cut", "long-context", "long-filtered")
FAILING = [(kind, behaviour) for kind in ("openai", "anthropic") for behaviour in BEHAVIOURS]

MODELS = {"bedrock": "eu.anthropic.claude-sonnet-4-5-20250929-v1:0"}
"""Where what a model is asked depends on who made it, and its name says that."""


def route(kind: str) -> str:
    """The route to the able model behind a kind of provider."""
    return f"able-{kind}"


def lenient(kind: str) -> str:
    """The same for clients that ask for what not every kind knows; it is left out then."""
    return f"lenient-{kind}"


class Able:
    """The gateway, the fake behind it, and clients."""

    def __init__(self, gateway: Gateway, upstream: UpstreamThread) -> None:
        self.gateway = gateway
        self.upstream = upstream

    def anthropic(self, **options: Any) -> Anthropic:
        """Anthropic's client, without retries unless asked for; close it."""
        from anthropic import Anthropic

        return Anthropic(**self._client(options))

    def async_anthropic(self, **options: Any) -> AsyncAnthropic:
        from anthropic import AsyncAnthropic

        return AsyncAnthropic(**self._client(options))

    def _client(self, options: dict[str, Any]) -> dict[str, Any]:
        return {"base_url": self.gateway.url, "api_key": self.gateway.key, "max_retries": 0, **options}


def settings_for(upstream: UpstreamThread) -> dict[str, Any]:
    """Routes able-KIND, with names that judges know as aliases, since they ask some things only of those;
    lenient-KIND; and KIND-BEHAVIOUR for some that fail."""
    root = upstream.fake.root
    providers = [
        {**made, "name": kind, "zone": "on_box", "base_url": root + made["base_url"]}
        for kind, made in PROVIDERS.items()
    ]
    routes: list[dict[str, Any]] = []
    for kind in KINDS:
        model = MODELS.get(kind, f"capable-{kind}")
        upstream.fake.behave(model, capable)
        aliases = [f"gpt-5-{kind}", f"claude-sonnet-4-5-{kind}"]
        target = {"provider": kind, "model": model}
        routes.append({"model": route(kind), "aliases": aliases, "targets": [target]})
        routes.append({"model": lenient(kind), "targets": [target], "drop_unsupported": True})
    for number, (kind, behaviour) in enumerate(FAILING):
        # Each has a provider of its own, since a key that is refused is not used for a while.
        own = {**providers[KINDS.index(kind)], "name": f"failing-{number}"}
        providers.append(own)
        target = {"provider": own["name"], "model": behaviour}
        routes.append({"model": f"{kind}-{behaviour}", "retries": 0, "targets": [target]})
    return {"deployments": [], "providers": providers, "routes": routes}


@contextmanager
def open_able(folder: Path) -> Iterator[Able]:
    with UpstreamThread() as upstream, open_gateway(folder, settings_for(upstream)) as gateway:
        upstream.call(upstream.fake.release.set)
        yield Able(gateway, upstream)
