# The whole life of this repository in a few words. Every target does its own set-up; a second run starts at once.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench soak fuzz golden setup clean
BIN := .venv/bin
# mkfs.ext4 and e2fsck live where not everybody's PATH reaches.
export PATH := $(PATH):/usr/sbin:/sbin
IMAGE ?=
TESTS ?= tests
N ?= 100
SEED ?= 1
SECONDS ?= 60
ROWS ?=

help: ## what can be said here
	@grep -E '^[a-z]+:.*##' $(firstword $(MAKEFILE_LIST)) | awk -F ':.*## ' '{ printf "make %-9s %s\n", $$1, $$2 }'

demo: ## a real disk image the whole way, checked at each turn (IMAGE= any path or URL)
	@scripts/setup demo
	@$(BIN)/storebus demo $(if $(IMAGE),--image "$(IMAGE)")

test: ## all tests at small counts, against real servers: 10 to 13 minutes on two cores (TESTS= a path)
	@scripts/setup test
	@$(BIN)/python -m pytest $(TESTS) -n 4 --dist loadfile --no-loadscope-reorder --durations 10

check: ## lint, types, layers
	@scripts/setup check
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

bench: ## measured against peers, each in the same run: at most 10 minutes (ROWS= names, or motion for what moves bytes)
	@scripts/setup bench
	@$(BIN)/python -m bench $(ROWS)

soak: ## the same tests at large counts (N= jobs, SEED=, TESTS=)
	@scripts/setup test
	@STOREBUS_SOAK_N="$(N)" STOREBUS_SEED="$(SEED)" $(BIN)/python -m pytest $(TESTS) --timeout 7200

fuzz: ## our own parsers against made-up input, led by coverage where atheris installs (SECONDS=, SEED=)
	@scripts/setup fuzz
	@$(BIN)/python -m tests.fuzz.run --seconds "$(SECONDS)" --seed "$(SEED)"

golden: ## what is generated, again: new golden files, the AsyncAPI and OpenAPI documents, the Python client, the pages of commands, the table of image stores
	@scripts/setup check
	@$(BIN)/python -m tests.architecture.test_wire
	@$(BIN)/python -m api.asyncapi > docs/reference/asyncapi.json
	@$(BIN)/python -m api.openapi > docs/reference/openapi.json
	@$(BIN)/python -m api.client_source
	@$(BIN)/python -m tests.architecture.test_commands_document
	@$(BIN)/python -m tests.architecture.test_stores_document

setup: ## what the tests need, and nothing run
	@scripts/setup test

clean: ## forget the virtual environment and the caches
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
