"""The child process that compiles a caller's grammar first, so that a bomb goes off here.

The grammar compiler has limits of its own, but some schemas still cost it seconds and hundreds of MB
(`multipleOf`, overlapping `patternProperties`). What compiles here in time and memory, and takes its first steps
in time, is then compiled again in the engine. Started by path with `python -I`; imports nothing of ours.

Protocol: as in template_worker. Set-up: {"tokens": [latin-1 text of each token's bytes], "eos": [ids],
"limits": {…}, "memory", "cpu_s", "steps"}. Each message is {"grammar": text}; answers {"ok": ""} | {"failed": text}.
"""

from __future__ import annotations

import json
import math
import resource
import struct
import sys
from typing import Any, BinaryIO

import llguidance

MAX_MESSAGE = 500


class Vocabulary:
    """The token list in the shape that LLTokenizer asks for."""

    is_tokenizer_wrapper = True

    def __init__(self, tokens: list[bytes], eos: list[int]) -> None:
        self.tokens = tokens
        self.eos_token_id = eos[0]
        self.bos_token_id = None
        self.special_token_ids: list[int] = [i for i, t in enumerate(tokens) if t.startswith(b"\xff")]
        self._by_byte = {t: i for i, t in enumerate(tokens) if len(t) == 1}

    def __call__(self, text: bytes | str) -> list[int]:
        """Any split will do: only the grammar's states are of interest here, not how a model would write it."""
        data = text.encode() if isinstance(text, str) else text
        return [self._by_byte.get(data[i : i + 1], self.eos_token_id) for i in range(len(data))]


def try_out(tokenizer: Any, limits: Any, grammar: str, steps: int) -> str:
    """Compile, and walk a few tokens into the grammar. Returns "" or what is wrong."""
    matcher = llguidance.LLMatcher(tokenizer, grammar, limits=limits, log_level=0)
    state = 12345
    for _ in range(steps):
        if matcher.is_error() or matcher.is_stopped():
            break
        allowed = int.from_bytes(matcher.compute_bitmask(), "little")
        if not allowed:
            break
        # Walk at random, but always the same way: the n-th bit set, by clearing low ones.
        state = (state * 1103515245 + 12345) & 0x7FFFFFFF
        for _ in range(state % 7):
            rest = allowed & (allowed - 1)
            if not rest:
                break
            allowed = rest
        matcher.consume_token((allowed & -allowed).bit_length() - 1)
    return str(matcher.get_error()) if matcher.is_error() else ""


def limit(memory: int) -> None:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_AS, (memory, memory))


def allow_cpu(seconds: float) -> None:
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = math.ceil(used.ru_utime + used.ru_stime + seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (soft, resource.RLIM_INFINITY))


def read_message(stream: BinaryIO) -> Any | None:
    header = stream.read(4)
    if len(header) < 4:
        return None
    (size,) = struct.unpack(">I", header)
    body = stream.read(size)
    return json.loads(body) if len(body) == size else None


def write_message(stream: BinaryIO, answer: dict[str, str]) -> None:
    body = json.dumps(answer).encode("ascii")
    stream.write(struct.pack(">I", len(body)) + body)
    stream.flush()


def main() -> None:
    source, sink = sys.stdin.buffer, sys.stdout.buffer
    setup = read_message(source)
    if setup is None:
        return
    tokens = [text.encode("latin-1") for text in setup["tokens"]]
    limits = llguidance.LLParserLimits(**setup["limits"])
    vocabulary: Any = Vocabulary(tokens, setup["eos"])
    tokenizer = llguidance.LLTokenizer(vocabulary, eos_token=setup["eos"])
    limit(int(setup["memory"]))
    write_message(sink, {"ok": ""})
    while (message := read_message(source)) is not None:
        allow_cpu(float(setup["cpu_s"]))
        problem = try_out(tokenizer, limits, message["grammar"], int(setup["steps"]))
        write_message(sink, {"failed": problem[:MAX_MESSAGE]} if problem else {"ok": ""})


if __name__ == "__main__":
    main()
