"""/admin/v1/routes/{model}/shadows: how the shadows of a route compare with what its callers were given."""

from __future__ import annotations

from appliance.door.operation import Asked, Operation
from appliance.gateway import Gateway
from appliance.shadows import Overview


def operations(gateway: Gateway) -> tuple[Operation, ...]:
    async def show(asked: Asked) -> Overview:
        return gateway.shadows.overview(gateway.router.find(asked.parameters["model"]))

    return (
        Operation(
            "GET",
            "/admin/v1/routes/{model}/shadows",
            "status.read",
            show,
            "How the shadows of a route compare with its answers, since the start. No text of a request is shown.",
            Overview,
        ),
    )
