"""What depends on which Gemini it is. Pure."""

from __future__ import annotations

import re
from urllib.parse import quote

import msgspec

_GENERATION = re.compile(r"gemini-(\d+)")


class Model(msgspec.Struct, frozen=True):
    """A model of Google's by its name. A name without a number ("gemini-flash-latest") is one of the newest."""

    name: str
    newest: bool
    """From the third generation on: thinking has levels, calls must be signed, results of functions may hold images."""
    pro: bool
    """The large ones, which cannot be kept from thinking."""


def model_of(name: str) -> Model:
    found = _GENERATION.search(name)
    newest = int(found[1]) >= 3 if found else "gemini" in name
    return Model(name, newest, "-pro" in name)


def resource(name: str) -> str:
    """The model's path: a bare name is one of Google's own."""
    return quote(name if "/" in name else f"models/{name}", safe="/@.-_~")
