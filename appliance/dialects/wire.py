"""Bytes to typed requests: size of nesting, JSON, types; every refusal names the field and the cure.

Pure: bytes in, a struct or a `BadRequest` out. The happy path is one depth check and one typed decode;
everything that explains an error runs only when there is one.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import msgspec

from appliance.errors import BadRequest, UnsupportedParameter
from appliance.redact import shown as quoted

T = TypeVar("T")

encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
"""JSON bytes of structs, dicts, lists and scalars."""

_MAX_BRACKETS = 2_000_000
_MAX_LENIENT = 1 << 20
_MOST_EXACT = 2.0**53
_MOST_QUOTED = 80
"""Characters of what a caller wrote, in a message."""
_KEEP = b'"[]{}'
_DROP = bytes(set(range(256)) - set(_KEEP))
_SAME = bytes.maketrans(b"{}", b"[]")


def too_deep(body: bytes, limit: int) -> bool:
    """Whether JSON `body` nests arrays and objects deeper than `limit`; strings do not count.

    Runs at the speed of memory (no Python loop over the input), so that a hostile body costs no more
    than its upload. Malformed JSON may give either answer; the parser refuses it anyway.
    """
    if body.count(b"[") + body.count(b"{") <= limit:
        return False
    # Escaped backslashes go first, then escaped quotes: what is left of `"` opens or closes a string.
    bare = body.replace(b"\\\\", b"").replace(b'\\"', b"").translate(_SAME, _DROP).replace(b'""', b"")
    if len(bare) > _MAX_BRACKETS:
        return True
    if b'"' in bare:
        bare = b"".join(bare.split(b'"')[::2])
    for _ in range(limit):
        shorter = bare.replace(b"[]", b"")
        if len(shorter) == len(bare):
            break
        bare = shorter
    return b"[]" in bare or bare.count(b"[") > limit


class Wire:
    """How one endpoint's body is read: its struct, and what to say about fields and values it refuses.

    `refused` maps known top-level fields that are not accepted to the cure; `hints` maps paths without
    indices (`messages[].role`) to the values that are allowed there.
    """

    __slots__ = ("_decode", "_hints", "_refused")

    def __init__(self, struct: type[T], *, refused: Mapping[str, str], hints: Mapping[str, str]) -> None:
        self._decode: Callable[[bytes], Any] = msgspec.json.Decoder(struct).decode
        self._refused = refused
        self._hints = hints

    def read(self, body: bytes, max_depth: int = 64) -> Any:
        """The request in `body`. Raises BadRequest or UnsupportedParameter."""
        if too_deep(body, max_depth):
            raise BadRequest(
                f"The body nests arrays and objects deeper than {max_depth} levels; flatten it.", code="json_too_deep"
            )
        try:
            return self._decode(body)
        except msgspec.ValidationError as error:
            if (request := self._leniently(body)) is not None:
                return request
            raise explain(str(error), self._refused, self._hints) from None
        except msgspec.DecodeError as error:
            raise malformed(body, str(error)) from None
        except UnicodeDecodeError:
            raise not_utf8(body) from None

    def _leniently(self, body: bytes) -> Any:
        """The request if all that was wrong is two habits of clients: null for a field that is refused, which asks
        for nothing, and whole numbers written as 16.0. None if there is more to it."""
        if len(body) > _MAX_LENIENT:
            return None
        try:
            shape = json.loads(body, parse_float=_whole)
            if not isinstance(shape, dict):
                return None
            for field in [name for name, value in shape.items() if value is None and name in self._refused]:
                del shape[field]
            return self._decode(encode(shape))
        except (ValueError, RecursionError, OverflowError, TypeError):
            return None


def _whole(text: str) -> int | float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("JSON has no infinity")  # and it would be written as null
    return int(value) if value.is_integer() and abs(value) < _MOST_EXACT else value


_AT = re.compile(r"^(?P<what>.*?)(?: - at `(?P<path>[^`]*)`)?$", re.DOTALL)
_TYPES = {
    "str": "a string",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "array": "an array",
    "object": "an object",
    "null": "null",
}
_GOT = {**_TYPES, "bool": "a boolean", "float": "a fractional number"}
_PATTERNS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"Expected `array` of length >= (\d+)"), "must hold at least {0} item(s)"),
    (re.compile(r"Expected `array` of length <= (\d+)"), "must hold at most {0} item(s)"),
    (re.compile(r"Expected `object` of length <= (\d+)"), "must hold at most {0} entries"),
    (re.compile(r"Expected `str` of length >= (\d+)"), "must be a string of at least {0} character(s)"),
    (re.compile(r"Expected `str` of length <= (\d+)"), "must be a string of at most {0} characters"),
    (re.compile(r"Expected `str` matching regex '(.*)'", re.DOTALL), "must match the pattern {0}"),
    (re.compile(r"Expected `(?:int|float)` >= (\S+)"), "must be at least {0}"),
    (re.compile(r"Expected `(?:int|float)` > (\S+)"), "must be greater than {0}"),
    (re.compile(r"Expected `(?:int|float)` <= (\S+)"), "must be at most {0}"),
    (re.compile(r"Number out of range|Integer value out of range"), "is out of range"),
)
_EXPECTED = re.compile(r"Expected `([^`]*)`(?:, got `([^`]*)`)?")
_UNKNOWN = re.compile(r"Object contains unknown field `(.*)`", re.DOTALL)
_MISSING = re.compile(r"Object missing required field `(.*)`", re.DOTALL)
_VALUE = re.compile(r"Invalid (?:enum )?value (.*)", re.DOTALL)


def explain(text: str, refused: Mapping[str, str], hints: Mapping[str, str]) -> BadRequest:
    """A decoder's complaint as an error that names the field and says what is expected."""
    match = _AT.match(text)
    what, path = (match["what"], (match["path"] or "$")) if match else (text, "$")
    path = path.removeprefix("$").removeprefix(".")
    if found := _UNKNOWN.match(what):
        return _unknown(path, found[1], refused)
    if found := _MISSING.match(what):
        field = f"{path}.{found[1]}" if path else found[1]
        return BadRequest(f"{field} is required.{_hint(field, hints)}", param=field, code="missing_required_parameter")
    shown = path or "The body"
    for pattern, wording in _PATTERNS:
        if found := pattern.match(what):
            return BadRequest(f"{shown} {wording.format(*found.groups())}.", param=path or None)
    if found := _VALUE.match(what):
        return BadRequest(
            f"{shown} cannot be {quoted(found[1], _MOST_QUOTED)}.{_hint(path, hints)}", param=path or None
        )
    if found := _EXPECTED.match(what):
        expected = _words(found[1].split(" | "), _TYPES)
        got = f", not {_GOT.get(found[2], found[2])}" if found[2] else ""
        hint = _hint(path, hints) if "Expected `str`" in what else ""
        return BadRequest(f"{shown} must be {expected}{got}.{hint}", param=path or None, code="invalid_type")
    return BadRequest(f"{shown} is not valid.{_hint(path, hints)}", param=path or None)


