"""The narrow waist to llama.cpp: the only file, beside threadpool.py, that calls into the native library.

llama.cpp answers many mistakes with GGML_ASSERT, which ends the process. Every bound is therefore
checked here, before the call: batch size, token ids, positions, sequence ids.

Two build and run-time choices make a row of a batch independent of its neighbours, so that the same
request gets the same tokens at temperature 0 whatever else runs and whatever was cached: one KV
stream a slot (`kv_unified=False`), with flash attention off or over values of another type than the
keys, and a build without llamafile's matrix kernels (`GGML_LLAMAFILE=OFF`). Measured: logits are
equal bit for bit between a prompt that is computed alone, in chunks of any size, token by token, or
beside seven others.
"""

from __future__ import annotations

import ctypes
import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import llama_cpp as llama
import numpy as np
from numpy.typing import NDArray

from runtimes.engine import EngineError
from runtimes.llamacpp.threadpool import attach

log = logging.getLogger("engine.native")

Row = tuple[int, int, int, bool]
"""One token of a batch: (token id, position, sequence id, wanted: are its logits or embedding needed)."""


class NativeError(EngineError):
    """The native library refused or failed; the message names the call."""

    code = "engine_error"


class Aborted(Exception):
    """The running decode was given up through `Native.give_up()`; memory holds an unknown part of it."""


@dataclass(frozen=True)
class NativeSettings:
    """How a model is loaded. `context` counts tokens of one sequence, `sequences` how many run at once."""

    path: str
    context: int
    sequences: int
    batch: int = 512
    threads: int = 1
    gpu_layers: int = 0
    flash_attention: bool = False
    """Faster for short contexts; on a processor the cache's values are then bfloat16 (see `Native._new_context`)."""
    embeddings: bool = False


_BFLOAT16 = 30
"""GGML_TYPE_BF16"""
_LEVELS = {1: logging.DEBUG, 2: logging.INFO, 3: logging.WARNING, 4: logging.ERROR}


def _native_log(level: int, text: bytes, _user: Any) -> None:
    line = text.decode("utf-8", "replace").rstrip()
    if line.strip("."):  # the loader prints progress as single dots
        log.log(min(_LEVELS.get(level, logging.DEBUG), logging.DEBUG if level < 3 else logging.CRITICAL), "%s", line)


# Kept for the life of the process: the library calls it whenever it likes.
_LOG_CALLBACK = llama.llama_log_callback(_native_log)


