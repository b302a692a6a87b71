# Everything starts here: `make help`.
# Needs Python 3.11 or 3.12 and make. PYTHON picks the interpreter, VENV the environment's folder.
PYTHON ?= python3.11
VENV ?= .venv
BIN := $(VENV)/bin
LOCK := requirements.lock
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check

.DEFAULT_GOAL := help
.PHONY: help install install-dev demo test test-slow check lint format lock clean

help: ## list the targets
	@grep -E '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1|/' | awk -F'|' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	@$(PYTHON) --version >/dev/null 2>&1 || { echo "expected Python 3.11 as '$(PYTHON)', found none (set PYTHON=...)" >&2; exit 2; }
	@echo "making the environment $(VENV)"
	@$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.py bulktag/VERSION $(LOCK) | $(BIN)/python
	@echo "installing bulktag and what it stands on (a minute or two)"
	@$(PIP) -c $(LOCK) -e '.[cpu,query]'
	@touch $@

$(VENV)/.installed-dev: setup.py bulktag/VERSION $(LOCK) | $(BIN)/python
	@echo "installing bulktag and its development tools (a minute or two)"
	@$(PIP) -c $(LOCK) -e '.[cpu,dev]'
	@touch $@ $(VENV)/.installed

install: $(VENV)/.installed ## make the environment and install bulktag into it
install-dev: $(VENV)/.installed-dev ## the same, with what tests and checks need

demo: install ## the whole journey on images that it draws itself
	@$(BIN)/bulktag demo

test: install-dev ## the quick tests
	@$(BIN)/python -m pytest -q -m 'not slow'

test-slow: install-dev ## the tests that take longer: full-size networks, real data, the demo
	@$(BIN)/python -m pytest -q -m 'slow and not flink and not gcs and not dataflow and not browser'

.PHONY: gcs-emulator test-gcs
gcs-emulator: install ## an emulator of Google Cloud Storage on this machine, until it is interrupted; needs Go
	@$(BIN)/python scripts/gcs_emulator.py up

test-gcs: install-dev ## the tests against that emulator, which they start
	@$(BIN)/python -m pytest -q -m gcs

.PHONY: test-browser
test-browser: install-dev ## pages in a real browser; needs Chromium
	@$(BIN)/python -m pytest -q -m browser

.PHONY: test-dataflow
test-dataflow: install-dev ## jobs for Dataflow, taken and run by a stand-in for the service
	@$(BIN)/python -m pytest -q -m dataflow

.PHONY: flink-jar flink-up flink-down test-flink
flink-jar: install ## Beam's job server for Flink, as .flink/flink-job-server.jar; needs Java 17 and Maven
	@$(BIN)/python scripts/flink_cluster.py jar

flink-up: install ## a Flink cluster on this machine, with a worker pool; needs Java 17 and Maven
	@$(BIN)/python scripts/flink_cluster.py up

flink-down: ## stop it
	@$(BIN)/python scripts/flink_cluster.py down

test-flink: install-dev ## the tests on a Flink cluster, which they start
	@$(BIN)/python -m pytest -q -m flink

lint: install-dev ## formatting and lint
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .

format: install-dev ## format the code
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

check: lint test ## what a change must pass

.PHONY: bench
bench: install ## measure speed and memory beside the peers; BENCH='--suite retag --images photos/' passes options
	@$(BIN)/python -m benchmarks.bench $(BENCH)

lock: ## resolve the newest versions of everything into requirements.lock
	@rm -rf $(VENV)-lock && $(PYTHON) -m venv $(VENV)-lock
	@$(VENV)-lock/bin/python -m pip install --quiet '.[cpu,dev,gcp]'
	@{ echo "# Versions that CI and workers use, made by \`make lock\`."; $(VENV)-lock/bin/python -m pip freeze --exclude bulktag; } > $(LOCK)
	@rm -rf $(VENV)-lock

clean: ## remove the environment and what was built
	rm -rf $(VENV) build *.egg-info bulktag-demo .pytest_cache .ruff_cache .hypothesis
