# From a fresh clone: `make demo` and `make test` make their own .venv and need no other step.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: demo test test-fast lint docs lab format bench-train bench-capture bench-store bench-probes \
	gpu-check clean

# Pinned by constraints.txt, so that two machines run the same versions.
$(READY): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit(0 if v >= (3, 11) else f"found Python {v.major}.{v.minor}, expected 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev,lab]'
	@touch $@

demo: $(READY)  ## train, fork, evaluate, report: about five minutes on two cores
	$(BIN)/workbench demo --into runs/demo $(if $(FRESH),--fresh)

# A worker a core and a thread a worker; a file stays with one worker, as its fixtures do.
PYTEST := OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python -m pytest -n auto --maxprocesses 4 --dist loadfile

test: $(READY)  ## the whole suite
	$(PYTEST)

test-fast: $(READY)  ## without what takes more than ten seconds
	$(PYTEST) -m "not slow"

lint: $(READY)  ## style and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(READY)  ## the documentation site, into docs/_build/html
	$(BIN)/python -m sphinx -q -n -W --keep-going -b html docs docs/_build/html

lab: $(READY)  ## JupyterLab on a working copy of the notebooks
	$(BIN)/workbench lab

format: $(READY)
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench-train: $(READY)  ## tokens a second beside transformers' OLMoE of the same shape
	$(BIN)/python tests/benchmarks/train.py

bench-capture: $(READY)  ## what capture costs a step, beside what others do
	$(BIN)/python tests/benchmarks/capture.py

bench-store: $(READY)  ## writing and reading a record beside raw files, plain Zarr and HDF5
	$(BIN)/python tests/benchmarks/store.py

bench-probes: $(READY)  ## probes beside scikit-learn and a script that goes token by token; needs runs/demo
	$(BIN)/python tests/benchmarks/probing.py --run runs/demo

gpu-check:  ## on a GPU machine with torch, triton, numpy and pytest alone: make gpu-check PYTHON=python3
	$(PYTHON) tests/gpu/check.py --into docs/measured

clean:
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
