"""The types that settings are made of: how each is written, read, printed and explained.

Each type is an `Annotated` alias: a plain Python value at run time (float seconds, int bytes, str,
Path), a reader that takes what YAML held, and a `Form` from which messages, `explain`, the
reference page and the JSON Schema take their words. Readers also take natural Python values, so
that a model can be built in code.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from ipaddress import IPv6Address, ip_address
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, PlainSerializer, PlainValidator, ValidationInfo, WithJsonSchema
from pydantic_core import PydanticCustomError

from appliance.settings.document import Plain
from appliance.settings.units import (
    DURATION_PATTERN,
    SIZE_PATTERN,
    BadForm,
    format_duration,
    format_size,
    parse_duration,
    parse_size,
    quote,
)

ERROR = "settings"
"""The type of our own validation errors; their context holds `message` and `cure`."""

_INTEGER = re.compile(r"[-+]?(?:0|[1-9]\d*(?:_\d+)*)", re.ASCII)
_FLOAT = re.compile(r"[-+]?(?:\d+\.\d*|\.\d+|\d+(?=[eE]))(?:[eE][-+]?\d+)?", re.ASCII)
_YES = frozenset({"true", "yes", "on"})
_NO = frozenset({"false", "no", "off"})
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,127}", re.ASCII)
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_VARIABLE = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,127}", re.ASCII)
_HOST = re.compile(r"(?=.{1,253}\Z)[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?", re.ASCII)
_MAX_TEXT = 4096


@dataclass(frozen=True)
class Form:
    """How a type is spoken of: "expected {expected}, e.g. {example}"."""

    expected: str
    example: str
    unit: str | None = None
    render: Callable[[Any], str] = str
    """A value as it is written in the file."""


def refuse(message: str, cure: str) -> PydanticCustomError:
    """The error that a reader raises; never put a secret into either text."""
    return PydanticCustomError(ERROR, "{message}", {"message": message, "cure": cure})


def _mismatch(value: object, form: Form) -> PydanticCustomError:
    cure = f"write {form.expected}, e.g. {form.example}"
    if value is None:
        return refuse("has no value", f"{cure}, or remove the line")
    if isinstance(value, (list, tuple, Mapping)):
        got = "a mapping" if isinstance(value, Mapping) else "a list"
        return refuse(f"expected {form.expected}, found {got}", cure)
    return refuse(f"expected {form.expected}, found {quote(value)}", cure)


def _reader(read: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def checked(value: Any) -> Any:
        try:
            return read(value)
        except BadForm as bad:
            raise refuse(bad.message, bad.cure) from None

    return checked


# --- numbers, words, switches ---------------------------------------------------------------------

INTEGER = Form("a whole number", "8")
SWITCH = Form("true or false", "true", render=lambda value: "true" if value else "false")
TEXT = Form("text", "small")


def read_integer(value: Any) -> int:
    """Decimal digits, `_` allowed between them."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, Plain) and len(value) <= 24 and _INTEGER.fullmatch(value):
        return int(value)
    if isinstance(value, str) and not isinstance(value, Plain) and _INTEGER.fullmatch(value):
        raise refuse(f"expected a whole number, found the text {quote(value)}", "remove the quotes")
    raise _mismatch(value, INTEGER)


def read_switch(value: Any) -> bool:
    """true, yes, on, false, no, off in any case, without quotes."""
    if isinstance(value, bool):
        return value
    if isinstance(value, Plain) and (word := value.lower()) in _YES | _NO:
        return word in _YES
    if isinstance(value, str) and not isinstance(value, Plain) and value.lower() in _YES | _NO:
        raise refuse(f"expected true or false, found the text {quote(value)}", "remove the quotes")
    raise _mismatch(value, SWITCH)


def read_text(value: Any) -> str:
    """Text as it was written: `no`, `1.10` and `10:30` stay what they are."""
    if not isinstance(value, str):
        raise _mismatch(value, TEXT)
    if len(value) > _MAX_TEXT:
        raise refuse(f"longer than {_MAX_TEXT} characters", "write a shorter text")
    if any(ord(char) < 32 or ord(char) == 127 for char in value):
        raise refuse("holds a line break or a control character", "write it on one line")
    return str(value)


def read_native(value: Any) -> Any:
    """A free value as JSON would have it: true, 12, 0.2, text, lists, mappings (YAML 1.2's rules)."""
    if isinstance(value, Plain):
        if value.lower() in ("true", "false"):
            return value.lower() == "true"
        if len(value) <= 24 and _INTEGER.fullmatch(value):
            return int(value)
        return float(value) if len(value) <= 24 and _FLOAT.fullmatch(value) else str(value)
    if isinstance(value, Mapping):
        return {str(name): read_native(member) for name, member in value.items()}
    if isinstance(value, (list, tuple)):
        return [read_native(item) for item in value]
    return value


