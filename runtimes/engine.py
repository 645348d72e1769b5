"""The protocol that every engine meets: what may be asked of a model on this box, and what comes back.

Requests and events are plain data (msgspec structs), so that they cross a process border unchanged
and a test can write them down. Units: tokens are counts, times are seconds, probabilities are
natural logarithms. Nothing here imports anything else of ours.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Literal, Protocol

import msgspec

FinishReason = Literal["stop", "length", "tool_calls", "content_filter", "cancelled"]


class Sampling(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How the next token is chosen. Defaults are OpenAI's; temperature 0 means greedy."""

    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    """0 = off."""
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repeat_penalty: float = 1.0
    seed: int | None = None
    """None = a fresh seed for each request. Choice i of n uses seed + i."""
    logit_bias: dict[int, float] = {}
    """token id → added logit, -100 … 100 (-100 bans, +100 forces)."""


class GenerateRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Text from a model: a chat (`messages`) or a plain continuation (`prompt`), never both."""

    messages: list[dict[str, Any]] | None = None
    """Chat messages in OpenAI's shape, validated, text parts only for models without vision."""
    prompt: str | list[int] | None = None
    """Text or token ids to continue (no template is applied)."""
    tools: list[dict[str, Any]] = []
    """OpenAI's shape: {"type": "function", "function": {name, description, parameters, strict}}."""
    tool_choice: str | dict[str, Any] = "auto"
    """"auto" | "none" | "required" | {"type": "function", "function": {"name": …}}."""
    parallel_tool_calls: bool = True
    response_format: dict[str, Any] | None = None
    """None, {"type": "text"}, {"type": "json_object"} or {"type": "json_schema", "json_schema": {…}}."""
    max_tokens: int | None = None
    """Most tokens to generate per choice; None = up to the end of the context."""
    stop: list[str] = []
    n: int = 1
    sampling: Sampling = Sampling()
    logprobs: int | None = None
    """None = off; k >= 0 = the chosen token and the k most likely ones at each position (k <= 20)."""
    echo: bool = False
    """Completions only: repeat the prompt's text before the answer (no prompt logprobs)."""
    cache_partition: str = ""
    """Prefix reuse happens only between requests with the same partition (tenant isolation)."""


class EmbedRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """Vectors for texts. Each input is a text or its token ids; the order is kept."""

    inputs: list[str | list[int]]


