"""The body of POST /v1/messages as structs: Anthropic's Messages request, whole.

The structs are the allow-list, as in `dialects.chat`. What only Anthropic's own machines can do (tools that run there,
their results) is typed no further than it has to be seen: it passes to a target that speaks the dialect, or nowhere.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from appliance.dialects import parameters as p

ToolUseId = Annotated[str, Meta(min_length=1, max_length=256)]
AnyToolName = Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class Plain(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """What all structs of the body have in common."""


class CacheMark(Plain, frozen=True):
    """Asks Anthropic to keep the prompt up to here for later requests."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = None
    scope: Annotated[str, Meta(max_length=64)] | None = None
    """Who shares what is kept. Claude Code says it; without the beta header, which is not sent on, Anthropic refuses
    it, and the answer is the same without: it is read and forgotten."""

    def __post_init__(self) -> None:
        if self.scope is not None:
            msgspec.structs.force_setattr(self, "scope", None)


# --- media ----------------------------------------------------------------------------------------


class Base64Source(Plain, frozen=True, tag="base64"):
    media_type: Annotated[str, Meta(min_length=1, max_length=128)]
    data: str


class UrlSource(Plain, frozen=True, tag="url"):
    url: Annotated[str, Meta(min_length=1)]


class FileSource(Plain, frozen=True, tag="file"):
    file_id: Annotated[str, Meta(min_length=1, max_length=256)]


class TextSource(Plain, frozen=True, tag="text"):
    media_type: Literal["text/plain"]
    data: str


# --- blocks ---------------------------------------------------------------------------------------


class TextBlock(Plain, frozen=True, tag="text"):
    text: str
    cache_control: CacheMark | None = None
    citations: list[dict[str, Any]] | None = None
    """Left over from an answer."""


class ImageBlock(Plain, frozen=True, tag="image"):
    source: Base64Source | UrlSource | FileSource
    cache_control: CacheMark | None = None
    transformations: dict[str, Any] | None = None


class ContentSource(Plain, frozen=True, tag="content"):
    content: str | list[TextBlock | ImageBlock]


class Citations(Plain, frozen=True):
    enabled: bool | None = None


class DocumentBlock(Plain, frozen=True, tag="document"):
    source: Base64Source | UrlSource | FileSource | TextSource | ContentSource
    title: str | None = None
    context: str | None = None
    citations: Citations | None = None
    cache_control: CacheMark | None = None


class SearchResultBlock(Plain, frozen=True, tag="search_result"):
    source: str
    title: str
    content: list[TextBlock]
    citations: Citations | None = None
    cache_control: CacheMark | None = None


class ToolReferenceBlock(Plain, frozen=True, tag="tool_reference"):
    tool_name: str
    cache_control: CacheMark | None = None


class ToolResultBlock(Plain, frozen=True, tag="tool_result"):
    tool_use_id: ToolUseId
    content: str | list[TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolReferenceBlock] | None = None
    is_error: bool | None = None
    cache_control: CacheMark | None = None
    toolset_name: str | None = None


class ToolUseBlock(Plain, frozen=True, tag="tool_use"):
    id: ToolUseId
    name: Annotated[str, Meta(min_length=1, max_length=200)]
    input: dict[str, Any]
    cache_control: CacheMark | None = None
    caller: dict[str, Any] | None = None
    toolset_name: str | None = None


class ThinkingBlock(Plain, frozen=True, tag="thinking"):
    thinking: str
    signature: str = ""
    """Empty where the answer came from a target that signs nothing."""


class RedactedThinkingBlock(Plain, frozen=True, tag="redacted_thinking"):
    data: str


class ContainerUploadBlock(Plain, frozen=True, tag="container_upload"):
    file_id: str
    cache_control: CacheMark | None = None


class ServerToolUseBlock(Plain, frozen=True, tag="server_tool_use"):
    id: ToolUseId
    name: str
    input: dict[str, Any]
    cache_control: CacheMark | None = None
    caller: dict[str, Any] | None = None


class ServerToolResult(Plain, frozen=True):
    """What a tool that ran at Anthropic's gave."""

    tool_use_id: ToolUseId
    content: Any
    cache_control: CacheMark | None = None
    caller: dict[str, Any] | None = None


class WebSearchResult(ServerToolResult, frozen=True, tag="web_search_tool_result"): ...


class WebFetchResult(ServerToolResult, frozen=True, tag="web_fetch_tool_result"): ...


class CodeExecutionResult(ServerToolResult, frozen=True, tag="code_execution_tool_result"): ...


class BashResult(ServerToolResult, frozen=True, tag="bash_code_execution_tool_result"): ...


class TextEditorResult(ServerToolResult, frozen=True, tag="text_editor_code_execution_tool_result"): ...


class ToolSearchResult(ServerToolResult, frozen=True, tag="tool_search_tool_result"): ...


class McpToolUseBlock(ServerToolUseBlock, frozen=True, tag="mcp_tool_use"):
    server_name: str | None = None


class McpToolResult(ServerToolResult, frozen=True, tag="mcp_tool_result"):
    is_error: bool | None = None