def _read_mapping(value: Any) -> Any:
    if not isinstance(value, Mapping):
        raise _mismatch(value, OVERRIDES)
    return read_native(value)


OVERRIDES = Form("a mapping of request fields", "{temperature: 0.2}", render=lambda value: str(dict(value)))

Integer = Annotated[int, BeforeValidator(read_integer), INTEGER]
Switch = Annotated[bool, BeforeValidator(read_switch), SWITCH]
Text = Annotated[str, BeforeValidator(read_text), TEXT]
Whom = Annotated[Text, Field(min_length=1, max_length=64)]
"""The name or id of a team or an organization, which operators name as they like."""
Word = BeforeValidator(read_text)
"""Before a `Literal`, so that an unquoted word is compared as text."""
FreeMapping = Annotated[dict[str, Any], BeforeValidator(_read_mapping), OVERRIDES]

# --- durations and sizes --------------------------------------------------------------------------

DURATION = Form("a duration", "30s", unit="duration (ms, s, m, h, d)", render=format_duration)
SIZE = Form("a size", "20MiB", unit="size (B, KiB, MiB, GiB, TiB)", render=format_size)


def _read_duration(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str):
        return parse_duration(value)
    raise _mismatch(value, DURATION)


def _read_size(value: Any) -> int:
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    if isinstance(value, str):
        return parse_size(value)
    raise _mismatch(value, SIZE)


Duration = Annotated[
    float,
    BeforeValidator(_reader(_read_duration)),
    PlainSerializer(format_duration, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": f"^{DURATION_PATTERN}$"}, {"type": "number", "minimum": 0}],
            "examples": ["500ms", "30s", "1h30m"],
            "unit": "seconds when a bare number",
        }
    ),
    DURATION,
]
"""Seconds."""
Size = Annotated[
    int,
    BeforeValidator(_reader(_read_size)),
    PlainSerializer(format_size, return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": f"^{SIZE_PATTERN}$"}, {"type": "integer", "minimum": 0}],
            "examples": ["20MiB", "50GiB"],
            "unit": "bytes when a bare number",
        }
    ),
    SIZE,
]
"""Bytes."""


def _read_percent(value: Any) -> float:
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    if isinstance(value, str) and value.endswith("%") and _PERCENT.fullmatch(value):
        return float(value[:-1]) / 100
    raise _mismatch(value, PERCENT)


_PERCENT = re.compile(r"\d{1,3}(?:\.\d{1,4})?%", re.ASCII)
PERCENT = Form("a percentage", "5%", unit="percentage", render=lambda value: f"{value * 100:g}%")
Percent = Annotated[
    float,
    BeforeValidator(_reader(_read_percent)),
    PlainSerializer(lambda value: f"{value * 100:g}%", return_type=str, when_used="json"),
    WithJsonSchema(
        {
            "anyOf": [{"type": "string", "pattern": _PERCENT.pattern}, {"type": "number", "minimum": 0, "maximum": 1}],
            "examples": ["5%"],
            "unit": "a share of 1 when a bare number",
        }
    ),
    PERCENT,
]
"""A share of 1."""

# --- names ----------------------------------------------------------------------------------------

NAME = Form("a name (letters, digits, '.', '_', '-'; at most 63)", "small")
MODEL_NAME = Form("a model name (letters, digits, '.', '_', '-', ':', '/', '@', '+'; at most 128)", "chat")
VARIABLE = Form("the name of an environment variable", "OPENAI_API_KEY")


def _matching(pattern: re.Pattern[str], form: Form) -> Callable[[Any], str]:
    def read(value: Any) -> str:
        if not isinstance(value, str) or not pattern.fullmatch(value):
            raise _mismatch(value, form)
        return str(value)

    return read


def _read_variable(value: Any) -> str:
    if not isinstance(value, str) or not _VARIABLE.fullmatch(value):
        # Somebody may have put the secret itself here: it must not reach a log.
        raise refuse("expected the name of an environment variable", f"write e.g. {{env: {VARIABLE.example}}}")
    return str(value)


Name = Annotated[
    str,
    BeforeValidator(_matching(_NAME, NAME)),
    WithJsonSchema({"type": "string", "pattern": f"^{_NAME.pattern}$"}),
    NAME,
]
ModelName = Annotated[
    str,
    BeforeValidator(_matching(_MODEL_NAME, MODEL_NAME)),
    WithJsonSchema({"type": "string", "pattern": f"^{_MODEL_NAME.pattern}$"}),
    MODEL_NAME,
]
Variable = Annotated[
    str,
    BeforeValidator(_read_variable),
    WithJsonSchema({"type": "string", "pattern": f"^{_VARIABLE.pattern}$"}),
    VARIABLE,
]

# --- paths ----------------------------------------------------------------------------------------

PATH = Form("a path", "/etc/outpost/tls.crt")


