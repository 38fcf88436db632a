# Python 3.11 or newer and pip are all that is needed: `make demo` and `make test` make .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test slow check gpu clean

demo: $(VENV)/.installed
	$(BIN)/sciml demo

# The fast tier: no network, no peers, nothing slow; a file of tests to each of two processes at a time.
test: $(VENV)/.installed-dev
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow and not peer" -n 2 --dist loadfile

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow and not peer" --timeout 600

# Style, types, layers. Examples in docstrings and pages are in the fast tier.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Training in every precision, killed and resumed, on the first CUDA device.
gpu: $(VENV)/.installed-dev
	SCIML_TEST_DEVICE=cuda $(BIN)/python -m pytest tests/e2e/test_precision.py

clean:
	rm -rf $(VENV) runs stores cache .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

# Stamps: installed again only when pyproject.toml changes.
$(VENV)/.installed: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -e .
	touch $@

$(VENV)/.installed-dev: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet -e ".[dev]"
	touch $@
