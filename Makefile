# Two commands: `make demo` and `make test`. Both set up .venv first; relative paths only, so the
# folder may have any name.

PYTHON ?= python3
PY := .venv/bin/python
SETUP := .venv/.ready
OLDEST := .venv-oldest/.ready
# The tests of what the callback does inside a Trainer, which depends on versions most.
CORE := $(addprefix tests/deopt_lightning/test_, best_state.py callback.py divergence.py guests.py \
	lr_schedule.py lrs_by_hand.py members.py member_batches.py models.py param_groups.py probing.py refusals.py \
	resume.py snapshot.py transparency.py)

.PHONY: demo test test-oldest lint clean

demo: $(SETUP)
	$(PY) -m recsys_models.train experiment=demo

test: $(SETUP)
	$(PY) -m pytest -n 2

# Without FSDP2: old torch may hang when it ends the process group, its gloo thread waiting for the
# interpreter that waits for it.
test-oldest: $(OLDEST)
	.venv-oldest/bin/python -m pytest -n 2 $(CORE) \
		--deselect tests/deopt_lightning/test_refusals.py::test_fsdp2_is_refused

lint: $(SETUP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "deopt-lightning needs Python 3.11 or newer; set PYTHON=python3.x")'
	$(PYTHON) -m venv .venv
	$(PY) -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $(SETUP)

$(OLDEST): pyproject.toml constraints-oldest.txt
	$(PYTHON) -m venv .venv-oldest
	.venv-oldest/bin/python -m pip install --quiet --constraint constraints-oldest.txt --editable . \
		hypothesis pytest pytest-xdist scipy torchmetrics
	touch $(OLDEST)

clean:
	rm -rf .venv .venv-oldest outputs multirun
