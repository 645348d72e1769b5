"""What must hold between keys, and what a reload changes."""

from __future__ import annotations

from typing import Any

import pytest

from appliance.settings import (
    ModelFacts,
    Settings,
    SettingsError,
    check_against_catalogue,
    diff,
    from_mapping,
    keep_fixed,
    load,
)
from appliance.settings.checks import check, warn
from appliance.settings.shape import dotted, leaves, root

A = {"name": "a", "model": "m"}
B = {"name": "b", "model": "n"}
LAB = {"name": "lab", "base_url": "http://127.0.0.1:1/v1", "zone": "on_box"}
LAB_X = {"provider": "lab", "model": "x"}


def route(model: str, *targets: dict[str, Any], aliases: tuple[str, ...] = ()) -> dict[str, Any]:
    return {"model": model, "targets": list(targets or ({"deployment": "a"},)), "aliases": list(aliases)}


def build(**keys: Any) -> Settings:
    return Settings.model_validate({"deployments": [A], **keys})


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, []),
        ({"console": {"listen": "127.0.0.1:8080"}}, ["console.listen: 127.0.0.1:8080 and server.listen"]),
        ({"console": {"listen": "localhost:8080"}}, ["console.listen: localhost:8080 and server.listen"]),
        ({"console": {"listen": "0.0.0.0:8080"}}, ["console.listen: 0.0.0.0:8080 and server.listen"]),
        ({"console": {"listen": "[::]:8080"}}, []),
        ({"console": {"listen": "127.0.0.2:8080"}}, []),
        ({"console": {"listen": "127.0.0.1:0"}, "server": {"listen": "127.0.0.1:0"}}, []),
        ({"deployments": [A, A], "routes": []}, ["deployments[1].name: there are two of the deployment 'a'"]),
        ({"providers": [LAB, LAB]}, ["providers[1].name: there are two of the provider 'lab'"]),
        (
            {"identity": {"keys": [{"name": "k", "key": {"env": "A"}}, {"name": "k", "key": {"env": "B"}}]}},
            ["identity.keys[1].name: there are two of the key 'k'"],
        ),
        ({"deployments": [A, A]}, ["deployments[1].name: there are two", "routes[1].model: 'a' already stands"]),
        ({"routes": [route("x"), route("x")]}, ["routes[1].model: 'x' already stands for the route 'x'"]),
        (
            {"routes": [route("x", aliases=("y",)), route("z", aliases=("y", "x", "w"))]},
            ["routes[1].aliases[0]: 'y' already stands", "routes[1].aliases[1]: 'x' already stands"],
        ),
        ({"routes": [route("x", aliases=("x",))]}, ["routes[0].aliases[0]: 'x' already stands"]),
        (
            {"routes": [route("x", {"deployment": "aa"})]},
            ["routes[0].targets[0].deployment: there is no deployment 'aa'"],
        ),
        (
            {"routes": [route("x", {"deployment": "lab"})], "providers": [LAB]},
            ["routes[0].targets[0].deployment: 'lab' is"],
        ),
        (
            {"routes": [route("x", {"provider": "a", "model": "x"})]},
            ["routes[0].targets[0].provider: 'a' is a deployment"],
        ),
        (
            {"routes": [route("x", {"deployment": "a"}, {"deployment": "a"})]},
            ["routes[0].targets[1]: a is listed twice"],
        ),
        ({"routes": [route("x", LAB_X, LAB_X)], "providers": [LAB]}, []),
        (
            {"routes": [route("x", {**LAB_X, "overrides": {"model": "y", "top_p": 1, "n": 2}})], "providers": [LAB]},
            [
                "routes[0].targets[0].overrides.model: cannot be overridden",
                "routes[0].targets[0].overrides.n: cannot be overridden",
            ],
        ),
        ({"providers": [{"name": "c", "zone": "cloud"}]}, []),
        ({"providers": [{"name": "c", "zone": "cloud"}], "offline": True}, ["providers[0].zone: c is in a cloud"]),
        ({"providers": [LAB], "offline": True}, []),
        ({"data_dir": "/a?b"}, ["data_dir: holds a '?'"]),
        ({"providers": [{"name": "c", "zone": "on_prem"}]}, ["providers[0].zone: c is said to be on_prem"]),
    ],
)
def test_faults_between_keys(keys: dict[str, Any], expected: list[str]) -> None:
    found = check(build(**keys))
    assert len(found) == len(expected), found
    for finding, start in zip(found, expected, strict=True):
        assert f"{dotted(finding.path)}: {finding.message}".startswith(start)
        assert finding.cure


