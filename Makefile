# The venv is rebuilt only when pyproject.toml changes, so a second `make` starts in seconds.
VENV   := .venv
BIN    := $(VENV)/bin
PYTHON ?= python3

.PHONY: demo serve test test-slow lint bench compose-test

demo: $(VENV)/.server
	$(BIN)/opsin demo

serve: $(VENV)/.server
	$(BIN)/opsin serve

test: $(VENV)/.dev
	$(BIN)/python -m pytest

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev
	$(BIN)/python -m benchmarks.merging
	$(BIN)/python -m benchmarks.serving

compose-test: $(VENV)/.dev
	$(BIN)/python -m pytest -m compose tests/e2e/test_compose.py

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.server: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[server]'
	touch $@

$(VENV)/.dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@ $(VENV)/.server
