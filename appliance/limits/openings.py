"""From settings to gates: how many requests each target works on at a time. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from appliance.limits.admission import UNLIMITED, Opening
from appliance.limits.fair_queue import Rules
from appliance.settings import Deployment, ProviderTarget, Settings

TEXTS = 64
"""Texts that an embedding engine reads in one batch, at most."""
AHEAD = 4
"""One request for so many slots stands in the engine's own line, so that a slot never waits for the gateway. Measured
with 8 slots, answers of 8 tokens and a busy machine: 85 % of the tokens a step that an endless line gives with none
ahead, 96 % with one, 96 to 99 % with two."""


def queue_rules(settings: Settings) -> Rules:
    """How the targets are shared."""
    wait, share = settings.admission.max_wait, settings.admission.weights
    return Rules(
        settings.admission.max_waiting,
        {"interactive": wait.interactive, "normal": wait.normal, "batch": wait.batch},
        {"interactive": share.interactive, "normal": share.normal, "batch": share.batch},
    )


def openings(settings: Settings, tasks: Mapping[str, str]) -> list[Opening]:
    """The gates of all deployments, and of the providers that are bounded. tasks: deployment → generate or embed."""
    deployments = (opening(each, tasks[each.name]) for each in settings.deployments)
    return [*deployments, *_providers(settings)]


def opening(deployment: Deployment, task: str) -> Opening:
    """What one replica has in hand: enough that it is never idle, and little beyond, since the gateway's priorities do
    not reach into the engine's own line. Never more than the engine takes."""
    slots, waiting = deployment.args.slots, deployment.args.max_waiting
    if task == "embed":
        # Each request counts by its texts, and the engine bounds only the requests.
        places, most = min(TEXTS + TEXTS // 2, 1 + waiting), UNLIMITED
    else:
        places, most = slots + min(-(-slots // AHEAD), waiting), slots + waiting
    return Opening(deployment.name, (deployment.name,), places, replicated=True, most=most)


def _providers(settings: Settings) -> Iterator[Opening]:
    targets = {
        (target.provider, str(target))
        for route in settings.routes
        for target in route.own_targets
        if isinstance(target, ProviderTarget)
    }
    for provider in settings.providers:
        most: int | None = provider.max_in_flight
        if most is not None:
            yield Opening(provider.gate, tuple(sorted(name for owner, name in targets if owner == provider.name)), most)
