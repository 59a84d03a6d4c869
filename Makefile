# make demo    three regions on this machine, a real conversation, a lost region
# make test    the whole suite, as CI runs it
#
# Both work in a fresh clone with Python >= 3.11, make and a package index. What they need goes
# into .venv, installed anew when pyproject.toml or constraints.txt change.

PYTHON ?= python3
WORKERS ?= 2
SEEDS ?= 300
KILLS ?= 500
IMAGES ?= 20000
INPUTS ?= 5000000
COMPILED_TESTS ?= tests/test_compiled.py tests/crdt/fuzz $(wildcard tests/daemon/test_api_*.py \
	tests/daemon/test_store*.py tests/daemon/test_log*.py tests/daemon/test_node_*.py) \
	tests/process/test_kill.py
VENV := .venv
BIN := $(VENV)/bin
# Seconds for one test: machines may be slow, and their disks stand still at times.
TIMEOUT ?= 300
HASH := $(shell cat pyproject.toml constraints.txt | cksum | tr -d ' ')
RUN_STAMP := $(VENV)/.run-$(HASH)
TEST_STAMP := $(VENV)/.test-$(HASH)

# Sets are gone through in one order: a red build is a change of the code.
ifeq ($(CI),true)
export PYTHONHASHSEED := 0
endif

.DEFAULT_GOAL := help
.PHONY: help demo test lint types unit process simulate compiled soak coverage mutants clean
.DELETE_ON_ERROR:

help:
	@sed -n '1,5s/^# \{0,1\}//p' Makefile
	@echo "also: lint types unit process simulate compiled soak coverage mutants clean"

demo: $(RUN_STAMP)
	@exec $(BIN)/roost demo $(DEMO)

SIMULATOR := $(wildcard crdt/roost_sim/__main__.py)

test: lint types unit process $(if $(SIMULATOR),simulate) compiled

lint: $(TEST_STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports

types: $(TEST_STAMP)
	$(BIN)/mypy
	$(BIN)/basedpyright

unit: $(TEST_STAMP)
	$(BIN)/pytest -q -n $(WORKERS) --timeout=$(TIMEOUT) --ignore=tests/process $(TESTS)

process: $(TEST_STAMP)
	$(BIN)/pytest -q tests/process --ignore=tests/process/test_regions_faults.py $(TESTS)

simulate: $(TEST_STAMP)
	$(BIN)/python -m roost_sim --seeds $(SEEDS)

# The wheel with compiled modules, in build/compiled, and the tests of what is in them.
compiled: $(TEST_STAMP)
	@set -e; \
	if ! command -v cc >/dev/null 2>&1 && [ "$$CI" != true ]; then \
		echo "no C compiler: the compiled build is not tested"; exit; \
	fi; \
	rm -rf build/wheel build/compiled; \
	HATCH_BUILD_HOOK_ENABLE_CUSTOM=1 $(BIN)/python -m hatchling build -t wheel -d build/wheel; \
	$(BIN)/python -m zipfile -e build/wheel/*.whl build/compiled; \
	PYTHONPATH=$(CURDIR)/build/compiled $(BIN)/pytest -q -n $(WORKERS) --timeout=$(TIMEOUT) -o pythonpath=tests \
		-m 'not interpreted' $(COMPILED_TESTS)

# Hours, not minutes: before a release.
soak: $(TEST_STAMP)
	ROOST_FUZZ_INPUTS=$(INPUTS) ROOST_FUZZ_SEED=$$(date +%s) $(BIN)/pytest -q -s -n $(WORKERS) --timeout=0 tests/crdt/fuzz
	ROOST_TEST_IMAGES=$(IMAGES) $(BIN)/pytest -q -s --timeout=0 tests/daemon/test_power_loss.py
	ROOST_TEST_SOAK=1 ROOST_TEST_KILLS=$(KILLS) $(BIN)/pytest -q -s --timeout=0 tests/process $(TESTS)
	$(if $(SIMULATOR),$(BIN)/python -m roost_sim --seeds 10000)

# Branches of each module of the core that its own tests leave out.
coverage: $(TEST_STAMP)
	$(BIN)/python tests/coverage_by_module.py

# Changes in the merge code that no test notices: an hour.
mutants: $(TEST_STAMP)
	$(BIN)/python tests/mutants/run.py --workers $(WORKERS)

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# $(1): what to install, $(2): the stamp that says so.
define install
@set -e; \
if command -v uv >/dev/null 2>&1; then \
	echo "installing into $(VENV) with uv"; \
	[ -x $(BIN)/python ] || uv venv --quiet --python '>=3.11' $(VENV); \
	uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '$(1)'; \
else \
	command -v $(PYTHON) >/dev/null 2>&1 || \
		{ echo "roost needs Python 3.11 or newer: install python3"; exit 1; }; \
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "roost needs Python 3.11 or newer: make PYTHON=/path/to/python3.11"; exit 1; }; \
	$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || \
		{ echo "this Python has no venv: apt-get install python3-venv, or install uv"; exit 1; }; \
	echo "installing into $(VENV)"; \
	[ -x $(BIN)/python ] || $(PYTHON) -m venv $(VENV); \
	$(BIN)/python -m pip install --quiet --disable-pip-version-check \
		--constraint constraints.txt --editable '$(1)'; \
fi; \
touch $(2)
endef

$(RUN_STAMP): pyproject.toml constraints.txt
	$(call install,.,$@)

$(TEST_STAMP): pyproject.toml constraints.txt
	$(call install,.[test],$@)
	@touch $(RUN_STAMP)
