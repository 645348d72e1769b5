"""Files with secrets that every user of the machine may read are told of, whatever they are for."""

from __future__ import annotations

from pathlib import Path

import pytest

from appliance.settings import from_mapping
from appliance.settings.machine import warn_machine
from appliance.settings.shape import dotted


@pytest.mark.parametrize(
    ("key", "wanted"), [("key", "records.export[0].key"), (None, "records.export[0].cert")], ids=["apart", "together"]
)
def test_passwords_and_keys(tmp_path: Path, key: str | None, wanted: str) -> None:
    files = {name: tmp_path / name for name in ("password", "cert", "key")}
    for file in files.values():
        file.write_text("x" * 30)
        file.chmod(0o644)
    exporter = {"name": "siem", "host": "siem.test", "cert": str(files["cert"])}
    settings = from_mapping(
        {
            "database": {"url": "postgresql://outpost@db.test/outpost", "password": {"file": str(files["password"])}},
            "records": {"export": [exporter if key is None else {**exporter, "key": str(files[key])}]},
        }
    )
    assert [dotted(found.path) for found in warn_machine(settings)] == ["database.password.file", wanted]
    for file in files.values():
        file.chmod(0o600)
    assert warn_machine(settings) == []
