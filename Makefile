# Two commands do all set-up on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
DOCS_STAMP := $(VENV)/.installed-docs

PEERS := .venv-peers

.PHONY: help peers-env test-peers demo test test-all test-gpu mutate lint format bench bench-check bench-clean docs league clean

help:
	@echo "make demo      train on real digits, sample, certify, draw the pictures in demo/"
	@echo "make test      the test suite (under 10 minutes on 2 cores)"
	@echo "make test-all  the same with the slow tests"
	@echo "make test-gpu  noise, kernels, samplers and solvers on this machine's CUDA device"
	@echo "make mutate    every formula broken once: which test notices (hours); docs/reference/mutations.json"
	@echo "make lint      ruff, mypy --strict, import-linter"
	@echo "make docs      the documentation, its examples executed: docs/_build/html/index.html"
	@echo "make league    the table of exact errors, docs/reference/league.json"
	@echo "make peers-env  .venv-peers: the libraries that the benchmarks compare with"
	@echo "make test-peers the same samplers side by side with theirs; the CUDA kernels, interpreted"
	@echo "make bench     all benchmarks (an hour; in .venv-peers where it is), written to benchmarks/results/;"
	@echo "               in which order and how many minutes each: $(BENCH_PYTHON) -m benchmarks.run --list"
	@echo "make bench-check  the quick ones against the committed ratios: fails on a loss of more than 20 %"
	@echo "make bench-clean  forget the networks, solutions and plans that the benchmarks keep in benchmarks/.cache"

$(STAMP): pyproject.toml constraints.txt
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[dev]"
	@touch $(STAMP)

demo: $(STAMP)
	$(BIN)/sdekit demo --out demo

test: $(STAMP)
	$(BIN)/python -m pytest -n auto -m "not slow"

test-all: $(STAMP)
	$(BIN)/python -m pytest -n auto

test-gpu: $(STAMP)
	$(BIN)/python -m pytest --device cuda tests/noise tests/kernels tests/samplers tests/solvers -m "not slow"

mutate: $(STAMP)
	$(BIN)/python -m tests.mutation --workers $$(nproc)

lint: $(STAMP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

format: $(STAMP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

# Without the libraries to compare with, what needs them is reported as absent.
BENCH_PYTHON = $(if $(wildcard $(PEERS)/bin/python),$(PEERS),$(VENV))/bin/python

bench: $(STAMP)
	$(BENCH_PYTHON) -m benchmarks.run

bench-check: $(STAMP)
	$(BENCH_PYTHON) -m benchmarks.check

bench-clean:
	rm -rf benchmarks/.cache

$(DOCS_STAMP): $(STAMP)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e ".[docs]"
	@touch $(DOCS_STAMP)

docs: $(DOCS_STAMP)
	$(BIN)/python -m sphinx -E -a -n -W --keep-going -b html docs docs/_build/html
	@echo "open docs/_build/html/index.html"

league: $(STAMP)
	$(BIN)/python -m docs.league

$(PEERS)/.installed: pyproject.toml constraints.txt constraints-peers.txt
	@test -x $(PEERS)/bin/python || $(PYTHON) -m venv $(PEERS)
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt "torch==2.13.0"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -c constraints-peers.txt -e ".[test,peers]"
	$(PEERS)/bin/python -m pip install --quiet --disable-pip-version-check -c constraints-peers.txt --no-deps azula k-diffusion
	@touch $@

peers-env: $(PEERS)/.installed

test-peers: $(PEERS)/.installed
	$(PEERS)/bin/python -m pytest tests/peers tests/noise/test_cuda.py tests/kernels/test_cuda.py

clean:
	rm -rf $(VENV) demo docs/_build docs/_generated docs/jupyter_execute .pytest_cache .mypy_cache .ruff_cache .hypothesis
