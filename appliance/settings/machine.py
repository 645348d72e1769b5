"""What must hold on this machine: secrets, certificates and folders that the settings name."""

from __future__ import annotations

import json
import re
import ssl
from collections.abc import Iterator, Mapping
from pathlib import Path as FilePath

from appliance.settings import machine_people
from appliance.settings.document import Finding, Path
from appliance.settings.references import references
from appliance.settings.schema import Settings, Tls
from appliance.settings.secrets import SecretMissing, SecretRef, readable_by_others, resolve

MIN_KEY_CHARS = 20
_HEADER_SAFE = re.compile(r"[\x21-\x7e]+")
_HEADER_VALUE = re.compile(r"[\x20-\x7e]+")


def check_machine(settings: Settings, env: Mapping[str, str]) -> list[Finding]:
    """Missing variables and files, keys that cannot be sent, certificates that do not load."""
    return [
        *_keys(settings, env),
        *_provider_keys(settings, env),
        *machine_people.check_machine(settings, env),
        *_telemetry(settings, env),
        *_exporters(settings),
        *_database(settings, env),
        *(_tls(settings.server.tls) if settings.server.tls else ()),
        *(
            Finding(("catalogue", "paths", index), f"{path} is not a folder", "create it, or correct the path")
            for index, path in enumerate(settings.catalogue.paths)
            if not path.is_dir()
        ),
    ]


def warn_machine(settings: Settings) -> list[Finding]:
    """Secrets that every user of the machine may read."""
    places: list[tuple[Path, SecretRef]] = [
        (("identity", "keys", index, "key"), key.key) for index, key in enumerate(settings.identity.keys)
    ]
    places += [
        (("providers", index, *path), ref)
        for index, provider in enumerate(settings.providers)
        for path, ref in references(provider)
    ]
    if settings.database.password is not None:
        places.append((("database", "password"), settings.database.password))
    found = [
        Finding((*path, "file"), f"every user of this machine can read {ref.file}", f"run chmod 600 {ref.file}")
        for path, ref in places
        if ref.file is not None and readable_by_others(ref.file)
    ]
    found += machine_people.warn_machine(settings)
    if settings.telemetry.otlp is not None:
        found += [
            Finding(
                ("telemetry", "otlp", "headers", name, "file"),
                f"every user of this machine can read {ref.file}",
                f"run chmod 600 {ref.file}",
            )
            for name, ref in settings.telemetry.otlp.headers.items()
            if ref.file is not None and readable_by_others(ref.file)
        ]
    tls = settings.server.tls
    keys: list[tuple[Path, FilePath]] = [] if tls is None else [(("server", "tls", "key"), tls.key)]
    for index, exporter in enumerate(settings.records.export):
        # Without `key` the key stands in `cert`.
        name = "cert" if exporter.key is None else "key"
        if (file := getattr(exporter, name)) is not None:
            keys.append((("records", "export", index, name), file))
    for place, file in keys:
        if readable_by_others(file):
            found.append(Finding(place, f"every user of this machine can read {file}", f"run chmod 600 {file}"))
    return found


def _keys(settings: Settings, env: Mapping[str, str]) -> Iterator[Finding]:
    owners: dict[str, str] = {}
    for index, key in enumerate(settings.identity.keys):
        path: Path = ("identity", "keys", index, "key")
        try:
            text = resolve(key.key, env)
        except SecretMissing as missing:
            yield Finding(path, missing.message, missing.cure)
            continue
        if len(text) < MIN_KEY_CHARS or not _HEADER_SAFE.fullmatch(text):
            message = f"the {key.key} holds no usable key"
            cure = f"use at least {MIN_KEY_CHARS} ASCII characters without spaces, e.g. from `openssl rand -hex 24`"
            yield Finding(path, message, cure)
        elif text in owners:
            yield Finding(path, f"is the same key as {owners[text]!r} has", "give each name a key of its own")
        owners.setdefault(text, key.name)


def _provider_keys(settings: Settings, env: Mapping[str, str]) -> Iterator[Finding]:
    for index, provider in enumerate(settings.providers):
        for place, reference in references(provider):
            path: Path = ("providers", index, *place)
            try:
                text = resolve(reference, env)
            except SecretMissing as missing:
                yield Finding(path, missing.message, missing.cure)
                continue
            if place == ("service_account",):
                yield from _service_account(path, reference, text)
            elif not _HEADER_SAFE.fullmatch(text):
                message = f"the {reference} holds a space, a line break or a character that is not ASCII"
                yield Finding(path, message, "it cannot be sent as a header: check what was pasted")


def _service_account(path: Path, reference: SecretRef, text: str) -> Iterator[Finding]:
    try:
        account = json.loads(text)
    except ValueError:
        account = None
    if not isinstance(account, dict) or not {"client_email", "private_key", "token_uri"} <= account.keys():
        message = f"the {reference} holds no key of a service account"
        yield Finding(path, message, "use the JSON file that Google Cloud gives for a key of the account")


def _telemetry(settings: Settings, env: Mapping[str, str]) -> Iterator[Finding]:
    otlp = settings.telemetry.otlp
    if otlp is None:
        return
    for name, reference in otlp.headers.items():
        path: Path = ("telemetry", "otlp", "headers", name)
        try:
            text = resolve(reference, env)
        except SecretMissing as missing:
            yield Finding(path, missing.message, missing.cure)
            continue
        if not _HEADER_VALUE.fullmatch(text):
            message = f"the {reference} holds a line break or a character that is not ASCII"
            yield Finding(path, message, "it cannot be sent as a header: check what was pasted")
    if otlp.ca is not None:
        yield from _readable(("telemetry", "otlp", "ca"), otlp.ca)


def _exporters(settings: Settings) -> Iterator[Finding]:
    for index, exporter in enumerate(settings.records.export):
        for name in ("ca", "cert", "key"):
            file = getattr(exporter, name)
            if file is not None:
                yield from _readable(("records", "export", index, name), file)


def _database(settings: Settings, env: Mapping[str, str]) -> Iterator[Finding]:
    if settings.database.password is not None:
        try:
            resolve(settings.database.password, env)
        except SecretMissing as missing:
            yield Finding(("database", "password"), missing.message, missing.cure)


def _readable(place: Path, path: FilePath) -> Iterator[Finding]:
    try:
        with path.open("rb"):
            pass
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        yield Finding(place, f"{path} cannot be read ({reason})", "create it, or correct the path")


def _tls(tls: Tls) -> Iterator[Finding]:
    broken = False
    for name, path in (("cert", tls.cert), ("key", tls.key)):
        for finding in _readable(("server", "tls", name), path):
            broken = True
            yield finding
    if broken:
        return
    try:
        # An encrypted key would otherwise ask for its passphrase on the terminal.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(tls.cert, tls.key, password=lambda: b"")
    except ssl.SSLError as error:
        reason = (error.reason or "unknown").replace("_", " ").lower()
        yield Finding(
            ("server", "tls"),
            f"certificate and key cannot be used ({reason})",
            "both must be PEM, the key without a passphrase and made for this certificate",
        )