def _read_path(value: Any, info: ValidationInfo) -> Path:
    if isinstance(value, Path):
        return value
    text = read_text(value) if isinstance(value, str) else ""
    if not text.strip():
        raise _mismatch(value, PATH)
    if text.startswith("~/"):
        home = (info.context or {}).get("env", {}).get("HOME")
        if not home:
            raise refuse("'~' has no meaning here: HOME is not set", "write the whole path")
        return Path(home) / text[2:]
    if text.startswith("~"):
        raise refuse(f"{quote(text)} names another user's home", "write the whole path")
    return Path(text)


FilePath = Annotated[
    Path,
    PlainValidator(_read_path),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "minLength": 1}),
    PATH,
]
"""A relative path is taken from the directory in which outpost runs."""

# --- addresses ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Address:
    """Where a listener binds. `host` is bare (`::1`, not `[::1]`); port 0 lets the system choose."""

    host: str
    port: int

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


LISTEN = Form("host:port", "127.0.0.1:8080")


def parse_address(value: Any) -> Address:
    """`127.0.0.1:8080`, `[::1]:8080`, `localhost:0`; a port may be 0 … 65535."""
    if isinstance(value, Address):
        return value
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str):
        raise _mismatch(value, LISTEN)
    text = value.strip()
    if text.startswith(("unix:", "/", "./")):
        raise refuse(f"{quote(text)} is a Unix socket; only TCP can be listened on", "write host:port, e.g. [::1]:8080")
    if "://" in text:
        raise refuse(f"{quote(text)} is a URL", "write only host:port, e.g. 127.0.0.1:8080")
    host, colon, port_text = text.rpartition(":")
    if not colon and text.isascii() and text.isdigit():
        raise refuse(f"{quote(text)} has no host", f"write 127.0.0.1:{text}, or 0.0.0.0:{text} for every interface")
    if not colon or not port_text:
        raise refuse(f"{quote(text)} has no port", "write host:port, e.g. 127.0.0.1:8080")
    if host in ("", "*"):
        raise refuse(f"{quote(text)} has no host", f"write 0.0.0.0:{port_text} for every interface")
    if not (port_text.isascii() and port_text.isdigit() and len(port_text) <= 5 and int(port_text) <= 65535):
        raise refuse(f"{quote(port_text)} is not a port", "write a number from 0 (any free port) to 65535")
    return Address(_parse_host(host, text), int(port_text))


def _parse_host(host: str, text: str) -> str:
    if host.startswith("[") and host.endswith("]"):
        try:
            return str(IPv6Address(host[1:-1]))
        except ValueError:
            raise refuse(f"{quote(host)} is not an IPv6 address", "write e.g. [::1]:8080") from None
    if ":" in host:
        raise refuse(f"{quote(text)} cannot be told apart into host and port", "put IPv6 in brackets, e.g. [::1]:8080")
    if re.fullmatch(r"[\d.]+", host, re.ASCII):
        try:
            return str(ip_address(host))
        except ValueError:
            raise refuse(f"{quote(host)} is not an IPv4 address", "write e.g. 127.0.0.1:8080") from None
    if not _HOST.fullmatch(host):
        raise refuse(f"{quote(host)} is not a host name", "write host:port, e.g. 127.0.0.1:8080")
    return host.lower()


Listen = Annotated[
    Address,
    PlainValidator(parse_address),
    PlainSerializer(str, return_type=str, when_used="json"),
    WithJsonSchema({"type": "string", "pattern": r"^.+:\d{1,5}$", "examples": ["127.0.0.1:8080", "[::1]:8080"]}),
    LISTEN,
]

BASE_URL = Form("an http(s) address", "http://127.0.0.1:8000/v1")


def read_base_url(value: Any) -> str:
    """http(s) with a host; no credentials, query or fragment. The trailing slash goes."""
    if not isinstance(value, str):
        raise _mismatch(value, BASE_URL)
    text, cure = value.strip(), "write http:// or https:// and a host, then :PORT and /PATH where it has them"
    try:
        parts = urlsplit(text)
        host, port = parts.hostname, parts.port
    except ValueError:
        raise refuse("not a valid address", cure) from None
    if parts.username is not None or parts.password is not None:
        raise refuse("credentials do not belong into the address", "remove them and use api_key: {env: NAME}")
    if "?" in text or "#" in text:
        raise refuse("a query or fragment does not belong into a base address", "remove everything from '?' or '#' on")
    if parts.scheme not in ("http", "https"):
        raise refuse(f"{quote(text)} is not an http(s) address", cure)
    if not host or port == 0 or re.search(r"[\x00-\x20\x7f\\]", text):
        raise refuse(f"{quote(text)} is not a valid address", cure)
    return text.rstrip("/")


BaseUrl = Annotated[
    str,
    BeforeValidator(read_base_url),
    WithJsonSchema({"type": "string", "format": "uri", "pattern": r"^https?://[^@?#\s]+$"}),
    BASE_URL,
]
