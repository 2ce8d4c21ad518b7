# The whole life of this repository in a few words. Every target does its own set-up; a second run starts at once.
.DEFAULT_GOAL := help
.PHONY: help demo test check bench soak asyncapi setup clean
PY := .venv/bin/python
# mkfs.ext4 and e2fsck live where not everybody's PATH reaches.
export PATH := $(PATH):/usr/sbin:/sbin
IMAGE ?=
N ?= 100
SEED ?= 1

help: ## what can be said here
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | sort

setup: ## everything that tests need, and nothing run
	@scripts/setup test

demo: ## a real disk image the whole way, checked at each turn (IMAGE= any path or URL)
	@scripts/setup demo
	@.venv/bin/storebus demo $(if $(IMAGE),--image "$(IMAGE)")

test: ## all tests at small counts, against real servers (at most 12 minutes)
	@scripts/setup test
	@$(PY) -m pytest

soak: ## the same tests at large counts: N= jobs, SEED=
	@scripts/setup test
	@STOREBUS_SOAK_N=$(N) STOREBUS_SEED=$(SEED) $(PY) -m pytest --timeout 3600

check: ## lint, types, layers
	@scripts/setup check
	@.venv/bin/ruff check .
	@.venv/bin/mypy
	@.venv/bin/lint-imports

bench: ## measured against peers, each in the same run (at most 10 minutes)
	@scripts/setup bench
	@$(PY) -m bench

asyncapi: ## the AsyncAPI document again, after a change of a message
	@scripts/setup check
	@$(PY) -m api.asyncapi > docs/reference/asyncapi.json

clean: ## forget the environment
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
