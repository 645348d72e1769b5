"""The appliance as one process: puts the parts together, runs them, reloads them, takes them down."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from appliance import __version__, data_dir, descriptors, engines, preflight
from appliance.door.access_log import AccessLog
from appliance.door.admin import Operator
from appliance.door.http import Limits
from appliance.door.line_writer import LineWriter
from appliance.door.serve import Doors
from appliance.errors import BadRequest
from appliance.gateway import Gateway
from appliance.identity.certificates import require
from appliance.identity.jwks import ProviderError
from appliance.identity.key_ring import ensure_first_admin
from appliance.identity.keys import FixedKey
from appliance.identity.oidc import build_providers, build_subjects
from appliance.identity.principal import Principal
from appliance.identity.restrictions import restrictions_of
from appliance.ids import new_id
from appliance.limits.admission import Gates, Opening, follow
from appliance.limits.openings import openings, queue_rules
from appliance.office import Office, People
from appliance.pricing import Prices
from appliance.probes import Prober
from appliance.providers.connect import connect
from appliance.providers.http import make_session
from appliance.providers.kinds import Connection, make_upstream
from appliance.providers.shipped import prices_of
from appliance.providers.upstream import Upstream
from appliance.redact import Secrets
from appliance.routing.build import build_router, zones
from appliance.routing.health import Health
from appliance.routing.routes import Router
from appliance.routing.watch import Running
from appliance.settings import (
    DeploymentTarget,
    Finding,
    Loaded,
    SecretMissing,
    Settings,
    SettingsError,
    choose_file,
    diff,
    keep_fixed,
    load,
    resolve,
)
from appliance.telemetry.known import learn
from appliance.telemetry.metrics import Ledger, Sources
from appliance.unmet_names import unmet_names
from runtimes.catalogue import ModelFiles
from runtimes.supervisor import ReplicaSpec, Supervisor, run_directory

logger = logging.getLogger("outpost")

MakeUpstream = Callable[[Any], Upstream]
"""Gets a target of the settings."""
SIGNAL = Principal(key_id="signal", key_name="signal", role="owner")
"""Who reloads the settings by a signal: only this user of the machine, and root, can send one."""


class SystemClock:
    """The clocks of this machine, in seconds."""

    wall = staticmethod(time.time)
    monotonic = staticmethod(time.monotonic)


@dataclass
class Prepared:
    """Everything that new settings lead to, checked, before any of it is put in force."""

    settings: Settings
    specs: list[ReplicaSpec]
    router: Router
    openings: list[Opening]
    people: People


class App:
    """One running appliance. `start` it once and `stop` it once; `reload` any number of times between."""

    def __init__(self, loaded: Loaded, env: Mapping[str, str], secrets: Secrets | None = None) -> None:
        """secrets: what must appear in no log."""
        settings = self.settings = loaded.settings
        self._loaded = loaded
        self._path = loaded.path
        self._env = env
        self._data_dir = settings.data_dir.absolute()
        self._clock = SystemClock()
        self._secrets = secrets or Secrets()
        self._stack = contextlib.AsyncExitStack()
        self._supervisor = Supervisor()
        self._log: AccessLog | None = None
        self._reloading = asyncio.Lock()
        self._changing: set[asyncio.Task[None]] = set()
        self._reloads: set[asyncio.Task[dict[str, Any]]] = set()
        self.first_key: str | None = None
        """The first admin's key, if this start made it; shown once."""
        self.public_port = 0
        self.operator_port = 0

    async def start(self) -> None:
        """Open everything and return when the doors are open; models may still be loading.

        Raises SettingsError, OutpostError, SpecError, OSError – then nothing is left running.
        """
        async with contextlib.AsyncExitStack() as stack:
            await self._start(stack)
            self._stack = stack.pop_all()

    async def _start(self, stack: contextlib.AsyncExitStack) -> None:
        settings = self.settings
        stack.enter_context(data_dir.hold(self._data_dir))
        self._run_dir = run_directory(self._data_dir)
        _make_room(settings)
        self._session = await stack.enter_async_context(make_session())
        prepared = self._prepare(self._loaded, settings)
        office = self._office = Office(self._data_dir, self._env, self._session)
        stack.push_async_callback(office.close)
        gates = self._gates = Gates()
        await office.open(settings, prepared.people, self._sources)
        gates.apply(queue_rules(settings), prepared.openings)
        self.gateway = Gateway(
            authenticator=office.authenticator,
            recorder=office.recorder,
            router=prepared.router,
            running=Running(),
            clock=self._clock,
            gates=gates,
            limits=office.limits,
            observer=office.observer,
            contents=office.contents,
            health=Health(),
            responses=office.responses,
            new_id=new_id,
            max_priority=settings.admission.max_priority,
            default_priority=settings.admission.default_priority,
            max_json_depth=settings.server.max_json_depth,
            write_timeout_s=settings.server.write_timeout,
        )
        # Before the doors open, so that nobody finds a gateway without its engines on their way.
        stack.push_async_callback(self._supervisor.stop, drain=False)
        await self._supervisor.start(prepared.specs)
        following = asyncio.create_task(follow(gates, self._supervisor))
        stack.push_async_callback(_ended, following)
        health = self.gateway.health
        self._prober = Prober(health.board, health.clock, office.observer.checked)
        self._prober.know(prepared.router)
        probing = asyncio.create_task(self._prober.run())
        stack.push_async_callback(_ended, probing)
        stack.push_async_callback(self.gateway.shadows.close)
        operator = Operator(self.gateway, office.ring, office.exchanges(), self.status, self.reload)
        self._doors = Doors(
            operator,
            _limits(settings),
            self._access_log(settings, stack),
            login=office.login,
            refused=office.refusals.note,
            more=lambda terms: office.endpoints(terms, settings),
        )
        public, console = settings.server.listen, settings.console.listen
        await self._doors.open(
            (public.host, public.port),
            (console.host, console.port),
            self._data_dir / "run" / "control.sock",
            tls=_tls(settings),
        )
        self.public_port, self.operator_port = self._doors.public_port, self._doors.operator_port
        try:
            self.first_key = await ensure_first_admin(office.ring)
            await self._tell_of_unmet_names(self._loaded, settings)
        except BaseException:
            await self._doors.close(0.0)
            raise

    async def stop(self) -> None:
        """Take nothing new, let what runs finish within server.drain_timeout, then close everything."""
        await self.gateway.shadows.close()
        await self._doors.close()
        await asyncio.gather(*self.gateway.background, *self._reloads, return_exceptions=True)
        for task in self._changing:
            task.cancel()
        await asyncio.gather(*self._changing, return_exceptions=True)
        await self._stack.aclose()

    async def wait_ready(self) -> None:
        """Return when every deployment has a replica that answers. Raises EngineLost with the reason."""
        for deployment in self.settings.deployments:
            # The supervisor gives up by its own rules, long before this.
            await self._supervisor.wait_ready(deployment.name, 10 * deployment.start_timeout)

    # --- for operators --------------------------------------------------------------------------

    def status(self) -> dict[str, Any]:
        """What this process knows of itself beside its doors, as plain data."""
        return {
            "version": __version__,
            "pid": os.getpid(),
            "data_dir": str(self._data_dir),
            "listening": self.listening(),
            "config": str(self._path) if self._path else None,
            "offline": self.settings.offline,
            "replicas": [msgspec.to_builtins(view) for view in self._supervisor.replicas()],
            "queues": [msgspec.to_builtins(view) for view in self._gates.views()],
            **self._office.status(),
        }

    def listening(self) -> dict[str, str] | None:
        """The addresses of the two doors, with the ports that were taken for port 0; None before they are open."""
        if not self.public_port:
            return None
        server, console = self.settings.server, self.settings.console
        scheme = "https" if server.tls else "http"
        return {
            "public": f"{scheme}://{_url_host(server.listen.host)}:{self.public_port}",
            "operator": f"{scheme}://{_url_host(console.listen.host)}:{self.operator_port}",
        }

    async def reload(self, actor: Principal = SIGNAL) -> dict[str, Any]:
        """Read the settings file again and put it in force, all or nothing. Raises BadRequest with every problem.

        Running requests keep the route that they began with; replicas that changed are replaced behind it.
        """
        # Whoever asked for it may leave; half of it must not be in force.
        task = asyncio.create_task(self._reload(actor))
        self._reloads.add(task)
        task.add_done_callback(self._reloads.discard)
        return await asyncio.shield(task)

    async def _reload(self, actor: Principal) -> dict[str, Any]:
        async with self._reloading:
            try:
                # A gateway that was started without a file goes by one that has been written since.
                path = self._path or choose_file(None, self._env, Path.cwd())
                loaded = await asyncio.to_thread(load, path, self._env)
                wanted = keep_fixed(self.settings, loaded.settings)
                changes = diff(self.settings, loaded.settings)
                prepared = await asyncio.to_thread(self._prepare, loaded, wanted)
            except SettingsError as error:
                raise BadRequest("; ".join(str(problem) for problem in error.problems)) from error
            # Before anything goes by them, and may tell of them.
            learn(self._secrets, wanted, self._env)
            await self._office.change(wanted, prepared.people, list(changes.sections), actor)
            self.settings, self._path = wanted, path
            self._gates.apply(queue_rules(wanted), prepared.openings)
            self.gateway.max_priority = wanted.admission.max_priority
            self.gateway.default_priority = wanted.admission.default_priority
            self.gateway.router = prepared.router
            self.gateway.shadows.keep({route.model for route in prepared.router.routes})
            self._prober.know(prepared.router)
            self.gateway.max_json_depth = wanted.server.max_json_depth
            self.gateway.write_timeout_s = wanted.server.write_timeout
            self._doors.change(_limits(wanted), self._access_log(wanted, self._stack))
            logging.getLogger().setLevel(wanted.log.level.upper())
            _make_room(wanted)
            # Draining takes as long as the longest answer; the caller need not wait for that, and neither must this
            # change wait for one that it overrules.
            for earlier in self._changing:
                earlier.cancel()
            task = asyncio.create_task(self._replace(prepared.specs))
            self._changing.add(task)
            task.add_done_callback(self._changing.discard)
            logger.info("settings reloaded: %s", ", ".join(changes.sections) or "nothing changed")
            await self._tell_of_unmet_names(loaded, wanted)
            return {
                "changed": list(changes.sections),
                "applied": list(changes.live),
                "needs_restart": list(changes.restart),
            }

    async def _tell_of_unmet_names(self, loaded: Loaded, settings: Settings) -> None:
        """One warning for each; nobody would find out otherwise."""
        # In a thread: with a hundred thousand people it takes a tenth of a second.
        found = await asyncio.to_thread(unmet_names, settings, self._office.ring.directory.snapshot)
        for problem in loaded.locate(found):
            logger.warning("%s", problem)

    async def _replace(self, specs: list[ReplicaSpec]) -> None:
        try:
            await self._supervisor.replace(specs)
        except Exception:
            logger.exception("the replicas could not be brought to the new settings")

    # --- putting together -----------------------------------------------------------------------

    def _prepare(self, loaded: Loaded, settings: Settings) -> Prepared:
        """Check everything that settings lead to; seconds. Raises SettingsError."""
        files, findings = self._model_files(settings)
        if findings:
            raise SettingsError(loaded.locate(findings))
        upstreams: dict[str, Upstream] = {
            deployment.name: engines.upstream(deployment, files[deployment.name], self._supervisor)
            for deployment in settings.deployments
        }
        upstream_of, shadow_of = self._upstreams(settings, upstreams)
        return Prepared(
            settings,
            engines.specs(settings.deployments, files, self._run_dir, self._data_dir / "logs"),
            build_router(
                settings.routes,
                upstream_of,
                zones(settings.providers),
                Prices(prices_of(settings)).of,
                shadow_of,
            ),
            openings(settings, {name: each.manifest.task for name, each in files.items()}),
            self._people(settings),
        )

    def _people(self, settings: Settings) -> People:
        """Raises BadRequest for what cannot be used of identity providers, such as a file with their keys."""
        identity = settings.identity
        before = self._office.authenticator.providers if hasattr(self, "_office") else ()
        try:
            providers = build_providers(identity, self._env, self._session, time.monotonic, before=before)
        except (ProviderError, SecretMissing) as error:
            raise BadRequest(f"identity.oidc: {error.message}") from error
        fixed = [
            FixedKey(
                key.name,
                resolve(key.key, self._env),
                key.role,
                organization=key.organization,
                team=key.team,
                restrictions=restrictions_of(key),
            )
            for key in identity.keys
        ]
        return People(fixed, tuple(providers), build_subjects(identity))

    def _sources(self, ledger: Callable[[], Ledger]) -> Sources:
        """What metrics read at each scrape."""

        def queues() -> dict[tuple[str, str], int]:
            return {
                (view.name, priority): waiting
                for view in self._gates.views()
                for priority, waiting in view.waiting.items()
            }

        return Sources(
            in_flight=lambda: len(self.gateway.running),
            ledger=ledger,
            queues=queues,
            replicas=lambda: [(view.deployment, view.state) for view in self._supervisor.replicas()],
        )

    def _model_files(self, settings: Settings) -> tuple[dict[str, ModelFiles], list[Finding]]:
        catalogue = preflight.catalogue_of(settings, self._data_dir)
        try:
            findings = preflight.check(settings, catalogue)
            return ({}, findings) if findings else engines.resolve(settings.deployments, catalogue)
        except OSError as error:
            return {}, [preflight.unreadable(error)]

    def _upstreams(self, settings: Settings, local: Mapping[str, Upstream]) -> tuple[MakeUpstream, MakeUpstream]:
        """What gives the upstream of a target as the settings declare it, and that of one that is only a shadow. Models
        of a provider share its connection; what shadows meet is no trouble of theirs."""
        connections = {provider.name: connect(provider, self._env, self._session) for provider in settings.providers}
        asides = {
            name: msgspec.structs.replace(connection, keys=connection.keys.aside())
            for name, connection in connections.items()
        }

        def among(connections: Mapping[str, Connection]) -> MakeUpstream:
            def upstream_of(target: Any) -> Upstream:
                if isinstance(target, DeploymentTarget):
                    return local[target.deployment]
                connection = connections[target.provider]
                return make_upstream(str(target), model=target.model, connection=connection, session=self._session)

            return upstream_of

        return among(connections), among(asides)

    def _access_log(self, settings: Settings, stack: contextlib.AsyncExitStack) -> AccessLog | None:
        """The access log, if it is wanted. It stays open while a reload has switched it off."""
        if settings.log.access and self._log is None:
            writer = LineWriter(sys.stdout.fileno())
            stack.callback(writer.close)
            self._log = AccessLog(writer, time.time, self._secrets.redact_again)
        return self._log if settings.log.access else None


def _limits(settings: Settings) -> Limits:
    server = settings.server
    return Limits(
        max_body=server.max_body,
        max_json_depth=server.max_json_depth,
        header_timeout=server.header_timeout,
        body_timeout=server.body_timeout,
        write_timeout=server.write_timeout,
        drain_timeout=server.drain_timeout,
        max_connections=server.max_connections,
    )


def _make_room(settings: Settings) -> None:
    """Let this process open the files that the settings may need, and say so where it cannot."""
    clients, replicas = settings.server.max_connections, sum(each.replicas.min for each in settings.deployments)
    limit = descriptors.make_room(descriptors.needed(clients, replicas))
    if (shortage := descriptors.shortage(clients, replicas, limit)) is not None:
        logger.warning("%s", shortage)


def _url_host(host: str) -> str:
    """A listen address as people can put it into a URL on this machine."""
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    return f"[{host}]" if ":" in host and not host.startswith("[") else host


def _tls(settings: Settings) -> ssl.SSLContext | None:
    tls = settings.server.tls
    if tls is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.load_cert_chain(tls.cert, tls.key)
    if settings.identity.client_ca is not None:
        require(context, settings.identity.client_ca)
    return context


async def _ended(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
