"""A chat request as the body of Bedrock's Converse. Pure.

What Converse has no notion for is refused by name or left out by the rule of dialects.translating.
"""

from __future__ import annotations

import re
from typing import Any

import msgspec

from appliance.dialects import chat
from appliance.dialects.bedrock.content import Block, Documents, cache_point, parts, text, tool_result, tool_use_id
from appliance.dialects.bedrock.families import Family, family_of, reasoning_of
from appliance.dialects.claude import OTHER, Claude, check_choice, claude_of, sampling
from appliance.dialects.parameters import as_stop_list
from appliance.dialects.schemas import arguments, narrowed
from appliance.dialects.thoughts import anthropics
from appliance.dialects.transcript import told
from appliance.dialects.wire import encode
from appliance.errors import BadRequest, UnsupportedParameter

_BASE64 = re.compile(r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?")
_ANYBODY = ":application-inference-profile/"
"""A name of an operator's own, which may stand for a model of any maker."""
_STOP_FIELD = "/stop_sequence"
"""Where Claude says which stop sequence it met."""

NO_NOTION: dict[str, Any] = {
    "logprobs": None,
    "logit_bias": None,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
    "verbosity": None,
    "seed": None,
}
"""Fields that cannot be said in Converse → the value with which they ask for nothing."""


def body_of(request: chat.ChatRequest, model: str) -> dict[str, Any]:
    """Raises UnsupportedParameter, or BadRequest where this target takes less than others do."""
    _check(request)
    family = family_of(model)
    claude = claude_of(model) if family.anthropic else OTHER
    check_choice(request, claude)
    body: dict[str, Any] = {}
    system, messages = _conversation(request.messages, family, thoughts=family.anthropic or _ANYBODY in model)
    if system:
        body["system"] = system
    if not messages:
        raise BadRequest("messages must hold more than instructions for this target.", param="messages")
    body["messages"] = messages
    extra: dict[str, Any] = {}
    tools, output = _tools(request, family, extra), _output(request, family, claude, extra)
    thinks = extra.get("thinking", _NO_THINKING)["type"] != "disabled"
    temperature, top_p, top_k = sampling(request, claude, thinks=thinks)
    if settings := _inference(request, temperature, top_p):
        body["inferenceConfig"] = settings
    if tools:
        body["toolConfig"] = tools
    if output:
        body["outputConfig"] = output
    if top_k:
        extra |= family.top_k(top_k)
    if extra:
        body["additionalModelRequestFields"] = extra
    if family.says_stop and request.stop:
        body["additionalModelResponseFieldPaths"] = [_STOP_FIELD]
    return body


def _check(request: chat.ChatRequest) -> None:
    for field, nothing in NO_NOTION.items():
        value = getattr(request, field)
        if (value and value != nothing) or (field == "seed" and value is not None):
            raise UnsupportedParameter(f"{field}: this target has no such parameter; leave it out.", param=field)
    if request.choices > 1:
        raise UnsupportedParameter("n: this target gives one choice; leave it out.", param="n")
    if request.temperature is not None and request.temperature > 1.0:
        raise UnsupportedParameter("temperature: this target takes at most 1.", param="temperature")


_NO_THINKING = {"type": "disabled"}


def _inference(request: chat.ChatRequest, temperature: float | None, top_p: float | None) -> dict[str, Any]:
    known = {
        "maxTokens": request.token_limit,
        "temperature": temperature,
        "topP": top_p,
        "stopSequences": as_stop_list(request.stop) or None,
    }
    return {name: value for name, value in known.items() if value is not None}


# --- the conversation ---------------------------------------------------------------------------


def _conversation(
    messages: list[chat.Message], family: Family, *, thoughts: bool
) -> tuple[list[Block], list[dict[str, Any]]]:
    """The system's blocks, and turns of user and assistant, which take turns: what one says in a row is one turn."""
    system: list[Block] = []
    turns: list[dict[str, Any]] = []
    documents = Documents()
    caches = "messages" in family.caches
    for i, message in told(messages):
        path = f"messages[{i}]"
        if isinstance(message, (chat.SystemMessage, chat.DeveloperMessage)):
            system += parts(message.content, f"{path}.content", documents, caches="system" in family.caches)
            continue
        if isinstance(message, chat.AssistantMessage):
            role, blocks = "assistant", _assistant(message, path, documents, caches=caches)
            if thoughts:
                blocks = [*_reasoning(message), *blocks]
            if not blocks:
                continue  # it said nothing
        elif isinstance(message, chat.ToolMessage):
            role, blocks = "user", tool_result(message, path, documents, caches=caches)
        else:
            role, blocks = "user", parts(message.content, f"{path}.content", documents, caches=caches)
            if not blocks:
                raise BadRequest(
                    f"{path}.content is blank, which this target refuses; write something or leave the message out.",
                    param=f"{path}.content",
                )
        if turns and turns[-1]["role"] == role:
            turns[-1]["content"] += blocks
        else:
            turns.append({"role": role, "content": blocks})
    return system, turns


def _assistant(message: chat.AssistantMessage, path: str, documents: Documents, *, caches: bool) -> list[Block]:
    blocks = parts(message.content, f"{path}.content", documents, caches=caches)
    blocks += text(message.refusal or "")
    for k, call in enumerate(message.tool_calls or ()):
        blocks.append(
            {
                "toolUse": {
                    "toolUseId": tool_use_id(call.id),
                    "name": call.function.name,
                    "input": _arguments(call.function.arguments, f"{path}.tool_calls[{k}].function.arguments"),
                }
            }
        )
    return blocks


def _arguments(arguments: str, path: str) -> Any:
    if not arguments.strip():
        return {}
    try:
        value = msgspec.json.decode(arguments)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise BadRequest(f"{path} must be a JSON object for this target.", param=path)
    return value


def _reasoning(message: chat.AssistantMessage) -> list[Block]:
    """Only what its maker can trust: other thoughts are refused by some models and of no use to the others."""
    blocks: list[Block] = []
    for each in anthropics(message.reasoning_details):
        if not each.data:
            text = {"text": each.text, "signature": each.signature}
            blocks.append({"reasoningContent": {"reasoningText": text}})
        elif _BASE64.fullmatch(each.data):
            blocks.append({"reasoningContent": {"redactedContent": each.data}})
    return blocks


# --- tools, form and reasoning ------------------------------------------------------------------


def _tools(request: chat.ChatRequest, family: Family, extra: dict[str, Any]) -> dict[str, Any] | None:
    choice = request.tool_choice
    offered = request.tools if choice != "none" else None
    if not offered:
        _check_no_calls(request)
        return None
    tools: list[Block] = []
    for k, tool in enumerate(offered):
        tools.append({"toolSpec": _tool(tool.function, f"tools[{k}].function")})
        if "tools" in family.caches:
            tools += cache_point(tool.cache_control)
    config: dict[str, Any] = {"tools": tools}
    if choice == "required":
        config["toolChoice"] = {"any": {}}
    elif isinstance(choice, chat.ToolChoice):
        config["toolChoice"] = {"tool": {"name": choice.function.name}}
    if request.parallel_tool_calls is False and family.one_call:
        # Where Converse says the type itself, saying it again is an error; otherwise it must be said here.
        kind = {} if "toolChoice" in config else {"type": "auto"}
        extra["tool_choice"] = {**kind, "disable_parallel_tool_use": True}
    return config


def _tool(function: chat.Function, path: str) -> dict[str, Any]:
    schema = arguments(function.parameters, f"{path}.parameters", narrow=bool(function.strict))
    spec: dict[str, Any] = {"name": function.name, "inputSchema": {"json": schema}}
    if function.description and function.description.strip():
        spec["description"] = function.description
    if function.strict:
        spec["strict"] = True
    return spec


def _check_no_calls(request: chat.ChatRequest) -> None:
    """Converse refuses a conversation with tool calls in it that comes without tools."""
    if not any(
        isinstance(message, chat.ToolMessage) or (isinstance(message, chat.AssistantMessage) and message.tool_calls)
        for message in request.messages
    ):
        return
    if request.tool_choice == "none" and request.tools:
        raise UnsupportedParameter(
            "tool_choice: none is not possible for this target once there are tool calls in messages; use auto.",
            param="tool_choice",
        )
    raise UnsupportedParameter(
        "tools: this target wants the tools again when there are calls of them in messages.", param="tools"
    )


def _output(request: chat.ChatRequest, family: Family, claude: Claude, extra: dict[str, Any]) -> dict[str, Any]:
    output: dict[str, Any] = {}
    form = request.response_format
    if isinstance(form, chat.JsonObjectFormat):
        raise UnsupportedParameter(
            "response_format.type: json_object is not known to this target; use json_schema.",
            param="response_format.type",
        )
    if isinstance(form, chat.JsonSchemaFormat):
        output["textFormat"] = _schema(form.json_schema)
    if (asked := reasoning_of(request, claude)) is not None:
        wanted = family.reasoning(asked)
        extra |= wanted.fields
        if wanted.effort is not None:
            output["effort"] = wanted.effort
    return output


def _schema(named: chat.NamedSchema) -> dict[str, Any]:
    field = "response_format.json_schema.schema"
    if named.schema is None:
        raise BadRequest(f"{field} is required by this target.", param=field)
    definition: dict[str, Any] = {"name": named.name, "schema": encode(narrowed(named.schema, field)).decode()}
    if named.description:
        definition["description"] = named.description
    return {"type": "json_schema", "structure": {"jsonSchema": definition}}
