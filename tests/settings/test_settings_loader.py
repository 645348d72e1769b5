"""From a file to settings: defaults, and every fault told with file, line, key and cure."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from appliance.settings import (
    Address,
    DeploymentTarget,
    ProviderTarget,
    SecretMissing,
    SecretRef,
    Settings,
    SettingsError,
    choose_file,
    from_mapping,
    load,
    resolve,
)

DATA = Path(__file__).parent / "data"
KEY = "k" * 24
Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_file(text: str) -> Path:
        path = tmp_path / "outpost.yaml"
        path.write_text(text, encoding="utf-8")
        return path

    return write_file


def problems(path: Path | None, env: dict[str, str] | None = None) -> list[str]:
    """Each problem as a user sees it, without the folder."""
    with pytest.raises(SettingsError) as caught:
        load(path, env or {})
    assert caught.value.status == 400
    return [str(problem).replace(f"{path.parent}/" if path else "", "") for problem in caught.value.problems]


def test_without_a_file_there_are_defaults() -> None:
    loaded = load(None, {})
    settings = loaded.settings
    assert (loaded.path, loaded.warnings) == (None, ())
    assert settings.server.listen == Address("127.0.0.1", 8080)
    assert settings.console.listen == Address("127.0.0.1", 8081)
    assert settings.server.max_body == 20 * 1024 * 1024
    assert settings.server.header_timeout == 10.0
    assert settings.data_dir == Path("outpost-data")
    assert [each.name for each in settings.deployments] == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert [route.model for route in settings.routes] == ["smollm2-135m-instruct", "all-minilm-l6-v2"]
    assert settings.routes[0].targets == (DeploymentTarget(deployment="smollm2-135m-instruct"),)
    assert settings.routes[0].deadlines.first_token == 60.0


@pytest.mark.parametrize("text", ["", "# nothing\n", "server:\nroutes:\ndeployments:\nlog: {}\ncatalogue:\n  paths:\n"])
def test_an_empty_file_and_empty_sections_are_the_defaults(write: Write, text: str) -> None:
    assert load(write(text), {}).settings == load(None, {}).settings


def test_settings_are_frozen_all_the_way_down() -> None:
    settings = Settings()
    for section, name in ((settings, "offline"), (settings.server, "max_body"), (settings.routes[0].deadlines, "idle")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(section, name, 1)
    assert isinstance(settings.routes, tuple)


def test_the_data_folder_can_come_from_the_environment_but_the_file_wins(write: Write) -> None:
    env = {"OUTPOST_DATA_DIR": "/var/lib/outpost"}
    assert load(None, env).settings.data_dir == Path("/var/lib/outpost")
    assert load(write("offline: off\n"), env).settings.data_dir == Path("/var/lib/outpost")
    assert load(write("data_dir: here\n"), env).settings.data_dir == Path("here")


def test_the_file_is_looked_for_in_order(tmp_path: Path) -> None:
    assert choose_file(None, {}, tmp_path) is None
    (tmp_path / "outpost.yaml").touch()
    assert choose_file(None, {}, tmp_path) == tmp_path / "outpost.yaml"
    assert choose_file(None, {"OUTPOST_CONFIG": "/x.yaml"}, tmp_path) == Path("/x.yaml")
    assert choose_file(Path("y.yaml"), {"OUTPOST_CONFIG": "/x.yaml"}, tmp_path) == Path("y.yaml")


def test_a_full_file_becomes_plain_values(write: Write) -> None:
    path = write(
        "server: {listen: '[::1]:0', max_body: 1MiB, drain_timeout: 0}\n"
        "offline: no\n"
        "deployments:\n"
        "  - &d {name: no, model: smollm2-135m-instruct, args: {context: 4_096}}\n"
        "  - {<<: *d, name: other}\n"
        "providers: [{name: lab, base_url: 'https://lab/v1/', zone: on_prem, api_key: {env: LAB_KEY}}]\n"
        "routes:\n"
        "  - model: chat\n"
        "    aliases: [gpt-4o-mini, 10:30]\n"
        "    targets:\n"
        "      - {deployment: no}\n"
        "      - {provider: lab, model: 4.10, overrides: {temperature: 0.2, stop: [no, 'x'], seed: 1}}\n"
        "    deadlines: {connect: 500ms, total: 1h30m}\n"
        "  - {model: b, targets: [{deployment: other}]}\n"
    )
    settings = load(path, {"LAB_KEY": "secret"}).settings
    assert settings.server.listen == Address("::1", 0)
    assert (settings.server.max_body, settings.server.drain_timeout) == (1 << 20, 0.0)
    assert settings.offline is False
    assert [(each.name, each.args.context) for each in settings.deployments] == [("no", 4096), ("other", 4096)]
    assert settings.providers[0].base_url == "https://lab/v1"
    chat = settings.routes[0]
    assert chat.aliases == ("gpt-4o-mini", "10:30")
    assert (chat.deadlines.connect, chat.deadlines.total, chat.deadlines.idle) == (0.5, 5400.0, 30.0)
    target = chat.targets[1]
    assert isinstance(target, ProviderTarget)
    assert target.model == "4.10"
    assert target.overrides == {"temperature": 0.2, "stop": ["no", "x"], "seed": 1}


def test_all_faults_are_told_at_once_in_the_order_of_the_file(write: Write) -> None:
    path = write(
        "server:\n"
        "  listen: 8080\n"
        "  max_bodies: 20MiB\n"
        "  max_body: 2GiB\n"
        "  tls: {cert: a.pem}\n"
        "loging: {}\n"
        "log: {level: verbose, access: maybe}\n"
        "deployments:\n"
        "  - name: a b\n"
        "  - {name: c, model: m, engine: llamacp, args: {slots: 0, threads: '2'}}\n"
        "providers: {}\n"
        "routes:\n"
        "  - {model: chat, model: chatty, targets: []}\n"
        "  - {model: x, targets: [{deployment: c, model: y}, {deployment: c, provider: d}, c, {}, {provider: d}]}\n"
        "listen: 1\n"
        "max_body:\n"
    )
    assert problems(path) == [
        "outpost.yaml:2: server.listen: '8080' has no host – write 127.0.0.1:8080, or 0.0.0.0:8080 for every interface",
        "outpost.yaml:3: server.max_bodies: unknown key – did you mean max_body?",
        "outpost.yaml:4: server.max_body: must be at most 1GiB – allowed is at least 1KiB, at most 1GiB",
        "outpost.yaml:5: server.tls.key: is required"
        " – add key: /etc/outpost/tls.key (PEM file with the certificate's key, not encrypted)",
        "outpost.yaml:6: loging: unknown key – did you mean log?",
        "outpost.yaml:7: log.level: expected one of debug, info, warning, error, found 'verbose' – write e.g. debug",
        "outpost.yaml:7: log.access: expected true or false, found 'maybe' – write true or false, e.g. true",
        "outpost.yaml:9: deployments[0].name: expected a name (letters, digits, '.', '_', '-'; at most 63), found 'a b'"
        " – write a name (letters, digits, '.', '_', '-'; at most 63), e.g. small",
        "outpost.yaml:9: deployments[0].model: is required"
        " – add model: smollm2-135m-instruct (Manifest in the catalogue (`outpost models list`))",
        "outpost.yaml:10: deployments[1].engine: expected one of llamacpp, found 'llamacp' – did you mean llamacpp?",
        "outpost.yaml:10: deployments[1].args.slots: must be at least 1 – allowed is at least 1, at most 256",
        "outpost.yaml:10: deployments[1].args.threads: expected a whole number, found the text '2' – remove the quotes",
        "outpost.yaml:11: providers: expected a list, found a mapping"
        " – start each entry with '- ' on a line of its own, or write [] for none",
        "outpost.yaml:13: routes[0].model: 'model' is written twice; the first is on line 13 – keep one of the two",
        "outpost.yaml:13: routes[0].targets: is empty"
        " – write at least one entry, e.g. [{deployment: small}, {provider: lab, model: llama-3.3-70b}]",
        "outpost.yaml:14: routes[1].targets[0].model: unknown key"
        " – it does not go together with the other keys here: remove it",
        "outpost.yaml:14: routes[1].targets[1]: a target is a deployment, a provider's model or a route, only one "
        "of them – write {deployment: NAME}, {provider: NAME, model: NAME} or {route: NAME}",
        "outpost.yaml:14: routes[1].targets[2]: expected a target, found 'c'"
        " – write {deployment: NAME}, {provider: NAME, model: NAME} or {route: NAME}",
        "outpost.yaml:14: routes[1].targets[3]: names neither a deployment nor a provider nor a route"
        " – write {deployment: NAME}, {provider: NAME, model: NAME} or {route: NAME}",
        "outpost.yaml:14: routes[1].targets[4].model: is required"
        " – add model: gpt-4o-mini (The provider's own name for the model)",
        "outpost.yaml:15: listen: unknown key – remove it; known at the top level: server, console, data_dir, offline,"
        " database, log, identity, catalogue, deployments, providers, routes, limits, prices, admission, records,"
        " telemetry",
        "outpost.yaml:16: max_body: unknown key – did you mean server.max_body? Otherwise remove it",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("- a\n", "outpost.yaml:1: the file holds no settings – write sections such as server: and routes:"),
        ("just text\n", "outpost.yaml:1: the file holds no settings – write sections such as server: and routes:"),
        ("server: 5\n", "outpost.yaml:1: server: expected a section (keys with values below it), found '5'"),
        ("server:\n  max_body:\n", "outpost.yaml:2: server.max_body: has no value – write a size, e.g. 20MiB, or"),
        ("routes:\n  -\n", "outpost.yaml:2: routes[0]: expected a section"),
        ("server: {drain_timeout: 10:30}\n", "outpost.yaml:1: server.drain_timeout: '10:30' is not a duration"),
        ("server: {drain_timeout: -1}\n", "outpost.yaml:1: server.drain_timeout: '-1' is not a duration"),
        ("server: {idle-timeout: 1}\n", "outpost.yaml:1: server.idle-timeout: unknown key"),
        ("console: {Listen: 'a:1'}\n", "outpost.yaml:1: console.Listen: unknown key – did you mean listen?"),
        (
            "catalogue: {paths: x}\n",
            "outpost.yaml:1: catalogue.paths: expected a list; each entry is a path, found 'x'",
        ),
        ("a: [\n", "outpost.yaml:2: not valid YAML"),
    ],
)
def test_one_fault_in_its_own_words(write: Write, text: str, expected: str) -> None:
    (problem,) = problems(write(text))
    assert problem.startswith(expected)


def test_a_file_of_another_kind_is_not_told_line_by_line(write: Write) -> None:
    found = problems(write("".join(f"key{index}: 1\n" for index in range(500))))
    assert len(found) == 101
    assert found[-1] == "outpost.yaml:101: key100: more than 100 faults up to here – correct the others first"


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    assert problems(tmp_path / "none.yaml") == [
        "none.yaml: cannot be read (no such file or directory) – correct the path or the permissions"
    ]
    (tmp_path / "folder").mkdir()
    assert "is a directory" in problems(tmp_path / "folder")[0]


def test_a_secret_in_the_file_is_refused_and_never_repeated(write: Write) -> None:
    path = write(
        "identity:\n"
        "  keys:\n"
        "    - {name: a, key: hunter2}\n"
        "    - {name: b, key: {env: hunter2-key}}\n"
        "    - {name: c, key: {value: hunter2}}\n"
        "    - {name: d, key: {env: A, file: b}}\n"
        "    - {name: e, key: [hunter2]}\n"
        "    - {name: f, key: }\n"
        "providers: [{name: p, zone: cloud, base_url: 'https://u:hunter2@h/v1', api_key: hunter2}]\n"
    )
    found = problems(path)
    assert [line.partition(" – ")[0] for line in found] == [
        "outpost.yaml:3: identity.keys[0].key: a secret is not written into the file, only where to find it",
        "outpost.yaml:4: identity.keys[1].key.env: expected the name of an environment variable",
        "outpost.yaml:5: identity.keys[2].key.value: unknown key",
        "outpost.yaml:6: identity.keys[3].key: needs either env or file",
        "outpost.yaml:7: identity.keys[4].key: a secret is not written into the file, only where to find it",
        "outpost.yaml:8: identity.keys[5].key: is required",
        "outpost.yaml:9: providers[0].base_url: credentials do not belong into the address",
        "outpost.yaml:9: providers[0].api_key: a secret is not written into the file, only where to find it",
    ]
    assert "hunter2" not in "".join(found)


def test_secrets_are_looked_up_when_the_file_is_checked(write: Write, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    (tmp_path / "short").write_text("hunter2\n")
    (tmp_path / "binary").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "good").write_text(f"  {KEY}\n")
    os.mkfifo(tmp_path / "pipe")
    rows = ["env: UNSET", "env: BLANK"]
    rows += [f"file: {tmp_path / name}" for name in ("none", "empty", "short", "binary", "pipe", "good")]
    rows += ["env: SAME"]
    text = "identity:\n  keys:\n"
    text += "".join(f"    - {{name: k{index}, key: {{{row}}}}}\n" for index, row in enumerate(rows))
    text += "providers: [{name: p, zone: cloud, api_key: {env: ODD}}]\n"
    found = problems(write(text), {"BLANK": " ", "SAME": KEY, "ODD": "hunter2\nhunter3"})
    assert [line.partition(": ")[2].partition(" – ")[0].replace(f"{tmp_path}/", "") for line in found] == [
        "identity.keys[0].key: the environment variable UNSET is not set",
        "identity.keys[1].key: the environment variable BLANK is empty",
        "identity.keys[2].key: the file none cannot be read (no such file or directory)",
        "identity.keys[3].key: the file empty is empty",
        "identity.keys[4].key: the file short holds no usable key",
        "identity.keys[5].key: the file binary is not text",
        "identity.keys[6].key: pipe is not a file",
        "identity.keys[8].key: is the same key as 'k7' has",
        "providers[0].api_key: the environment variable ODD holds a space, a line break"
        " or a character that is not ASCII",
    ]
    assert "hunter" not in "".join(found)
    assert KEY not in "".join(found)


def test_machine_checks_can_be_left_out(write: Write) -> None:
    path = write("server: {tls: {cert: none.pem, key: none.pem}}\nidentity: {keys: [{name: a, key: {env: UNSET}}]}\n")
    assert load(path, {}, machine=False).settings.identity.keys[0].key == SecretRef(env="UNSET")


def test_resolve_gives_the_text(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text("\ufeffabc\n", encoding="utf-8")
    assert resolve(SecretRef(file=path), {}) == "abc"
    assert resolve(SecretRef(env="X"), {"X": "def"}) == "def"
    path.write_bytes(b"x" * 20_000)
    with pytest.raises(SecretMissing, match="larger than a secret"):
        resolve(SecretRef(file=path), {})


def test_certificates_are_loaded_when_the_file_is_checked(write: Write, tmp_path: Path) -> None:
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    shutil.copy(DATA / "cert.pem", cert)
    path = write(f"server:\n  tls:\n    cert: {cert}\n    key: {key}\n")
    assert problems(path) == [
        "outpost.yaml:4: server.tls.key: key.pem cannot be read (no such file or directory)"
        " – create it, or correct the path"
    ]
    key.write_text("nonsense")
    assert problems(path)[0].startswith("outpost.yaml:2: server.tls: certificate and key cannot be used (")
    shutil.copy(DATA / "key.pem", key)
    key.chmod(0o600)
    loaded = load(path, {})
    assert loaded.warnings == ()
    assert loaded.settings.server.tls is not None
    key.chmod(0o644)
    (warning,) = load(path, {}).warnings
    assert (warning.line, warning.key, warning.cure) == (4, "server.tls.key", f"run chmod 600 {key}")


def test_catalogue_folders_must_exist(write: Write, tmp_path: Path) -> None:
    path = write(f"catalogue:\n  paths:\n    - {tmp_path}\n    - {tmp_path}/none\n")
    (problem,) = problems(path)
    assert problem.startswith("outpost.yaml:4: catalogue.paths[1]: ")


def test_settings_made_in_code_pass_the_same_checks() -> None:
    settings = from_mapping(
        {"server": {"listen": "127.0.0.1:0"}, "console": {"listen": "127.0.0.1:0"}, "deployments": []}
    )
    assert (settings.routes, settings.server.listen.port) == ((), 0)
    with pytest.raises(SettingsError, match=r"routes\[0\].targets\[0\].deployment: there is no deployment 'x'"):
        from_mapping({"routes": [{"model": "a", "targets": [{"deployment": "x"}]}]})
