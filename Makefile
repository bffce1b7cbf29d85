# `make demo` and `make test` need only make and Python 3.9 or newer. Everything else goes into .venv.
PYTHON ?= python3
VENV ?= .venv
INSTALLED := $(VENV)/.installed
# Arguments for pytest, such as PYTEST_ARGS="-k loss".
PYTEST_ARGS ?=
# Tests mostly build graphs, which Python does on one core per worker. A worker takes up to 4 GB of memory.
WORKERS ?= 2

.PHONY: demo test lint venv plan-env planning help
.DEFAULT_GOAL := help

help:
	@echo "make demo   pretrain, fine-tune and distill on the embedded images, and compare (10 to 25 minutes on two cores)"
	@echo "make test   lint, then all tests"
	@echo "make lint   style and import checks alone"
	@echo "make plan-env   install the TPU compiler for --mode=plan into .venv-plan (1.2 GB, Python 3.11 or newer)"
	@echo "make planning   compile the ImageNet rows that docs/planning.md lacks, for v3, v4, v5e and v6e, and add them (hours)"
	@echo "make venv   install the requirements into $(VENV), with PYTHON=$(PYTHON)"

demo: $(INSTALLED)
	$(VENV)/bin/python run.py --mode=demo

test: lint
	$(VENV)/bin/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder $(PYTEST_ARGS)

lint: $(INSTALLED)
	$(VENV)/bin/python -m ruff check .
	$(VENV)/bin/python -m ruff format --check -q .

venv: $(INSTALLED)

# An installation that was cut short leaves no stamp and is repeated; changed requirements update the environment.
$(INSTALLED): requirements.txt requirements-report.txt requirements-dev.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 9))' || { \
		echo "PYTHON=$(PYTHON) does not work, or is older than 3.9 ($$($(PYTHON) --version 2>&1 | head -1)); try make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "PYTHON=$(PYTHON) cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@echo "Installing TensorFlow and the other requirements into $(VENV): this takes a few minutes and 2 GB, once."
	@$(VENV)/bin/python -m pip install --disable-pip-version-check -q -r requirements.txt -r requirements-report.txt -r requirements-dev.txt || { \
		echo "The installation failed with $$($(VENV)/bin/python --version); supported are 3.9 to 3.13 (make PYTHON=...)." >&2; exit 1; }
	@touch $@

# The TPU compiler comes with JAX. It has an environment of its own, apart from TensorFlow.
plan-env: .venv-plan/.installed

.venv-plan/.installed: requirements-plan.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "PYTHON=$(PYTHON) is older than 3.11, the oldest that the TPU compiler is built for; try make plan-env PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		echo "PYTHON=$(PYTHON) cannot make virtual environments; install its venv module, or try another Python with make plan-env PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv-plan
	@.venv-plan/bin/python -m pip install --disable-pip-version-check -q -r requirements-plan.txt || { \
		echo "The TPU compiler could not be installed; it exists for Linux on x86-64. Everything but planning works without it." >&2; exit 1; }
	@touch $@

planning: $(INSTALLED) .venv-plan/.installed
	$(VENV)/bin/python benchmarks/plan_table.py
