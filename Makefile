# What a person types, and what continuous integration calls.
PYTHON ?= python3
TORCH ?= torch>=2.11,<2.14
BIN := .venv/bin
READY := .venv/.ready

.PHONY: demo test check bench format clean
.DEFAULT_GOAL := demo

demo: $(READY)  ## train the quickstart sweep on the language model that ships here
	@$(BIN)/python -m orchestrator demo

test: $(READY)  ## every tier: unit, integration, chaos, compiled, golden (gpu where there is one)
	@$(BIN)/python -m pytest

check: $(READY)  ## format, lint, types, import contracts
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

bench: $(READY)  ## the figures of the README
	@$(BIN)/python benchmarks/step.py

format: $(READY)
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check --fix .

$(READY): pyproject.toml
	@echo "Making .venv (once, a minute or two) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

clean:
	rm -rf .venv .orch
