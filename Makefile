# Two commands: `make demo` and `make test`. Both set up .venv first; relative paths only, so the
# folder may have any name.

PYTHON ?= python3
PY := .venv/bin/python
SETUP := .venv/.ready

.PHONY: demo test lint clean

demo: $(SETUP)
	$(PY) -m recsys_models.train experiment=demo

test: $(SETUP)
	$(PY) -m pytest

lint: $(SETUP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deopt-lightning needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(SETUP)

clean:
	rm -rf .venv outputs multirun
