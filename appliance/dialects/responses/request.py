"""POST /v1/responses: OpenAI's Responses request, and how it reads in the canonical form.

What refers to something that is kept elsewhere – an earlier response, a stored item, a compacted conversation – is put
in its place by `resolve`; this module knows no store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.dialects import chat
from appliance.dialects import parameters as p
from appliance.dialects.asked import Asked
from appliance.dialects.responses import conversation, tools
from appliance.dialects.responses.items import (
    FunctionOutputItem,
    InputFile,
    InputImage,
    Item,
    MessageItem,
    NativeItem,
    kind_of,
    read_item,
    tidy,
)
from appliance.dialects.wire import Wire
from appliance.errors import BadRequest


class StreamOptions(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    include_obfuscation: bool | None = None
    """A no-op: see parameters.StreamOptions."""


class TextFormat(msgspec.Struct, frozen=True, tag="text", forbid_unknown_fields=True):
    pass


class JsonObjectFormat(msgspec.Struct, frozen=True, tag="json_object", forbid_unknown_fields=True):
    pass


class JsonSchemaFormat(msgspec.Struct, frozen=True, tag="json_schema", omit_defaults=True, forbid_unknown_fields=True):
    name: chat.ToolName
    schema: dict[str, Any]
    description: str | None = None
    strict: bool | None = None


class TextConfig(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    format: TextFormat | JsonObjectFormat | JsonSchemaFormat | None = None
    verbosity: Literal["low", "medium", "high"] | None = None


Summary = Literal["auto", "concise", "detailed"]


class Reasoning(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    effort: chat.Effort | None = None
    summary: Summary | None = None
    generate_summary: Summary | None = None
    """The former name of `summary`."""


Include = Literal[
    "code_interpreter_call.outputs",
    "computer_call_output.output.image_url",
    "file_search_call.results",
    "message.input_image.image_url",
    "message.output_text.logprobs",
    "reasoning.encrypted_content",
    "web_search_call.action.sources",
    "web_search_call.results",
]


class ResponsesRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """A request for a response. None means "not sent"."""

    model: p.ModelName
    input: str | Annotated[list[Item], Meta(max_length=16_384)] | None = None
    instructions: str | None = None
    previous_response_id: Annotated[str, Meta(min_length=1, max_length=256)] | None = None
    include: Annotated[list[Include], Meta(max_length=16)] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=128)] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    max_tool_calls: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    """Bounds the tools that a target runs by itself; functions are not counted."""
    text: TextConfig | None = None
    reasoning: Reasoning | None = None
    max_output_tokens: p.MaxTokens | None = None
    temperature: p.Temperature | None = None
    top_p: p.Unit | None = None
    presence_penalty: p.Penalty | None = None
    frequency_penalty: p.Penalty | None = None
    top_logprobs: Annotated[int, Meta(ge=0, le=20)] | None = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: p.Metadata | None = None
    user: p.Label | None = None
    safety_identifier: p.Label | None = None
    prompt_cache_key: p.Label | None = None
    prompt_cache_retention: p.Label | None = None
    prompt_cache_options: p.CacheOptions | None = None
    service_tier: p.ServiceTier | None = None
    client_metadata: Annotated[dict[str, Any], Meta(max_length=64)] | None = None
    """What Codex tells of itself; a no-op, which goes on to a target that speaks this dialect."""
    store: bool | None = None
    background: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None

    @property
    def stored(self) -> bool:
        """Whether the response is to be kept: that is what not saying anything means."""
        return self.store is not False

    @property
    def pending(self) -> bool:
        """Whether it refers to what is kept elsewhere, so that it has to be resolved before it means anything."""
        if isinstance(self.input, str) or self.previous_response_id is not None:
            return self.previous_response_id is not None
        return any(kind_of(item) in ("item_reference", "compaction") for item in self.items())

    def items(self) -> list[Item]:
        """The input as items."""
        if isinstance(self.input, str):
            return [{"type": "message", "role": "user", "content": self.input}]
        return self.input or []

    @property
    def wants_logprobs(self) -> bool:
        return bool(self.top_logprobs) or "message.output_text.logprobs" in (self.include or ())

    @property
    def summary(self) -> Summary | None:
        return None if self.reasoning is None else self.reasoning.summary or self.reasoning.generate_summary


REFUSED = {
    "conversation": "conversations are not kept here; use previous_response_id, or send all items.",
    "prompt": "prompts are not kept here; send their text as instructions or input.",
    "context_management": "nothing is compacted by itself; use POST /v1/responses/compact.",
    "messages": "this endpoint takes input; POST /v1/chat/completions takes messages.",
    "max_tokens": "this endpoint takes max_output_tokens.",
    "max_completion_tokens": "this endpoint takes max_output_tokens.",
    "response_format": "this endpoint takes text: {format}.",
    "reasoning_effort": "this endpoint takes reasoning: {effort}.",
    "verbosity": "this endpoint takes text: {verbosity}.",
    "n": "this endpoint gives one answer.",
    "stop": "this endpoint has no stop; POST /v1/chat/completions has.",
    "moderation": "leave it out.",
    "access_programs": "leave it out.",
    "background_options": "leave it out; a response in the background is worked on at once.",
    "image": "leave it out.",
    "multi_agent": "leave it out.",
}

HINTS = {
    **p.HINTS,
    "input": "Send a string or an array of items.",
    "tool_choice": "Use none, auto, required or {type: function, name}.",
    "text.format.type": "Use text, json_object or json_schema.",
    "text.verbosity": "Use low, medium or high.",
    "reasoning.effort": "Use none, minimal, low, medium, high, xhigh or max.",
    "reasoning.summary": "Use auto, concise or detailed.",
    "truncation": "Use auto or disabled.",
    "include[]": "Use reasoning.encrypted_content or message.output_text.logprobs.",
}

WIRE = Wire(ResponsesRequest, refused=REFUSED, hints=HINTS)

NAMES = {
    "messages": "input",
    "max_completion_tokens": "max_output_tokens",
    "max_tokens": "max_output_tokens",
    "reasoning_effort": "reasoning.effort",
    "response_format": "text.format",
    "verbosity": "text.verbosity",
    "logprobs": "top_logprobs",
}


def field_name(path: str) -> str:
    """A field of the canonical request as it is called here. Where a message stood among the items is not known."""
    name = path.partition(".")[0].partition("[")[0]
    if name == "tools":
        return path.replace("].function", "]", 1)  # a function's fields are its tool's there
    return "input" if name == "messages" else NAMES.get(name, name) + path[len(name) :]


def parse(body: bytes, max_depth: int = 64) -> Asked:
    """The request in `body`, fully checked. Raises BadRequest or UnsupportedParameter.

    The canonical request is a provisional one if the native one is `pending`.
    """
    native: ResponsesRequest = WIRE.read(body, max_depth)
    if isinstance(native.input, list):
        native = msgspec.structs.replace(native, input=[tidy(item) for item in native.input])
    check(native)
    return Asked(_canonical(native, provisional=native.pending), native)


def check(native: ResponsesRequest) -> None:
    """What the types of the fields cannot say. Raises BadRequest or UnsupportedParameter."""
    if native.stream_options is not None and not native.stream:
        raise BadRequest("stream_options is only allowed together with stream: true.", param="stream_options")
    if not native.input and native.previous_response_id is None:
        raise BadRequest(
            "input is required. Send a string or an array of items.", param="input", code="missing_required_parameter"
        )
    if native.background and not native.stored:
        raise BadRequest("background: true needs store: true.", param="background")
    form = native.text.format if native.text is not None else None
    if isinstance(form, JsonSchemaFormat):
        p.check_schema(form.schema, "text.format.schema")


def _nothing(_: str) -> str | None:
    return None


def references(native: ResponsesRequest) -> list[str]:
    """The ids of stored items that stand for themselves in the input."""
    return [str(item.get("id")) for item in native.items() if kind_of(item) == "item_reference"]


def resolve(
    native: ResponsesRequest,
    earlier: Sequence[Item] = (),
    *,
    found: Mapping[str, Item] = {},
    opened: Callable[[str], str | None] = _nothing,
) -> ResponsesRequest:
    """The request with the whole conversation as its input.

    earlier: items of earlier responses, inputs and outputs, oldest first. found: stored items by their ids, for
    references. opened: the text of a compacted conversation, given its encrypted_content; None if it is not ours.
    Raises BadRequest that names a reference which was not found.
    """
    known = {str(item["id"]): item for item in earlier if item.get("id")}
    items = [conversation.uncompacted(item, opened) for item in earlier]
    for i, item in enumerate(native.items()):
        if kind_of(item) == "item_reference":
            id = str(item.get("id"))
            stored = found.get(id) or known.get(id)
            if stored is None:
                raise BadRequest(
                    f"input[{i}].id: no item with this id is kept here; send the item itself.",
                    param=f"input[{i}].id",
                    code="item_not_found",
                )
            item = stored
        items.append(conversation.uncompacted(item, opened))
    return msgspec.structs.replace(native, input=items)


def canonical(
    native: ResponsesRequest,
    earlier: Sequence[Item] = (),
    *,
    found: Mapping[str, Item] = {},
    opened: Callable[[str], str | None] = _nothing,
) -> chat.ChatRequest:
    """The canonical request of the whole conversation; see `resolve`. Raises BadRequest or UnsupportedParameter."""
    return _canonical(resolve(native, earlier, found=found, opened=opened), provisional=False)


def _canonical(native: ResponsesRequest, *, provisional: bool) -> chat.ChatRequest:
    chosen = tools.choose(native.tools, native.tool_choice)
    items = [read_item(item, f"input[{i}]") for i, item in enumerate(native.items())]
    if not provisional:
        conversation.check_calls(items)
    text = native.text or TextConfig()
    reasoning = native.reasoning or Reasoning()
    return chat.ChatRequest(
        model=native.model,
        messages=[each.message for each in conversation.messages(native.instructions, items)],
        stream=native.stream,
        max_completion_tokens=native.max_output_tokens,
        temperature=native.temperature,
        top_p=native.top_p,
        presence_penalty=native.presence_penalty,
        frequency_penalty=native.frequency_penalty,
        logprobs=True if native.wants_logprobs else None,
        top_logprobs=native.top_logprobs if native.wants_logprobs else None,
        tools=chosen.tools,
        tool_choice=chosen.choice,
        parallel_tool_calls=native.parallel_tool_calls,
        response_format=_form(text.format),
        reasoning_effort=reasoning.effort,
        reasoning={"summary": native.summary} if native.summary else None,
        # The medium is what everybody gives who is not asked for something else; Codex asks for it with every request.
        verbosity=None if text.verbosity == "medium" else text.verbosity,
        user=native.user,
        metadata=native.metadata,
        service_tier=native.service_tier,
        safety_identifier=native.safety_identifier,
        prompt_cache_key=native.prompt_cache_key,
        prompt_cache_retention=native.prompt_cache_retention,
        prompt_cache_options=native.prompt_cache_options,
    )


def _form(form: TextFormat | JsonObjectFormat | JsonSchemaFormat | None) -> chat.ResponseFormat | None:
    if isinstance(form, JsonSchemaFormat):
        return chat.JsonSchemaFormat(chat.NamedSchema(form.name, form.schema, form.description, form.strict))
    if isinstance(form, JsonObjectFormat):
        return chat.JsonObjectFormat()
    return None  # text is what everybody gives who is not asked for something else


def needs(asked: Asked) -> Iterator[tuple[str, str, bool]]:
    """All abilities that a target must have, with fields as they are called here."""
    for feature, field, droppable in chat.needs(asked.request):
        yield feature, field_name(field), droppable
    yield from native_needs(asked.native)


def native_needs(native: ResponsesRequest) -> Iterator[tuple[str, str, bool]]:
    """Abilities beside those of the canonical request: (feature, field that asks for it, whether it may be dropped)."""
    if native.tools:
        chosen = tools.choose(native.tools, native.tool_choice)
        for field in chosen.native:
            yield "responses_tools", field, chosen.droppable
    if native.truncation == "auto":
        yield "truncation", "truncation", True
    if isinstance(native.input, str):
        return
    for i, item in enumerate(native.items()):
        path = f"input[{i}]"
        if kind_of(item) == "compaction":
            yield "responses_items", path, False
            continue
        if _only_text(item):
            continue
        typed = read_item(item, path)
        if isinstance(typed, NativeItem):
            yield "responses_items", path, False
        elif isinstance(typed, MessageItem) and isinstance(typed.content, list):
            yield from _media(typed.content, f"{path}.content")
        elif isinstance(typed, FunctionOutputItem) and isinstance(typed.output, list):
            yield from _media(typed.output, f"{path}.output")


_TEXTS = ("input_text", "output_text", "refusal")


def _only_text(item: Item) -> bool:
    """Of an item that is known to be sound, a message of nothing but text: it asks for nothing. To look costs a sixth
    of reading it, and a long conversation has thousands."""
    if kind_of(item) != "message":
        return False
    content = item["content"]
    return isinstance(content, str) or all(part.get("type") in _TEXTS for part in content)


def _media(parts: Sequence[Any], path: str) -> Iterator[tuple[str, str, bool]]:
    """Files that are somewhere else. A caller never makes the gateway or a target fetch an address, nor may it name a
    file of the provider's account, which is the operator's and not its own."""
    for k, part in enumerate(parts):
        if isinstance(part, InputFile | InputImage) and part.file_id:
            yield "file_ids", f"{path}[{k}].file_id", False
        if isinstance(part, InputFile) and part.file_url:
            yield "file_addresses", f"{path}[{k}].file_url", False