def test_the_cure_names_what_was_probably_meant() -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"deployments": [{"name": "small", "model": "m"}], "routes": [route("x", {"deployment": "smal"})]})
    assert [problem.cure for problem in caught.value.problems] == [
        "did you mean small? Otherwise add it to deployments"
    ]


@pytest.mark.parametrize(
    ("keys", "expected"),
    [
        ({}, []),
        ({"server": {"listen": "0.0.0.0:8080"}}, ["keys and texts cross the network unencrypted"]),
        ({"server": {"listen": "[::1]:8080"}, "console": {"listen": "localhost:1"}}, []),
        ({"console": {"listen": "10.0.0.1:8081"}}, ["the operator API is reachable from other machines"]),
        ({"routes": []}, ["no route uses the deployment a", "there is no route"]),
        ({"providers": [{**LAB, "api_key": {"env": "K"}}]}, []),
        (
            {"providers": [{**LAB, "base_url": "http://lab/v1", "api_key": {"env": "K"}}]},
            ["the key of lab crosses the network unencrypted"],
        ),
    ],
)
def test_warnings(keys: dict[str, Any], expected: list[str]) -> None:
    found = warn(build(**keys))
    assert len(found) == len(expected), found
    assert all(finding.message.startswith(start) for finding, start in zip(found, expected, strict=True))


@pytest.mark.parametrize(
    ("deadlines", "longer"),
    [
        ({}, []),
        ({"total": "1s"}, []),
        ({"total": "1m", "first_token": "1m"}, []),
        ({"first_token": "11m"}, ["first_token"]),
        (
            {"total": "1m", "connect": "2m", "first_token": "2m", "idle": "2m", "whole": "2m"},
            ["connect", "first_token", "idle", "whole"],
        ),
    ],
)
def test_deadlines_that_never_count_are_pointed_out(deadlines: dict[str, str], longer: list[str]) -> None:
    found = warn(build(routes=[{**route("a"), "deadlines": deadlines}]))
    assert [dotted(finding.path) for finding in found] == [f"routes[0].deadlines.{name}" for name in longer]
    assert all(finding.message.endswith("it never counts") for finding in found)


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"capability": ["images", "tools"]}, []),
        (
            {"capability": ["tools", "imagez"]},
            ["capability[1]: no request uses 'imagez': it never holds – did you mean i"],
        ),
        ({"capability": ["x"]}, ["capability[0]: no request uses 'x': it never holds – use one of tools, images, "]),
    ],
)
def test_conditions_of_what_no_request_uses_are_refused(when: dict[str, Any], expected: list[str]) -> None:
    target = {"deployment": "a", "when": when}
    found = check(build(routes=[route("x", target, {"deployment": "a", "overrides": {"seed": 1}})]))
    told = [f"{dotted(finding.path)}: {finding.message} – {finding.cure}" for finding in found]
    told = [text.removeprefix("routes[0].targets[0].when.") for text in told if ".when." in text]
    assert len(told) == len(expected), told
    assert all(text.startswith(start) for text, start in zip(told, expected, strict=True))


@pytest.mark.parametrize(
    ("when", "expected"),
    [
        ({"zones": ["on_premm"]}, "expected one of on_box, on_prem, cloud, found 'on_premm' – did you mean on_prem?"),
        ({"zones": ["mars"]}, "expected one of on_box, on_prem, cloud, found 'mars' – write e.g. on_box"),
        (
            {"weekdays": ["mond"]},
            "expected one of mon, tue, wed, thu, fri, sat, sun, found 'mond' – did you mean mon?",
        ),
    ],
)
def test_words_in_lists_are_told_like_words(when: dict[str, Any], expected: str) -> None:
    with pytest.raises(SettingsError) as caught:
        from_mapping({"deployments": [A], "routes": [route("x", {"deployment": "a", "when": when})]})
    [problem] = caught.value.problems
    assert f"{problem.message} – {problem.cure}" == expected
    assert problem.key == f"routes[0].targets[0].when.{next(iter(when))}[0]"


