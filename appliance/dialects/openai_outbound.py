"""OpenAI's dialect as targets speak it: requests by a provider's row of data, answers as events. Pure.

The canonical request is OpenAI's own, so that most of it goes out as it came in. What one provider calls otherwise,
leaves out or refuses is its `Quirks`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from itertools import compress
from operator import attrgetter, is_not
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from appliance.dialects import parameters
from appliance.dialects.answer import Ask, Reader
from appliance.dialects.chat import (
    AssistantMessage,
    ChatRequest,
    DeveloperMessage,
    FilePart,
    ImagePart,
    Message,
    SystemMessage,
    TextPart,
    Tool,
    ToolChoice,
    ToolMessage,
    UserMessage,
)
from appliance.dialects.completions import CompletionRequest
from appliance.dialects.embeddings import EmbeddingRequest
from appliance.dialects.openai_reader import OpenAIReader, read_whole
from appliance.dialects.thoughts import unmarked
from appliance.dialects.tools import custom_call, custom_form, customs
from appliance.dialects.transcript import named
from appliance.dialects.translating import effort_of, nearest, thinking_budget
from appliance.dialects.wire import encode
from appliance.errors import UnsupportedParameter
from runtimes.engine import Event


class Quirks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a provider differs from OpenAI. Fields are those of the canonical request."""

    token_limit: Literal["as_sent", "max_tokens", "max_completion_tokens"] = "as_sent"
    """The one name under which it takes the most tokens of an answer."""
    rename: dict[str, str] = {}
    """Field → what the provider calls it."""
    leave_out: frozenset[str] = frozenset()
    """Fields that are not sent, and without which the answer is the same."""
    refuse: frozenset[str] = frozenset()
    """Fields that the provider has no notion for: who asks for something with them is refused."""
    pass_on: frozenset[str] = frozenset()
    """Of the fields without effect on the answer (parameters.ACCEPTED_NO_OPS), those that the provider takes."""
    values: dict[str, dict[str, Any]] = {}
    """Field → value → what is sent instead; null = the field is left out."""
    extra: dict[str, Any] = {}
    """What every chat has beside."""
    usage_in_streams: Literal["asked", "always"] = "asked"
    """asked: only where stream_options say so; always: by itself, and stream_options are not known."""
    reasoning: Literal["effort", "object", "thinking", "none"] = "effort"
    """How reasoning is asked for: by reasoning_effort, by OpenRouter's object, by {thinking: {type}}, or not at all."""
    reasoning_back: Literal["none", "reasoning_content", "reasoning_details"] = "none"
    """What of earlier reasoning it wants back. reasoning_content: of the present turn alone; reasoning_details: all."""
    system_role: Literal["both", "system"] = "both"
    """system: it does not know the role developer."""
    texts: Literal["parts", "joined"] = "parts"
    """joined: content that is nothing but texts goes out as one string."""
    tool_images: bool = False
    """Results of tools may hold images; where not, they follow in a message of the user, as files always do."""
    cache_control: bool = False
    """It knows Anthropic's marks on parts and tools."""
    cache_breakpoints: bool = False
    """It knows OpenAI's own marks on parts."""
    original_detail: bool = False
    """Images may be looked at in their original size; where not, high is nearest."""
    names: bool = True
    """Messages may have a name; where not, it stands in their text."""
    prefix: dict[str, Any] | None = None
    """What the last message has beside, where it is the beginning of the answer."""


PATHS: dict[type, str] = {
    ChatRequest: "chat/completions",
    CompletionRequest: "completions",
    EmbeddingRequest: "embeddings",
}
OPERATIONS: dict[type, str] = {
    ChatRequest: "chat.completions",
    CompletionRequest: "completions",
    EmbeddingRequest: "embeddings",
}

_APART = frozenset(
    {"model", "messages", "stream", "stream_options", "tools", "reasoning", "reasoning_effort"}
    | {"max_tokens", "max_completion_tokens"}
)
"""Fields that are not simply sent on."""
_LIMITS = ("max_completion_tokens", "max_tokens")
_HARMLESS: dict[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "logprobs": (False,),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "top_p": (1,),
    "stop": ([],),
    "parallel_tool_calls": (True,),
    "tool_choice": ("auto", "none"),
    "encoding_format": ("float",),
}
"""Values that ask for nothing."""
_COUNT = {"include_usage": True}
_is_set = partial(is_not, None)


