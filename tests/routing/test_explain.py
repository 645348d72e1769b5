"""What a plan says for itself."""

from __future__ import annotations

import json

from appliance.commands.terminal import table
from appliance.routing.explain import Considered, Explanation, document, lines, rows

EXPLANATION = Explanation(
    "chat",
    "cost",
    (
        Considered("openai/gpt", "cloud", None, "it is off the premises, and the key ci keeps data on the premises"),
        Considered("large", "on_prem", 2, "expected to cost 0.003 USD", 3_000_000.0, pseudonymise=True),
        Considered("unknown", "on_box", 3, "nothing is known", float("inf")),
        Considered("small", "on_box", 1, "expected to cost 0 USD", 0.0),
    ),
    {
        "prompt_tokens": 120,
        "features": frozenset({"tools", "images"}),
        "complexity": 41,
        "parts": {"task": 30, "length": 11},
    },
    ("1 target is left out.",),
)


def test_the_document_is_json_in_the_order_in_which_targets_are_asked() -> None:
    written = json.loads(json.dumps(document(EXPLANATION), allow_nan=False))
    assert [target["target"] for target in written["considered"]] == ["small", "large", "unknown", "openai/gpt"]
    assert written["considered"][0] == {
        "target": "small",
        "zone": "on_box",
        "place": 1,
        "why": "expected to cost 0 USD",
        "score": 0.0,
    }
    assert written["considered"][1]["pseudonymise"] is True
    assert written["considered"][2]["score"] is None
    assert written["considered"][3]["place"] is None
    assert written["request"]["parts"] == {"task": 30, "length": 11}


def test_every_target_has_a_row() -> None:
    assert rows(EXPLANATION) == [
        ("1", "small", "on_box", "0", "expected to cost 0 USD"),
        ("2", "large", "on_prem", "3e+06", "expected to cost 0.003 USD; pseudonymised"),
        ("3", "unknown", "on_box", "inf", "nothing is known"),
        ("-", "openai/gpt", "cloud", "", "it is off the premises, and the key ci keeps data on the premises"),
    ]


def test_the_lines_are_for_people() -> None:
    shown = lines(EXPLANATION, table)
    assert shown[0] == "Route chat, strategy cost"
    assert "features       images, tools" in shown
    assert "parts          task 30, length 11" in shown
    assert any(line.startswith("#  TARGET") for line in shown)
    assert shown[-1] == "1 target is left out."


def test_an_explanation_without_facts_has_no_table_of_them() -> None:
    assert lines(Explanation("chat", "priority", ()), table)[:2] == ["Route chat, strategy priority", ""]
    assert document(Explanation("chat", "priority", ())) == {"route": "chat", "strategy": "priority", "considered": []}