def test_default_deployments_beside_own_routes_are_pointed_out() -> None:
    found = warn(Settings.model_validate({"providers": [LAB], "routes": [route("x", LAB_X)]}))
    assert [finding.cure for finding in found] == [
        "it is there by default: add it to a route, or write deployments: []"
    ] * 2


def test_the_catalogue_knows_what_models_can_do(tmp_path: Any) -> None:
    path = tmp_path / "o.yaml"
    path.write_text(
        "deployments:\n"
        "  - {name: a, model: chatty}\n"
        "  - {name: b, model: vectors}\n"
        "  - {name: c, model: chaty}\n"
        "  - name: d\n"
        "    model: chatty\n"
        "    args: {slots: 1,\n"
        "           context: 4097}\n"
        "  - {name: e, model: chatty, args: {context: 4096}}\n"
        "routes:\n"
        "  - model: mixed\n"
        "    targets:\n"
        "      - {deployment: a}\n"
        "      - {deployment: b}\n"
        "      - {deployment: c}\n"
        "  - {model: fine, targets: [{deployment: a}]}\n"
    )
    loaded = load(path, {})
    models = {"chatty": ModelFacts("generate", 4096), "vectors": ModelFacts("embed", 512)}
    found = loaded.locate(check_against_catalogue(loaded.settings, models))
    assert [(each.line, each.key, each.message, each.cure) for each in found] == [
        (
            4, "deployments[2].model", "the catalogue has no model 'chaty' (deployment c)",
            "did you mean chatty? Otherwise see `outpost models list`, or import the model",
        ),
        (
            8, "deployments[3].args.context",
            "4097 tokens are more than the 4096 that chatty was made for (deployment d)", "write 4096 or less",
        ),
        (
            14, "routes[0].targets[1]", "b can only make embeddings, but a in this route can write text",
            "make two routes, one for each",
        ),
    ]  # fmt: skip
    assert check_against_catalogue(build(), {"m": ModelFacts("generate", 4096)}) == []


def test_equal_settings_have_no_changes() -> None:
    one = build(routes=[route("x")], server={"drain_timeout": "60s"})
    other = build(routes=[route("x")], server={"drain_timeout": "1m"})
    changes = diff(one, other)
    assert not changes
    assert (changes.live, changes.restart) == ((), ())


def test_a_reload_knows_what_it_can_apply() -> None:
    old = build(server={"max_body": 5000}, providers=[LAB], routes=[route("x"), route("y")])
    new = build(
        server={"listen": "127.0.0.1:1", "max_body": 6000, "tls": {"cert": "c", "key": "k"}},
        console={"listen": "127.0.0.1:2"},
        data_dir="/elsewhere",
        database={"url": "sqlite+aiosqlite:///x.db"},
        log={"level": "debug"},
        deployments=[{**A, "args": {"slots": 2}}, B],
        routes=[route("y"), route("z")],
    )
    changes = diff(old, new)
    assert changes
    assert changes.sections == (
        "server", "console", "data_dir", "database", "log", "deployments", "providers", "routes",
    )  # fmt: skip
    assert changes.live == ("server", "log", "deployments", "providers", "routes")
    assert changes.restart == ("server.listen", "server.tls", "console.listen", "data_dir", "database.url")
    assert (changes.deployments.added, changes.deployments.removed, changes.deployments.changed) == (("b",), (), ("a",))
    assert (changes.providers.added, changes.providers.removed) == ((), ("lab",))
    assert (changes.routes.added, changes.routes.removed, changes.routes.changed) == (("z",), ("x",), ())

    applied = keep_fixed(old, new)
    assert applied.server.max_body == 6000
    assert applied.log.level == "debug"
    assert (applied.server.listen, applied.server.tls) == (old.server.listen, None)
    assert (applied.data_dir, applied.database, applied.console) == (old.data_dir, old.database, old.console)
    assert diff(old, applied).restart == ()
    assert diff(applied, new).live == ()


def test_exactly_these_keys_need_a_restart() -> None:
    assert next(shape for shape in root().walk() if shape.key == "database.password").restart
    assert {shape.key for shape in leaves() if shape.restart} == {
        "server.listen", "server.tls.cert", "server.tls.key", "console.listen", "data_dir", "database.url",
        "database.backup", "log.format", "identity.client_ca",
        "telemetry.metrics.open",
        *(shape.key for shape in leaves() if shape.key.startswith("telemetry.otlp.")),
    }  # fmt: skip