class OpenAIOutbound:
    """A provider of OpenAI's family, as its row describes it."""

    name = "openai"

    def __init__(
        self,
        quirks: Quirks = Quirks(),  # noqa: B008 - frozen
        paths: Mapping[str, str] | None = None,
        efforts: tuple[str, ...] = (),
        *,
        custom_tools: bool = False,
    ) -> None:
        """`paths`: operation → path behind the base URL where it is not OpenAI's; {model} stands for the model.
        `efforts`: those that the model takes, in their order; empty = it is not known, and all are sent.
        `custom_tools`: the model knows them; where not it gets functions that stand for them."""
        self._quirks = quirks
        self._efforts = efforts
        self._custom_tools = custom_tools
        paths = paths or {}
        self._paths = {kind: paths.get(OPERATIONS[kind], path) for kind, path in PATHS.items()}
        self._texts = {UserMessage, SystemMessage} | ({DeveloperMessage} if quirks.system_role == "both" else set())
        """Messages of which a text goes out as it is."""
        self._refused = sorted(quirks.refuse)
        self._plans = {kind: _plan(kind, quirks) for kind in PATHS}

    def unknown(self, model: str) -> frozenset[str]:
        """Fields that the provider has no notion for, and without which it answers all the same."""
        return self._quirks.refuse

    def ask(self, request: Any, model: str, *, stream: bool) -> Ask:
        """Raises UnsupportedParameter for what the provider has no notion for."""
        quirks, kind = self._quirks, type(request)
        body: dict[str, Any] = {"model": model}
        if kind is ChatRequest:
            body["messages"] = self._messages(request.messages)
        values_of, names = self._plans[kind]
        values = values_of(request)
        body.update(compress(zip(names, values, strict=True), map(_is_set, values)))
        for field in self._refused:
            _refuse(request, field)
        for field, others in quirks.values.items():
            _replace(body, quirks.rename.get(field, field), others)
        if kind is ChatRequest:
            self._reason(request, body)
            if request.tools:
                body["tools"] = [self._tool(tool) for tool in request.tools]
                if self._custom_tools and (own := customs(request.tools)):
                    _call_by_own_name(body, own)
            body |= quirks.extra
        if kind is not EmbeddingRequest:
            self._limit(request, body)
            if stream:
                body["stream"] = True
                if quirks.usage_in_streams == "asked":
                    body["stream_options"] = _COUNT
        path = self._paths[kind]
        return Ask(path.replace("{model}", quote(model, safe="")) if "{" in path else path, encode(body))

    def reader(self, target: str, request: Any) -> Reader:
        return OpenAIReader(target, request)

    def read_whole(self, body: bytes, target: str, request: Any) -> list[Event]:
        return read_whole(body, target, request)

    def _limit(self, request: Any, body: dict[str, Any]) -> None:
        name = self._quirks.token_limit
        for field in _LIMITS:
            value = getattr(request, field, None)
            if value is not None:
                # Plain completions know one name alone.
                chosen = field if name == "as_sent" or type(request) is CompletionRequest else name
                body[self._quirks.rename.get(chosen, chosen)] = value

    def _reason(self, request: ChatRequest, body: dict[str, Any]) -> None:
        if request.reasoning_effort is None and request.reasoning is None:
            return
        effort, budget = effort_of(request), thinking_budget(request)
        if effort is not None and self._efforts:
            effort = nearest(effort, self._efforts)
        _REASONING[self._quirks.reasoning](request, effort, budget, body)
        if "reasoning_effort" in body:
            _replace(body, "reasoning_effort", self._quirks.values.get("reasoning_effort", {}))

    def _tool(self, tool: Tool) -> Any:
        if tool.custom is not None:
            if self._custom_tools:
                return custom_form(tool)
            tool = msgspec.structs.replace(tool, custom=None)
        if tool.cache_control is None or self._quirks.cache_control:
            return tool
        return msgspec.structs.replace(tool, cache_control=None)

    # --- messages ---------------------------------------------------------------------------------

    def _messages(self, messages: list[Message]) -> list[Any]:
        """The messages as they go out; the very list that came in where there is nothing to do."""
        if not self._quirks.names:
            messages = named(messages)
        changed: list[Any] | None = None
        turn: int | None = None
        texts = self._texts
        for i, message in enumerate(messages):
            kind = type(message)
            if type(message.content) is str and kind in texts and message.name is None:
                continue  # most are no more than a text
            if kind is AssistantMessage:
                turn = self._turn(messages) if turn is None else turn
            new = _BY_ROLE[kind](self._quirks, message, i, turn is None or i > turn)
            if new is not message:
                changed = changed or list(messages)
                changed[i] = new
        last = messages[-1]
        if self._quirks.prefix and isinstance(last, AssistantMessage) and not last.tool_calls:
            changed = changed or list(messages)
            changed[-1] = msgspec.to_builtins(changed[-1]) | self._quirks.prefix
        return _with_media_after(changed, self._quirks) if changed else messages

    def _turn(self, messages: list[Message]) -> int:
        """Where the present turn begins; reasoning of earlier ones is of no use to anybody."""
        if self._quirks.reasoning_back != "reasoning_content":
            return -1
        return max((i for i, message in enumerate(messages) if isinstance(message, UserMessage)), default=-1)


