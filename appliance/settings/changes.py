"""What a reload would change, and which of it a running process can take. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel

from appliance.settings.schema import Settings
from appliance.settings.shape import Shape, root


@dataclass(frozen=True)
class NameChanges:
    """What happened to the entries of a list whose entries have names."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@dataclass(frozen=True)
class Changes:
    """The difference between two settings."""

    sections: tuple[str, ...]
    """Top-level keys that differ, in the schema's order."""
    live: tuple[str, ...]
    """Of these, the ones in which something can be applied at once."""
    restart: tuple[str, ...]
    """Keys that differ and that need a restart, e.g. `server.listen`."""
    deployments: NameChanges
    providers: NameChanges
    routes: NameChanges
    """By the route's model name."""

    def __bool__(self) -> bool:
        return bool(self.sections)


def diff(old: Settings, new: Settings) -> Changes:
    """Compare values, not texts: `60s` and `1m` are the same.

    References are compared, not the secrets behind them: a reload resolves those again in any case.
    """
    restart = tuple(shape.key for shape in _fixed(root()) if _get(old, shape.key) != _get(new, shape.key))
    applied = keep_fixed(old, new)
    return Changes(
        sections=tuple(name for name in Settings.model_fields if getattr(old, name) != getattr(new, name)),
        live=tuple(name for name in Settings.model_fields if getattr(old, name) != getattr(applied, name)),
        restart=restart,
        deployments=_by_name(
            {each.name: each for each in old.deployments}, {each.name: each for each in new.deployments}
        ),
        providers=_by_name({each.name: each for each in old.providers}, {each.name: each for each in new.providers}),
        routes=_by_name({each.model: each for each in old.routes}, {each.model: each for each in new.routes}),
    )


def keep_fixed(old: Settings, new: Settings) -> Settings:
    """`new` with the keys that need a restart as they were: what a reload makes current."""
    update: dict[str, Any] = {}
    for shape in _fixed(root()):
        section, _, name = shape.key.rpartition(".")
        if not section:
            update[name] = getattr(old, name)
            continue
        current: BaseModel = update.get(section, getattr(new, section))
        update[section] = current.model_copy(update={name: getattr(getattr(old, section), name)})
    return new.model_copy(update=update)


def _fixed(shape: Shape) -> list[Shape]:
    """The outermost keys marked `restart`."""
    if shape.restart:
        return [shape]
    return [found for child in shape.children.values() for found in _fixed(child)]


def _get(settings: Settings, key: str) -> Any:
    value: Any = settings
    for part in key.split("."):
        value = getattr(value, part)
    return value


def _by_name(old: dict[str, Any], new: dict[str, Any]) -> NameChanges:
    return NameChanges(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed=tuple(name for name, entry in new.items() if name in old and old[name] != entry),
    )