class Native:
    """A loaded model with its context. Not thread-safe but for `tokenize`, `piece` and `abort`."""

    def __init__(self, settings: NativeSettings) -> None:
        """Load the model; seconds. Raises NativeError."""
        llama.llama_log_set(_LOG_CALLBACK, ctypes.c_void_p(0))
        llama.llama_backend_init()
        self.settings = settings
        self._since: float | None = None
        model_params = llama.llama_model_default_params()
        model_params.n_gpu_layers = settings.gpu_layers
        model = llama.llama_model_load_from_file(settings.path.encode(), model_params)
        if not model:
            raise NativeError(f"llama.cpp could not load {settings.path}: see the log lines above")
        self._model = model
        self._vocab = llama.llama_model_get_vocab(model)
        self.n_vocab: int = llama.llama_vocab_n_tokens(self._vocab)
        self.n_embd: int = llama.llama_model_n_embd_out(model)
        self._ctx = self._new_context(settings)
        self._pool = attach(self._ctx, settings.threads)
        self._memory = llama.llama_get_memory(self._ctx)
        self.context_length: int = min(settings.context, llama.llama_n_ctx_seq(self._ctx))
        self.n_batch: int = llama.llama_n_batch(self._ctx)
        self._batch = llama.llama_batch_init(self.n_batch, 0, 1)
        self._token = np.ctypeslib.as_array(self._batch.token, (self.n_batch,))
        self._pos = np.ctypeslib.as_array(self._batch.pos, (self.n_batch,))
        self._wanted = np.ctypeslib.as_array(self._batch.logits, (self.n_batch,))
        for i in range(self.n_batch):
            self._batch.n_seq_id[i] = 1
        self._seq = [self._batch.seq_id[i] for i in range(self.n_batch)]
        self._pieces: dict[int, bytes] = {}
        self.eog: frozenset[int] = frozenset(t for t in range(self.n_vocab) if llama.llama_vocab_is_eog(self._vocab, t))

    def _new_context(self, settings: NativeSettings) -> Any:
        params = llama.llama_context_default_params()
        params.n_ctx = settings.context * settings.sequences
        params.n_seq_max = settings.sequences
        params.n_batch = params.n_ubatch = settings.batch
        params.n_threads = params.n_threads_batch = settings.threads
        params.embeddings = settings.embeddings
        params.kv_unified = False
        params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_DISABLED
        if settings.flash_attention:
            params.flash_attn_type = llama.LLAMA_FLASH_ATTN_TYPE_ENABLED
            if not settings.gpu_layers:
                # With keys and values of different types the processor's kernel neither tiles nor splits its work by
                # the shape of the batch, so that rows stay independent with flash attention, too.
                params.type_v = _BFLOAT16
        params.no_perf = True
        # The abort check runs after every node of the graph. A Python callback would take the
        # interpreter lock each time; `strlen` reads the flag without it: "\1" is true, "" is false.
        self._abort_flag = ctypes.create_string_buffer(2)
        self._strlen = ctypes.CDLL(None).strlen
        params.abort_callback = ctypes.cast(self._strlen, llama.ggml_abort_callback)
        params.abort_callback_data = ctypes.cast(self._abort_flag, ctypes.c_void_p)
        ctx = llama.llama_init_from_model(self._model, params)
        if not ctx:
            raise NativeError(
                f"llama.cpp could not make a context of {settings.sequences} x {settings.context} tokens: "
                "lower args.context or args.slots"
            )
        return ctx

    def close(self) -> None:
        """Free everything; the object is unusable afterwards."""
        llama.llama_batch_free(self._batch)
        llama.llama_free(self._ctx)
        if self._pool is not None:
            self._pool.close()
        llama.llama_model_free(self._model)

    # --- vocabulary -----------------------------------------------------------------------------

    @property
    def vocab_pointer(self) -> Any:
        """The native vocabulary, for the grammar library's tokenizer."""
        return self._vocab

    def tokenize(self, text: bytes, parse_special: bool, add_special: bool = False) -> list[int]:
        """Token ids of UTF-8 text. `parse_special` turns the text of control tokens into them."""
        size = len(text) + 8
        out = (llama.llama_token * size)()
        n = llama.llama_tokenize(self._vocab, text, len(text), out, size, add_special, parse_special)
        if n < 0:
            out = (llama.llama_token * -n)()
            n = llama.llama_tokenize(self._vocab, text, len(text), out, -n, add_special, parse_special)
        if n < 0:
            raise NativeError("llama_tokenize failed")
        return list(out[:n])

    def piece(self, token: int) -> bytes:
        """The bytes that a token stands for; b"" for control tokens."""
        found = self._pieces.get(token)
        if found is None:
            buffer = ctypes.create_string_buffer(64)
            n = llama.llama_token_to_piece(self._vocab, token, buffer, 64, 0, False)
            if n < 0:
                buffer = ctypes.create_string_buffer(-n)
                n = llama.llama_token_to_piece(self._vocab, token, buffer, -n, 0, False)
            found = self._pieces[token] = buffer.raw[: max(n, 0)]
        return found

    def token_text(self, token: int) -> str:
        """How the vocabulary writes a token, control tokens included."""
        return bytes(llama.llama_vocab_get_text(self._vocab, token)).decode("utf-8", "replace")

    def longest_piece(self) -> int:
        """Bytes of the longest text that one token stands for, control tokens included."""
        return max(max(len(self.piece(t)), len(self.token_text(t).encode())) for t in range(self.n_vocab))

    def special_tokens(self) -> dict[str, int]:
        """Text → id of every control and user-defined token."""
        special = llama.LLAMA_TOKEN_ATTR_CONTROL | llama.LLAMA_TOKEN_ATTR_USER_DEFINED
        return {
            self.token_text(t): t for t in range(self.n_vocab) if llama.llama_vocab_get_attr(self._vocab, t) & special
        }

    @property
    def bos(self) -> int:
        """Id of the beginning-of-sequence token, -1 if there is none."""
        return int(llama.llama_vocab_bos(self._vocab))

    @property
    def eos(self) -> int:
        """Id of the end-of-sequence token, -1 if there is none."""
        return int(llama.llama_vocab_eos(self._vocab))

    @property
    def add_bos(self) -> bool:
        """Whether this vocabulary wants a BOS before every prompt."""
        return bool(llama.llama_vocab_get_add_bos(self._vocab))

    def chat_template(self) -> str | None:
        """The Jinja template that the model file carries."""
        found = llama.llama_model_chat_template(self._model, None)
        return found.decode("utf-8", "replace") if found else None

    # --- computing ------------------------------------------------------------------------------

    def decode(self, rows: Sequence[Row]) -> None:
        """Compute one batch. Raises Aborted, or NativeError when nothing of it can be used."""
        if not 0 < len(rows) <= self.n_batch:
            raise NativeError(f"a batch of {len(rows)} tokens does not fit the limit of {self.n_batch}")
        for i, (token, position, sequence, wanted) in enumerate(rows):
            if not 0 <= token < self.n_vocab:
                raise NativeError(f"token id {token} is outside the vocabulary of {self.n_vocab}")
            if not 0 <= position < self.context_length or not 0 <= sequence < self.settings.sequences:
                raise NativeError(f"position {position} of sequence {sequence} is outside the context")
            self._token[i] = token
            self._pos[i] = position
            self._seq[i][0] = sequence
            self._wanted[i] = wanted
        self._batch.n_tokens = len(rows)
        # Encoders such as BERT keep no memory of what they read.
        compute = llama.llama_decode if self._memory else llama.llama_encode
        self._since = time.monotonic()
        status = compute(self._ctx, self._batch)
        self._since = None
        if status == 2:
            raise Aborted
        if status != 0:
            raise NativeError(f"llama.cpp failed on a batch of {len(rows)} tokens with status {status}")

    def computing_s(self) -> float:
        """How long the present call of `decode` has been computing; 0 = there is none. For any thread."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since

    def give_up(self) -> None:
        """Make the running decode and all later ones raise Aborted soon: the end, for any thread.

        There is no way back on purpose. When a batch is given up, llama.cpp (`llama_kv_cache::prepare`, which restores
        the heads of the first streams instead of those of the batch's) may keep later tokens in cells whose order is
        not that of their positions: answers stay right, but are no longer the same to the bit.
        """
        self._abort_flag[0] = b"\1"

    def logits(self, row: int) -> NDArray[np.float32]:
        """Raw logits of a wanted row, shape (n_vocab,); valid until the next decode."""
        return np.ctypeslib.as_array(llama.llama_get_logits_ith(self._ctx, row), (self.n_vocab,))

    def embedding(self, sequence: int) -> NDArray[np.float32]:
        """The pooled embedding of a sequence, shape (n_embd,), not normalised; copied."""
        found = llama.llama_get_embeddings_seq(self._ctx, sequence)
        if not found:
            raise NativeError("this model has no pooled embedding")
        return np.ctypeslib.as_array(found, (self.n_embd,)).copy()

    def trim(self, sequence: int, keep: int) -> None:
        """Forget everything of a sequence from position `keep` on."""
        if self._memory and not llama.llama_memory_seq_rm(self._memory, sequence, keep, -1):
            llama.llama_memory_seq_rm(self._memory, sequence, 0, -1)
            raise NativeError(f"sequence {sequence} could not be cut at {keep}")

    def copy(self, source: int, target: int) -> None:
        """Make `target` hold what `source` holds. Cost: one copy of the used cells (~µs a token)."""
        size = llama.llama_state_seq_get_size(self._ctx, source)
        buffer = (ctypes.c_uint8 * size)()
        if llama.llama_state_seq_get_data(self._ctx, buffer, size, source) != size:
            raise NativeError(f"the state of sequence {source} could not be read")
        if llama.llama_state_seq_set_data(self._ctx, buffer, size, target) == 0:
            self.trim(target, 0)
            raise NativeError(f"the state of sequence {source} could not be copied to {target}")

    def set_threads(self, threads: int) -> None:
        """Use this many threads from the next decode on."""
        llama.llama_set_n_threads(self._ctx, threads, threads)
