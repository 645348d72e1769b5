"""Our continuous-batching engine over llama-cpp-python's low-level API, in a process of its own."""
