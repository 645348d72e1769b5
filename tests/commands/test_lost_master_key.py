"""`outpost keys` where secrets/master.key is lost: what is told, what still works, and the way to go on."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner, Result

from appliance.commands import keys
from appliance.identity.secret import secret_path
from tests.commands.test_people_commands import Served


def run(folder: Path, *words: str, answer: str | None = None) -> Result:
    return CliRunner().invoke(keys.app, [*words, "--data-dir", str(folder)], input=answer)


def test_the_way_to_go_on_without_it(tmp_path: Path) -> None:
    for name in ("one", "two", "three"):
        assert run(tmp_path, "create", name, "--new").exit_code == 0
    path = secret_path(tmp_path)
    path.unlink()
    refused = run(tmp_path, "create", "four")
    assert refused.exit_code == 1
    assert f"{path} is missing, though the database has what was made with it: 3 keys. Restore it" in refused.stderr
    assert run(tmp_path, "list").exit_code == 0
    assert run(tmp_path, "revoke", "three").exit_code == 0
    assert not path.exists()

    kept = run(tmp_path, "revoke-lost", answer="n\n")
    assert kept.exit_code == 1
    assert not path.exists()
    done = run(tmp_path, "revoke-lost", answer="y\n")
    assert done.exit_code == 0, done.output
    assert "Keys revoked: 2. Texts erased: 0." in done.stdout
    assert path.exists()
    assert run(tmp_path, "create", "one").exit_code == 0
    (nothing,) = json.loads(run(tmp_path, "revoke-lost", "--yes", "--json").stdout)["data"]
    assert nothing == {"keys": [], "subjects": 0, "contents": 0}
    states = [line.rsplit("  ", 1)[-1].split()[0] for line in run(tmp_path, "list").stdout.splitlines()[1:]]
    assert states == ["revoked", "revoked", "revoked", "valid"]


def test_not_beside_a_gateway_nor_where_there_is_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    refused = run(empty, "revoke-lost", "--yes")
    assert (refused.exit_code, "no gateway's data" in refused.stderr) == (1, True)
    assert list(empty.iterdir()) == []
    box = tmp_path / "box"
    box.mkdir()
    with Served(box):
        refused = run(box, "revoke-lost", "--yes")
        assert (refused.exit_code, "a gateway is running" in refused.stderr) == (1, True)