class CountRequest(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """How many prompt tokens a generate request would use, without running it."""

    request: GenerateRequest


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """One token as shown in logprobs. `token` may hold U+FFFD where the bytes are no whole character."""

    token: str
    logprob: float
    bytes: list[int]


class PositionLogprobs(msgspec.Struct, frozen=True, array_like=True):
    """The chosen token of one position and the most likely alternatives, best first."""

    chosen: TokenLogprob
    top: list[TokenLogprob]


class ToolCallDelta(msgspec.Struct, frozen=True, omit_defaults=True):
    """A piece of a tool call. `id` and `name` come once, with the first piece of call `index`."""

    index: int
    id: str = ""
    name: str = ""
    arguments: str = ""
    custom: bool = False
    """Of a custom tool, which engines do not know: `arguments` is a piece of its input as plain text."""


class Started(msgspec.Struct, frozen=True, tag="started"):
    """The request left the waiting list: the prompt's size is known, and its computation begins now."""

    prompt_tokens: int


class Working(msgspec.Struct, frozen=True, tag="working"):
    """A sign of life, about once a second for a request that has started and of which some choice has no token yet."""


class Delta(msgspec.Struct, frozen=True, tag="delta", omit_defaults=True):
    """New text of choice `index`. Text never ends inside a code point and never holds a stop string."""

    index: int = 0
    text: str = ""
    tool_calls: list[ToolCallDelta] = []
    logprobs: list[PositionLogprobs] = []
    reasoning: str = ""
    """What the model thinks before it answers; a piece of it, like `text`."""
    reasoning_signature: str = ""
    """Comes once, after the last piece of a block of reasoning, and ends it: what its maker wants back to trust it."""
    reasoning_data: str = ""
    """A block of reasoning that only its maker can read, whole."""
    refusal: str = ""
    """A piece of what a model says instead of an answer."""


class Finished(msgspec.Struct, frozen=True, tag="finished", omit_defaults=True):
    """Choice `index` is complete; nothing of it follows."""

    reason: FinishReason
    index: int = 0
    stop_sequence: str = ""
    """The stop string that ended it, where the model says which."""


class Usage(msgspec.Struct, frozen=True, tag="usage", omit_defaults=True):
    """Always the last event of a request that was not refused or failed."""

    prompt_tokens: int
    completion_tokens: int = 0
    cached_tokens: int = 0
    """Prompt tokens that were not computed because an earlier request had left them."""
    queue_s: float = 0.0
    """Seconds between arrival and the first prefill."""
    reasoning_tokens: int = 0
    """Of `completion_tokens`, those of reasoning."""
    cache_write_tokens: int = 0
    """Of `prompt_tokens`, those that were put into the maker's cache for later requests."""


Event = Started | Working | Delta | Finished | Usage


class Embeddings(msgspec.Struct, frozen=True):
    """One unit-length vector an input, as little-endian float32 bytes, and the tokens that were read."""

    vectors: list[bytes]
    dimensions: int
    prompt_tokens: int


class EngineStatus(msgspec.Struct, frozen=True, omit_defaults=True):
    """What an engine says about itself when it is probed."""

    model: str
    task: Literal["generate", "embed"]
    context_length: int
    """Most tokens (prompt + answer) of one request."""
    slots: int
    busy: int = 0
    waiting: int = 0
    tokens_generated: int = 0
    tokens_prefilled: int = 0
    tokens_reused: int = 0
    steps: int = 0
    computing_s: float = 0.0
    """How long the batch that is being computed at this moment has been under way; 0 = none is, or it may take as long
    as it likes."""
    open_requests: int = 0
    descriptors: int = 0
    native_tools: bool = False
    """The model's own template knows tools (otherwise the generic scheme is used)."""


class EngineError(Exception):
    """Root of everything that an engine may answer instead of an event.

    `code` is stable and is what crosses the process border; `param` names the request field at fault.
    """

    code = "engine_error"
    retryable = False

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param


class InvalidRequest(EngineError):
    """The request cannot be honoured as it stands (a bad schema, an unknown tool, a template refusal)."""

    code = "invalid_request"


class Unsupported(EngineError):
    """The model or engine does not have this ability; `param` names the field that asked for it."""

    code = "unsupported_parameter"


class ContextLengthExceeded(EngineError):
    """The prompt does not fit the context of one request."""

    code = "context_length_exceeded"


class EngineOverloaded(EngineError):
    """The engine's waiting list is full; `retry_after_s` is an estimate."""

    code = "engine_overloaded"
    retryable = True
    retry_after_s = 1.0


class EngineLost(EngineError):
    """The engine process went away, or was never there, while the request ran."""

    code = "engine_lost"
    retryable = True


ERRORS: dict[str, type[EngineError]] = {
    e.code: e for e in (EngineError, InvalidRequest, Unsupported, ContextLengthExceeded, EngineOverloaded, EngineLost)
}


class Engine(Protocol):
    """One running replica, as the gateway sees it. Closing an iterator cancels its request."""

    def generate(self, request: GenerateRequest) -> AsyncIterator[list[Event]]:
        """Yield the events of each step, ending with `Usage`. Raises EngineError.

        A list holds all events that became known together, so that they can be sent together.
        """
        ...

    async def embed(self, request: EmbedRequest) -> Embeddings:
        """Raises EngineError (ContextLengthExceeded names the input in `param`)."""
        ...

    async def count(self, request: CountRequest) -> int:
        """Prompt tokens of a request, with template and tools. Raises EngineError."""
        ...

    async def status(self) -> EngineStatus:
        """Raises EngineLost when the process is gone."""
        ...

    async def close(self) -> None:
        """Give up the connection; every running request ends with EngineLost."""
        ...
