# Two commands do all the set-up: `make serve` and `make test`. Everything else is for development.
SHELL := /bin/sh
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

# Where the packages are installed. Keep it outside the tree to share it: make VENV=DIR …
VENV ?= .venv
# Further arguments for the command that the target runs, e.g. make test ARGS="tests/door -x".
ARGS ?=
# What pytest runs with: two processes, each with whole files in the order of tests/conftest.py. What a test is called
# must not depend on the hash seed.
SHARED = -n 2 --dist loadfile --no-loadscope-reorder
PYTEST = PYTHONHASHSEED=0 $(TEST_STORE) $(BIN)/python -m pytest $(if $(filter -n%,$(ARGS)),,$(SHARED))
# How the engine is built; see README.md.
LLAMA_COMPILER ?= auto
LLAMA_LLAMAFILE ?= OFF
LLAMA_CMAKE_ARGS ?=
export LLAMA_COMPILER LLAMA_LLAMAFILE LLAMA_CMAKE_ARGS

BIN := $(VENV)/bin
# The tests take their models from where the set-up has put them, which only the settings know.
TEST_STORE = OUTPOST_TEST_STORE="$${OUTPOST_TEST_STORE:-$$($(BIN)/python -m tools.model_files --store)}"
# What the guard models are trained and judged with; torch is large, so it has an environment of its own.
GUARD_VENV = $(VENV)-guard
GUARD_SETUP = python=$$(tools/find-python) && "$$python" -m tools.setup --venv "$(GUARD_VENV)" guard
SETUP = python=$$(tools/find-python) && "$$python" -m tools.setup --venv "$(VENV)"

.PHONY: help serve test check test-quick test-engines test-guards guard-train guard-eval bench docs lock llama setup fmt clean distclean

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

serve: ## Install, build and prove the engine, fetch the small models, start
	@export OUTPOST_CONFIG="$$(tools/serve-config $(ARGS))"; $(SETUP) run
	@exec $(BIN)/outpost serve $(ARGS)

test: ## Install what the tests need; lint, types, then every test (no GPU needed)
	@$(SETUP) dev --packages-only
	@$(MAKE) check
	@$(SETUP) dev
	$(PYTEST) $(ARGS)

test-quick: ## Every test but those that need a real engine for long
	@$(SETUP) dev
	$(PYTEST) -m "not engine" $(ARGS)

test-engines: ## Only the tests that need a real engine for long
	@$(SETUP) dev
	$(PYTEST) -m engine $(ARGS)

test-guards: ## A thousand rows through the whole training of the guard models
	@$(GUARD_SETUP)
	$(GUARD_VENV)/bin/python -m guard_models.pipeline smoke $(ARGS)

guard-train: ## Train the guard models (hours on two cores; goes on where it was interrupted)
	@$(GUARD_SETUP)
	$(GUARD_VENV)/bin/python -m guard_models.pipeline train $(ARGS)

guard-eval: ## Measure the guard models that are in the tree
	@$(SETUP) run --packages-only
	$(BIN)/python -m guard_models.pipeline eval $(ARGS)

check: ## Ruff (lint and format) and mypy
	@$(SETUP) dev --packages-only
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

fmt: ## Let ruff format and repair what it can
	@$(SETUP) dev --packages-only
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

setup: ## Everything that `make test` installs and builds, without running anything
	@$(SETUP) dev

llama: ## Compile and prove the engine anew
	@$(SETUP) run --rebuild

bench: ## Measure; the table goes to docs/benchmarks.md
	@$(SETUP) dev
	$(BIN)/python -m benchmarks $(ARGS)

docs: ## Write the pages that are made from the code
	@$(SETUP) dev --packages-only
	$(BIN)/python -m appliance.settings.reference > docs/settings.md

lock: ## Renew requirements/*.txt (UPGRADE=1: to the newest versions)
	@python=$$(tools/find-python) && "$$python" -m tools.lock $(if $(UPGRADE),--upgrade)

clean: ## Remove caches and build products; data, .venv and checkpoints of guard-train (build/guard) stay
	find build -mindepth 1 -maxdepth 1 -not -name guard -exec rm -rf {} + 2>/dev/null || true
	rm -rf dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean ## Also remove .venv, .venv-guard and build
	rm -rf .venv .venv.lock .venv-guard .venv-guard.lock build
