"""The kinds of provider as rows of data: one file each in `rows/`, which ships with the release and is never fetched.

A row says where a provider is, how it is asked, what it can do, and what its models hold and cost. A model that is not
listed works with what the row says of all. Prices are those of the row's `prices_as_of`; the settings' own go before.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml

from appliance.dialects.openai_outbound import Quirks
from appliance.dialects.translating import EFFORTS

ROWS = Path(__file__).with_name("rows")
NANO = 10**9

Dialect = Literal["openai", "responses", "anthropic", "gemini", "bedrock", "cohere"]
Zone = Literal["on_box", "on_prem", "cloud"]


class RowError(ValueError):
    """A row that is not sound; it names the file and the place."""


class Cost(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """US dollars for a million tokens."""

    input: Decimal
    output: Decimal = Decimal(0)
    cached: Decimal | None = None
    """Read from the maker's cache; None = as input."""
    cache_write: Decimal | None = None
    """Put into the maker's cache; None = as input."""


class Model(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model, under the name that the provider has for it."""

    context: int | None = None
    """Most tokens of prompt and answer together."""
    output: int | None = None
    """Most tokens of an answer."""
    can: frozenset[str] = frozenset()
    """Features beside those of the row."""
    cannot: frozenset[str] = frozenset()
    """Features of the row that it has not."""
    operations: frozenset[str] | None = None
    """None: those of the row."""
    dimensions: int | None = None
    """Length of its vectors."""
    efforts: tuple[str, ...] = ()
    """How hard it may be told to think, the least first; empty = not known."""
    price: Cost | None = None


class Option(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A setting that the provider needs beside a key."""

    help: str
    required: bool = True
    default: str | None = None


class Variant(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Another address where options have certain values; "*" is any."""

    when: dict[str, str]
    base_url: str | None = None
    paths: dict[str, str] | None = None


class Row(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of provider."""

    title: str
    dialect: Dialect
    base_url: str | None = None
    """{option} stands for what the settings say. None: the settings have to say where it is."""
    auth: str = "bearer"
    """How a key is shown; see providers.auth."""
    auth_without_key: str = "none"
    """How else the provider is told who asks, where the settings name no key."""
    key: Literal["required", "optional"] = "required"
    zone: Zone | None = "cloud"
    """None: the settings have to say."""
    headers: dict[str, str] = {}
    """What every request has."""
    paths: dict[str, str] = {}
    """Operation → path, where it is not the dialect's own."""
    options: dict[str, Option] = {}
    variants: tuple[Variant, ...] = ()
    operations: frozenset[str] = frozenset({"chat.completions"})
    native: frozenset[str] = frozenset()
    """Kinds of clients' requests that the provider takes as they are."""
    features: frozenset[str] = frozenset()
    """What its models can do, unless their entries say otherwise."""
    betas: tuple[str, ...] = ()
    """Patterns of Anthropic's betas that clients may ask it for; see dialects.messages.betas."""
    quirks: Quirks = Quirks()
    """Of OpenAI's dialect."""
    health: str | None = None
    """A path that answers to GET and costs no tokens: behind the base URL, or behind the host if it begins with "/"."""
    prices_as_of: str | None = None
    models_of: str | None = None
    """Another row that lists the same models."""
    models: dict[str, Model] = {}

    def find(self, model: str) -> Model | None:
        """What is known of a model: by its very name, or without what vendors add to names (dates, versions, regions
        before them). None: it is not listed."""
        listed = row(self.models_of).models | self.models if self.models_of else self.models
        for name in _spellings(model):
            if name in listed:
                return listed[name]
        return None

    def facts(self, model: str) -> Facts:
        """What is taken for true of a model, listed or not."""
        found = self.find(model) or Model()
        return Facts(
            operations=self.operations if found.operations is None else found.operations,
            features=(self.features | found.can) - found.cannot,
            context_length=found.context,
            max_output=found.output,
            dimensions=found.dimensions,
            efforts=found.efforts,
            price=found.price,
        )


class Facts(msgspec.Struct, frozen=True):
    """What is known of one model of a provider; None = not known."""

    operations: frozenset[str]
    features: frozenset[str]
    context_length: int | None = None
    max_output: int | None = None
    dimensions: int | None = None
    efforts: tuple[str, ...] = ()
    price: Cost | None = None


class Endpoint(msgspec.Struct, frozen=True):
    """Where and how one provider of the settings is asked."""

    base_url: str
    paths: Mapping[str, str]
    headers: Mapping[str, str]
    health: str | None = None
    """An address that answers to GET with the provider's key and costs no tokens; None = there is none."""


_ADDED = re.compile(r"(?:[-@]\d{4}-?\d{2}-?\d{2}|-latest|-preview|-v\d+:\d+|:\d+|-\d{3})$")
_BEFORE = re.compile(r"^(?:(?:us|eu|apac|us-gov|jp|au|global)\.(?=[a-z0-9-]+\.)|accounts/fireworks/models/)")


def _spellings(model: str) -> list[str]:
    """The name, and what is left of it without each addition in turn."""
    found = []
    for name in dict.fromkeys((model, _BEFORE.sub("", model))):
        found.append(bare := name)
        while (shorter := _ADDED.sub("", bare)) != bare:
            found.append(shorter)
            bare = shorter
    return found


def endpoint(kind: str, base_url: str | None, options: Mapping[str, str]) -> Endpoint:
    """`base_url`: the settings' own, if they have one. `options`: those that are set. Raises ValueError, which names
    what is missing."""
    found = row(kind)
    filled = {name: option.default for name, option in found.options.items() if option.default is not None}
    filled |= dict(options)
    template, paths, health = found.base_url, found.paths, found.health
    for variant in found.variants:
        if all(name in filled and value in ("*", filled[name]) for name, value in variant.when.items()):
            template = variant.base_url or template
            if variant.paths is not None:
                paths, health = variant.paths, None
    if base_url is None and template is None:
        raise ValueError("base_url is missing")
    where = base_url if base_url is not None else _fill(template or "", filled)
    filled_paths = {name: _fill(path, filled, "model") for name, path in paths.items()}
    return Endpoint(where, filled_paths, found.headers, _behind(where, health))


def _behind(base_url: str, path: str | None) -> str | None:
    """`path` as an address."""
    if path is None:
        return None
    if path.startswith("/"):
        parts = urlsplit(base_url)
        return f"{parts.scheme}://{parts.netloc}{path}"
    return f"{base_url.rstrip('/')}/{path}"


_PLACE = re.compile(r"\{([a-z_]+)\}")


def _fill(template: str, options: Mapping[str, str], *left: str) -> str:
    """`left`: places that are filled for each request."""

    def value(found: re.Match[str]) -> str:
        name = found[1]
        if name in left:
            return found[0]
        if name not in options:
            raise ValueError(f"{name} is missing")
        return options[name]

    return _PLACE.sub(value, template)


@cache
def row(kind: str) -> Row:
    """The row of a kind. Raises RowError for one that there is not, or that is not sound."""
    try:
        text = (ROWS / f"{kind}.yaml").read_text(encoding="utf-8")
    except OSError:
        raise RowError(f"there is no kind of provider {kind!r}; there is {', '.join(kinds())}") from None
    return parse(text, f"{kind}.yaml")


@cache
def kinds() -> tuple[str, ...]:
    """All kinds, in the order of their names."""
    return tuple(sorted(path.stem for path in ROWS.glob("*.yaml")))


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Takes no key twice, and leaves numbers as they are written: a price has no rounding. The reader in C is ten times
    as fast."""

    def construct_mapping(self, node: Any, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key, _ in node.value:
            if key.value in seen:
                raise yaml.MarkedYAMLError(problem=f"{key.value!r} is written twice", problem_mark=key.start_mark)
            seen.add(key.value)
        return dict(super().construct_mapping(node, deep))


_Loader.add_constructor("tag:yaml.org,2002:float", lambda loader, node: str(node.value))
_Loader.add_constructor("tag:yaml.org,2002:timestamp", lambda loader, node: str(node.value))


def parse(text: str, name: str) -> Row:
    """`name`: the file's, for messages. Raises RowError."""
    try:
        shape = yaml.load(text, Loader=_Loader)  # noqa: S506 - a SafeLoader
        found = msgspec.convert(shape, Row, strict=True)
    except (yaml.YAMLError, msgspec.ValidationError) as error:
        raise RowError(f"{name}: {error}") from None
    for path, problem in _problems(found):
        raise RowError(f"{name}: {path}: {problem}")
    return found


def _problems(found: Row) -> list[tuple[str, str]]:
    """What the types cannot say."""
    problems = []
    places = {place for text in _templates(found) for place in _PLACE.findall(text)} - {"model"}
    problems += [("options", f"{name} is used and not declared") for name in sorted(places - set(found.options))]
    problems += [
        (f"variants[{i}].when", f"{name} is not an option")
        for i, variant in enumerate(found.variants)
        for name in variant.when
        if name not in found.options
    ]
    if found.dialect != "openai" and found.quirks != Quirks():
        problems.append(("quirks", "only OpenAI's dialect has any"))
    if found.dialect != "anthropic" and found.betas:
        problems.append(("betas", "only Anthropic's dialect has any"))
    priced = any(model.price is not None for model in found.models.values())
    if priced and not re.fullmatch(r"\d{4}-\d{2}-\d{2}", found.prices_as_of or ""):
        problems.append(("prices_as_of", "needs a date such as 2026-01-31"))
    for name, model in found.models.items():
        if model.context is not None and model.output is not None and model.output > model.context:
            problems.append((f"models.{name}.output", "is more than the context"))
        if list(model.efforts) != [each for each in EFFORTS if each in model.efforts]:
            problems.append((f"models.{name}.efforts", f"must be some of {', '.join(EFFORTS)}, in this order"))
        for value in (model.price.input, model.price.output) if model.price is not None else ():
            if value < 0 or value > 10_000:
                problems.append((f"models.{name}.price", f"{value} is not a price"))
    return problems


def _templates(found: Row) -> list[str]:
    addresses = [found.base_url or "", *found.paths.values()]
    for variant in found.variants:
        addresses += [variant.base_url or "", *(variant.paths or {}).values()]
    return addresses


def nano(amount: Decimal | None) -> int | None:
    """Nano-USD."""
    return None if amount is None else int(amount * NANO)
