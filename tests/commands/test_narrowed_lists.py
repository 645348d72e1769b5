"""`keys list`, `users list` and the like, narrowed by id or name, without a gateway and through one."""

from __future__ import annotations

from pathlib import Path

from tests.commands.test_people_commands import Served, data, run


def listed(folder: Path) -> None:
    """The same in both ways; what there is is made here."""
    at = ("--json", "--data-dir", folder)
    (team,) = data(run("teams", "create", "research", *at))
    (user,) = data(run("users", "create", "Ann", *at))
    data(run("teams", "add", "research", "Ann", *at))
    data(run("keys", "create", "lone", "--team", "research", *at))
    data(run("keys", "create", "anns", "--team", "research", "--user", "Ann", *at))
    for option, id, name, count in (("--team", team["id"], "research", 2), ("--user", user["id"], "Ann", 1)):
        found = data(run("keys", "list", option, name, *at))
        assert found == data(run("keys", "list", option, id, *at))
        assert len(found) == count
    for words in (("keys", "--team", "nope"), ("keys", "--user", ""), ("users", "--organization", "nope")):
        refused = run(words[0], "list", *words[1:], "--data-dir", folder)
        assert refused.exit_code == 1
        assert refused.stdout == ""
        assert f"{words[1].removeprefix('--')}: there is no " in refused.stderr
    data(run("teams", "create", "idle", *at))
    nothing = run("keys", "list", "--team", "idle", "--data-dir", folder)
    assert (nothing.exit_code, nothing.stdout) == (0, "")
    assert nothing.stderr.startswith("There are no such keys in ")
    data(run("organizations", "create", "empty", *at))
    nothing = run("users", "list", "--organization", "empty", "--data-dir", folder)
    assert nothing.stderr.startswith("There are no such users in ")
    heading, *lines = run("keys", "list", "--data-dir", folder).stdout.splitlines()
    assert heading.split() == ["ID", "NAME", "ROLE", "KEY", "ORGANIZATION", "OF", "TEAM", "CREATED", "STATE"]
    (line,) = [line for line in lines if " anns " in line]
    assert line.split()[5:7] == [user["id"], team["id"]]
    (line,) = [line for line in lines if " lone " in line]
    assert line[heading.index(" OF ") :].split()[0] == team["id"]


def test_in_the_database(tmp_path: Path) -> None:
    assert run("teams", "create", "first", "--new", "--data-dir", tmp_path).exit_code == 0
    listed(tmp_path)


def test_through_a_gateway(tmp_path: Path) -> None:
    with Served(tmp_path):
        listed(tmp_path)


def test_a_key_of_the_settings_is_among_those_of_its_team(tmp_path: Path) -> None:
    config = tmp_path / "outpost.yaml"
    key = "{name: ci, key: {env: NOT_SET_HERE}, team: research, addresses: [10.0.0.0/8], priority: batch}"
    config.write_text(f"data_dir: {tmp_path / 'data'}\nidentity: {{keys: [{key}]}}\n")
    at = ("--json", "--config", config)
    (shown,) = data(run("keys", "list", *at))
    assert (shown["team"], shown["restrictions"]) == ("research", {"addresses": ["10.0.0.0/8"], "priority": "batch"})
    refused = run("keys", "list", "--team", "research", *at)
    assert (refused.exit_code, "there is no gateway's data" in refused.stderr) == (1, True)
    (team,) = data(run("teams", "create", "research", "--new", *at))
    (shown,) = data(run("keys", "list", "--team", "research", *at))
    assert (shown["name"], shown["team"], shown["organization"]) == ("ci", team["id"], "org_default")
