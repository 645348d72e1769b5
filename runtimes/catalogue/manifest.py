"""What a model's manifest may say: one YAML file a model, checked before anything acts on it."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator, model_validator

from runtimes.catalogue.errors import ManifestError

MAX_BYTES = 256 << 10
MAX_DEPTH = 16
MAX_FILE = 1 << 42
SUFFIXES = frozenset({".gguf"})
"""What a model may consist of in the store; an input of a conversion is never kept."""
INPUT_SUFFIXES = frozenset({".safetensors", ".json", ".txt"})

ModelId = Annotated[str, StringConstraints(pattern=r"^[a-z0-9]([a-z0-9._-]{0,94}[a-z0-9])?$")]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Line = Annotated[str, StringConstraints(min_length=1, max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]
PackageName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._-]{0,98}[A-Za-z0-9])?$")]
Version = Annotated[str, StringConstraints(pattern=r"^[0-9][A-Za-z0-9.!+_-]{0,63}$")]
Tokens = Annotated[int, Field(ge=1, le=1 << 28)]
Capability = Literal["chat", "completions", "tools", "json_schema", "logprobs", "embeddings"]


class _Table(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _plain_path(value: str) -> str:
    """A relative path of ordinary names: nothing absolute, no parent, no drive, no control characters."""
    path = PurePosixPath(value)
    if (
        not value
        or len(value) > 255
        or path.as_posix() != value
        or path.is_absolute()
        or any(part in ("", ".", "..") for part in path.parts)
        or any(c in '\\:*?"<>|' or not c.isprintable() for c in value)
    ):
        raise ValueError("is not a plain relative path such as folder/name.gguf")
    return value


class Package(_Table):
    """A file inside a wheel that the package index has; the package is never installed or run."""

    package: PackageName
    version: Version
    member: str
    """Path inside the wheel."""

    _member = field_validator("member")(_plain_path)


class Input(_Table):
    """One file that a conversion reads."""

    path: str
    """The name under which the recipe knows it."""
    sha256: Sha256
    size: int = Field(ge=1, le=MAX_FILE)
    """Bytes."""
    pypi: Package | None = None
    """None = the file lies beside the manifest."""

    @field_validator("path")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        return _with_suffix(_plain_path(value), INPUT_SUFFIXES)


class Conversion(_Table):
    """A file that is made here from others; the same inputs always give the same bytes."""

    recipe: Literal["bert-gguf"]
    weights: Literal["F32", "F16", "Q8_0"]
    inputs: tuple[Input, ...] = Field(min_length=1, max_length=64)


class Source(_Table):
    """Where a file comes from: exactly one of these."""

    pypi: Package | None = None
    convert: Conversion | None = None

    @model_validator(mode="after")
    def _one(self) -> Source:
        if (self.pypi is None) == (self.convert is None):
            raise ValueError("needs either pypi or convert")
        return self


class ModelFile(_Table):
    """A file of the model as the store holds it."""

    path: str
    sha256: Sha256
    size: int = Field(ge=1, le=MAX_FILE)
    """Bytes."""
    source: Source | None = None
    """None = the file lies beside the manifest, or came from a folder of the operator's."""

    @field_validator("path")
    @classmethod
    def _known_kind(cls, value: str) -> str:
        return _with_suffix(_plain_path(value), SUFFIXES)


class Embedding(_Table):
    """Vectors are unit-length."""

    dimensions: int = Field(ge=1, le=1 << 20)
    pooling: Literal["mean", "cls", "last"]


class Memory(_Table):
    """What a replica needs, in bytes; the KV figure is for 16-bit keys and values, 0 where none are kept."""

    weights_bytes: int = Field(ge=1)
    kv_bytes_per_token: int = Field(ge=0)


