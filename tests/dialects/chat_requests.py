"""Chat requests to translate: hand-written ones, and all kinds for property tests."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import strategies as st

from appliance.dialects import chat

PIXEL = "iVBORw0KGgo="
USER: dict[str, Any] = {"role": "user", "content": "Hi"}
WEATHER: dict[str, Any] = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a place.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CLOCK: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}


def asked(messages: list[dict[str, Any]] | None = None, **fields: Any) -> chat.ChatRequest:
    return chat.parse(json.dumps({"model": "m", "messages": messages or [USER], **fields}).encode())


_text = st.text(st.characters(codec="utf-8", exclude_characters="\x00"), min_size=1, max_size=20)
_arguments = st.dictionaries(_text, st.none() | st.booleans() | st.integers() | _text, max_size=3).map(json.dumps)
_user: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {
        "role": st.just("user"),
        "content": _text
        | st.lists(
            st.fixed_dictionaries({"type": st.just("text"), "text": _text})
            | st.just({"type": "image_url", "image_url": {"url": f"data:image/png;base64,{PIXEL}"}}),
            min_size=1,
            max_size=3,
        ),
    }
)
_system: st.SearchStrategy[dict[str, Any]] = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer"]), "content": _text}
)


@st.composite
def _exchange(draw: st.DrawFn, at: int) -> list[dict[str, Any]]:
    """A question with its answer, with calls and their results or without."""
    messages: list[dict[str, Any]] = [draw(_user)]
    if draw(st.booleans()):
        calls = [
            {
                "id": f"call_{at}_{k}",
                "type": "function",
                "function": {"name": draw(st.sampled_from(["weather", "clock"])), "arguments": draw(_arguments)},
            }
            for k in range(draw(st.integers(1, 3)))
        ]
        said = draw(st.none() | _text)
        messages.append({"role": "assistant", "content": said, "tool_calls": calls})
        messages += [{"role": "tool", "tool_call_id": call["id"], "content": draw(_text)} for call in calls]
    messages.append({"role": "assistant", "content": draw(_text)})
    return messages


@st.composite
def requests(draw: st.DrawFn) -> chat.ChatRequest:
    """Requests that any dialect with tools, images and JSON has a notion for."""
    messages: list[dict[str, Any]] = [draw(_system)] if draw(st.booleans()) else []
    for at in range(draw(st.integers(0, 2))):
        messages += draw(_exchange(at))
    messages.append(draw(_user))
    fields: dict[str, Any] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "temperature": st.floats(0, 1),
                "top_p": st.floats(0, 1),
                "top_k": st.integers(-1, 1000),
                "max_tokens": st.integers(1, 4096),
                "seed": st.integers(-(2**63), 2**63 - 1),
                "stop": st.just("END") | st.lists(_text, min_size=1, max_size=4),
                "presence_penalty": st.floats(0, 1),
                "frequency_penalty": st.floats(0, 1),
                "tools": st.just([WEATHER, CLOCK]),
                "response_format": st.sampled_from(
                    [
                        {"type": "text"},
                        {"type": "json_object"},
                        {
                            "type": "json_schema",
                            "json_schema": {"name": "a", "description": "An A.", "schema": {"type": "object"}},
                        },
                    ]
                ),
                "reasoning_effort": st.sampled_from(["none", "minimal", "low", "medium", "high", "xhigh"]),
                "reasoning": st.fixed_dictionaries(
                    {},
                    optional={"max_tokens": st.integers(1, 9999), "exclude": st.booleans(), "enabled": st.just(True)},
                ),
                "user": st.just("u"),
                "logprobs": st.booleans(),
            },
        )
    )
    if "tools" in fields and draw(st.booleans()):
        fields["tool_choice"] = draw(
            st.sampled_from(["auto", "none", "required", {"type": "function", "function": {"name": "clock"}}])
        )
    return asked(messages, **fields)