def _plan(kind: type, quirks: Quirks) -> tuple[Callable[[Any], tuple[Any, ...]], tuple[str, ...]]:
    """What gives the values of a request that are sent on, and their names there."""
    idle = set(parameters.ACCEPTED_NO_OPS) - quirks.pass_on
    fields: tuple[str, ...] = kind.__struct_fields__  # type: ignore[attr-defined]
    sent = [field for field in fields if field not in idle | _APART | quirks.leave_out | quirks.refuse]
    return attrgetter(*sent), tuple([quirks.rename.get(field, field) for field in sent])


def _refuse(request: Any, field: str) -> None:
    value = getattr(request, field, None)
    if value is not None and value not in _HARMLESS.get(field, ()):
        raise UnsupportedParameter(
            f"{field} is not supported by this target: leave it out, or ask for another model.", param=field
        )


def _replace(body: dict[str, Any], name: str, values: Mapping[str, Any]) -> None:
    value = body.get(name)
    if not isinstance(value, str) or value not in values:
        return
    if values[value] is None:
        del body[name]
    else:
        body[name] = values[value]


# --- reasoning ------------------------------------------------------------------------------------


def _by_effort(request: ChatRequest, effort: str | None, budget: int | None, body: dict[str, Any]) -> None:
    _no_budget(effort, budget)
    if effort is not None:
        body["reasoning_effort"] = effort


def _by_object(request: ChatRequest, effort: str | None, budget: int | None, body: dict[str, Any]) -> None:
    wish = {**(request.reasoning or {}), **({"effort": effort} if effort else {})}
    if budget is not None:
        wish.pop("effort", None)  # it takes one of them
    body["reasoning"] = wish


def _by_thinking(request: ChatRequest, effort: str | None, budget: int | None, body: dict[str, Any]) -> None:
    _no_budget(effort, budget)
    body["thinking"] = {"type": "disabled" if effort == "none" else "enabled"}


def _not_at_all(request: ChatRequest, effort: str | None, budget: int | None, body: dict[str, Any]) -> None:
    _no_budget(effort, budget)
    if effort not in (None, "none"):
        field = "reasoning_effort" if request.reasoning_effort else "reasoning.effort"
        raise UnsupportedParameter(
            f"{field} is not supported by this target: it cannot be told how hard to think.", param=field
        )


def _no_budget(effort: str | None, budget: int | None) -> None:
    """A number of tokens cannot be kept to. One that comes with an effort is told by that."""
    if budget is not None and effort is None:
        raise UnsupportedParameter(
            "reasoning.max_tokens is not supported by this target; use reasoning_effort.", param="reasoning.max_tokens"
        )


_REASONING: dict[str, Callable[[ChatRequest, str | None, int | None, dict[str, Any]], None]] = {
    "effort": _by_effort,
    "object": _by_object,
    "thinking": _by_thinking,
    "none": _not_at_all,
}

# --- one function a role --------------------------------------------------------------------------


def _system(quirks: Quirks, message: SystemMessage, at: int, present: bool) -> Any:
    return _said(quirks, message)


def _developer(quirks: Quirks, message: DeveloperMessage, at: int, present: bool) -> Any:
    if quirks.system_role == "system":
        return _said(quirks, SystemMessage(message.content, message.name))
    return _said(quirks, message)


def _user(quirks: Quirks, message: UserMessage, at: int, present: bool) -> Any:
    return _said(quirks, message)


