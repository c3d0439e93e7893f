# make demo   train, teach and improve a small model on a CPU, in minutes
# make test   the fast tests        make test-long   those that take minutes too
# make check  style, types, layers  make claims      measure what README claims (hours on a laptop)
#
# Each makes .venv first. Where there is no NVIDIA GPU a torch release is taken whose default Linux build may still be a
# CUDA one, depending on where pip looks; to choose another build: make demo TORCH_ARGS="torch --index-url …"

PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
TORCH_ARGS ?= $(if $(shell command -v nvidia-smi 2>/dev/null),"torch>=2.9","torch>=2.9$(comma)<2.14")
comma := ,
# the kill and learning tests set their own thread counts; two workers suit two cores
PYTEST = $(BIN)/python -m pytest -n 2 --dist loadfile

.PHONY: demo test test-long check claims clean
.DELETE_ON_ERROR:

demo: $(VENV)/.installed
	$(BIN)/fathom demo

test: $(VENV)/.installed-dev
	$(PYTEST) -m "not long"

test-long: $(VENV)/.installed-dev
	$(PYTEST)

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_architecture.py

claims: $(VENV)/.installed-dev
	$(BIN)/python -m claims

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Fathom needs Python 3.11 or later; set PYTHON=")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.torch: | $(VENV)/bin/python
	$(BIN)/pip install --quiet $(TORCH_ARGS)
	touch $@

$(VENV)/.installed: pyproject.toml | $(VENV)/.torch
	$(BIN)/pip install --quiet --editable ".[demo]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml | $(VENV)/.torch
	$(BIN)/pip install --quiet --editable ".[demo,dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) build dist .pytest_cache .mypy_cache .ruff_cache