ServerBlock = (
    ServerToolUseBlock
    | WebSearchResult
    | WebFetchResult
    | CodeExecutionResult
    | BashResult
    | TextEditorResult
    | ToolSearchResult
    | McpToolUseBlock
    | McpToolResult
    | ContainerUploadBlock
)
UserBlock = TextBlock | ImageBlock | DocumentBlock | SearchResultBlock | ToolResultBlock | ContainerUploadBlock
AssistantBlock = (
    TextBlock
    | ThinkingBlock
    | RedactedThinkingBlock
    | ToolUseBlock
    | ServerToolUseBlock
    | WebSearchResult
    | WebFetchResult
    | CodeExecutionResult
    | BashResult
    | TextEditorResult
    | ToolSearchResult
    | McpToolUseBlock
    | McpToolResult
    | ContainerUploadBlock
)


class UserTurn(Plain, frozen=True, tag_field="role", tag="user"):
    content: str | Annotated[list[UserBlock], Meta(min_length=1)]


class AssistantTurn(Plain, frozen=True, tag_field="role", tag="assistant"):
    content: str | list[AssistantBlock]


class SystemTurn(Plain, frozen=True, tag_field="role", tag="system"):
    content: str | Annotated[list[TextBlock], Meta(min_length=1)]


Turn = UserTurn | AssistantTurn | SystemTurn


# --- tools ----------------------------------------------------------------------------------------


class CustomTool(Plain, frozen=True):
    """A tool of the client's own."""

    name: AnyToolName
    input_schema: dict[str, Any]
    type: Literal["custom"] | None = None
    description: str | None = None
    strict: bool | None = None
    cache_control: CacheMark | None = None
    eager_input_streaming: bool | None = None
    input_examples: list[dict[str, Any]] | None = None
    defer_loading: bool | None = None
    allowed_callers: list[str] | None = None


class AutoChoice(Plain, frozen=True, tag="auto"):
    disable_parallel_tool_use: bool | None = None


class AnyChoice(Plain, frozen=True, tag="any"):
    disable_parallel_tool_use: bool | None = None


class ToolChoice(Plain, frozen=True, tag="tool"):
    name: AnyToolName
    disable_parallel_tool_use: bool | None = None


class NoChoice(Plain, frozen=True, tag="none"): ...


Choice = AutoChoice | AnyChoice | ToolChoice | NoChoice


# --- options --------------------------------------------------------------------------------------

Display = Literal["summarized", "omitted", "updates"]


class ThinkingEnabled(Plain, frozen=True, tag="enabled"):
    budget_tokens: Annotated[int, Meta(ge=1024, le=2**31 - 1)]
    display: Display | None = None
    block_binding: dict[str, Any] | None = None
    """What becomes of thoughts that are sent back in another conversation than they were had in."""


class ThinkingAdaptive(Plain, frozen=True, tag="adaptive"):
    display: Display | None = None
    block_binding: dict[str, Any] | None = None


class ThinkingDisabled(Plain, frozen=True, tag="disabled"): ...


class ThinkingBetweenTools(Plain, frozen=True, tag="between_tools"): ...


Thinking = ThinkingEnabled | ThinkingAdaptive | ThinkingDisabled | ThinkingBetweenTools


class JsonFormat(Plain, frozen=True):
    type: Literal["json_schema"]
    schema: dict[str, Any]


class OutputConfig(Plain, frozen=True):
    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None
    task_budget: dict[str, Any] | None = None
    """How many tokens a task of several requests may take, which the model is told."""


class Metadata(Plain, frozen=True):
    user_id: p.Label | None = None


class ContextManagement(Plain, frozen=True):
    """What Anthropic is to leave out of the conversation."""

    edits: list[dict[str, Any]] | None = None


class CountRequest(Plain, frozen=True, kw_only=True):
    """POST /v1/messages/count_tokens: what becomes the prompt."""

    model: p.ModelName
    messages: Annotated[list[Turn], Meta(min_length=1, max_length=100_000)]
    system: str | list[TextBlock] | None = None
    tools: Annotated[list[dict[str, Any]], Meta(max_length=512)] | None = None
    """Custom tools have the form of `CustomTool`, Anthropic's own whatever form their type has."""
    tool_choice: Choice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    output_format: JsonFormat | None = None
    """An older name of `output_config.format`; gone after `request.parse`."""
    context_management: ContextManagement | None = None
    mcp_servers: Annotated[list[dict[str, Any]], Meta(max_length=64)] | None = None
    """Servers that Anthropic connects to by itself."""
    cache_control: CacheMark | None = None
    betas: tuple[str, ...] | None = None
    """Those of the header, see `betas`: they are in no body."""


class MessagesRequest(CountRequest, frozen=True, kw_only=True):
    """POST /v1/messages. None means "not sent"."""

    max_tokens: p.MaxTokens
    stream: bool | None = None
    stop_sequences: list[p.StopText] | None = None
    temperature: p.Unit | None = None
    top_p: p.Unit | None = None
    top_k: Annotated[int, Meta(ge=0, le=2**31 - 1)] | None = None
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    container: str | dict[str, Any] | None = None
    """Where code runs, at Anthropic's."""
