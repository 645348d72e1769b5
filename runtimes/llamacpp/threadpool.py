"""ggml threads that stay: without a pool of its own a context starts and ends its threads for every single step.

llama-cpp-python does not wrap this part of llama.cpp's API, so it is called here, in the way that llama.cpp's
own server does it: by asking the CPU backend for the function by name.
"""

from __future__ import annotations

import ctypes
import logging
from typing import Any

from llama_cpp import llama_cpp as bindings
from llama_cpp._ggml import libggml

log = logging.getLogger("engine.threadpool")

_MAX_THREADS = 512
_CPU = 0
"""GGML_BACKEND_DEVICE_TYPE_CPU"""


class _Params(ctypes.Structure):
    """`struct ggml_threadpool_params` of ggml.h."""

    _fields_ = (
        ("cpumask", ctypes.c_bool * _MAX_THREADS),
        ("n_threads", ctypes.c_int),
        ("prio", ctypes.c_int),
        ("poll", ctypes.c_uint32),
        ("strict_cpu", ctypes.c_bool),
        ("paused", ctypes.c_bool),
    )


class ThreadPool:
    """Up to `threads` threads that sleep between steps, attached to one context. Make it with `attach`."""

    def __init__(self, handle: int, free: Any) -> None:
        self._handle = handle
        self._free = free

    def close(self) -> None:
        """End the threads; only after the context has been freed."""
        handle, self._handle = self._handle, 0
        if handle:
            self._free(handle)


def attach(context: Any, threads: int) -> ThreadPool | None:
    """A pool for `context`, which uses as many of its threads as `llama_set_n_threads` says.

    None where the library does not have it; the context then works without one, only slower.
    """
    try:
        new, free = _function("ggml_threadpool_new"), _function("ggml_threadpool_free")
        params = _params(threads)
        if params is None or new is None or free is None:
            log.info("this build of llama.cpp offers no thread pool")
            return None
        make = ctypes.CFUNCTYPE(ctypes.c_void_p, ctypes.POINTER(_Params))(new)
        handle = make(ctypes.byref(params))
        if not handle:
            return None
        join = bindings._lib.llama_attach_threadpool
        join.argtypes, join.restype = [ctypes.c_void_p] * 3, None
        join(context, handle, handle)
    except AttributeError as error:
        log.info("this build of llama.cpp offers no thread pool: %s", error)
        return None
    return ThreadPool(handle, ctypes.CFUNCTYPE(None, ctypes.c_void_p)(free))


def _params(threads: int) -> _Params | None:
    default = libggml.ggml_threadpool_params_default
    default.argtypes, default.restype = [ctypes.c_int], _Params
    params: _Params = default(threads)
    if params.n_threads != threads or params.strict_cpu or params.paused:
        return None  # another layout than the one that this was written for
    # Threads that poll between steps take the processor from the gateway, which has its work just then.
    params.poll = 0
    return params


def _function(name: str) -> int | None:
    """The address of a function of the CPU backend, wherever that backend was loaded from."""
    by_type = libggml.ggml_backend_dev_by_type
    by_type.argtypes, by_type.restype = [ctypes.c_int], ctypes.c_void_p
    registry = libggml.ggml_backend_dev_backend_reg
    registry.argtypes, registry.restype = [ctypes.c_void_p], ctypes.c_void_p
    look_up = libggml.ggml_backend_reg_get_proc_address
    look_up.argtypes, look_up.restype = [ctypes.c_void_p, ctypes.c_char_p], ctypes.c_void_p
    device = by_type(_CPU)
    found: int | None = look_up(registry(device), name.encode()) if device else None
    return found
