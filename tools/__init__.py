"""What sets a checkout up: environment, engine build, lock files.

Standard library only (but for llama_prove), because it runs before anything is installed.
"""