def _assistant(quirks: Quirks, message: AssistantMessage, at: int, present: bool) -> Any:
    if message.reasoning_content is None and message.reasoning_details is None:
        return _said(quirks, message)
    back = quirks.reasoning_back
    # OpenRouter takes the text alone where there are no blocks.
    details = unmarked(message.reasoning_details) if back == "reasoning_details" else []
    content = (back == "reasoning_content" and present) or (back == "reasoning_details" and not details)
    kept = (message.reasoning_content if content else None, details or None)
    if kept != (message.reasoning_content, message.reasoning_details):
        message = msgspec.structs.replace(message, reasoning_content=kept[0], reasoning_details=kept[1])
    return _said(quirks, message)


def _tool(quirks: Quirks, message: ToolMessage, at: int, present: bool) -> Any:
    if message.is_error is not None:
        message = msgspec.structs.replace(message, is_error=None)
    made = _said(quirks, message)
    if made is not message or not _media(made, quirks):
        return made
    return msgspec.structs.replace(made)  # another one, so that `_with_media_after` sees it


def _media(message: Any, quirks: Quirks) -> list[ImagePart | FilePart]:
    """What a tool's result may not hold."""
    content = message.content if isinstance(message, ToolMessage) else None
    if not isinstance(content, list):
        return []
    kinds = (FilePart,) if quirks.tool_images else (FilePart, ImagePart)
    return [part for part in content if isinstance(part, kinds)]


def _with_media_after(messages: list[Any], quirks: Quirks) -> list[Any]:
    """The messages with the images and files of tools' results behind the last result of their turn, which must all
    follow their calls at once. A result that was nothing else says where they are."""
    out: list[Any] = []
    waiting: list[Any] = []
    for message in messages:
        if waiting and not isinstance(message, ToolMessage):
            out.append(UserMessage(waiting))
            waiting = []
        if found := _media(message, quirks):
            left = [part for part in message.content if part not in found]
            message = msgspec.structs.replace(message, content=left or _follows(found))
            waiting += [TextPart(_MEDIA_OF.format(message.tool_call_id)), *found]
        out.append(message)
    return [*out, UserMessage(waiting)] if waiting else out


def _follows(media: list[ImagePart | FilePart]) -> str:
    return f"The result is {'an image' if isinstance(media[0], ImagePart) else 'a file'}; it follows."


_MEDIA_OF = "What the tool gave for the call {}:"


_BY_ROLE: dict[type, Callable[[Quirks, Any, int, bool], Any]] = {
    SystemMessage: _system,
    DeveloperMessage: _developer,
    UserMessage: _user,
    AssistantMessage: _assistant,
    ToolMessage: _tool,
}


def _said(quirks: Quirks, message: Any) -> Any:
    """The message with its content in the provider's form; the very one where there is nothing to do."""
    content = message.content
    if not isinstance(content, list):
        return message
    if quirks.texts == "joined" and all(isinstance(part, TextPart) for part in content):
        return msgspec.structs.replace(message, content="\n".join([part.text for part in content]))
    parts = [_part(quirks, part) for part in content]
    if all(made is part for made, part in zip(parts, content, strict=True)):
        return message
    return msgspec.structs.replace(message, content=parts)


def _part(quirks: Quirks, part: Any) -> Any:
    if not quirks.cache_control and getattr(part, "cache_control", None) is not None:
        part = msgspec.structs.replace(part, cache_control=None)
    if not quirks.cache_breakpoints and getattr(part, "prompt_cache_breakpoint", None) is not None:
        part = msgspec.structs.replace(part, prompt_cache_breakpoint=None)
    if not quirks.original_detail and isinstance(part, ImagePart) and part.image_url.detail == "original":
        part = msgspec.structs.replace(part, image_url=msgspec.structs.replace(part.image_url, detail="high"))
    return part


def _call_by_own_name(body: dict[str, Any], names: frozenset[str]) -> None:
    """Calls of custom tools, and the choice of one, as the target knows them. names: of those tools."""
    body["messages"] = [_with_customs(message, names) for message in body["messages"]]
    choice = body.get("tool_choice")
    if isinstance(choice, ToolChoice) and choice.allowed_tools is None and choice.function.name in names:
        body["tool_choice"] = {"type": "custom", "custom": choice.function}


def _with_customs(message: Any, names: frozenset[str]) -> Any:
    calls = message.tool_calls if isinstance(message, AssistantMessage) else None
    if not calls or not any(call.function.name in names for call in calls):
        return message
    made = [custom_call(call) if call.function.name in names else call for call in calls]
    return msgspec.structs.replace(message, tool_calls=made)
