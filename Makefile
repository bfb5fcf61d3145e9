# make demo    installs into .venv and runs configs/quickstart.yaml
# make test    all tests but those against PyTorch        make parity   those against PyTorch and PEFT
# make lint    ruff            make types   mypy          make clean    removes the environment and caches, not runs/
# make bench   speed beside Transformers and PEFT, about 40 minutes; experiments/benchmarks/bench.py has flags
#
# Needs Python 3.11 or newer with its venv module, and make. Another Python beside it:
#   make test PYTHON=python3.12 VENV=.venv-3.12
# `make parity` installs PyTorch; a CPU build that is already in the environment is kept and saves gigabytes.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

python := $(VENV)/bin/python
# What an installation needs is known from pyproject.toml alone: it is repeated when that file has changed.
install = $(python) -m pip install --quiet --disable-pip-version-check --editable

.PHONY: demo test parity lint types bench clean

demo: $(VENV)/installed
	$(python) -m star_jax.run

test: $(VENV)/installed-test
	XLA_FLAGS="$${XLA_FLAGS-$$($(python) tests/quick_compilation.py)}" \
		$(python) -m pytest -n $(WORKERS) --dist loadscope --no-loadscope-reorder -m "not parity"

parity: $(VENV)/installed-test $(VENV)/installed-parity
	$(python) -m pytest -m parity

lint: $(VENV)/installed-lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: $(VENV)/installed-lint
	$(python) -m mypy

bench: $(VENV)/installed-parity
	$(python) experiments/benchmarks/bench.py

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

$(python):
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "star_jax needs Python 3.11 or newer; name one with make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv $(VENV) || { rm -f $(python); exit 1; }

$(VENV)/installed: pyproject.toml | $(python)
	@echo "Installing star_jax into $(VENV); this takes a few minutes the first time."
	$(install) .
	@touch $@

# An extra comes with everything that the package itself needs.
$(VENV)/installed-%: pyproject.toml | $(python)
	@echo "Installing star_jax[$*] into $(VENV); this takes a few minutes the first time."
	$(install) '.[$*]'
	@touch $(VENV)/installed $@
