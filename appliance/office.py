"""The back office of the appliance: everything that knows people, counts, keeps records and tells of them.

`Office.open` puts it together in the order in which its parts need each other, on a stack that takes it down in the
other order; `change` puts new settings in force.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import secrets
import time
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import msgspec

from appliance import __version__
from appliance.account import Limits, prompt_bound
from appliance.contents import Contents
from appliance.door import admin_content, admin_ledger, admin_limits, admin_usage, metrics, operation
from appliance.door.endpoint import Endpoint
from appliance.door.login import Login
from appliance.door.terms import Terms
from appliance.identity.authenticator import Authenticator
from appliance.identity.certificates import Subject
from appliance.identity.key_ring import KeyRing
from appliance.identity.keys import FixedKey, hkdf
from appliance.identity.oidc import Provider
from appliance.identity.principal import Principal
from appliance.identity.secret import load_secret
from appliance.identity.sessions import Logins, Sessions
from appliance.identity.snapshot import Organization, ServiceAccount, Team, User
from appliance.limits.book import Book
from appliance.limits.clock import Now
from appliance.limits.keeper import LimitKeeper
from appliance.limits.store import LimitStore
from appliance.pricing import Prices
from appliance.providers.shipped import prices_of
from appliance.records.checkpoints import Checkpointer
from appliance.records.content import Keeper
from appliance.records.database import Database, locate
from appliance.records.export.exporters import Exporters
from appliance.records.recorder import Recorder
from appliance.records.refusals import Refusals
from appliance.records.retention import Retention
from appliance.records.store import ExchangeStore
from appliance.records.subject_keys import WRAPPING_PURPOSE
from appliance.records.transaction import Transaction
from appliance.records.usage import UsageStore
from appliance.responses.keeper import Responses
from appliance.responses.store import ResponseStore
from appliance.settings import Settings
from appliance.telemetry.metrics import Ledger, Sources
from appliance.telemetry.observer import Observer

logger = logging.getLogger("outpost")

_NAMED: dict[str, Any] = {
    "organization": Organization,
    "team": Team,
    "user": User,
    "service_account": ServiceAccount,
}


class People(msgspec.Struct, frozen=True):
    """Who may ask, by the settings: what is made of them before any of it is in force."""

    fixed: list[FixedKey] = []
    providers: tuple[Provider, ...] = ()
    subjects: tuple[Subject, ...] = ()


def now() -> Now:
    """This moment."""
    return Now(time.time(), time.monotonic())


def _told(task: asyncio.Task[None]) -> None:
    """None of the tasks should end before the office does; nobody else would notice."""
    if not task.cancelled() and (error := task.exception()) is not None:
        logger.critical("background_task_ended", extra={"task": str(task.get_coro())}, exc_info=error)


class Office:
    """One open office. The attributes are its parts, for those who put the house together."""

    database: Database
    recorder: Recorder
    ring: KeyRing
    authenticator: Authenticator
    login: Login
    limits: Limits
    keeper: LimitKeeper
    contents: Contents
    responses: Responses
    checkpointer: Checkpointer
    retention: Retention
    exporters: Exporters
    refusals: Refusals
    observer: Observer

    def __init__(self, data_dir: Path, env: Mapping[str, str], session: aiohttp.ClientSession) -> None:
        self._data_dir = data_dir
        self._env = env
        self._session = session
        self._stack = contextlib.AsyncExitStack()
        self._tasks: list[asyncio.Task[None]] = []

    async def open(
        self, settings: Settings, people: People, sources: Callable[[Callable[[], Ledger]], Sources]
    ) -> None:
        """Open everything. Raises OutpostError; then `close` takes down what is open.

        sources: makes what metrics read, given how to read the recorder.
        """
        stack = self._stack
        database = self.database = await Database.open(locate(settings.database, self._data_dir, self._env))
        stack.push_async_callback(database.close)
        recorder = self.recorder = Recorder(database)
        await recorder.start()
        stack.push_async_callback(recorder.close)
        self.checkpointer = await Checkpointer.open(recorder, database, self._data_dir)
        await self.checkpointer.start()
        stack.push_async_callback(self.checkpointer.close)
        self.refusals = Refusals(recorder, time.time)
        stack.push_async_callback(self.refusals.close)
        await self._open_people(people)
        await self._open_limits(settings)
        await self._open_records(settings)
        self.observer = Observer.open(
            settings,
            self._env,
            sources(self._ledger),
            version=__version__,
            instance=str(settings.server.listen),
            random=os.urandom,
            limits=self._limit_names(),
        )
        self.keeper.changed = lambda: self.observer.know_limits(self._limit_names())
        stack.push_async_callback(self.observer.close)
        self._run(self.observer.run(time.monotonic))

    async def _open_people(self, people: People) -> None:
        self.ring = await KeyRing.open(self.database, self._data_dir, people.fixed, recorder=self.recorder)
        self.authenticator = Authenticator(
            self.ring, self.ring.directory, people.providers, people.subjects, clock=time.time
        )
        clock, random = time.monotonic, secrets.token_bytes
        self.login = Login(
            self.ring.directory,
            Sessions(clock, random),
            Logins(clock, random),
            clock=time.time,
            note=lambda kind, body: self.recorder.write(lambda tx: tx.append(kind, body)),
            refused=self.refusals.note,
        )
        self.login.change(people.providers)
        self._run(self.ring.watch())
        self._run(self.authenticator.watch())

    async def _open_limits(self, settings: Settings) -> None:
        began = now()
        book, store = Book((), began, self.name), LimitStore(self.recorder, self.database)
        book.restore(await store.load(began), began)
        # Limits may name people and teams, who may be called differently from now on.
        self.ring.directory.changed = book.names_changed
        self.keeper = LimitKeeper(self.database, self.recorder, book, now)
        await self.keeper.load(settings)
        self._stack.push_async_callback(self.keeper.close)
        self.limits = Limits(book, store, Prices(prices_of(settings)), now, prompt_bound)
        self._stack.push_async_callback(lambda: store.close(now()))
        self._run(store.run(now))

    async def _open_records(self, settings: Settings) -> None:
        database, recorder = self.database, self.recorder
        wrapping = hkdf(await asyncio.to_thread(load_secret, self._data_dir), WRAPPING_PURPOSE)
        keeper = self.content_keeper = Keeper(database, wrapping)
        self.contents = Contents(keeper, recorder, settings.records, self.name)
        store = ResponseStore(database, recorder, keeper.keys, kept_s=settings.records.retention.responses)
        self.responses = Responses(store, settings.records, secrets.token_bytes)
        if unfinished := await self.responses.recover():
            logger.warning("responses_left_unfinished", extra={"count": unfinished})
        self.retention = Retention(database, recorder, settings.records)
        self._run(self.retention.run())
        self.exporters = Exporters(database, recorder, __version__)
        self._stack.push_async_callback(self.exporters.close)
        await self.exporters.change(settings.records.export)

    async def change(self, settings: Settings, people: People, changed: list[str], actor: Principal) -> None:
        """Go by these settings from now on. Raises OutpostError, with the old ones still in force; `changed`: the
        sections that differ, and `actor`: who asked for it, for the ledger."""

        def note(tx: Transaction) -> None:
            tx.append("admin.settings.reload", {"actor": actor.actor, "changed": changed})

        self.ring.check(people.fixed)
        # On record first: from here on nothing is expected to fail, so that all of it comes into force.
        await self.recorder.write(note)
        await self.ring.reload(people.fixed)
        self.authenticator.change(people.providers, people.subjects)
        self.login.change(people.providers)
        self.keeper.apply(settings)
        self.limits.prices = Prices(prices_of(settings))
        self.contents.change(settings.records)
        self.responses.change(settings.records)
        self.retention.records = settings.records
        await self.exporters.change(settings.records.export)
        self.observer.know(settings, self._limit_names())

    async def close(self) -> None:
        """Stop what runs, write what is left, close the database."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._stack.aclose()

    # --- for others ---------------------------------------------------------------------------------

    def endpoints(self, terms: Terms, settings: Settings) -> tuple[Endpoint, ...]:
        """What operators may ask of the office beside people and keys."""
        desk = admin_content.ContentDesk(self.database, self.recorder, self.content_keeper, __version__, time.time)
        ledger = admin_ledger.LedgerDesk(self.database, self.checkpointer, self._data_dir)
        operations = (*admin_limits.operations(self.keeper), *admin_ledger.operations(ledger))
        return (
            *(operation.endpoint(each, terms) for each in operations),
            *admin_usage.endpoints(UsageStore(self.database), time.time),
            *admin_content.endpoints(desk, terms),
            *metrics.endpoints(self.observer.metrics, open=settings.telemetry.metrics.open),
        )

    def exchanges(self) -> ExchangeStore:
        return ExchangeStore(self.database)

    def status(self) -> dict[str, Any]:
        """What an operator is told of the records."""
        return {
            "records": {
                "waiting": self.recorder.depth,
                "retention": msgspec.to_builtins(self.retention.state),
                "exports": [msgspec.to_builtins(each) for each in self.exporters.progress()],
            }
        }

    def name(self, scope: str, id: str) -> str | None:
        """What people call an organisation, team, user or service account."""
        kind = _NAMED.get(scope)
        found = None if kind is None else self.ring.directory.snapshot.get(kind, id)
        return None if found is None else str(found.name)

    def _ledger(self) -> Ledger:
        recorder = self.recorder
        return Ledger(recorder.depth, recorder.waited_s, recorder.available)

    def _limit_names(self) -> list[str]:
        return [rule.name for rule in self.limits.book.rules]

    def _run(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        task.add_done_callback(_told)
        self._tasks.append(task)
