"""Answers that must follow a grammar: JSON, a JSON schema, tool calls.

The grammar is walked by llguidance. A step of the engine samples freely first and only asks `allows` about that one
token (a few µs); `mask` (10–130 µs at 49k tokens) is for the case that it does not fit.
Grammars come from callers' schemas, so each is compiled in a child process under a clock before it is
compiled here, off the event loop; compiled grammars are kept and copied for each choice.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

import llguidance
import numpy as np
from numpy.typing import NDArray

from runtimes.engine import EngineOverloaded, InvalidRequest
from runtimes.llamacpp.schema import check_schema
from runtimes.llamacpp.worker import ChildLost, Worker, WorkerDied

WORKER_SCRIPT = Path(__file__).with_name("grammar_worker.py")
WORKER_MEMORY = 1 << 30
COMPILE_CPU_S = 1.0
COMPILE_TIMEOUT_S = 5.0
LOST = "the schema could not be compiled now: its process is late, was killed or could not be started; try again soon"
TRIAL_STEPS = 40
CACHE_SIZE = 64
MAX_GRAMMAR_BYTES = 512 << 10

LIMITS: dict[str, Any] = {
    "max_items_in_row": 2000,
    "initial_lexer_fuel": 300_000,
    "step_lexer_fuel": 50_000,
    "step_max_items": 20_000,
    "max_lexer_states": 20_000,
    "max_grammar_size": 100_000,
    "verbose_errors": False,
}

# One space, or a line break with its indentation: a small model left free would fill its answer with white space.
JSON_LAYOUT: dict[str, Any] = {"whitespace_pattern": "( |\\n[ \\t]{0,24})"}
# The layout of Python's json.dumps, which models have seen most often in tool calls.
COMPACT_LAYOUT: dict[str, Any] = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}

COMPILER = "x-guidance"
"""The keyword under which a schema carries the compiler's options. No caller's gets here: it is no known keyword."""
LENIENT: dict[str, Any] = {"coerce_one_of": True}


class Constraint(Protocol):
    """The grammar state of one choice. Used by one thread at a time."""

    def allows(self, token: int) -> bool:
        """Whether `token` may come next; an end-of-generation token only where the answer may end."""
        ...

    def mask(self) -> NDArray[np.bool_]:
        """Shape (n_vocab,): True for each token that may come next. Raises ConstraintFailed."""
        ...

    def accept(self, token: int) -> None:
        """Go on with `token`. Raises ConstraintFailed when it is not allowed or a limit was passed."""
        ...

    def is_done(self) -> bool:
        """The answer is complete and nothing but its end can follow."""
        ...

    def forced(self) -> list[int]:
        """Tokens that must come next, as far as that is known; accept them one by one."""
        ...


class ConstraintFailed(InvalidRequest):
    """The grammar passed one of its limits while an answer was written; only that answer ends."""


class GrammarConstraint:
    """A constraint that is a llguidance matcher."""

    __slots__ = ("_matcher", "_n_vocab")

    def __init__(self, matcher: llguidance.LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab

    def allows(self, token: int) -> bool:
        if self._matcher.is_stopped():
            return not self._matcher.is_error() and bool(self.mask()[token])
        return self._matcher.validate_tokens([token]) == 1

    def mask(self) -> NDArray[np.bool_]:
        bits = np.frombuffer(self._matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._n_vocab, bitorder="little").view(np.bool_)
        if self._matcher.is_error() or not allowed.any():
            raise self._failure()
        return allowed

    def accept(self, token: int) -> None:
        if self.is_done() and self.allows(token):
            return  # the end itself: the matcher would take it for one token too many
        if not self._matcher.consume_token(token):
            raise self._failure()

    def is_done(self) -> bool:
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def forced(self) -> list[int]:
        return list(self._matcher.compute_ff_tokens())

    def _failure(self) -> ConstraintFailed:
        reason = self._matcher.get_error().split("\n")[0][:200]
        return ConstraintFailed(f"the answer's grammar became too complex while it was written: {reason}")


class Grammar:
    """A compiled grammar, from which each choice takes its own constraint."""

    def __init__(self, matcher: llguidance.LLMatcher, n_vocab: int) -> None:
        self._matcher = matcher
        self._n_vocab = n_vocab

    def constraint(self) -> GrammarConstraint:
        """A fresh constraint at the beginning of the grammar (about 60 µs)."""
        return GrammarConstraint(self._matcher.deep_copy(), self._n_vocab)


def build_tokenizer(vocab: Any, eog_tokens: list[int]) -> llguidance.LLTokenizer:
    """The tokenizer that grammars need, from a llama.cpp vocabulary pointer. Takes 0.3–1 s; once per model.

    `eog_tokens`: every end-of-generation token id, the usual one first.
    """
    from llguidance.llamacpp import lltokenizer_from_vocab  # needs the native library

    return lltokenizer_from_vocab(vocab, eos_token=eog_tokens)


class Grammars:
    """Compiles grammars safely and keeps the last ones."""

    def __init__(self, tokenizer: llguidance.LLTokenizer, n_vocab: int, *, cache_size: int = CACHE_SIZE) -> None:
        """`n_vocab`: the length of the model's logits."""
        self._tokenizer = tokenizer
        self._n_vocab = n_vocab
        self._limits = llguidance.LLParserLimits(**LIMITS)
        self._cache: OrderedDict[bytes, Grammar] = OrderedDict()
        self._cache_size = cache_size
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="grammar")
        self._worker = Worker(
            WORKER_SCRIPT,
            {
                "tokens": [_token_bytes(tokenizer, i).decode("latin-1") for i in range(tokenizer.vocab_size)],
                "eos": list(tokenizer.eos_tokens),
                "limits": LIMITS,
                "memory": WORKER_MEMORY,
                "cpu_s": COMPILE_CPU_S,
                "steps": TRIAL_STEPS,
            },
            timeout_s=COMPILE_TIMEOUT_S,
        )

    async def start(self) -> None:
        """Start the child process now instead of at the first grammar."""
        await self._worker.start()

    async def close(self) -> None:
        await self._worker.close()
        self._thread.shutdown(wait=False, cancel_futures=True)

    async def compile(self, grammar: str, *, param: str) -> Grammar:
        """`grammar`: what the functions below return. Raises InvalidRequest naming `param`, and EngineOverloaded when
        the process that tries grammars out is lost."""
        if len(grammar) > MAX_GRAMMAR_BYTES:
            raise InvalidRequest(f"the schemas are too large together ({len(grammar)} bytes)", param=param)
        key = hashlib.sha256(grammar.encode()).digest()
        known = self._cache.get(key)
        if known is not None:
            self._cache.move_to_end(key)
            return known
        try:
            answer = await self._worker.call({"grammar": grammar})
        except ChildLost:
            raise EngineOverloaded(LOST) from None
        except WorkerDied as error:
            raise InvalidRequest(f"the schema is too complex to compile: {error.message}", param=param) from None
        if "failed" in answer:
            raise InvalidRequest(_explain(str(answer["failed"])), param=param)
        matcher = await asyncio.get_running_loop().run_in_executor(self._thread, self._build, grammar)
        if matcher.is_error():
            raise InvalidRequest(_explain(matcher.get_error()), param=param)
        compiled = Grammar(matcher, self._n_vocab)
        self._cache[key] = compiled
        while len(self._cache) > self._cache_size:
            self._cache.popitem(last=False)
        return compiled

    def _build(self, grammar: str) -> llguidance.LLMatcher:
        return llguidance.LLMatcher(self._tokenizer, grammar, limits=self._limits, log_level=0)