def _unknown(path: str, name: str, refused: Mapping[str, str]) -> BadRequest:
    field = quoted(f"{path}.{name}" if path else name, _MOST_QUOTED)
    if not path and name in refused:
        return UnsupportedParameter(f"{field} is not supported: {refused[name]}", param=field)
    return UnsupportedParameter(f"{field} is not a known parameter; remove it.", param=field)


def _words(names: list[str], table: Mapping[str, str]) -> str:
    words = [table.get(name, name) for name in names]
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " or " + words[-1]


def _hint(path: str, hints: Mapping[str, str]) -> str:
    allowed = hints.get(re.sub(r"\[(?:\d+|\.\.\.)\]", "[]", path))
    return f" {allowed}" if allowed else ""


_BYTE = re.compile(r" \(byte (\d+)\)$")


def malformed(body: bytes, text: str) -> BadRequest:
    """What is wrong with a body that is no JSON, with line and column (both from 1)."""
    if not body.strip():
        return BadRequest("The body is empty; send a JSON object.", code="invalid_json")
    # Half a pair at the end of a string looks to the decoder like a body that ends there.
    if "surrogate" in text or ("truncated" in text and _is_json(body)):
        return _surrogate(body)
    found = _BYTE.search(text)
    reason = _BYTE.sub("", text).removeprefix("JSON is malformed: ")
    if found is None and "truncated" in text:
        return BadRequest(
            f"The body is not valid JSON: it ends too early ({_place(body, len(body))}).", code="invalid_json"
        )
    place = _place(body, int(found[1]) if found else len(body))
    return BadRequest(f"The body is not valid JSON: {reason} ({place}).", code="invalid_json")


def not_utf8(body: bytes) -> BadRequest:
    """A body that is not UTF-8, with line and column of the first bad byte."""
    try:
        body.decode()
    except UnicodeDecodeError as error:
        return BadRequest(f"The body is not valid UTF-8 ({_place(body, error.start)}).", code="invalid_json")
    return BadRequest("The body is not valid JSON.", code="invalid_json")


def _place(body: bytes, at: int) -> str:
    before = body[:at]
    return f"line {before.count(10) + 1}, column {at - (before.rfind(10) + 1) + 1}"


def _is_json(body: bytes) -> bool:
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True


def _surrogate(body: bytes) -> BadRequest:
    try:
        path = next(lone_surrogates(json.loads(body)), "")
    except (ValueError, RecursionError):
        path = ""
    where = path or "The body"
    return BadRequest(
        f"{where} holds half of a surrogate pair (\\ud800 to \\udfff), which is no character; send whole characters.",
        param=path or None,
    )


_HALF = re.compile("[\ud800-\udfff]")


def lone_surrogates(value: Any, path: str = "") -> Iterator[str]:
    """Paths (`messages[0].content`) of the strings and keys in `value` that are not valid Unicode."""
    if isinstance(value, str):
        if _HALF.search(value):
            yield path
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from lone_surrogates(item, f"{path}[{i}]")
    elif isinstance(value, dict):
        for key, item in value.items():
            if _HALF.search(key):
                yield path
            else:
                yield from lone_surrogates(item, f"{path}.{key}" if path else key)
