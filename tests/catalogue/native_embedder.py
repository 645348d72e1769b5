"""llama.cpp's own tokenizer and graph, through the low-level API, for one text at a time."""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import llama_cpp
import numpy as np


@llama_cpp.llama_log_callback
def _silent(level: int, text: bytes, data: Any) -> None:
    """The loader's own chatter is not the test's."""


class NativeEmbedder:
    def __init__(self, path: Path, context: int = 512) -> None:
        llama_cpp.llama_log_set(_silent, ctypes.c_void_p(0))
        llama_cpp.llama_backend_init()
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
        assert self._model, f"{path} does not load"
        self.vocabulary = llama_cpp.llama_model_get_vocab(self._model)
        params = llama_cpp.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = context
        params.n_threads = params.n_threads_batch = 1  # threads that wait for each other starve beside other work
        params.embeddings = True
        self._context = llama_cpp.llama_init_from_model(self._model, params)
        assert self._context
        self.dimensions = llama_cpp.llama_model_n_embd(self._model)

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        room = len(raw) + 8
        out = (llama_cpp.llama_token * room)()
        count = llama_cpp.llama_tokenize(self.vocabulary, raw, len(raw), out, room, True, False)
        assert count >= 0
        return list(out[:count])

    def embed(self, ids: list[int]) -> np.ndarray:
        batch = llama_cpp.llama_batch_init(len(ids), 0, 1)
        try:
            batch.n_tokens = len(ids)
            for position, token in enumerate(ids):
                batch.token[position] = token
                batch.pos[position] = position
                batch.n_seq_id[position] = 1
                batch.seq_id[position][0] = 0
                batch.logits[position] = 1
            assert llama_cpp.llama_encode(self._context, batch) == 0
            found = llama_cpp.llama_get_embeddings_seq(self._context, 0)
            values = np.ctypeslib.as_array(found, (self.dimensions,)).astype(np.float64)
        finally:
            llama_cpp.llama_batch_free(batch)
        return values / np.linalg.norm(values)

    def close(self) -> None:
        llama_cpp.llama_free(self._context)
        llama_cpp.llama_model_free(self._model)
