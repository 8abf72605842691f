# What a person types, and what continuous integration calls.
PYTHON ?= python3
TORCH ?= torch>=2.11,<2.14
BIN := .venv/bin
READY := .venv/.ready
KERNELS := .venv/.kernels
DOCS := .venv/.docs
PEERS := .venv-peers/.ready

.PHONY: demo test peers check bench gpu-check wheels soak docs screenshots lock format clean
.DEFAULT_GOAL := demo

demo: $(READY)  ## train the quickstart sweep on the language model that ships here
	@$(BIN)/python -m orchestrator demo

test: $(READY) $(KERNELS)  ## every tier, two files at a time, those that take long first (gpu where there is one)
	@$(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

peers: $(PEERS)  ## SAELens, sparsify and dictionary_learning judge our files, and theirs are read
	@[ ! -e .venv-peers/bin ] || OMP_NUM_THREADS=1 .venv-peers/bin/python -m pytest tests/peers

check: $(READY)  ## format, lint, types, import contracts
	@$(BIN)/python -m ruff format --check .
	@$(BIN)/python -m ruff check .
	@$(BIN)/python -m mypy
	@$(BIN)/python -c "from importlinter.cli import lint_imports_command; lint_imports_command()"

bench: $(READY)  ## the figures of docs/benchmarks.md
	@for name in step capture shared_stream multi_layer memory scale queue many_jobs laws; do \
		echo "== $$name"; $(BIN)/python -W ignore -m benchmarks.$$name --short || exit 1; \
	done

gpu-check:  ## every path of a GPU: do they work, and how fast; needs torch and Triton, no network, no .venv
	@$(PYTHON) -m benchmarks.gpu_check $(if $(wildcard .wheels),--wheels .wheels)

wheels: $(READY)  ## in .wheels: what a GPU machine without a network lacks beside torch (PYTHON=3.12: its version there)
	@$(BIN)/python -m pip download -qqq --no-deps --only-binary=:all: --dest .wheels --implementation cp \
		--python-version $(if $(filter python3,$(PYTHON)),3.12,$(PYTHON)) $(foreach v,2_28 2_24 2_17 2_5,--platform manylinux_$(v)_x86_64) \
		--platform manylinux2014_x86_64 --requirement benchmarks/gpu_wheels.txt
	@du -sh .wheels

soak: $(READY)  ## workers, trainers and servers killed and frozen for some minutes: nothing lost, nothing twice; as root, disks fail too
	@$(BIN)/python -W ignore -m benchmarks.soak --both
	@[ "$$(id -u)" != 0 ] || $(BIN)/python -W ignore -m benchmarks.soak --both --sick

docs: $(READY) $(DOCS)  ## the documentation as pages, in site/; a broken link is an error
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet
	@echo "site/index.html"

screenshots: $(READY) $(DOCS)  ## the pictures of the README, from a demo of its own; needs chromium
	@$(BIN)/python -m docs.screenshots

# torch comes from an index of its own, for the CPU or for CUDA; beside it, what it needs of PyPI.
lock: $(READY)  ## requirements.lock: the packages of the images, in the versions of .venv, with their sums
	@$(BIN)/python -m pip install --quiet "uv>=0.9"
	@$(BIN)/python -m pip freeze --exclude-editable | grep -v '^torch=' > .venv/versions.txt
	@echo 'torch; sys_platform == "none"' > .venv/without_torch.txt
	@printf '%s\n' sympy networkx 'setuptools>=77,<82' | $(BIN)/python -m uv pip compile --quiet pyproject.toml - \
		--override .venv/without_torch.txt --no-emit-package torch --constraint .venv/versions.txt --python-version 3.11 \
		--universal --generate-hashes --no-annotate --custom-compile-command "make lock" --output-file requirements.lock

format: $(READY)
	@$(BIN)/python -m ruff format .
	@$(BIN)/python -m ruff check --fix .

$(READY): pyproject.toml
	@echo "Making .venv (once, a minute or two) ..."
	@$(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet "$(TORCH)"
	@$(BIN)/python -m pip install --quiet --editable ".[dev]"
	@touch $@

$(KERNELS): $(READY)  # Triton, for the kernels' tests in its interpreter: a gigabyte that nothing else here needs
	@$(BIN)/python -m pip install --quiet --editable ".[kernels]" || echo "no Triton here: its kernels are not tested"
	@touch $@

$(DOCS): $(READY)
	@$(BIN)/python -m pip install --quiet --editable ".[docs]"
	@touch $@

$(PEERS): $(READY) tests/peers/requirements.txt  # sees what is in .venv; nothing of theirs may bring another torch
	@$(BIN)/python -m venv .venv-peers
	@$(BIN)/python -c "import sysconfig as s; print(f'import site; site.addsitedir({s.get_path(\"purelib\")!r})')" \
		> $$(.venv-peers/bin/python -c "import sysconfig as s; print(s.get_path('purelib'))")/ours.pth
	@.venv-peers/bin/python -m pip install --quiet --no-deps --requirement tests/peers/requirements.txt \
		|| { echo "the other libraries cannot be installed here: they judge nothing"; rm -rf .venv-peers; mkdir .venv-peers; }
	@touch $@

clean:
	rm -rf .venv .venv-peers .orch site
