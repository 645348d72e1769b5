"""Gemini's answers, streamed and whole, read into events. Sans-I/O.

A stream has no end marker: it is complete when every choice has a reason to have ended and the tokens are counted.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import msgspec

from appliance.dialects.event_reader import EventReader
from appliance.dialects.gemini import signatures
from appliance.dialects.passing import BAD_JSON
from appliance.dialects.reported import empty, reported
from appliance.dialects.translating import counted
from appliance.errors import ContentFiltered, UpstreamFailed
from runtimes.engine import Delta, Event, Finished, FinishReason, PositionLogprobs, TokenLogprob, ToolCallDelta, Usage

_MOST_ID = 256


class _Call(msgspec.Struct, frozen=True):
    name: str = ""
    args: msgspec.Raw = msgspec.Raw(b"{}")
    id: str | None = None


class _Part(msgspec.Struct, frozen=True, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    thought_signature: str | None = None
    function_call: _Call | None = None
    inline_data: Any = None
    file_data: Any = None
    executable_code: Any = None
    code_execution_result: Any = None
    tool_call: Any = None
    """Of a tool that runs on their side."""

    @property
    def foreign(self) -> bool:
        """Whether it says what no event can: leaving it out would make another answer of it."""
        return (
            self.inline_data is not None
            or self.file_data is not None
            or self.executable_code is not None
            or self.code_execution_result is not None
            or self.tool_call is not None
        )


class _Content(msgspec.Struct, frozen=True):
    parts: list[_Part] | None = None


class _Token(msgspec.Struct, frozen=True, rename="camel"):
    token: str = ""
    log_probability: float = 0.0


class _Top(msgspec.Struct, frozen=True):
    candidates: list[_Token] = []


class _Logprobs(msgspec.Struct, frozen=True, rename="camel"):
    chosen_candidates: list[_Token] = []
    top_candidates: list[_Top] = []


class _Candidate(msgspec.Struct, frozen=True, rename="camel"):
    index: int = 0
    content: _Content | None = None
    finish_reason: str | None = None
    logprobs_result: _Logprobs | None = None


class _Usage(msgspec.Struct, frozen=True, rename="camel"):
    prompt_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None
    cached_content_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None


class _Feedback(msgspec.Struct, frozen=True, rename="camel"):
    block_reason: str | None = None


class _Chunk(msgspec.Struct, frozen=True, rename="camel"):
    candidates: list[_Candidate] | None = None
    usage_metadata: _Usage | None = None
    prompt_feedback: _Feedback | None = None
    error: Any = None
    response_id: str | None = None


_decode = msgspec.json.Decoder(_Chunk).decode

_REASONS: dict[str, FinishReason] = {
    "STOP": "stop",
    "MAX_TOKENS": "length",
    "SAFETY": "content_filter",
    "RECITATION": "content_filter",
    "LANGUAGE": "content_filter",
    "BLOCKLIST": "content_filter",
    "PROHIBITED_CONTENT": "content_filter",
    "SPII": "content_filter",
    "MODEL_ARMOR": "content_filter",
    "IMAGE_SAFETY": "content_filter",
    "IMAGE_PROHIBITED_CONTENT": "content_filter",
    "IMAGE_RECITATION": "content_filter",
}
"""Every other reason (MALFORMED_FUNCTION_CALL, OTHER, …) says that the answer came to no end of its own."""
_WORD = re.compile(r"[A-Z_]{1,40}")
_UNSET = ("", "FINISH_REASON_UNSPECIFIED")
_UNBLOCKED = ("", "BLOCK_REASON_UNSPECIFIED", "BLOCKED_REASON_UNSPECIFIED")


class GeminiReader(EventReader):
    """One answer of `choices` choices, or fewer where the target gives no more. `fresh` makes ids for calls that have
    none."""

    __slots__ = (
        "_begun",
        "_calls",
        "_choices",
        "_counted",
        "_fresh",
        "_logprobs",
        "_reasons",
        "_said",
        "_usage",
    )

    def __init__(self, target: str, choices: int, fresh: Callable[[], str], *, logprobs: bool) -> None:
        super().__init__(target)
        self._choices = choices
        self._fresh = fresh
        self._logprobs = logprobs
        self._calls: dict[int, int] = {}
        """Choice → tool calls so far."""
        self._begun: set[int] = set()
        self._reasons: dict[int, FinishReason] = {}
        self._said = False
        """Whether a client has been told anything but thoughts."""
        self._usage: _Usage | None = None
        self._counted = False
        """Whether tokens were counted when all choices had ended, or after that."""

    def _ended(self, out: list[Event], *, closed: bool) -> None:
        if self._all_ended if closed else self.complete and self._counted:
            self._end(out)

    def whole(self, body: bytes) -> list[Event]:
        """The events of an answer in one piece."""
        out: list[Event] = []
        self._take(body, out)
        if not self._all_ended:
            raise UpstreamFailed(f"{self._target} gave an answer that is not complete.")
        self._end(out)
        return out

    @property
    def complete(self) -> bool:
        """Every choice has ended: all that may still come are counts."""
        return len(self._reasons) >= self._choices

    @property
    def counted(self) -> bool:
        """Counts that come before the end are not yet all."""
        return self._counted

    @property
    def _all_ended(self) -> bool:
        """What matters when nothing more comes: some models give one choice, whatever is asked."""
        return bool(self._reasons) and self._begun <= self._reasons.keys()

    def _end(self, out: list[Event]) -> None:
        usage = self._usage or _Usage()
        bounded = any(reason in ("length", "content_filter") for reason in self._reasons.values())
        if not self._said and not bounded and not counted(usage.candidates_token_count):
            raise empty(self._target)
        self.done = True
        # Only now is it sure that nothing of them follows.
        out.extend([Finished(reason=self._reasons[index], index=index) for index in sorted(self._reasons)])
        thought = counted(usage.thoughts_token_count)
        completion = counted(usage.candidates_token_count) + thought
        if self._usage is None or (self._said and not completion):
            return  # who tells nothing is not taken at its word that it was nothing
        out.append(
            Usage(
                prompt_tokens=counted(usage.prompt_token_count) + counted(usage.tool_use_prompt_token_count),
                completion_tokens=completion,
                cached_tokens=counted(usage.cached_content_token_count),
                reasoning_tokens=thought,
            )
        )

    def _take(self, data: bytes, out: list[Event]) -> None:
        try:
            chunk = _decode(data)
        except BAD_JSON:
            raise self._unsound() from None
        if chunk.error is not None:
            raise reported(self._target, chunk.error)
        feedback = chunk.prompt_feedback
        if feedback is not None and (feedback.block_reason or "") not in _UNBLOCKED:
            raise ContentFiltered(f"{self._target} refused the request for its content.")
        if chunk.candidates is None and chunk.usage_metadata is None and feedback is None and chunk.response_id is None:
            raise self._unsound()
        for candidate in chunk.candidates or ():
            self._candidate(candidate, out)
        if chunk.usage_metadata is not None:
            self._usage = chunk.usage_metadata
            self._counted = self.complete

    def _candidate(self, candidate: _Candidate, out: list[Event]) -> None:
        index = candidate.index
        if not 0 <= index < self._choices:
            raise self._unsound()
        self._begun.add(index)
        positions = self._positions(candidate.logprobs_result)
        for part in (candidate.content.parts if candidate.content is not None else None) or ():
            positions = self._part(part, index, positions, out)
        if positions:
            out.append(Delta(index=index, logprobs=positions))
        said = candidate.finish_reason or ""
        if said in _UNSET:
            return
        reason = _REASONS.get(said)
        if reason is None:
            shown = f" ({said})" if _WORD.fullmatch(said) else ""
            raise UpstreamFailed(f"{self._target} broke off its answer{shown}.")
        self._reasons[index] = "tool_calls" if reason == "stop" and self._calls.get(index) else reason

    def _part(
        self, part: _Part, index: int, positions: list[PositionLogprobs], out: list[Event]
    ) -> list[PositionLogprobs]:
        """One part of a choice; gives the logprobs that are left for the next one."""
        if part.foreign:
            raise UpstreamFailed(f"{self._target} sent a part of a kind that was not asked for.")
        signature = part.thought_signature or ""
        if part.function_call is not None:
            self._call(part.function_call, signature, index, out)
        elif part.thought:
            if part.text:
                out.append(Delta(index=index, reasoning=part.text))
            if signature:
                out.append(Delta(index=index, reasoning_data=signatures.pack("thought", signature)))
        else:
            if part.text:
                self._said = True
                out.append(Delta(index=index, text=part.text, logprobs=positions))
                positions = []
            if signature:
                out.append(Delta(index=index, reasoning_data=signatures.pack("text", signature)))
        return positions

    def _call(self, call: _Call, signature: str, index: int, out: list[Event]) -> None:
        arguments = bytes(call.args)
        if arguments == b"null":
            arguments = b"{}"
        if not call.name or not arguments.startswith(b"{"):
            raise self._unsound()
        id = call.id if call.id and len(call.id) <= _MOST_ID else self._fresh()
        if signature:
            # Before the call: a block of reasoning stands before what was thought out.
            out.append(Delta(index=index, reasoning_data=signatures.pack("call", signature, id)))
        self._said = True
        number = self._calls.get(index, 0)
        self._calls[index] = number + 1
        piece = ToolCallDelta(index=number, id=id, name=call.name, arguments=arguments.decode())
        out.append(Delta(index=index, tool_calls=[piece]))

    def _positions(self, logprobs: _Logprobs | None) -> list[PositionLogprobs]:
        if logprobs is None or not self._logprobs:
            return []
        tops = logprobs.top_candidates
        return [
            PositionLogprobs(_token(chosen), [_token(top) for top in tops[at].candidates] if at < len(tops) else [])
            for at, chosen in enumerate(logprobs.chosen_candidates)
        ]


def _token(token: _Token) -> TokenLogprob:
    return TokenLogprob(token.token, token.log_probability, list(token.token.encode()))