class Defaults(_Table):
    """What a deployment uses unless it says otherwise."""

    context: Tokens
    """Tokens of one request (prompt and answer)."""
    system_prompt: Annotated[str, StringConstraints(min_length=1, max_length=4000)] | None = None
    """Put in front of a chat that brings no system message of its own."""
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    """For requests that name none; left out, 1."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """For requests that name none; left out, 1."""


class Manifest(_Table):
    """One model of the catalogue."""

    id: ModelId
    title: Line
    description: Annotated[str, StringConstraints(max_length=4000)] = ""
    task: Literal["generate", "embed"]
    format: Literal["gguf"]
    architecture: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
    licence: Line
    """SPDX identifier or LicenseRef-…"""
    attribution: Line
    """Who made the model and who packaged it."""
    context_length: Tokens
    """The longest context that the model was made for."""
    embedding: Embedding | None = None
    capabilities: tuple[Capability, ...] = Field(min_length=1)
    tools: Literal["native", "generic"] | None = None
    """native: the chat template knows tools; generic: a tool prompt and a constrained answer."""
    memory: Memory
    defaults: Defaults
    files: tuple[ModelFile, ...] = Field(min_length=1, max_length=64)

    @property
    def size(self) -> int:
        """Bytes of all files in the store."""
        return sum(file.size for file in self.files)

    @property
    def main(self) -> ModelFile:
        """The file that an engine is given."""
        return self.files[0]

    @model_validator(mode="after")
    def _agrees(self) -> Manifest:
        if (self.task == "embed") != (self.embedding is not None):
            raise ValueError("embedding belongs to task: embed, and only there")
        if (self.task == "embed") != ("embeddings" in self.capabilities):
            raise ValueError("capabilities must list embeddings exactly when task is embed")
        if ("tools" in self.capabilities) != (self.tools is not None):
            raise ValueError("tools says how tool calls are made, and needs tools among the capabilities")
        if len(set(self.capabilities)) != len(self.capabilities):
            raise ValueError("a capability comes twice")
        if len({file.path for file in self.files}) != len(self.files):
            raise ValueError("two files have the same path")
        if self.defaults.context > self.context_length:
            raise ValueError("defaults.context is longer than context_length")
        return self


def _with_suffix(value: str, allowed: frozenset[str]) -> str:
    if PurePosixPath(value).suffix not in allowed:
        raise ValueError(f"is not one of {', '.join(sorted(allowed))}; other kinds of file are never loaded")
    return value


def parse_manifest(raw: bytes, name: str) -> Manifest:
    """Read one manifest; `name` is the file as messages show it. Raises ManifestError naming file and field."""
    if len(raw) > MAX_BYTES:
        raise ManifestError(f"{name}: is larger than {MAX_BYTES >> 10} KiB.", "A manifest describes; it holds no data.")
    data = _load_yaml(raw, name)
    # JSON mode takes lists for tuples and nothing else that YAML might have guessed.
    try:
        return Manifest.model_validate(_tuples(data))
    except ValidationError as e:
        problems = "; ".join(
            f"{'.'.join(str(p) for p in error['loc']) or 'manifest'}: {error['msg'].removeprefix('Value error, ')}"
            for error in e.errors(include_url=False, include_input=False)[:8]
        )
        raise ManifestError(f"{name}: {problems}.", "Correct these fields.") from None


def read_manifest(path: Path) -> Manifest:
    """Read the manifest at `path`. Raises ManifestError."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_BYTES + 1)
    except OSError as e:
        raise ManifestError(f"{path}: cannot be read ({e.strerror}).") from None
    return parse_manifest(raw, str(path))


def write_manifest(manifest: Manifest) -> bytes:
    """The YAML of a manifest; `parse_manifest` gives the same one back."""
    data = manifest.model_dump(mode="json", exclude_none=True)
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=110).encode()


def _tuples(value: Any) -> Any:
    if isinstance(value, list):
        return tuple(_tuples(v) for v in value)
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return value


class _Loader(yaml.SafeLoader):
    """YAML without aliases (they can blow a small file up), without doubled keys, not deeper than we need."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        mark = self.peek_event().start_mark  # type: ignore[no-untyped-call]
        if self.check_event(yaml.events.AliasEvent):
            raise yaml.MarkedYAMLError(problem="aliases are not allowed", problem_mark=mark)
        self.depth = getattr(self, "depth", 0) + 1
        if self.depth > MAX_DEPTH:
            raise yaml.MarkedYAMLError(problem="nested too deep", problem_mark=mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node

    def construct_mapping(self, node: Any, deep: bool = False) -> Any:
        keys = [self.construct_object(key, deep=True) for key, _ in node.value]
        if any(not isinstance(key, str) for key in keys) or len(set(keys)) != len(keys):
            raise yaml.MarkedYAMLError(problem="a key is no text or comes twice", problem_mark=node.start_mark)
        return super().construct_mapping(node, deep)


def _load_yaml(raw: bytes, name: str) -> Any:
    try:
        return yaml.load(raw.decode("utf-8"), Loader=_Loader)  # noqa: S506 - a SafeLoader made stricter
    except UnicodeDecodeError:
        raise ManifestError(f"{name}: is not UTF-8 text.") from None
    except yaml.MarkedYAMLError as e:
        line = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ManifestError(f"{name}{line}: {e.problem or e.context}.", "Correct the YAML.") from None
    except yaml.YAMLError as e:
        raise ManifestError(f"{name}: {str(e).splitlines()[0]}.", "Correct the YAML.") from None
