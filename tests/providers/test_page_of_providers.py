"""docs/providers.md says what the rows do."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from appliance.dialects.kinds import CHAT
from appliance.errors import UnsupportedParameter
from appliance.providers.catalogue import kinds, row
from appliance.providers.kinds import KEPT
from appliance.providers.upstream import Capabilities
from appliance.routing.fit import fit
from appliance.settings import load

PAGE = Path(__file__).parents[2] / "docs" / "providers.md"
WORDS = {
    "openai": "OpenAI chat",
    "anthropic": "Anthropic Messages",
    "gemini": "Gemini",
    "bedrock": "Bedrock Converse",
    "cohere": "Cohere v2",
}


def test_the_table_of_kinds() -> None:
    lines = PAGE.read_text(encoding="utf-8").splitlines()
    begin = lines.index("| kind | who it is | speaks | needs beside its key |") + 2
    shown = {}
    for line in lines[begin : begin + len(kinds())]:
        _, kind, title, speaks, needs, _ = (cell.strip() for cell in line.split("|"))
        shown[kind.strip("`")] = (title, speaks)
        found = row(kind.strip("`"))
        for name in found.options:
            assert f"`{name}`" in needs or name == "api_version"
    assert shown == {kind: (row(kind).title, WORDS[row(kind).dialect]) for kind in kinds()}


def test_its_settings_load(tmp_path: Path) -> None:
    text = PAGE.read_text(encoding="utf-8").split("```yaml\n")[1].split("```")[0]
    path = tmp_path / "outpost.yaml"
    path.write_text(yaml.safe_dump({"deployments": [], **yaml.safe_load(text)}), encoding="utf-8")
    assert len(load(path, {}, machine=False).settings.providers) == 3


def test_fields_that_a_kind_has_no_notion_for_are_dropped_where_the_route_says_so() -> None:
    found = row("deepseek")
    able = Capabilities(found.operations, found.facts("x").features, found.quirks.refuse - KEPT)
    body = b'{"model":"m","messages":[{"role":"user","content":"x"}],"seed":0,"n":2,"temperature":0}'
    asked = CHAT.parse(body, 64)
    kept = fit(asked, CHAT, able, drop=False, model="m")
    assert (kept.seed, kept.n) == (0, 2)  # type: ignore[union-attr]
    dropped = fit(asked, CHAT, able, drop=True, model="m")
    assert (dropped.seed, dropped.n, dropped.temperature) == (None, 2, 0)  # type: ignore[union-attr]
    with pytest.raises(UnsupportedParameter):
        # Who does not drop them leaves the refusal to the dialect.
        from appliance.dialects.openai_outbound import OpenAIOutbound

        OpenAIOutbound(found.quirks).ask(kept, "x", stream=False)
