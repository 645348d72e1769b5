"""The routes of the settings where no gateway runs: as they would be, with nothing known of how their targets fare."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from appliance import preflight
from appliance.account import prompt_bound
from appliance.commands.control import NotRunning
from appliance.commands.database import COMMAND_LINE
from appliance.commands.place import Place
from appliance.door.admin_routes import NO_GATEWAY, RouteDesk, operations
from appliance.door.operation import Operation, perform
from appliance.engines import capabilities
from appliance.errors import BadRequest, NotFound
from appliance.identity.key_store import KeyInfo
from appliance.identity.principal import Principal
from appliance.pricing import Prices
from appliance.providers.catalogue import row
from appliance.providers.kinds import betas_of, capabilities_of
from appliance.providers.shipped import prices_of
from appliance.providers.upstream import READY, Call, Capabilities, Readiness, Stream, Upstream
from appliance.routing.build import build_router, override_findings, zones
from appliance.routing.routes import Router
from appliance.settings import DeploymentTarget, Settings
from appliance.settings.shape import dotted
from runtimes.catalogue import Catalogue, CatalogueError

ROUTES = "/admin/v1/routes"
NO_FILE = "No settings file was read: these are the routes that a gateway without one has. Name the file with --config."


def answered_without_data(
    place: Place, method: str, path: str, body: Mapping[str, Any] | None = None
) -> list[dict[str, Any]]:
    """The `data` of the answer where no gateway has ever run, so that there is no key but those of the settings. Raises
    OutpostError."""

    async def find_key(_actor: Principal, id_or_name: str) -> KeyInfo:
        for key in place.declared_keys:
            if id_or_name in (key.id, key.name):
                return key
        raise NotFound(f"There is no key {id_or_name!a} in the settings file, and no gateway has made one yet.")

    payload = b"" if body is None else msgspec.json.encode(body)
    answer = asyncio.run(perform(operations_here(place, find_key), COMMAND_LINE, method, path, {}, payload))
    data = msgspec.json.decode(answer)["data"]
    return data if isinstance(data, list) else [data]


def operations_here(place: Place, find_key: Callable[[Principal, str], Awaitable[KeyInfo]]) -> Sequence[Operation]:
    """The operations on the routes of the settings. Raises BadRequest for settings from which no routes can be made."""
    router = router_of(place.settings, preflight.catalogue_of(place.settings, place.data_dir))
    remarks = () if place.has_settings else (NO_FILE,)
    return operations(RouteDesk(lambda: router, None, find_key, prompt_bound, time.time, remarks))


def router_of(settings: Settings, catalogue: Catalogue) -> Router:
    """The routes of settings, with targets that can only be looked at. Raises BadRequest."""
    if findings := override_findings(settings.routes):
        raise BadRequest("; ".join(f"{dotted(each.path)}: {each.message}; {each.cure}" for each in findings))
    deployments = {each.name: each for each in settings.deployments}
    providers = {each.name: each for each in settings.providers}

    def upstream_of(target: Any) -> Upstream:
        if not isinstance(target, DeploymentTarget):
            provider = providers[target.provider]
            known = row(provider.kind)
            betas, fetches = betas_of(known, provider), provider.fetches_media
            return Unasked(str(target), capabilities_of(known, target.model, betas, fetches_media=fetches))
        deployment = deployments[target.deployment]
        try:
            manifest = catalogue.get(deployment.model)
        except CatalogueError as error:
            raise BadRequest(f"deployment {deployment.name}: {error.message} {error.cure}") from error
        context = deployment.args.context or manifest.defaults.context
        return Unasked(str(target), capabilities(manifest, context))

    return build_router(settings.routes, upstream_of, zones(settings.providers), Prices(prices_of(settings)).of)


class Unasked:
    """A target that nobody asks: it is only looked at."""

    def __init__(self, name: str, capabilities: Capabilities) -> None:
        self.name = name
        self.capabilities = capabilities

    def readiness(self) -> Readiness:
        return READY

    async def whole(self, call: Call) -> bytes:
        raise NotRunning(NO_GATEWAY)

    async def stream(self, call: Call) -> Stream:
        raise NotRunning(NO_GATEWAY)
