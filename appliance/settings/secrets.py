"""Secrets are references: the file names an environment variable or a file, never the value."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from appliance.settings.values import FilePath, Variable, refuse

MAX_SECRET_BYTES = 16 * 1024


class SecretMissing(Exception):
    """The reference leads nowhere; the texts name the variable or file, never a value."""

    def __init__(self, message: str, cure: str) -> None:
        super().__init__(f"{message}: {cure}")
        self.message = message
        self.cure = cure


class SecretRef(BaseModel):
    """Exactly one of `env` and `file`."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    env: Variable | None = Field(default=None, description="Environment variable that holds the secret.")
    file: FilePath | None = Field(
        default=None,
        description="File that holds the secret; space around it is dropped. Keep it readable by its owner only.",
        examples=["/etc/outpost/api.key"],
    )

    @model_validator(mode="before")
    @classmethod
    def _is_reference(cls, data: Any) -> Any:
        if isinstance(data, (Mapping, SecretRef)):
            return data
        # The text at hand may be the secret itself: it is not repeated.
        raise refuse(
            "a secret is not written into the file, only where to find it",
            "write {env: NAME} or {file: PATH}; if a real secret stood here, replace it",
        )

    @model_validator(mode="after")
    def _one(self) -> Self:
        if (self.env is None) == (self.file is None):
            raise refuse("needs either env or file", "write {env: NAME} or {file: PATH}")
        return self

    def __str__(self) -> str:
        return f"environment variable {self.env}" if self.env is not None else f"file {self.file}"


def resolve(ref: SecretRef, env: Mapping[str, str]) -> str:
    """The secret's text. Raises SecretMissing."""
    if ref.file is not None:
        return _read(ref.file)
    name = ref.env or ""
    value = env.get(name, "").strip()
    if not value:
        state = "is empty" if name in env else "is not set"
        raise SecretMissing(f"the environment variable {name} {state}", f"set {name} before starting outpost")
    return value


def _open_now(path: str, flags: int) -> int:
    # The path may name a pipe that nobody writes to: opening it must not wait.
    return os.open(path, flags | os.O_NONBLOCK)


def _read(path: Path) -> str:
    try:
        with open(path, "rb", opener=_open_now) as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise SecretMissing(f"{path} is not a file", "name a file that holds only the secret")
            raw = file.read(MAX_SECRET_BYTES + 1)
    except OSError as error:
        reason = (error.strerror or "unreadable").lower()
        raise SecretMissing(f"the file {path} cannot be read ({reason})", "create it, or correct the path") from None
    if len(raw) > MAX_SECRET_BYTES:
        raise SecretMissing(f"the file {path} is larger than a secret can be", "name a file that holds only the secret")
    try:
        text = raw.decode("utf-8-sig").strip()
    except UnicodeDecodeError:
        raise SecretMissing(f"the file {path} is not text", "name a file that holds only the secret") from None
    if not text:
        raise SecretMissing(f"the file {path} is empty", "write the secret into it")
    return text


def readable_by_others(path: Path) -> bool:
    """Whether a secret's file can be read by every user of the machine. False when it is not there."""
    try:
        return bool(path.stat().st_mode & stat.S_IROTH)
    except OSError:
        return False
