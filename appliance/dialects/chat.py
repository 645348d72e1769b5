"""POST /v1/chat/completions: OpenAI's chat request, which is the canonical form of the house.

The structs are the allow-list: a field that is not declared here never reaches a target. What types cannot
say (tool calls that answer each other, options that need each other) is checked in `check`.
"""

from __future__ import annotations

from collections.abc import Iterator
from operator import attrgetter
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.dialects import parameters as p
from appliance.dialects import tools as t
from appliance.dialects.wire import Wire
from appliance.errors import BadRequest, UnsupportedParameter

CacheControl = t.CacheControl
Choice = t.Choice
ChosenFunction = t.ChosenFunction
CustomTool = t.CustomTool
Function = t.Function
FunctionCall = t.FunctionCall
Tool = t.Tool
ToolCall = t.ToolCall
ToolChoice = t.ToolChoice
ToolName = t.ToolName


class TextPart(msgspec.Struct, frozen=True, tag="text", omit_defaults=True, forbid_unknown_fields=True):
    text: str
    cache_control: CacheControl | None = None
    prompt_cache_breakpoint: p.CacheBreakpoint | None = None


class RefusalPart(msgspec.Struct, frozen=True, tag="refusal", forbid_unknown_fields=True):
    refusal: str


class ImageUrl(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    url: str
    detail: Literal["auto", "low", "high", "original"] | None = None


class ImagePart(msgspec.Struct, frozen=True, tag="image_url", omit_defaults=True, forbid_unknown_fields=True):
    image_url: ImageUrl
    cache_control: CacheControl | None = None
    prompt_cache_breakpoint: p.CacheBreakpoint | None = None


class InputAudio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(msgspec.Struct, frozen=True, tag="input_audio", omit_defaults=True, forbid_unknown_fields=True):
    input_audio: InputAudio
    prompt_cache_breakpoint: p.CacheBreakpoint | None = None


class FilePart(msgspec.Struct, frozen=True, tag="file", omit_defaults=True, forbid_unknown_fields=True):
    file: dict[str, Any]
    prompt_cache_breakpoint: p.CacheBreakpoint | None = None


TextParts = Annotated[list[TextPart], Meta(min_length=1)]
UserParts = Annotated[list[TextPart | ImagePart | AudioPart | FilePart], Meta(min_length=1)]
ToolParts = Annotated[list[TextPart | ImagePart | FilePart], Meta(min_length=1)]
AssistantParts = Annotated[list[TextPart | RefusalPart], Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\s<|\\/>]+$")]


class SystemMessage(
    msgspec.Struct, frozen=True, tag_field="role", tag="system", omit_defaults=True, forbid_unknown_fields=True
):
    content: str | TextParts
    name: Name | None = None


class DeveloperMessage(
    msgspec.Struct, frozen=True, tag_field="role", tag="developer", omit_defaults=True, forbid_unknown_fields=True
):
    content: str | TextParts
    name: Name | None = None


class UserMessage(
    msgspec.Struct, frozen=True, tag_field="role", tag="user", omit_defaults=True, forbid_unknown_fields=True
):
    content: str | UserParts
    name: Name | None = None


class AssistantMessage(
    msgspec.Struct, frozen=True, tag_field="role", tag="assistant", omit_defaults=True, forbid_unknown_fields=True
):
    """As an answer of ours (or of anyone's) comes back in the next request."""

    content: str | AssistantParts | None = None
    refusal: str | None = None
    name: Name | None = None
    tool_calls: Annotated[list[ToolCall], Meta(max_length=128)] | None = None
    annotations: list[dict[str, Any]] | None = None
    """Left over from an answer; see `tidy`."""
    parsed: Any = None
    """Left over from an SDK's parsed answer; see `tidy`."""
    reasoning_content: str | None = None
    """What was thought before this message, as text."""
    reasoning: str | None = None
    """Another name for `reasoning_content`; see `tidy`."""
    reasoning_details: Annotated[list[dict[str, Any]], Meta(max_length=1024)] | None = None
    """The same in blocks, with what their maker needs to trust them: {type: reasoning.text, text, signature},
    {type: reasoning.encrypted, data} or {type: reasoning.summary, summary}."""
    audio: None = None
    function_call: None = None


class ToolMessage(
    msgspec.Struct, frozen=True, tag_field="role", tag="tool", omit_defaults=True, forbid_unknown_fields=True
):
    content: str | ToolParts
    tool_call_id: Annotated[str, Meta(min_length=1, max_length=256)]
    name: Name | None = None
    is_error: bool | None = None
    """The tool failed. Targets without the notion see that from what it says."""


Message = SystemMessage | DeveloperMessage | UserMessage | AssistantMessage | ToolMessage


class TextFormat(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    pass


class JsonObjectFormat(msgspec.Struct, frozen=True, tag="json_object", forbid_unknown_fields=True):
    pass


class NamedSchema(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: ToolName
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", forbid_unknown_fields=True):
    json_schema: NamedSchema


ResponseFormat = TextFormat | JsonObjectFormat | JsonSchemaFormat
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"]


class ChatRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A chat request. None means "not sent"; the target's own default applies then."""

    model: p.ModelName
    messages: Annotated[list[Message], Meta(min_length=1, max_length=16_384)]
    stream: bool | None = None
    stream_options: p.StreamOptions | None = None
    max_completion_tokens: p.MaxTokens | None = None
    max_tokens: p.MaxTokens | None = None
    n: p.Choices | None = None
    temperature: p.Temperature | None = None
    top_p: p.Unit | None = None
    top_k: p.TopK | None = None
    min_p: p.Unit | None = None
    presence_penalty: p.Penalty | None = None
    frequency_penalty: p.Penalty | None = None
    repetition_penalty: p.RepetitionPenalty | None = None
    seed: p.Seed | None = None
    stop: p.Stop | None = None
    logit_bias: p.LogitBias | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    tools: Annotated[list[Tool], Meta(max_length=128)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: bool | None = None
    response_format: ResponseFormat | None = None
    reasoning_effort: Effort | None = None
    reasoning: dict[str, Any] | None = None
    """Any of effort, max_tokens, summary, enabled, exclude."""
    verbosity: Literal["low", "medium", "high"] | None = None
    # No-ops from here on; see parameters.ACCEPTED_NO_OPS.
    user: p.Label | None = None
    metadata: p.Metadata | None = None
    store: bool | None = None
    service_tier: p.ServiceTier | None = None
    safety_identifier: p.Label | None = None
    prompt_cache_key: p.Label | None = None
    prompt_cache_retention: p.Label | None = None
    prompt_cache_options: p.CacheOptions | None = None
    modalities: list[Literal["text", "audio"]] | None = None

    @property
    def choices(self) -> int:
        return self.n or 1

    @property
    def token_limit(self) -> int | None:
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens


REFUSED = {
    "audio": "no model here speaks; leave it out.",
    "prediction": "predicted outputs are not used; leave it out, the answer is the same.",
    "web_search_options": "no model here searches the web; pass search results in a message or a tool.",
    "functions": "it is deprecated; use tools.",
    "function_call": "it is deprecated; use tool_choice.",
    "moderation": "leave it out.",
    "best_of": "chat has no best_of; use n.",
    "prompt": "chat takes messages; POST /v1/completions takes a prompt.",
    "input": "chat takes messages.",
    "chat_template": "templates come with the model and cannot be sent.",
    "chat_template_kwargs": "templates come with the model and cannot be changed.",
    "guided_json": "use response_format: {type: json_schema}.",
}

HINTS = {
    **p.HINTS,
    "messages[].role": "Use system, developer, user, assistant or tool.",
    "messages[].content[].type": "Use text, image_url, input_audio or file, as the role and the model allow.",
    "tools[].type": "Use function or custom.",
    "tools[].custom.format.type": "Use text or grammar.",
    "tools[].custom.format.grammar.syntax": "Use lark or regex.",
    "tool_choice": "Use none, auto, required or {type: function, function: {name}}.",
    "tool_choice.type": "Use function, custom or allowed_tools.",
    "tool_choice.allowed_tools.mode": "Use auto or required.",
    "messages[].tool_calls[].type": "Use function or custom.",
    "response_format.type": "Use text, json_object or json_schema.",
    "reasoning_effort": "Use none, minimal, low, medium, high, xhigh or max.",
}

WIRE = Wire(ChatRequest, refused=REFUSED, hints=HINTS)


def parse(body: bytes, max_depth: int = 64) -> ChatRequest:
    """The request in `body`, fully checked. Raises BadRequest or UnsupportedParameter."""
    request: ChatRequest = WIRE.read(body, max_depth)
    check(request)
    return tidy(request)


def tidy(request: ChatRequest) -> ChatRequest:
    """The request without what answers carry and prompts do not: SDKs send an answer back as they got it."""
    messages: list[Message] | None = None
    for i, message in enumerate(request.messages):
        if isinstance(message, AssistantMessage) and (
            message.tool_calls
            or message.annotations is not None
            or message.parsed is not None
            or message.reasoning is not None
        ):
            calls = None if message.tool_calls is None else [t.tidy_call(call) for call in message.tool_calls]
            messages = messages or list(request.messages)
            messages[i] = msgspec.structs.replace(
                message,
                annotations=None,
                parsed=None,
                tool_calls=calls,
                reasoning=None,
                reasoning_content=message.reasoning_content or message.reasoning,
            )
    changes: dict[str, Any] = {} if messages is None else {"messages": messages}
    if request.tools:
        tools, choice = t.tidy_tools(request.tools), t.tidy_choice(request.tool_choice)
        if tools is not request.tools or choice is not request.tool_choice:
            changes |= {"tools": tools, "tool_choice": choice}
    return msgspec.structs.replace(request, **changes) if changes else request


def restricted(request: ChatRequest) -> ChatRequest:
    """The request for a target that cannot be told which tools are allowed: it gets no others."""
    choice = request.tool_choice
    if not isinstance(choice, ToolChoice) or choice.allowed_tools is None:
        return request
    tools, mode = t.only_allowed(request.tools or [], choice.allowed_tools)
    return msgspec.structs.replace(request, tools=tools, tool_choice=mode)


def check(request: ChatRequest) -> None:
    """What the types of the fields cannot say. Raises BadRequest or UnsupportedParameter."""
    p.check_stream_options(request.stream, request.stream_options)
    if request.logit_bias:
        p.check_logit_bias(request.logit_bias)
    if request.top_logprobs is not None and not request.logprobs:
        raise BadRequest("top_logprobs needs logprobs: true.", param="top_logprobs")
    if request.modalities is not None and request.modalities != ["text"]:
        raise UnsupportedParameter('modalities: only ["text"] is supported.', param="modalities")
    if (
        request.max_tokens is not None
        and request.max_completion_tokens is not None
        and request.max_tokens != request.max_completion_tokens
    ):
        raise BadRequest("max_tokens and max_completion_tokens differ; send only one.", param="max_tokens")
    if isinstance(request.response_format, JsonSchemaFormat) and request.response_format.json_schema.schema:
        p.check_schema(request.response_format.json_schema.schema, "response_format.json_schema.schema")
    if request.tools or request.tool_choice is not None:
        t.check_tools(request.tools, request.tool_choice)
    _check_messages(request.messages)


def _check_messages(messages: list[Message]) -> None:
    called: set[str] = set()
    for i, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            if message.tool_calls:
                for k, call in enumerate(message.tool_calls):
                    t.check_call(call, f"messages[{i}].tool_calls[{k}]")
                    called.add(call.id)
            elif message.content is None and message.refusal is None:
                raise BadRequest(
                    f"messages[{i}].content is required for an assistant message without tool_calls.",
                    param=f"messages[{i}].content",
                )
        elif isinstance(message, ToolMessage) and message.tool_call_id not in called:
            raise BadRequest(
                f"messages[{i}].tool_call_id: no assistant message before it made a tool call with this id.",
                param=f"messages[{i}].tool_call_id",
            )


_MEDIA: dict[type, str] = {ImagePart: "images", AudioPart: "audio_input", FilePart: "files"}


def needs(request: ChatRequest) -> Iterator[tuple[str, str, bool]]:
    """Abilities that a target must have: (feature, field that asks for it, whether it may be dropped)."""
    if request.tools:
        yield "tools", "tools", False
    if request.store:
        yield "stored_chats", "store", True
    if request.service_tier not in (None, "auto", "default"):
        yield "service_tiers", "service_tier", True
    form = request.response_format
    if form is not None and not isinstance(form, TextFormat):
        yield ("json_schema" if isinstance(form, JsonSchemaFormat) else "json_object"), "response_format", True
    values = _VALUES(request)
    if any(values):
        for (field, feature), value in zip(_FEATURES, values, strict=True):
            if value and value != "none":
                yield feature, field, True
    for i, message in enumerate(request.messages):
        if not isinstance(message.content, list):
            continue
        if isinstance(message, UserMessage):
            for k, part in enumerate(message.content):
                if type(part) in _MEDIA:
                    yield _MEDIA[type(part)], f"messages[{i}].content[{k}]", False
                if isinstance(part, ImagePart):
                    yield from _address_needs(part, f"messages[{i}].content[{k}].image_url.url")
        elif isinstance(message, ToolMessage):
            for k, part in enumerate(message.content):
                if isinstance(part, FilePart):
                    yield "files", f"messages[{i}].content[{k}]", False
                if not isinstance(part, TextPart):
                    yield "tool_images", f"messages[{i}].content[{k}]", False
                if isinstance(part, ImagePart):
                    yield from _address_needs(part, f"messages[{i}].content[{k}].image_url.url")


def _address_needs(part: ImagePart, field: str) -> Iterator[tuple[str, str, bool]]:
    """A caller makes nobody fetch an address unless the settings say so: media travels in the request."""
    if p.is_address(part.image_url.url, field):
        yield "image_addresses", field, False


_FEATURES = (
    ("logprobs", "logprobs"),
    ("logit_bias", "logit_bias"),
    ("top_k", "top_k"),
    ("min_p", "min_p"),
    ("repetition_penalty", "repetition_penalty"),
    ("reasoning_effort", "reasoning"),
    ("reasoning", "reasoning"),
    ("verbosity", "verbosity"),
)
_VALUES = attrgetter(*[field for field, _ in _FEATURES])
