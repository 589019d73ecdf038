# Every target does its own set-up: .venv and .local, both inside this folder, both gone after `make clean`.

# Python 3.11 or newer, the first of these that has it: make PYTHON=/path/to/python3.12 ...
PYTHON ?= $(shell for p in python3 python3.13 python3.12 python3.11 python3.14 python; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && { echo "$$p"; break; }; done)

VENV := .venv
RUN  := $(VENV)/bin/python

# Where Azurite is kept; see beam_entra/testing/node.py.
export BEAM_ENTRA_CACHE ?= $(CURDIR)/.local
# npm would write into the home folder; what it keeps here goes once Azurite is there.
export npm_config_cache ?= $(BEAM_ENTRA_CACHE)/npm
export npm_config_update_notifier := false
export PIP_DISABLE_PIP_VERSION_CHECK := 1
# A shell's own settings must not reach into the environment, nor have each process compile everything anew.
unexport PYTHONPATH PYTHONHOME VIRTUAL_ENV PYTHONDONTWRITEBYTECODE

INSTALLED := $(VENV)/.installed
DEVELOPER := $(VENV)/.developer
AZURITE   := $(BEAM_ENTRA_CACHE)/.azurite-installed
WITNESSES := $(BEAM_ENTRA_CACHE)/witnesses

# pytest's arguments: make test TESTS="tests/io -k gzip"
TESTS ?=
# Tests run in so many processes at a time; many wait more than they compute. JOBS=0 runs them in one.
JOBS ?= 3
SPREAD = -n $(JOBS) --dist loadgroup --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help demo test bench bench-page bench-scaling scaling-page reliability-page lint format azurite npm-witnesses witnesses constraints clean
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory

# Lines `name: ... ## what it does` are what `make help` says, lines `##@ words` its headlines.
help:
	@printf 'beam_entra: Apache Beam pipelines whose I/O is scoped to the job'"'"'s Entra identity\n'
	@awk -F ':.*## ' '/^##@ / { printf "\n%s\n", substr($$0, 5) } /^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nAll set themselves up, in .venv and .local: Python 3.11 or newer and a way to PyPI and npm is what they need.\n'

##@ To begin with
demo: $(INSTALLED) $(AZURITE) ## Run the sample job on a local tenant and Azurite, and see a refusal (KEEP=1: servers stay up)
	@exec $(RUN) -m pipelines.demo $(if $(filter-out 0,$(KEEP)),--keep)

test: $(DEVELOPER) $(AZURITE) ## Run all tests but those of test-engines, JOBS=3 at a time (TESTS="tests/io -k gzip" for some)
	@exec $(RUN) -m pytest $(SPREAD) $(TESTS)

lint: $(DEVELOPER) ## Check style and types
	@$(RUN) -m ruff check . && $(RUN) -m mypy

format: $(DEVELOPER) ## Mend what ruff can mend
	@$(RUN) -m ruff check --fix-only .

clean: ## Remove everything that was made here, .venv and .local included
	@test ! -f .local/cloud/state.json || $(RUN) -m beam_entra.cli local down || true
	@rm -rf $(VENV) .local build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

include engines.mk

##@ Figures, and the pages made of them
bench: $(DEVELOPER) $(AZURITE) ## Compare with Beam's azfs (ROWS=1: names of the rows, ROW=text: one of them, SCALE=0.1: a quick look)
	@exec $(RUN) -m benchmarks $(if $(ROWS),--list) $(foreach row,$(ROW),--row=$(row)) $(if $(SCALE),--scale=$(SCALE)) $(if $(PAIRS),--pairs=$(PAIRS))

bench-page: $(DEVELOPER) ## Make docs/benchmarks.md from the last `make bench`
	@exec $(RUN) -m benchmarks.page

bench-scaling: $(DEVELOPER) $(AZURITE) ## See how costs grow with files, bundles, bytes and workers; 12 minutes (QUICK=1: a quick look)
	@exec $(RUN) -m benchmarks.scaling $(if $(filter-out 0,$(QUICK)),--quick)

scaling-page: $(DEVELOPER) ## Make docs/scaling.md and its pictures from the last `make bench-scaling`
	@exec $(RUN) -m benchmarks.scaling.page

reliability-page: $(DEVELOPER) ## Make docs/reliability.md from the last run of tests/weather
	@exec $(RUN) -m tests.weather.page

##@ For the tests
azurite: $(AZURITE) ## Install Azurite, as `demo` and `test` do

npm-witnesses: $(INSTALLED) ## Install other people's servers to test against: oidc-provider, emulate
	@$(RUN) -m tests.witness.fetch
	@rm -rf "$(BEAM_ENTRA_CACHE)/npm"

witnesses: npm-witnesses ## Build entra-emulator and azure-keyvault-emulator, too (needs Go 1.26)
	@command -v go >/dev/null || { echo "There is no go on the PATH: install Go 1.26 or newer, or leave it: those tests are skipped." >&2; exit 1; }
	@mkdir -p $(WITNESSES)
	@GOBIN=$(WITNESSES) GOPATH=$(WITNESSES)/go GOCACHE=$(WITNESSES)/go-build GOFLAGS=-modcacherw \
		sh -c 'go install github.com/calvinchengx/entra-emulator/cmd/entra-emulator@v0.9.0 && \
		go install github.com/calvinchengx/azure-keyvault-emulator/cmd/azure-keyvault-emulator@v0.7.0'
	@rm -rf $(WITNESSES)/go $(WITNESSES)/go-build

constraints: ## Write constraints.txt anew, with the newest versions that pyproject.toml allows
	@$(call need_python)
	@rm -rf .local/fresh && "$(PYTHON)" -m venv .local/fresh && .local/fresh/bin/python -m pip install --quiet -e '.[local,dev]'
	@{ echo "# What the tests ran with. Made by \`make constraints\`."; \
	   .local/fresh/bin/python -m pip freeze --exclude-editable; } > constraints.txt
	@rm -rf .local/fresh

define need_python
if [ -z "$(PYTHON)" ]; then \
	echo "There is no Python 3.11 or newer with venv and pip on the PATH." >&2; \
	echo "    fix: install one (Debian, Ubuntu: apt install python3 python3-venv), or name it: make PYTHON=/path/to/python3.12" >&2; \
	exit 1; fi
endef

PIP_INSTALL = $(RUN) -m pip install --quiet --constraint constraints.txt

$(INSTALLED): pyproject.toml setup.py constraints.txt
	@$(call need_python)
	@echo "Setting up $(VENV) with $$("$(PYTHON)" --version) (a minute or so, once)"
	@"$(PYTHON)" -m venv --clear $(VENV)
	@$(PIP_INSTALL) --editable '.[local]'
	@touch $@

$(DEVELOPER): $(INSTALLED)
	@echo "Adding what the tests need (a minute or so, once)"
	@$(PIP_INSTALL) --use-pep517 --editable '.[local,dev]'
	@touch $@

$(AZURITE): beam_entra/testing/node.py beam_entra/testing/azurite_npm/package-lock.json | $(INSTALLED)
	@echo "Installing Azurite into $(BEAM_ENTRA_CACHE) (once)"
	@$(RUN) -c 'from beam_entra.testing.node import *; install_azurite(default_cache())'
	@rm -rf "$(BEAM_ENTRA_CACHE)/npm"
	@touch $@
