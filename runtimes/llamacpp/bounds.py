"""What a request may ask of the engine: checked before any of it reaches the compute loop.

The gateway checks the same fields for its own clients; an engine must not depend on that, since one
wrong number would take all other requests along.
"""

from __future__ import annotations

import math

from runtimes.engine import ContextLengthExceeded, EngineOverloaded, GenerateRequest, InvalidRequest, Sampling

MOST_LOGPROBS = 20
MOST_CHOICES = 128
"""OpenAI's bound on `n`. How many may wait is another matter: see `check_fits` and `check_room`."""


def check_request(request: GenerateRequest, *, n_vocab: int) -> None:
    """Raise InvalidRequest naming the field that is out of range."""
    if not 1 <= request.n <= MOST_CHOICES:
        raise InvalidRequest(f"n is {request.n}; it must be 1 to {MOST_CHOICES}", param="n")
    if request.max_tokens is not None and request.max_tokens < 0:
        raise InvalidRequest(f"max_tokens is {request.max_tokens}; it must not be negative", param="max_tokens")
    if request.logprobs is not None and not 0 <= request.logprobs <= MOST_LOGPROBS:
        raise InvalidRequest(f"logprobs is {request.logprobs}; it must be 0 to {MOST_LOGPROBS}", param="logprobs")
    _check_sampling(request.sampling, n_vocab)


def _check_sampling(sampling: Sampling, n_vocab: int) -> None:
    for field in ("temperature", "top_p", "min_p", "presence_penalty", "frequency_penalty", "repeat_penalty"):
        value = getattr(sampling, field)
        if not math.isfinite(value):
            raise InvalidRequest(f"{field} is {value}; it must be a finite number", param=field)
    if sampling.repeat_penalty <= 0:
        raise InvalidRequest(
            f"repeat_penalty is {sampling.repeat_penalty}; it must be more than 0", param="repeat_penalty"
        )
    for token, bias in sampling.logit_bias.items():
        if not 0 <= token < n_vocab:
            raise InvalidRequest(
                f"logit_bias: token id {token} is outside the vocabulary (0 … {n_vocab - 1})", param="logit_bias"
            )
        if not math.isfinite(bias):
            raise InvalidRequest(f"logit_bias: the value of token {token} is {bias}", param="logit_bias")


def check_fits(n: int, *, slots: int, max_waiting: int) -> None:
    """Raise InvalidRequest for a request that would be too large for an engine with nothing else to do."""
    if n > slots + max_waiting:
        raise InvalidRequest(
            f"n is {n}; this engine takes at most {slots + max_waiting} choices at a time: {slots} in its slots "
            f"(args.slots) and {max_waiting} that wait (args.max_waiting)",
            param="n",
        )


def check_room(n: int, *, in_hand: int, slots: int, max_waiting: int) -> None:
    """Raise EngineOverloaded unless `n` more can start or wait beside the `in_hand` that run and wait already."""
    if in_hand + n > slots + max_waiting:
        raise EngineOverloaded(
            f"the engine is full: {in_hand} are running or waiting, and it takes {slots + max_waiting} at a time "
            f"({slots} that run, {max_waiting} that wait); try again soon"
        )


def check_prompt(tokens: int, context_length: int, param: str) -> None:
    """Raise ContextLengthExceeded unless a prompt leaves room for at least one token of answer."""
    if tokens >= context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens, but the prompt has {tokens} tokens "
            "and at least one token of answer must fit. Shorten the prompt.",
            param=param,
        )


def check_size(characters: int, longest_piece: int, context_length: int, param: str) -> None:
    """Raise ContextLengthExceeded for a text that cannot fit, whatever its tokens are, before they are looked for.

    longest_piece: bytes of the longest token of the vocabulary; a character has at least one byte.
    """
    if characters > longest_piece * context_length:
        raise ContextLengthExceeded(
            f"This model's maximum context length is {context_length} tokens, but the prompt has {characters} "
            f"characters, which are more than {characters // longest_piece} tokens. Shorten the prompt.",
            param=param,
        )
