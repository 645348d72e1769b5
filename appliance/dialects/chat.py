"""POST /v1/chat/completions: OpenAI's chat request, which is the canonical form of the house.

The structs are the allow-list: a field that is not declared here never reaches a target. What types cannot
say (tool calls that answer each other, options that need each other) is checked in `check`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.dialects import parameters as p
from appliance.dialects.wire import Wire
from appliance.errors import BadRequest, UnsupportedParameter

CacheControl = dict[str, Any]
"""Anthropic's mark that a prompt is worth keeping up to here; targets without the notion never see it."""


class TextPart(msgspec.Struct, frozen=True, tag="text", omit_defaults=True, forbid_unknown_fields=True):
    text: str
    cache_control: CacheControl | None = None


class RefusalPart(msgspec.Struct, frozen=True, tag="refusal", forbid_unknown_fields=True):
    refusal: str


class ImageUrl(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    url: str
    detail: Literal["auto", "low", "high"] | None = None


class ImagePart(msgspec.Struct, frozen=True, tag="image_url", omit_defaults=True, forbid_unknown_fields=True):
    image_url: ImageUrl
    cache_control: CacheControl | None = None


class InputAudio(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    data: str
    format: Literal["wav", "mp3"]


class AudioPart(msgspec.Struct, frozen=True, tag="input_audio", forbid_unknown_fields=True):
    input_audio: InputAudio


class FilePart(msgspec.Struct, frozen=True, tag="file", forbid_unknown_fields=True):
    file: dict[str, Any]


TextParts = Annotated[list[TextPart], Meta(min_length=1)]
UserParts = Annotated[list[TextPart | ImagePart | AudioPart | FilePart], Meta(min_length=1)]
ToolParts = Annotated[list[TextPart | ImagePart | FilePart], Meta(min_length=1)]
AssistantParts = Annotated[list[TextPart | RefusalPart], Meta(min_length=1)]
Name = Annotated[str, Meta(min_length=1, max_length=64, pattern=r"^[^\s<|\\/>]+$")]
ToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]


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


class FunctionCall(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1, max_length=64)]
    arguments: str
    parsed_arguments: Any = None
    """Left over from an SDK's parsed answer; see `tidy`."""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    id: Annotated[str, Meta(min_length=1, max_length=256)]
    function: FunctionCall
    type: Literal["function"] | None = None
    """`tidy` fills it in: a default would be left out when the call is sent on."""
    index: int | None = None
    """Left over from a stream's deltas; see `tidy`."""


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


class Function(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    name: ToolName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    function: Function
    type: Literal["function"]
    cache_control: CacheControl | None = None


class ChosenFunction(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    name: ToolName


class ToolChoice(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    function: ChosenFunction
    type: Literal["function"]


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
    tool_choice: Literal["none", "auto", "required"] | ToolChoice | None = None
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
    "tools[].type": "Use function.",
    "tool_choice": "Use none, auto, required or {type: function, function: {name}}.",
    "tool_choice.type": "Use function.",
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
            calls = None if message.tool_calls is None else [_tidy_call(call) for call in message.tool_calls]
            messages = messages or list(request.messages)
            messages[i] = msgspec.structs.replace(
                message,
                annotations=None,
                parsed=None,
                tool_calls=calls,
                reasoning=None,
                reasoning_content=message.reasoning_content or message.reasoning,
            )
    return request if messages is None else msgspec.structs.replace(request, messages=messages)


def _tidy_call(call: ToolCall) -> ToolCall:
    return ToolCall(call.id, FunctionCall(call.function.name, call.function.arguments), "function")


def check(request: ChatRequest) -> None:
    """What the types of the fields cannot say. Raises BadRequest or UnsupportedParameter."""
    p.check_stream_options(request.stream, request.stream_options)
    p.check_service(request.store, request.service_tier)
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
    _check_tools(request)
    _check_messages(request.messages)


def _check_tools(request: ChatRequest) -> None:
    names: set[str] = set()
    for i, tool in enumerate(request.tools or ()):
        function = tool.function
        if function.name in names:
            raise BadRequest(
                f"tools[{i}].function.name: {function.name} is used twice; names must differ.",
                param=f"tools[{i}].function.name",
            )
        names.add(function.name)
        if function.parameters:
            path = f"tools[{i}].function.parameters"
            p.check_schema(function.parameters, path)
            if function.parameters.get("type", "object") != "object":
                raise BadRequest(f"{path}.type must be object: arguments are always an object.", param=f"{path}.type")
    choice = request.tool_choice
    if choice is None:
        return
    if not names:
        if choice == "none":
            return
        raise BadRequest("tool_choice needs tools.", param="tool_choice")
    if isinstance(choice, ToolChoice) and choice.function.name not in names:
        raise BadRequest(
            f"tool_choice.function.name: there is no tool {choice.function.name}; there is {', '.join(sorted(names))}.",
            param="tool_choice.function.name",
        )


def _check_messages(messages: list[Message]) -> None:
    called: set[str] = set()
    for i, message in enumerate(messages):
        if isinstance(message, AssistantMessage):
            if message.tool_calls:
                called.update([call.id for call in message.tool_calls])
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
    form = request.response_format
    if form is not None and not isinstance(form, TextFormat):
        yield ("json_schema" if isinstance(form, JsonSchemaFormat) else "json_object"), "response_format", True
    for field, feature in _FEATURES:
        value = getattr(request, field)
        if value and value != "none":
            yield feature, field, True
    for i, message in enumerate(request.messages):
        if isinstance(message, UserMessage) and isinstance(message.content, list):
            for k, part in enumerate(message.content):
                if type(part) in _MEDIA:
                    yield _MEDIA[type(part)], f"messages[{i}].content[{k}]", False
                if isinstance(part, ImagePart) and not part.image_url.url.startswith("data:"):
                    # A caller never makes the gateway or a target fetch an address: media travels in the request.
                    yield "image_addresses", f"messages[{i}].content[{k}].image_url.url", False
        elif isinstance(message, ToolMessage) and isinstance(message.content, list):
            for k, part in enumerate(message.content):
                if isinstance(part, FilePart):
                    yield "files", f"messages[{i}].content[{k}]", False
                if not isinstance(part, TextPart):
                    yield "tool_images", f"messages[{i}].content[{k}]", False


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
