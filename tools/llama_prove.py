"""Prove a build of llama-cpp-python by decoding with a real model.

Run as `python -m tools.llama_prove MODEL [--no-amx]`: a process of its own, because a wrong build does not raise, it
crashes. The last line of output is a JSON object with `ok`, `why` (empty when ok), `answer` and `system` (what the
library says it was compiled for).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
from dataclasses import dataclass
from typing import Any

import llama_cpp
import numpy as np

CONTEXT = 1024
PER_SEQUENCE = 12
SYSTEM = "You are a helpful assistant."
QUESTIONS = {
    "What is the capital of France?": "Paris",
    "What is the capital of Italy?": "Rome",
    "What is the capital of Japan?": "Tokyo",
    "Which planet do we live on?": "Earth",
}
"""Question → a word that any sane build answers with. Only the first must be exact: small models differ on the rest."""


class Implausible(Exception):
    """The build decodes, but not what the model says."""


@dataclass
class Session:
    """One context of `sequences` sequences over a loaded model."""

    context: Any
    vocabulary: Any
    batch: Any
    size: int

    def tokens(self, text: str) -> list[int]:
        data = text.encode()
        room = (llama_cpp.llama_token * CONTEXT)()
        count = llama_cpp.llama_tokenize(self.vocabulary, data, len(data), room, CONTEXT, False, True)
        if count <= 0:
            raise Implausible(f"the tokenizer answered {count}")
        return list(room[:count])

    def text(self, tokens: list[int]) -> str:
        whole = b""
        for token in tokens:
            room = ctypes.create_string_buffer(256)
            size = llama_cpp.llama_token_to_piece(self.vocabulary, token, room, 256, 0, True)
            whole += room.raw[: max(0, size)]
        return whole.decode("utf-8", "replace")

    def decode(self, items: list[tuple[int, int, int, bool]]) -> None:
        """Decode (token, position, sequence, wants logits) entries."""
        self.batch.n_tokens = len(items)
        for i, (token, position, sequence, wants) in enumerate(items):
            self.batch.token[i] = token
            self.batch.pos[i] = position
            self.batch.n_seq_id[i] = 1
            self.batch.seq_id[i][0] = sequence
            self.batch.logits[i] = wants
        if code := llama_cpp.llama_decode(self.context, self.batch):
            raise Implausible(f"llama_decode answered {code}")

    def best(self, row: int) -> int:
        logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(self.context, row), (self.size,))
        if not np.isfinite(logits).all():
            raise Implausible("logits are not finite")
        if float(logits.max()) == float(logits.min()):
            raise Implausible("all logits are equal")
        return int(logits.argmax())

    def answers(self, prompts: list[list[int]], length: int) -> list[list[int]]:
        """Greedy continuations, all sequences in the same batches."""
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(self.context), True)
        heads = []
        for sequence, prompt in enumerate(prompts):
            last = len(prompt) - 1
            self.decode([(token, at, sequence, at == last) for at, token in enumerate(prompt)])
            heads.append(self.best(last))
        found = [[head] for head in heads]
        for step in range(length - 1):
            self.decode([(tokens[-1], len(prompts[s]) + step, s, True) for s, tokens in enumerate(found)])
            for s, tokens in enumerate(found):
                tokens.append(self.best(s))
        return found


def open_session(model_path: str, sequences: int) -> Session:
    model_parameters = llama_cpp.llama_model_default_params()
    model_parameters.n_gpu_layers = 0
    model = llama_cpp.llama_model_load_from_file(os.fsencode(model_path), model_parameters)
    if not model:
        raise Implausible(f"the model {model_path} does not load")
    parameters = llama_cpp.llama_context_default_params()
    parameters.n_ctx = CONTEXT * sequences
    parameters.n_batch = parameters.n_ubatch = 512
    parameters.n_seq_max = sequences
    # Two threads only for the first prompt: ggml's threads spin for one another, which takes minutes on a busy machine.
    parameters.n_threads, parameters.n_threads_batch = 1, min(2, len(os.sched_getaffinity(0)))
    context = llama_cpp.llama_init_from_model(model, parameters)
    if not context:
        raise Implausible("no context could be made")
    vocabulary = llama_cpp.llama_model_get_vocab(model)
    batch = llama_cpp.llama_batch_init(512, 0, 1)
    return Session(context, vocabulary, batch, llama_cpp.llama_vocab_n_tokens(vocabulary))


def prove(model_path: str, no_amx: bool) -> dict[str, object]:
    """Raises Implausible; otherwise the figures of the proof."""
    system = llama_cpp.llama_print_system_info().decode()
    if no_amx and "AMX_INT8 = 1" in system:
        raise Implausible("AMX kernels were compiled although this compiler gets them wrong")
    session = open_session(model_path, len(QUESTIONS))
    template = "<|im_start|>system\n{}<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    prompts = [session.tokens(template.format(SYSTEM, question)) for question in QUESTIONS]

    (alone,) = session.answers(prompts[:1], PER_SEQUENCE)
    answer = session.text(alone)
    if "Paris" not in answer:
        raise Implausible(f"alone, the capital of France is {answer!r}")

    llama_cpp.llama_set_n_threads(session.context, 1, 1)
    together = [session.text(tokens) for tokens in session.answers(prompts, PER_SEQUENCE)]
    if "Paris" not in together[0]:
        raise Implausible(f"in a batch of {len(prompts)}, the capital of France is {together[0]!r}")
    right = sum(word in text for word, text in zip(QUESTIONS.values(), together, strict=True))
    if right < len(prompts) - 1:
        raise Implausible(f"in a batch of {len(prompts)}, only {right} answers make sense: {together}")
    shown = answer.split("<|im_end|>")[0].strip()
    return {"answer": shown, "system": system.strip(" |")}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="a GGUF file of SmolLM2-135M-Instruct")
    parser.add_argument("--no-amx", action="store_true", help="refuse a build that contains AMX kernels")
    arguments = parser.parse_args()
    silent = llama_cpp.llama_log_callback(lambda level, text, data: None)
    llama_cpp.llama_log_set(silent, ctypes.c_void_p(0))
    llama_cpp.llama_backend_init()
    try:
        report = {"ok": True, "why": "", **prove(arguments.model, arguments.no_amx)}
    except Implausible as error:
        report = {"ok": False, "why": str(error)}
    print(json.dumps(report), flush=True)


if __name__ == "__main__":
    main()
