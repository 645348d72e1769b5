"""Nothing is undocumented: schema, page, example file and JSON Schema say the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from hypothesis import given
from hypothesis import settings as bounds
from hypothesis import strategies as st

from appliance.settings import Settings, SettingsError, from_mapping, load
from appliance.settings.document import parse
from appliance.settings.reference import page
from appliance.settings.render import as_yaml, default_text, explain, json_schema
from appliance.settings.shape import Shape, dotted, find, leaves, root

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "outpost.example.yaml"
KEYS = [shape.key for shape in root().walk()]


def by_key(key: str) -> Shape:
    shape = find(key)
    assert shape is not None
    return shape


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_documented(key: str) -> None:
    shape = by_key(key)
    assert shape.key == key
    assert shape.help.endswith("."), "a description is a sentence"
    assert len(shape.help) >= 10
    if shape.is_leaf:
        assert default_text(shape) in ("required", "none") or shape.default
        assert shape.form.expected
        assert shape.form.example


@pytest.mark.parametrize("key", [shape.key for shape in leaves()])
def test_every_number_has_a_unit_and_bounds(key: str) -> None:
    shape = by_key(key)
    if shape.form.expected in ("a whole number", "a duration", "a size"):
        assert shape.unit
        assert "at least" in shape.bounds
        assert "at most" in shape.bounds


def test_the_page_is_up_to_date() -> None:
    made = subprocess.run(
        [sys.executable, "-m", "appliance.settings.reference"], cwd=ROOT, check=True, capture_output=True, timeout=60
    )
    assert made.stdout.decode() == (ROOT / "docs/settings.md").read_text(encoding="utf-8"), (
        "run python -m appliance.settings.reference > docs/settings.md"
    )


def test_the_page_has_every_leaf() -> None:
    text = page()
    for shape in leaves():
        top, _, rest = shape.key.partition(".")
        name = rest or top
        assert f"| `{name}` |" in text, shape.key


def test_the_example_lists_every_key_and_no_other() -> None:
    document = parse(EXAMPLE.read_bytes())
    used = set()
    for path in document.lines:
        if {"overrides", "headers"} & set(path[:-1]):
            continue  # what stands below has names of the writer's choice
        key = dotted(path)
        for index in range(10):
            key = key.replace(f"[{index}]", "[]")
        used.add(key.removesuffix("[]"))
    # A password is refused beside SQLite, which the example uses; a comment shows it.
    elsewhere = {"database.password", "database.password.env", "database.password.file"}
    assert used | elsewhere == set(KEYS)
    assert "# password: {env: " in EXAMPLE.read_text(encoding="utf-8")


def test_the_example_loads() -> None:
    loaded = load(EXAMPLE, {}, machine=False)
    assert [str(warning) for warning in loaded.warnings] == []
    assert loaded.settings.deployments[0].start_timeout == 120.0


def test_the_example_shows_the_defaults() -> None:
    """Where a key has a default, the example has it too, so that the file can be read as documentation."""
    document = parse(EXAMPLE.read_bytes())
    defaults = json.loads(json.dumps(Settings().model_dump(mode="json")))
    example = load(EXAMPLE, {}, machine=False).settings.model_dump(mode="json")
    for section in ("server", "console", "database", "log", "catalogue"):
        example[section].pop("tls", None)
        defaults[section].pop("tls", None)
        assert example[section] == defaults[section]
    example["routes"][0]["deadlines"]["whole"] = None  # it has no default that could be written
    assert example["routes"][0]["deadlines"] == defaults["routes"][0]["deadlines"]
    assert document.findings == []


def test_the_json_schema_is_one_and_takes_the_example() -> None:
    schema = json_schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validator = jsonschema.Draft202012Validator(schema)
    assert list(validator.iter_errors(yaml.safe_load(EXAMPLE.read_text(encoding="utf-8")))) == []
    assert list(validator.iter_errors(yaml.safe_load(as_yaml(Settings())))) == []
    assert list(validator.iter_errors({"server": None, "routes": None})) == []


@pytest.mark.parametrize(
    "data",
    [
        {"serverr": {}},
        {"server": {"listen": 8080}},
        {"server": {"max_body": "20M"}},
        {"server": {"header_timeout": "10:30"}},
        {"server": {"max_connections": 0}},
        {"log": {"level": "verbose"}},
        {"identity": {"keys": [{"name": "a", "key": "secret"}]}},
        {"providers": [{"name": "a", "kind": "opnai"}]},
        {"providers": [{"name": "a", "keys": [{"name": "k"}]}]},
        {"providers": [{"name": "a", "zone": "cloud", "base_url": "ftp://x"}]},
        {"routes": [{"model": "a", "targets": []}]},
        {"routes": [{"model": "a", "targets": [{"deployment": "a", "model": "b"}]}]},
        {"deployments": [{"name": "a b", "model": "m"}]},
    ],
)
def test_the_json_schema_refuses_what_the_loader_refuses(data: dict[str, Any]) -> None:
    assert not jsonschema.Draft202012Validator(json_schema()).is_valid(data)
    with pytest.raises(SettingsError):
        from_mapping(data)


def test_the_json_schema_carries_help_defaults_and_units() -> None:
    server = json_schema()["$defs"]["Server"]["properties"]
    assert server["max_body"]["default"] == "20MiB"
    assert server["drain_timeout"]["default"] == "20s"
    assert server["listen"]["default"] == "127.0.0.1:8080"
    assert server["max_connections"]["unit"] == "connections"
    assert server["max_connections"]["description"].startswith("Most client connections")


def test_explain() -> None:
    assert explain("server.max_body") == (
        "server.max_body\n"
        "  Largest request body.\n"
        "  Form:     a size, e.g. 20MiB\n"
        "  Unit:     size (B, KiB, MiB, GiB, TiB)\n"
        "  Default:  20MiB\n"
        "  Allowed:  at least 1KiB, at most 1GiB\n"
        "  Change:   applied by a reload"
    )
    assert explain("routes[0].deadlines.idle") == explain("routes.deadlines.idle") == explain("routes[].deadlines.idle")
    section = explain("routes.targets")
    assert section is not None
    assert "A list; each entry has these keys:\n    deployment  Deployment that answers" in section
    assert "needs a restart" in (explain("data_dir") or "")
    assert explain("nothing.here") is None
    assert explain("") is None


@pytest.mark.parametrize(
    "text", ["\x85", "\u2028", "a\nb", " a ", "é", "😀", "no", "~", "1_000", "10:30", "\t", "'\"", "# x"]
)
def test_odd_text_survives_being_shown(text: str) -> None:
    target = {"provider": "p", "model": "m", "overrides": {"user": text}}
    data = {"providers": [{"name": "p", "zone": "cloud"}], "routes": [{"model": "m", "targets": [target]}]}
    assert parse(as_yaml(from_mapping(data))).data["routes"][0]["targets"][0]["overrides"] == {"user": text}


def test_what_show_prints_loads_to_the_same_settings(tmp_path: Path) -> None:
    for path in (None, EXAMPLE):
        settings = load(path, {}, machine=False).settings
        again = tmp_path / "again.yaml"
        again.write_text(as_yaml(settings), encoding="utf-8")
        assert load(again, {}, machine=False).settings == settings


@bounds(deadline=None, max_examples=40)
@given(
    timeout=st.floats(0.01, 3600).map(lambda value: round(value, 6)),
    body=st.integers(1 << 10, 1 << 30),
    name=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True),
    model=st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._:/@+-]{0,20}", fullmatch=True),
    port=st.integers(0, 65535),
    overrides=st.dictionaries(
        st.sampled_from(["temperature", "stop", "user"]),
        st.one_of(st.booleans(), st.integers(-(10**6), 10**6), st.text(max_size=8), st.lists(st.text(max_size=3))),
    ),
)
def test_any_settings_survive_being_shown(
    timeout: float, body: int, name: str, model: str, port: int, overrides: dict[str, Any]
) -> None:
    settings = from_mapping(
        {
            "server": {"listen": f"[::1]:{port}", "header_timeout": timeout, "max_body": body},
            "deployments": [{"name": name, "model": "m"}],
            "providers": [{"name": name, "zone": "cloud"}],
            "routes": [{"model": model, "targets": [{"provider": name, "model": model, "overrides": overrides}]}],
        }
    )
    document = parse(as_yaml(settings))
    assert document.findings == []
    assert from_mapping(document.data) == settings


ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False), st.text(max_size=5)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=5), inner, max_size=3)),
    max_leaves=6,
)


@bounds(deadline=None, max_examples=40)
@given(shape=st.sampled_from(list(root().walk())), value=ANY)
def test_a_wrong_value_anywhere_is_told_in_our_words(shape: Shape, value: Any) -> None:
    """Builds the mapping that leads to a key, puts any value there, and reads what is said about it."""
    data: Any = value
    for part in reversed(shape.key.split(".")):
        name = part.removesuffix("[]")
        data = {name: [data] if part.endswith("[]") else data}
    try:
        from_mapping(data)
    except SettingsError as error:
        for problem in error.problems:
            assert problem.key.startswith(shape.key.split(".")[0].split("[")[0])
            assert problem.message
            assert problem.cure
            assert problem.cure != "see `outpost config explain`", problem
            assert "Input should" not in problem.message
