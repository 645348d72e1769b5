"""What an answer used and why it ended, gathered while it passes, and its form on the wire."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import msgspec

OTHER = "other"
_REASON = re.compile(r"[A-Za-z]{1,24}(?:_[A-Za-z]{1,24}){0,3}")
UsageSource = Literal["reported", "estimated", "none"]
_MOST = (1 << 53) - 1
"""The largest count that a record can keep."""


class Tally(msgspec.Struct):
    """Counts of one attempt. Tokens; `queue_s` in seconds; `source` says who counted."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    cache_write_tokens: int = 0
    """Of the prompt's, those that a target has put into its cache."""
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    source: UsageSource = "none"
    queue_s: float | None = None
    finish_reasons: dict[int, str] = {}
    """Choice → reason, for the choices that have ended."""

    def clear(self) -> None:
        """Count from nothing."""
        for name, value in zip(self.__struct_fields__, msgspec.structs.astuple(Tally()), strict=True):
            setattr(self, name, value)

    def reasons(self) -> list[str]:
        """In the order of the choices. What is no word is told as `other`: a target may say anything."""
        return [why if _REASON.fullmatch(why) else OTHER for _, why in sorted(self.finish_reasons.items())]

    def usage(self) -> dict[str, Any]:
        """OpenAI's usage object."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": self.prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": self.cached_tokens, "audio_tokens": 0},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "audio_tokens": 0,
                "accepted_prediction_tokens": 0,
                "rejected_prediction_tokens": 0,
            },
        }

    def take(self, usage: WireUsage) -> bool:
        """What a target reported, as far as it says anything; whether that are tokens of its answer. None of them is
        what some report at the beginning, or of whatever: an estimate stands then."""
        counts = usage.counts()
        if counts.prompt:
            self.prompt_tokens = counts.prompt
            if self.source == "none":
                self.source = "estimated"
        if usage.prompt_tokens_details is not None or counts.cached:
            self.cached_tokens, self.cache_write_tokens = counts.cached, counts.written
        if usage.completion_tokens_details is not None:
            self.reasoning_tokens = counts.reasoning
        if not counts.completion:
            return False
        self.completion_tokens = counts.completion
        self.source = "reported" if counts.prompt else "estimated"
        return True


def _count(reported: float | None) -> int:
    """A number that a target has named: whatever it is, nothing is given back for it."""
    if type(reported) is int and 0 <= reported <= _MOST:
        return reported
    return int(min(max(reported or 0, 0), _MOST))


_Number = int | float | None


class Counts(NamedTuple):
    """Tokens. `cached` and `written` are parts of `prompt`, `reasoning` is one of `completion`."""

    prompt: int
    completion: int
    cached: int
    written: int
    reasoning: int


class _PromptDetails(msgspec.Struct, frozen=True):
    cached_tokens: _Number = None
    cache_write_tokens: _Number = None


class _CompletionDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: _Number = None


class WireUsage(msgspec.Struct, frozen=True):
    """The parts of a target's usage object, in OpenAI's dialect, that are counted."""

    prompt_tokens: _Number = None
    completion_tokens: _Number = None
    total_tokens: _Number = None
    prompt_tokens_details: _PromptDetails | None = None
    completion_tokens_details: _CompletionDetails | None = None
    prompt_cache_hit_tokens: _Number = None
    """DeepSeek's name for cached tokens."""

    def counts(self) -> Counts:
        prompt, completion = self.prompt_tokens, self.completion_tokens
        if type(prompt) is not int or not 0 <= prompt <= _MOST:
            prompt = _count(prompt)
        if type(completion) is not int or not 0 <= completion <= _MOST:
            completion = _count(completion)
        before, after = self.prompt_tokens_details, self.completion_tokens_details
        hits = self.prompt_cache_hit_tokens if before is None else before.cached_tokens
        cached = _count(hits) if hits else 0
        reasoning = _count(after.reasoning_tokens) if after is not None and after.reasoning_tokens else 0
        if reasoning and _count(self.total_tokens) == prompt + completion + reasoning:
            completion += reasoning  # xAI counts them apart
        return Counts(
            prompt,
            min(completion, _MOST),
            min(cached, prompt),
            min(_count(before.cache_write_tokens), prompt) if before is not None and before.cache_write_tokens else 0,
            min(reasoning, completion),
        )


_decode_fields: Callable[[bytes], dict[str, msgspec.Raw]] = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_NO_USAGE = msgspec.Raw(b"{}")


def uncounted(data: bytes) -> bytes:
    """A JSON object whose `usage`, if it has one, says nothing: for one that a decoder does not take. Raises
    msgspec.DecodeError."""
    fields = _decode_fields(data)
    if fields.get("usage"):
        fields["usage"] = _NO_USAGE
    return msgspec.json.encode(fields)


BYTES_A_TOKEN = 4
"""What a token of an answer comes to, frame and all, where nobody has counted."""


def count_unreported(tally: Tally, body: bytes, *, says: bool) -> None:
    """An answer whose target does not say what it used must not be free: its size tells about how much it was. says:
    it is text, and no vectors."""
    if tally.source == "none":
        tally.source = "estimated"
        tally.completion_tokens = -(-len(body) // BYTES_A_TOKEN) if says else 0
