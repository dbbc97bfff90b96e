# All that is needed beforehand: Debian, Ubuntu or the like with Python 3.11 or newer, python3-venv and make.
# The venv is filled anew only when pyproject.toml changes, so a second `make` starts in seconds.
VENV   := .venv
BIN    := $(VENV)/bin
# The first of these that is new enough; `make PYTHON=/path/to/python` overrides.
PYTHON ?= $(firstword $(shell for p in python3 python3.14 python3.13 python3.12 python3.11; do \
            $$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p; done))
# Further arguments of the command behind a target: `make serve ARGS="--port 9000"`, `make test ARGS="-k queue"`.
ARGS   ?=
# The web site of docs/, which must be free of warnings: links and anchors that lead nowhere are some.
SITE   := $(BIN)/python docs/reference.py build && NO_COLOR=1 $(BIN)/zensical build --clean --strict --config-file build/mkdocs.yml
# What `make test-browser` drives.
CHROMIUM ?= /usr/bin/chromium
APT_CHROMIUM := DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends chromium fonts-dejavu-core
APT_PROMETHEUS := DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends prometheus
APT_HAPROXY := DEBIAN_FRONTEND=noninteractive apt-get install --yes --no-install-recommends haproxy

.PHONY: help venv demo serve test test-fast test-slow test-starters test-browser chromium promtool haproxy test-gpu lint bench compose-test docs release constraints client

help:
	@echo 'make demo          install, start a temporary service, run each task once, stop'
	@echo 'make serve         install and run the service on http://127.0.0.1:8000'
	@echo 'make test          run the tests; test-slow: tests that take minutes; test-gpu: tests for a GPU; compose-test: the images and docker compose'
	@echo 'make test-fast     only tests that are quick and start no process; takes less than a minute'
	@echo 'make test-starters the tests of starters/, which makes the shipped bundles'
	@echo 'make test-browser  the playground and the status page in a real Chromium'
	@echo 'make lint          ruff, codespell, mypy, import-linter, wording, the derived client, and a strict build of the documentation'
	@echo 'make bench         measure merging and the service on this machine'
	@echo 'make docs          build the documentation site in build/site'
	@echo 'make client        derive the synchronous client from the asynchronous one: opsin/NAME.py from opsin/async_NAME.py'
	@echo 'make constraints   write the versions in .venv to .ci/constraints.txt, for CI'
	@echo 'make release       build, check and audit wheels and source distributions in dist/'

demo: $(VENV)/.server
	$(BIN)/opsin demo --output build/demo $(ARGS)

serve: $(VENV)/.server
	$(BIN)/opsin serve $(ARGS)

# Files of tests run side by side, by two processes for each CPU (4 at most, of 1.4 GB each), since many of them wait for a service. One
# OpenMP thread each.
TESTERS ?= $(shell $(BIN)/python -c 'import os; print(min(4, 2 * (os.cpu_count() or 1)))')
test: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile $(ARGS)

# Nothing in them waits for another process.
test-fast: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --fast --numprocesses logical --dist loadfile $(ARGS)

test-slow: $(VENV)/.clients promtool haproxy
	$(BIN)/python -m pytest -m 'slow and not browser' $(ARGS)
	$(BIN)/python -m pytest -m 'slow and browser' tests/browser $(ARGS)  # what drives the browser leaves an event loop behind

# What makes the shipped bundles: after a change of starters/, training/ or bundles/.
test-starters: $(VENV)/.dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses $(TESTERS) --dist loadfile starters/tests $(ARGS)

test-gpu: $(VENV)/.dev
	$(BIN)/python -m pytest -m gpu -rs tests $(ARGS)

test-browser: $(VENV)/.browser chromium
	CHROMIUM='$(CHROMIUM)' OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m 'browser and not slow' --timeout 900 tests/browser $(ARGS)

# Chromium comes from the system: with leave to install packages it is fetched, else one line says how.
chromium:
	@if ! test -x '$(CHROMIUM)' && test "$$(id -u)" = 0; then $(APT_CHROMIUM) || { apt-get update && $(APT_CHROMIUM); }; fi >/dev/null 2>&1; \
	test -x '$(CHROMIUM)' || { echo 'Chromium is missing: sudo apt-get install chromium, or make test-browser CHROMIUM=/path/to/it' >&2; exit 1; }

# Prometheus' checker of its files and HAProxy come from the system as well; tests that need them say so where they are missing.
promtool:
	@if ! command -v promtool && test "$$(id -u)" = 0; then $(APT_PROMETHEUS) || { apt-get update && $(APT_PROMETHEUS); }; fi >/dev/null 2>&1 || true

haproxy:
	@if ! command -v haproxy && test "$$(id -u)" = 0; then $(APT_HAPROXY) || { apt-get update && $(APT_HAPROXY); }; fi >/dev/null 2>&1 || true

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/codespell
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python docs/words.py
	$(BIN)/python -m benchmarks.house --lines
	$(BIN)/python -m tools.derive_client --check
	$(SITE)

bench: $(VENV)/.dev
	$(BIN)/opsin bench merging
	$(BIN)/opsin bench serving

compose-test: $(VENV)/.dev
	$(BIN)/python -m pytest -m compose tests/e2e $(ARGS)

docs: $(VENV)/.docs
	$(SITE)

# `make release RELEASE_TAG=v1.2.3` also checks that this is the version, and that CHANGELOG.md tells of it.
release: $(VENV)/.release
	PYTHON=$(BIN)/python .ci/release "$$RELEASE_TAG"

# The versions in .venv, which passed the tests here, for .github/workflows/tests.yml. No local parts, such as +cpu, which no public index has, and no triton:
# each build of torch for GPUs names its own.
constraints: $(VENV)/.browser
	@echo '# What tests.yml installs; `make constraints` writes it.' > .ci/constraints.txt
	$(BIN)/python -m pip list --format freeze | sed -E '/^(opsin|opsin.starters|pip|setuptools|triton|wheel)==/d; s/\+.*//' | LC_ALL=C sort -f >> .ci/constraints.txt

client: $(VENV)/.dev
	$(BIN)/python -m tools.derive_client

# Makes $(VENV), or says why the one that is there cannot be used.
venv:
	@.ci/venv $(VENV) '$(PYTHON)'

$(VENV)/.server: pyproject.toml | venv
	@echo 'Installing into $(VENV); PyTorch is large, so the first time takes minutes.'
	$(BIN)/python -m pip install --editable '.[server]'
	@touch $@

$(VENV)/.dev: pyproject.toml | venv
	@echo 'Installing into $(VENV); PyTorch is large, so the first time takes minutes.'
	$(BIN)/python -m pip install --editable '.[dev]'
	@# Without dependencies: it wants a sound card's library, which nothing here uses. Some Pythons have no wheel of it.
	$(BIN)/python -m pip install --no-deps --only-binary :all: 'tinysoundfont>=0.3.7' || echo 'No tinysoundfont: tests of SoundFonts are skipped.'
	@touch $@ $(VENV)/.server

$(VENV)/.browser: $(VENV)/.dev
	$(BIN)/python -m pip install --editable '.[browser]'
	@touch $@

$(VENV)/.clients: $(VENV)/.dev
	$(BIN)/python -m pip install --editable '.[clients]'
	@touch $@

$(VENV)/.release: pyproject.toml | venv
	$(BIN)/python -m pip install --editable '.[release]'
	@touch $@

$(VENV)/.docs: pyproject.toml | venv
	$(BIN)/python -m pip install --editable '.[docs]'
	@touch $@
