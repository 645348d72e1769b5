"""The operations that a client may ask for: one entry each, in one table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Protocol

import msgspec

from appliance.dialects import (
    assemble,
    chat,
    chat_answer,
    completion_answer,
    completions,
    embeddings,
    errors,
    openai_reader,
    vector_answers,
)
from appliance.dialects import passing as openai_passing
from appliance.dialects.answer import Ask, Frame, MakeStream, MakeWhole, Reader
from appliance.dialects.asked import Asked
from appliance.dialects.messages import answer as messages_answer
from appliance.dialects.messages import assemble as messages_assemble
from appliance.dialects.messages import canonical as messages_canonical
from appliance.dialects.messages import carry as messages_carry
from appliance.dialects.messages import errors as messages_errors
from appliance.dialects.messages import passing as messages_passing
from appliance.dialects.messages import reader as messages_reader
from appliance.dialects.messages import request as messages_request
from appliance.dialects.messages import resuming as messages_resuming
from appliance.dialects.messages.betas import HEADER, Betas
from appliance.dialects.responses import answer as responses_answer
from appliance.dialects.responses import assemble as responses_assemble
from appliance.dialects.responses import carry as responses_carry
from appliance.dialects.responses import compact
from appliance.dialects.responses import errors as responses_errors
from appliance.dialects.responses import passing as responses_passing
from appliance.dialects.responses import reader as responses_reader
from appliance.dialects.responses import request as responses_request
from appliance.dialects.responses import resuming as responses_resuming
from appliance.dialects.tally import Tally
from appliance.errors import InternalError, OutpostError

Request = chat.ChatRequest | completions.CompletionRequest | embeddings.EmbeddingRequest
"""The canonical requests."""
Need = tuple[str, str, bool]
"""What a target must be able to do: the feature, the field that asks for it, and whether that may be dropped."""


class Passing(Protocol):
    """A streamed answer in the client's own dialect on its way through: looked at, never written again.

    Before the first token it lets nothing out. `done` is set once the target has said that the answer is complete.
    """

    done: bool

    def feed(self, read: bytes) -> bytes:
        """What may be sent after `read`; b"" as `read` means that the connection has ended. Raises UpstreamFailed."""
        ...

    def end(self) -> bytes:
        """The last events, which say that the answer is complete, and were held back."""
        ...

    def fail(self, error: OutpostError) -> bytes:
        """The last events of an answer that failed."""
        ...


class MakePassing(Protocol):
    def __call__(self, target: str, tally: Tally, frame: Frame, secret: bytes) -> Passing: ...


class ReadWhole(Protocol):
    def __call__(self, body: bytes, tally: Tally, target: str, request: Any, /) -> None:
        """Check a whole answer in the client's dialect and count it. request: the canonical one. Raises UpstreamFailed,
        and another of the tree for what the target itself reports as an error."""
        ...


class MakeReader(Protocol):
    def __call__(self, target: str, request: Any) -> Reader: ...


def _same_frame(frame: Frame, _pieces: list[bytes]) -> Frame:
    return frame


def _openai_error(error: OutpostError, _request_id: str) -> bytes:
    return errors.body(error)


def _no_carry(native: Any, _before: Request, _after: Request) -> Any:
    return native


class Kind(msgspec.Struct, frozen=True, kw_only=True):
    """An operation in one dialect."""

    name: str
    operation: str
    """What a target must offer; several dialects may ask for the same."""
    verb: str
    """For messages."""
    id_prefix: str
    parse: Callable[..., Asked]
    """Of the body and the most levels that it may nest; where there is a `header`, also of what that says. Raises
    BadRequest."""
    needs: Callable[[Asked], Iterable[Need]]
    make_whole: MakeWhole
    make_stream: MakeStream
    make_passing: MakePassing
    read_whole: ReadWhole
    make_reader: MakeReader | None = None
    """Reads an answer in this dialect: what a client was sent, and what a target sends that speaks it, where its bytes
    do not pass. None: nothing to read."""
    native_ask: Callable[[Any, str, Betas], Ask] | None = None
    """The client's own body for a model of a target that speaks the same dialect and may be asked for these betas."""
    adopt: Callable[[bytes, Frame], tuple[bytes, Any]] | None = None
    """A target's whole answer as one of ours, and the same as data for the store; None: it passes as it is."""
    refit: Callable[[Frame, list[bytes]], Frame] = _same_frame
    """The frame of an answer that has begun, by what was sent of it."""
    resumes_bytes: bool = True
    """Whether a stream that has passed as bytes can be gone on with."""
    keeps: bool = False
    """Answers are stored for their callers; see appliance.responses."""
    carry: Callable[[Any, Any, Any], Any] = _no_carry
    """The client's own body with what a route has changed in the canonical request."""
    assemble: Callable[[Iterable[bytes]], bytes] = assemble.assemble
    """The whole answer that a stream adds up to, for the record."""
    error_body: Callable[[OutpostError, str], bytes] = _openai_error
    """For a request of that id."""
    field_name: Callable[[str], str] = str
    """A field of the canonical request as its clients call it."""
    header: str = ""
    """A header of the request that says more of what is asked, in lower case."""
    id_header: str = ""
    """Another header in which its clients look for the request's id."""
    error_event: Callable[[OutpostError], bytes] = errors.stream_event
    """Of a stream that has not said anything yet."""


