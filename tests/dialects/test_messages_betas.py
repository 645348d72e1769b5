"""The header anthropic-beta: what of it goes out to which target, and the fields of the body that go with it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from appliance.dialects.messages import betas as b
from appliance.dialects.messages.canonical import needs
from appliance.dialects.messages.carry import native_ask
from appliance.dialects.messages.request import parse
from appliance.errors import BadRequest
from appliance.providers.catalogue import row

USER = {"role": "user", "content": "Hi"}
ROW = b.Betas(row("anthropic").betas)
EVERY = b.Betas(["*"])
INTERLEAVED = "interleaved-thinking-2025-05-14"
CONTEXT = "context-management-2025-06-27"
CLAUDE_CODE = f"claude-code-20250219,{INTERLEAVED},{CONTEXT},prompt-caching-scope-2026-01-05,effort-2025-11-24"
CLEAR = {"type": "clear_tool_uses_20250919", "keep": {"type": "tool_uses", "value": 3}}
THOUGHTS = {"type": "clear_thinking_20251015", "keep": "all"}


def asked(header: str | None = None, **fields: Any) -> Any:
    return parse(json.dumps({"model": "m", "max_tokens": 4096, "messages": [USER], **fields}).encode(), 64, header)


def sent(allowed: b.Betas, header: str | None = None, **fields: Any) -> tuple[str | None, dict[str, Any]]:
    """The header that goes out, and the body."""
    ask = native_ask(asked(header, **fields).native, "up", allowed)
    assert set(ask.headers) <= {"anthropic-beta"}
    return ask.headers.get("anthropic-beta"), json.loads(ask.body)


def needed(header: str | None = None, **fields: Any) -> list[tuple[str, str, bool]]:
    return list(needs(asked(header, **fields)))


def test_a_bundle_goes_out_as_far_as_the_target_may_have_it() -> None:
    found, body = sent(ROW, CLAUDE_CODE)
    assert found == f"claude-code-20250219,{INTERLEAVED},{CONTEXT},effort-2025-11-24"
    assert body == {"model": "up", "max_tokens": 4096, "messages": [USER]}
    assert ROW.without(asked(CLAUDE_CODE).native.betas) == ["prompt-caching-scope-2026-01-05"]
    assert sent(b.NONE, CLAUDE_CODE) == (None, body)
    assert sent(ROW) == (None, body)


@pytest.mark.parametrize(
    "name",
    [
        "mcp-client-2025-11-20",
        "mcp-tunnels-2026-06-22",
        "files-api-2025-04-14",
        "skills-2025-10-02",
        "code-execution-2025-08-25",
        "agent-memory-2026-07-22",
        "message-threads-2026-08-12",
        "server-side-fallback-2026-07-01",
        "advisor-tool-2026-03-01",
        "fast-mode-2026-02-01",
        "compact-2026-01-12",
        "user-profiles-2026-09-04",
        "something-new-2027-01-01",
    ],
)
def test_what_reaches_out_or_keeps_something_goes_nowhere_by_itself(name: str) -> None:
    assert sent(ROW, name)[0] is None
    assert sent(b.Betas(b.patterns(row("anthropic").betas, [b.DEFAULT, f"{name[:-10]}*"])), name)[0] == name


@pytest.mark.parametrize(
    ("given", "found"),
    [(None, ("a-*", "b-*")), ([], ()), (["c-*"], ("c-*",)), (["default", "c-*", "a-*"], ("a-*", "b-*", "c-*"))],
)
def test_the_settings_widen_the_rows_patterns_or_replace_them(given: Any, found: tuple[str, ...]) -> None:
    assert b.patterns(("a-*", "b-*"), given) == found


def test_what_the_operator_always_sends_stays() -> None:
    allowed = b.Betas(["a-*"], "own-1, a-1")
    assert sent(allowed, "a-2,x-1,a-1")[0] == "own-1,a-1,a-2"
    assert sent(allowed)[0] == "own-1,a-1"


@pytest.mark.parametrize("header", ["a b", "a\tb", "é", "-a", "a-", "a;b", "x" * 129, ",,", " ", ""])
def test_what_no_beta_can_be_called_does_not_go_out(header: str) -> None:
    assert sent(EVERY, header)[0] is None


@given(st.text(max_size=300))
def test_no_header_breaks_the_one_that_goes_out(header: str) -> None:
    found = EVERY.header(b.read(header))
    assert found == "" or all(part and part.isascii() and part.isprintable() for part in found.split(","))
    assert len(b.read(header)) == len(set(b.read(header)))


def test_a_bundle_without_end_is_cut() -> None:
    assert len(b.read(",".join(f"a-{i}" for i in range(1000)))) == 64


# --- the body ---------------------------------------------------------------------------------------


def test_edits_of_the_conversation_pass_to_who_takes_them() -> None:
    thinking = {"type": "adaptive"}
    fields: dict[str, Any] = {"context_management": {"edits": [THOUGHTS, CLEAR]}, "thinking": thinking}
    assert sent(ROW, CONTEXT, **fields)[1]["context_management"] == {"edits": [THOUGHTS, CLEAR]}
    assert "context_management" not in sent(b.NONE, CONTEXT, **fields)[1]
    path = "context_management.edits[1].type"
    assert ("context_management", path, True) in needed(CONTEXT, **fields)
    assert "context_management" in ROW.features


def test_what_the_body_asks_for_is_asked_for_in_the_header() -> None:
    fields: dict[str, Any] = {
        "context_management": {"edits": [CLEAR]},
        "output_config": {"task_budget": {"type": "tokens", "total": 1}},
    }
    assert sent(ROW, **fields)[0] == f"task-budgets-2026-03-13,{CONTEXT}"
    assert sent(ROW, "context-management-2027-01-01", **fields)[0] == (
        "context-management-2027-01-01,task-budgets-2026-03-13"
    )


@pytest.mark.parametrize("thinking", [None, {"type": "disabled"}, {"type": "between_tools"}])
def test_thoughts_are_managed_only_where_there_are_any(thinking: Any) -> None:
    fields: dict[str, Any] = {"thinking": thinking} if thinking else {}
    header, body = sent(ROW, context_management={"edits": [THOUGHTS]}, **fields)
    assert (header, "context_management" in body) == (None, False)
    _, body = sent(ROW, context_management={"edits": [THOUGHTS, CLEAR]}, **fields)
    assert body["context_management"] == {"edits": [CLEAR]}


def test_a_budget_for_a_task_passes_to_who_knows_it() -> None:
    budget = {"type": "tokens", "total": 50_000}
    fields: dict[str, Any] = {"output_config": {"effort": "low", "task_budget": budget}}
    assert sent(ROW, **fields)[1]["output_config"] == fields["output_config"]
    assert sent(b.NONE, **fields)[1]["output_config"] == {"effort": "low"}
    assert "output_config" not in sent(b.NONE, output_config={"task_budget": budget})[1]
    assert ("task_budget", "output_config.task_budget", True) in needed(**fields)


SERVERS = [{"type": "url", "url": "https://mcp.example.com", "name": "there"}]


def test_servers_and_containers_are_for_who_may_have_them() -> None:
    toolset = {"type": "mcp_toolset", "mcp_server_name": "there"}
    fields: dict[str, Any] = {
        "mcp_servers": SERVERS,
        "container": {"id": "c"},
        "tools": [toolset, {**toolset, "mcp_server_name": "b"}],
    }
    assert ("mcp_servers", "mcp_servers", False) in needed(**fields)
    assert ("container", "container", False) in needed(**fields)
    assert not ROW.features & {"mcp_servers", "container"}
    allowed = b.Betas(["mcp-client-*", "skills-*"])
    assert allowed.features == {"mcp_servers", "container"}
    header, body = sent(allowed, "mcp-client-2025-11-20", **fields)
    assert header == "mcp-client-2025-11-20"
    assert {name: body[name] for name in fields} == fields


def test_calls_of_such_servers_come_back() -> None:
    turn = [
        {"type": "mcp_tool_use", "id": "m1", "name": "echo", "server_name": "there", "input": {"a": 1}},
        {"type": "mcp_tool_result", "tool_use_id": "m1", "is_error": False, "content": [{"type": "text", "text": "1"}]},
    ]
    messages = [USER, {"role": "assistant", "content": turn}, USER]
    assert sent(EVERY, messages=messages)[1]["messages"] == messages
    assert ("anthropic_content", "messages[1].content[0].type", False) in needed(messages=messages)


# --- budgets for thinking ----------------------------------------------------------------------------


def test_a_budget_may_exceed_one_answer_only_between_calls() -> None:
    thinking = {"type": "enabled", "budget_tokens": 8192}
    for header in (None, CONTEXT):
        with pytest.raises(BadRequest) as caught:
            asked(header, thinking=thinking)
        assert caught.value.param == "thinking.budget_tokens"
        assert caught.value.message.startswith("thinking.budget_tokens must be less than max_tokens")
    assert sent(ROW, INTERLEAVED, thinking=thinking)[1]["thinking"] == thinking
    # A target that may not be asked for it gets one that goes with the answer.
    assert sent(b.NONE, INTERLEAVED, thinking=thinking)[1]["thinking"] == {**thinking, "budget_tokens": 3072}
    assert sent(ROW, thinking=thinking, max_tokens=8193)[1]["thinking"] == thinking