def _token_bytes(tokenizer: llguidance.LLTokenizer, token: int) -> bytes:
    data = tokenizer.decode_bytes([token]).removeprefix(b"\xff")
    return b"\xff" + data if tokenizer.is_special_token(token) else data


def _explain(message: str) -> str:
    message = message.split("\n")[0]
    if "oneOf" in message:
        return "the schema keyword `oneOf` is only supported where its branches exclude each other; use `anyOf`"
    return f"the schema cannot be compiled: {message[:300]}"


# --- grammars as text ---------------------------------------------------------------------------


def schema_grammar(schema: dict[str, Any]) -> str:
    """A whole answer that satisfies a checked schema (see `schema.check_schema`)."""
    return json.dumps({"grammars": [{"json_schema": _laid_out(schema, JSON_LAYOUT)}]})


def lark_schema(schema: dict[str, Any], *, lenient: bool) -> str:
    """The same inside of a Lark grammar, in compact layout. `lenient`: `oneOf` may be taken as `anyOf`."""
    return "%json " + json.dumps(_laid_out(schema, {**COMPACT_LAYOUT, **(LENIENT if lenient else {})}))


def _laid_out(schema: dict[str, Any], layout: dict[str, Any]) -> dict[str, Any]:
    return {**schema, COMPILER: {**schema.get(COMPILER, {}), **layout}}


def response_schema(response_format: dict[str, Any] | None) -> dict[str, Any] | None:
    """The checked schema of OpenAI's `response_format`, or None for plain text. Raises InvalidRequest.

    Without `strict: true` it asks for what can be enforced of it, as tools do: what Pydantic writes for a set, a
    path or a union with a discriminator is no reason to refuse a request that was promised nothing exact.
    """
    kind = (response_format or {}).get("type", "text")
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return {"type": "object"}
    if kind != "json_schema":
        raise InvalidRequest(
            f"`response_format.type` is {json.dumps(kind)[:80]}; it must be text, json_object or json_schema",
            param="response_format.type",
        )
    param = "response_format.json_schema.schema"
    described = response_format.get("json_schema")
    if not isinstance(described, dict) or "schema" not in described:
        raise InvalidRequest("`response_format.json_schema.schema` is missing", param=param)
    lenient = not described.get("strict")
    schema = check_schema(described["schema"], param=param, lenient=lenient)
    return {**schema, COMPILER: LENIENT} if lenient else schema


def response_grammar(response_format: dict[str, Any] | None) -> str | None:
    """The grammar of OpenAI's `response_format`, or None for plain text. Raises InvalidRequest."""
    schema = response_schema(response_format)
    return None if schema is None else schema_grammar(schema)