def _canonical(parse: Callable[[bytes, int], Request]) -> Callable[[bytes, int], Asked]:
    return lambda body, max_depth: Asked(parse(body, max_depth))


def _of_request(needs: Callable[[Any], Iterable[Need]]) -> Callable[[Asked], Iterable[Need]]:
    return lambda asked: needs(asked.request)


def _never(*_: Any, **__: Any) -> Any:
    raise InternalError("Embeddings are not streamed.")


def _pass_openai(target: str, tally: Tally, frame: Frame, secret: bytes) -> Passing:
    request = frame.request
    options = request.stream_options
    counted = bool(options and options.include_usage)
    return openai_passing.PassThrough(target, tally, keep_usage=counted, secret=secret, choices=request.choices)


CHAT = Kind(
    name="chat.completions",
    operation="chat.completions",
    verb="chat",
    id_prefix="chatcmpl-",
    parse=_canonical(chat.parse),
    needs=_of_request(chat.needs),
    make_whole=chat_answer.whole,
    make_stream=chat_answer.stream,
    make_passing=_pass_openai,
    read_whole=openai_passing.read_whole,
    make_reader=openai_reader.OpenAIReader,
    refit=chat_answer.refit,
)
COMPLETIONS = Kind(
    name="completions",
    operation="completions",
    verb="complete text",
    id_prefix="cmpl-",
    parse=_canonical(completions.parse),
    needs=_of_request(completions.needs),
    make_whole=completion_answer.whole,
    make_stream=completion_answer.stream,
    make_passing=_pass_openai,
    read_whole=openai_passing.read_whole,
    make_reader=openai_reader.OpenAIReader,
    refit=chat_answer.refit,
)
EMBEDDINGS = Kind(
    name="embeddings",
    operation="embeddings",
    verb="embed text",
    id_prefix="embd-",
    parse=_canonical(embeddings.parse),
    needs=_of_request(embeddings.needs),
    make_whole=_never,
    make_stream=_never,
    make_passing=_never,
    read_whole=vector_answers.read_whole,
)


def _compaction(body: bytes, max_depth: int) -> Asked:
    """What is to be summed up is not known before the earlier conversation is: see appliance.responses."""
    native = compact.parse_compact(body, max_depth)
    return Asked(chat.ChatRequest(model=native.model, messages=[chat.UserMessage("")]), native)


MESSAGES = Kind(
    name="messages",
    operation="chat.completions",
    verb="chat",
    id_prefix=messages_answer.ID_PREFIX,
    parse=messages_request.parse,
    needs=messages_canonical.needs,
    make_whole=messages_answer.MessagesWhole,
    make_stream=messages_answer.MessagesStream,
    make_passing=messages_passing.make_passing,
    read_whole=messages_passing.read_whole,
    make_reader=messages_reader.make_reader,
    refit=messages_resuming.refit,
    native_ask=messages_carry.native_ask,
    carry=messages_carry.carry,
    assemble=messages_assemble.assemble,
    error_body=messages_errors.body,
    field_name=messages_canonical.field_name,
    header=HEADER,
    id_header="request-id",
    error_event=messages_errors.stream_event,
)
RESPONSES = Kind(
    name="responses",
    operation="chat.completions",
    verb="chat",
    id_prefix="resp_",
    parse=responses_request.parse,
    needs=responses_request.needs,
    make_whole=responses_answer.ResponsesWhole,
    make_stream=responses_answer.ResponsesStream,
    make_passing=responses_passing.make_passing,
    read_whole=responses_passing.read_whole,
    make_reader=responses_reader.make_reader,
    refit=responses_resuming.refit,
    native_ask=responses_carry.native_ask,
    adopt=responses_passing.adopt,
    keeps=True,
    carry=responses_carry.carry,
    assemble=responses_assemble.assemble,
    field_name=responses_request.field_name,
    error_event=responses_errors.stream_event,
)
COMPACT = Kind(
    name="responses.compact",
    operation="chat.completions",
    verb="chat",
    id_prefix="resp_",
    parse=_compaction,
    needs=_of_request(chat.needs),
    make_whole=chat_answer.whole,
    make_stream=chat_answer.stream,
    make_passing=_pass_openai,
    read_whole=openai_passing.read_whole,
    keeps=True,
)

KINDS: dict[str, Kind] = {kind.name: kind for kind in (CHAT, COMPLETIONS, EMBEDDINGS, MESSAGES, RESPONSES, COMPACT)}
