"""From the settings' deployments to replicas that the supervisor can start. One entry an engine.

This is where the gateway meets `runtimes`: the catalogue says what a model is, the engine's launcher
how it is started, the supervisor runs it.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from appliance import preflight
from appliance.dialects.kinds import Request
from appliance.providers.local import LocalUpstream
from appliance.providers.upstream import READY, Capabilities, Readiness
from appliance.routing.hashing import bounded, prefix_key, rendezvous
from appliance.settings import Deployment, Finding
from runtimes.catalogue import Catalogue, CatalogueError, Manifest, ModelFiles
from runtimes.engine import Engine
from runtimes.llamacpp import launch as llamacpp
from runtimes.supervisor import Choose, ReplicaSpec, Supervisor, socket_path

RETRY_WHILE_LOADING_S = 2.0
RETRY_AFTER_FAILURE_S = 10.0


@dataclass(frozen=True)
class Launch:
    """What an engine needs to start one replica."""

    argv: list[str]
    env: dict[str, str]
    connect: Callable[[Path], Awaitable[Engine]]
    warm_up: Callable[[Engine], Awaitable[None]]


def _llamacpp(deployment: Deployment, files: ModelFiles, socket: Path) -> Launch:
    args, manifest = deployment.args, files.manifest
    settings = llamacpp.LaunchSettings(
        socket=str(socket),
        model_path=str(files.main),
        name=deployment.name,
        task=manifest.task,
        context=args.context or manifest.defaults.context,
        slots=args.slots,
        threads=args.threads or 0,
        prefill_chunk=args.prefill_chunk,
        max_waiting=args.max_waiting,
        gpu_layers=args.gpu_layers,
        flash_attention=args.flash_attention,
        default_system=manifest.defaults.system_prompt or "",
    )
    return Launch(llamacpp.argv(settings), llamacpp.environment(settings), llamacpp.connect, llamacpp.warm_up)


LAUNCHERS: dict[str, Callable[[Deployment, ModelFiles, Path], Launch]] = {"llamacpp": _llamacpp}

KINDS: dict[str, frozenset[str]] = {
    "generate": frozenset({"chat.completions", "completions"}),
    "embed": frozenset({"embeddings"}),
}
SAMPLING = frozenset({"logit_bias", "top_k", "min_p", "repetition_penalty", "token_prompts"})


def capabilities(manifest: Manifest, context: int) -> Capabilities:
    """What clients may ask of a deployment of this model."""
    features = set(SAMPLING) if manifest.task == "generate" else {"token_prompts"}
    features |= {name for name in ("tools", "json_schema", "logprobs") if name in manifest.capabilities}
    if "json_schema" in manifest.capabilities:
        features.add("json_object")
    kinds = KINDS[manifest.task]
    if "chat" not in manifest.capabilities:
        kinds = kinds - {"chat.completions"}
    return Capabilities(
        kinds=kinds,
        features=frozenset(features),
        context_length=context,
        dimensions=manifest.embedding.dimensions if manifest.embedding else None,
    )


def resolve(deployments: Sequence[Deployment], catalogue: Catalogue) -> tuple[dict[str, ModelFiles], list[Finding]]:
    """The checked files of each deployment's model, by deployment, and what is wrong with those of the others."""
    files: dict[str, ModelFiles] = {}
    findings = []
    for index, deployment in enumerate(deployments):
        try:
            files[deployment.name] = catalogue.resolve(deployment.model)
        except CatalogueError as error:
            findings.append(preflight.finding(("deployments", index, "model"), error, f"deployment {deployment.name}"))
    return files, findings


def specs(
    deployments: Sequence[Deployment], files: dict[str, ModelFiles], run_dir: Path, log_dir: Path
) -> list[ReplicaSpec]:
    """All replicas of all deployments."""
    result = []
    for deployment in deployments:
        for index in range(deployment.replicas.min):
            socket = socket_path(run_dir, deployment.name, index)
            launch = LAUNCHERS[deployment.engine](deployment, files[deployment.name], socket)
            result.append(
                ReplicaSpec(
                    deployment=deployment.name,
                    index=index,
                    argv=launch.argv,
                    env=launch.env,
                    socket_path=socket,
                    log_path=log_dir / f"{deployment.name}.{index}.log",
                    connect=launch.connect,
                    warm_up=launch.warm_up,
                    start_timeout_s=deployment.start_timeout,
                    drain_timeout_s=deployment.drain_timeout,
                )
            )
    return result


def upstream(deployment: Deployment, files: ModelFiles, supervisor: Supervisor) -> LocalUpstream:
    """A deployment as something that routes can lead to."""
    context = deployment.args.context or files.manifest.defaults.context

    def state() -> Readiness:
        return readiness(deployment.name, supervisor.replicas(deployment.name))

    return LocalUpstream(
        deployment.name,
        lambda request, partition: supervisor.lease(deployment.name, nearest(request, partition)),
        capabilities(files.manifest, context),
        state,
        sampling_defaults(files.manifest),
    )


def nearest(request: Request, partition: str) -> Choose:
    """Of several replicas the one that had the beginning of this conversation before, as long as it has not much more
    to do than the others: what it has computed of that is not computed again."""

    def choose(numbers: list[int], leases: list[int]) -> int:
        order = rendezvous(prefix_key(request, partition), [str(number) for number in numbers])
        return bounded(order, leases)[0]

    return choose


def sampling_defaults(manifest: Manifest) -> dict[str, float]:
    """What the model's makers recommend, for requests that do not say."""
    recommended = {"temperature": manifest.defaults.temperature, "top_p": manifest.defaults.top_p}
    return {name: value for name, value in recommended.items() if value is not None}


def readiness(name: str, replicas: Sequence[Any]) -> Readiness:
    """What a deployment's replicas mean for a request: ready, worth waiting for, or out of order."""
    if any(replica.state == "ready" for replica in replicas):
        return READY
    if not replicas:
        return Readiness(False, f"{name} has no replicas")
    first = min(replicas, key=lambda replica: _HOPE.get(replica.state, len(_HOPE)))
    loading = first.state in ("starting", "warming")
    # The first line is plain words; further ones quote the engine's log, which is not for clients.
    reason = first.reason.splitlines()[0] if first.reason else first.state
    return Readiness(
        False,
        f"{name} is {first.state}: {reason}",
        loading=loading,
        retry_after_s=RETRY_WHILE_LOADING_S if loading else RETRY_AFTER_FAILURE_S,
    )


_HOPE = {state: rank for rank, state in enumerate(("warming", "starting", "failed", "draining", "stopping"))}
