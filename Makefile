# Python 3.11 or newer and pip are all that is needed: `make demo` and `make test` make .venv by themselves.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: demo test slow check gpu clean

demo: $(VENV)/.installed
	$(BIN)/sciml demo

# The fast tier: no network, no peers, nothing slow; three minutes on two cores.
test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "not slow and not peer"

slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m "slow and not peer" --timeout 600

# Style, types, layers, and the examples in docstrings and pages.
check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest sciml pretrain finetune --doctest-modules
	$(BIN)/python -m pytest tests/test_docs.py

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
