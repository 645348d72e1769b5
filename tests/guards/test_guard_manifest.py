"""Guard models are loaded only if they are what their manifest says."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from appliance.errors import GuardModelError
from appliance.guards.judge import known_models, model_folder, shipped_models
from appliance.guards.manifest import read_manifest
from appliance.guards.model import GuardModel
from appliance.guards.names import SHIPPED


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    return Path(shutil.copytree(shipped_models() / SHIPPED, tmp_path / "mine"))


def changed(folder: Path, change: dict[str, Any]) -> None:
    path = folder / "manifest.yaml"
    raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    for dotted, value in change.items():
        *way, last = dotted.split("/")
        at = raw
        for part in way:
            at = at[part]
        if value is None:
            del at[last]
        else:
            at[last] = value
    path.write_text(yaml.safe_dump(raw), encoding="utf-8")


def test_the_shipped_model_loads_and_names_its_training() -> None:
    manifest = read_manifest(shipped_models() / SHIPPED)
    assert set(manifest.detectors) == {"injection", "toxicity", "pii"}
    assert manifest.licence == "Apache-2.0"
    assert all(one.licence and one.origin for one in manifest.training)
    assert not any("NC" in one.licence.replace("-", " ").split() for one in manifest.training)


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
@pytest.mark.parametrize("at", [0, 0.5, -1])
def test_one_changed_byte_is_refused(copy: Path, name: str, at: float) -> None:
    data = bytearray((copy / name).read_bytes())
    data[int(at * len(data)) if at >= 0 else -1] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(GuardModelError, match=rf"{name}.*sha256.*not loaded"):
        GuardModel(copy)


@pytest.mark.parametrize(("cut", "said"), [(slice(0, -1), "bytes"), (slice(0, 0), "has 0 bytes")])
def test_a_file_cut_short_is_refused(copy: Path, cut: slice, said: str) -> None:
    path = copy / "model.onnx"
    path.write_bytes(path.read_bytes()[cut])
    with pytest.raises(GuardModelError, match=said):
        GuardModel(copy)


def test_a_longer_file_is_refused_without_reading_all_of_it(copy: Path) -> None:
    with (copy / "model.onnx").open("ab") as file:
        file.truncate(1 << 40)
    with pytest.raises(GuardModelError, match="more bytes"):
        GuardModel(copy)


def test_a_missing_file_is_named(copy: Path) -> None:
    (copy / "tokenizer.json").unlink()
    with pytest.raises(GuardModelError, match=r"tokenizer\.json"):
        GuardModel(copy)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"files/model.onnx": None}, "model.onnx is missing"),
        ({"files/model.onnx/sha256": "abc"}, "files.model.onnx.sha256"),
        ({"files/../../etc/passwd": {"sha256": "0" * 64, "size": 1}}, "files"),
        ({"reading/overlap": 4000}, "reading"),
        ({"detectors/injection/kind": "guess"}, "detectors.injection.kind"),
        ({"detectors/injection/output": "nothing"}, "no output 'nothing'"),
        ({"surprise": 1}, "surprise"),
        ({"licence": ""}, "licence"),
        ({"detectors/pii/threshold": 2}, "detectors.pii.threshold"),
        ({"detectors/pii/labels": ["O", "B-X", "I-X", "B-Y"]}, "B-Y without I-Y"),
        ({"detectors/pii/labels": ["O", "B-X", "I-X", "I-Y"]}, "I-Y without B-Y"),
        ({"detectors/pii/labels": ["B-X", "I-X"]}, "need the label O"),
        ({"detectors/pii/labels": ["O", "PERSON"]}, "PERSON is no label of spans"),
        ({"detectors/pii/labels": ["O", "B-X", "I-X", "B-X"]}, "B-X is there twice"),
        ({"detectors/pii/labels": ["O", "B-X", "I-X"]}, "shape.*detectors.pii.*3 labels"),
        ({"detectors/pii/kind": "text"}, "shape.*detectors.pii, of kind text"),
        ({"detectors/injection/labels": ["injection", "other"]}, "shape.*detectors.injection.*2 labels"),
        ({"detectors/injection/labels": ["other"]}, "scales: injection is none of the labels"),
        ({"reading/apart": True, "reading/segments": True}, "reading.apart: a pair is read at once"),
        ({"detectors/injection/kind": "pair"}, "detectors.injection: kind pair needs reading.segments"),
        ({"detectors/a.b": {"output": "injection", "kind": "text", "labels": ["a"]}}, "detectors.a.b"),
        ({"reading/window": 511}, "511 pieces.*reading.window"),
    ],
)
def test_a_wrong_manifest_names_the_field(copy: Path, change: dict[str, Any], said: str) -> None:
    if "files/../../etc/passwd" in change:
        raw = yaml.safe_load((copy / "manifest.yaml").read_text(encoding="utf-8"))
        raw["files"]["../../etc/passwd"] = {"sha256": "0" * 64, "size": 1}
        (copy / "manifest.yaml").write_text(yaml.safe_dump(raw), encoding="utf-8")
    else:
        # Scales of labels that are there no more would be what is said first.
        changed(copy, {"detectors/pii/scales": {}, **change} if "detectors/pii/labels" in change else change)
    with pytest.raises(GuardModelError, match=said):
        GuardModel(copy)


HOSTILE = [
    *("version: 2024-99-99", "[" * 5000, "a: {b: " * 2000, "&a [*a]", "a: &a 1\nb: *a", "version: " + "9" * 5000),
    *("a: !!int ''", "a: !!bool maybe", "a: !!timestamp x", "a: 0001-01-01T00:00:00+23:00"),
]


@pytest.mark.parametrize("content", ["", "[]", "a: [", "\x00", "!!python/object/apply:os.system [echo]", *HOSTILE])
def test_what_is_no_manifest_is_refused(copy: Path, content: str) -> None:
    (copy / "manifest.yaml").write_text(content, encoding="utf-8")
    with pytest.raises(GuardModelError, match=r"manifest\.yaml"):
        GuardModel(copy)


def test_a_graph_that_is_no_graph_is_refused_even_with_the_right_hash(copy: Path) -> None:
    data = b"this is no graph"
    (copy / "model.onnx").write_bytes(data)
    changed(copy, {"files/model.onnx": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}})
    with pytest.raises(GuardModelError, match="onnxruntime cannot load it"):
        GuardModel(copy)


def test_a_site_may_put_its_own_model_in_front(copy: Path, tmp_path: Path) -> None:
    own = tmp_path / "own"
    shutil.copytree(copy, own / SHIPPED)
    shutil.copytree(copy, own / "better")
    assert model_folder(SHIPPED, [own]) == own / SHIPPED
    assert model_folder(SHIPPED, []) == shipped_models() / SHIPPED
    assert {path.name for path in known_models([own])} >= {SHIPPED, "better"}


@pytest.mark.parametrize("name", ["", "..", "../x", "a/b", "nothing-here"])
def test_a_model_that_is_not_there_is_an_error(name: str) -> None:
    with pytest.raises(GuardModelError):
        model_folder(name, [])


def test_the_widest_window_that_the_graph_has_places_for_is_taken(copy: Path) -> None:
    changed(copy, {"reading/window": 510})
    assert GuardModel(copy).manifest.reading.window == 510


def test_a_model_loads_where_nothing_temporary_can_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nothing-here"))
    assert GuardModel(shipped_models() / SHIPPED).run("Hello there.").windows


def test_a_tokenizer_that_is_none_is_named_even_with_the_right_hash(copy: Path) -> None:
    data = b"{}"
    (copy / "tokenizer.json").write_bytes(data)
    changed(copy, {"files/tokenizer.json": {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}})
    with pytest.raises(GuardModelError, match=rf"{copy}/tokenizer\.json: not a tokenizer"):
        GuardModel(copy)
