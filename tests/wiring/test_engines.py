"""From declared deployments to replicas: what is started, and what its state means for a request."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest

from appliance import engines
from appliance.dialects.kinds import CHAT
from appliance.engines import nearest
from appliance.settings import from_mapping
from runtimes.catalogue import Catalogue
from runtimes.llamacpp.launch import LaunchSettings


@dataclass
class Seen:
    state: str
    reason: str = "because"


@pytest.mark.parametrize(
    ("states", "ready", "loading"),
    [
        (["ready"], True, False),
        (["failed", "ready"], True, False),
        (["starting"], False, True),
        (["failed", "warming"], False, True),
        (["failed", "quarantined"], False, False),
        (["stopped"], False, False),
        ([], False, False),
    ],
)
def test_readiness_is_that_of_the_most_hopeful_replica(states: list[str], ready: bool, loading: bool) -> None:
    found = engines.readiness("small", [Seen(state) for state in states])
    assert (found.ready, found.loading) == (ready, loading)
    assert ready or (found.reason and (found.retry_after_s or not states))


def test_the_engines_log_is_not_for_clients() -> None:
    found = engines.readiness("small", [Seen("failed", "exit status 1\nLast log lines:\nsecret path")])
    assert "exit status 1" in found.reason
    assert "secret" not in found.reason


def test_replicas_are_started_with_what_the_settings_and_the_manifest_say(catalogue: Catalogue, tmp_path: Path) -> None:
    settings = from_mapping({
        "deployments": [
            {"name": "small", "model": "smollm2-135m-instruct", "replicas": {"min": 2},
             "args": {"context": 512, "slots": 3, "threads": 1}},
            {"name": "vectors", "model": "all-minilm-l6-v2"},
        ]
    })  # fmt: skip
    files, findings = engines.resolve(settings.deployments, catalogue)
    assert findings == []
    specs = engines.specs(settings.deployments, files, tmp_path / "run", tmp_path / "logs")
    assert [spec.key for spec in specs] == [("small", 0), ("small", 1), ("vectors", 0)]
    assert len({spec.socket_path for spec in specs}) == len({spec.log_path for spec in specs}) == 3
    small = msgspec.json.decode(specs[0].argv[-1], type=LaunchSettings)
    assert (small.task, small.context, small.slots, small.threads) == ("generate", 512, 3, 1)
    assert small.default_system
    vectors = msgspec.json.decode(specs[2].argv[-1], type=LaunchSettings)
    assert (vectors.task, vectors.context) == ("embed", 512)


def test_capabilities_are_those_of_the_manifest(catalogue: Catalogue) -> None:
    chat = engines.capabilities(catalogue.get("smollm2-135m-instruct"), 512)
    assert chat.kinds == {"chat.completions", "completions"}
    assert {"tools", "json_schema", "json_object", "logprobs"} <= chat.features
    assert chat.context_length == 512
    embed = engines.capabilities(catalogue.get("all-minilm-l6-v2"), 512)
    assert embed.kinds == {"embeddings"}
    assert embed.dimensions == 384


def test_what_a_client_leaves_open_is_what_the_manifest_says(catalogue: Catalogue) -> None:
    chat = catalogue.get("smollm2-135m-instruct")
    assert engines.sampling_defaults(chat) == {"temperature": chat.defaults.temperature}
    both = chat.model_copy(update={"defaults": chat.defaults.model_copy(update={"temperature": 0.2, "top_p": 0.9})})
    assert engines.sampling_defaults(both) == {"temperature": 0.2, "top_p": 0.9}
    assert engines.sampling_defaults(catalogue.get("all-minilm-l6-v2")) == {}


def test_every_model_that_is_not_here_is_named_with_a_cure(tmp_path: Path) -> None:
    settings = from_mapping({
        "deployments": [
            {"name": "small", "model": "smollm2-135m-instruct"},
            {"name": "vectors", "model": "all-minilm-l6-v2"},
        ]
    })  # fmt: skip
    files, findings = engines.resolve(settings.deployments, Catalogue([], tmp_path / "empty"))
    assert files == {}
    assert [(each.path, each.message, each.cure) for each in findings] == [
        (
            ("deployments", 0, "model"),
            "smollm2-135m-instruct: is not imported (deployment small)",
            "import it: outpost models import smollm2-135m-instruct",
        ),
        (
            ("deployments", 1, "model"),
            "all-minilm-l6-v2: is not imported (deployment vectors)",
            "import it: outpost models import all-minilm-l6-v2",
        ),
    ]


def test_a_conversation_goes_to_the_replica_that_had_it_unless_that_is_busy() -> None:
    def chat(said: str, *more: str) -> Any:
        messages: list[dict[str, str]] = [{"role": "user", "content": said}]
        for each in more:
            messages += [{"role": "assistant", "content": "Yes."}, {"role": "user", "content": each}]
        return CHAT.parse(json.dumps({"model": "m", "messages": messages}).encode(), 64).request

    numbers, idle = [0, 1, 2, 3], [0, 0, 0, 0]
    places = {said: nearest(chat(said), "p")(numbers, idle) for said in map(str, range(40))}
    assert set(places.values()) == {0, 1, 2, 3}
    for said, place in places.items():
        assert nearest(chat(said, "And then?", "And?"), "p")(numbers, idle) == place
        busy = [3 if at == place else 0 for at in range(4)]
        assert nearest(chat(said), "p")(numbers, busy) != place
    # Nobody's prefix is of use to another tenant, so that all may be elsewhere.
    assert any(nearest(chat(said), "q")(numbers, idle) != place for said, place in places.items())
