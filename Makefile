# `make help` lists what there is. Everything that needs .venv makes it first; with .venv complete that takes a moment.

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory

py := .venv/bin/python

# Variables of the targets, as in `make run SOURCE=deskdrop INPUT=log.csv.gz OUT=out/deskdrop`
GPU ?=
PYTHON ?=
SOURCE ?=
INPUT ?=
OUT ?=
DATE ?=
CATEGORIES ?=
CONF ?=
RANKS ?=
FLAGS ?=
TESTS ?= tests
export GPU PYTHON

.PHONY: help setup doctor class-archive demo week run nightly package cluster-up cluster-down test report-test test-cluster soak test-unit lint format golden docs clean clean-all

help: ## List the targets
	@echo "Targets (make TARGET):"
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: ## Make .venv complete: pinned packages, Horovod, this project; GPU=1 for NVIDIA GPUs, PYTHON=… for another 3.11
	@setup/setup.sh

doctor: setup ## Check the installed environment piece by piece; each line ok or the exact fix
	@$(py) -m jobs.doctor

class-archive: setup ## Optional, a minute: from then on every command has its Spark some seconds sooner (150 MiB)
	@$(py) -m jobs.class_archive

demo: setup ## The whole path on a simulated log: raw log to scores and report, below out/demo
	@.venv/bin/interest demo

week: setup ## A week of nights on a simulated log, as a scheduler would run them, below out/week
	@.venv/bin/interest week

run: ## The whole path on a real log: SOURCE=, INPUT=, OUT=; optional CATEGORIES=, DATE=YYYY-MM-DD, CONF=file.yaml, RANKS=n
	@lacks=(); \
	[ -n "$(SOURCE)" ] || lacks+=("SOURCE=<one of: $(filter-out template,$(basename $(notdir $(wildcard conf/sources/*.yaml))))>"); \
	[ -n "$(INPUT)" ] || lacks+=("INPUT=<the log: a file or folder>"); \
	[ -n "$(OUT)" ] || lacks+=("OUT=<folder for all tables>"); \
	if [ $${#lacks[@]} -gt 0 ]; then \
	  echo "error: make run needs $${lacks[*]}" >&2; \
	  echo "for example: make run SOURCE=deskdrop INPUT=users_interactions.csv.gz OUT=out/deskdrop" >&2; \
	  exit 2; \
	fi
	@setup/setup.sh
	@$(py) -m jobs.run --source "$(SOURCE)" --input "$(INPUT)" --root "$(OUT)" \
	  $(if $(DATE),--date "$(DATE)") $(if $(CATEGORIES),--categories "$(CATEGORIES)") $(if $(CONF),--conf "$(CONF)") $(if $(RANKS),--ranks "$(RANKS)")

nightly: ## One night on a root: SOURCE=, INPUT= ({date} = the day), OUT=, DATE=; optional CATEGORIES=, CONF=file.yaml, FLAGS='--bootstrap …'
	@lacks=($(if $(SOURCE),,SOURCE=) $(if $(INPUT),,INPUT=) $(if $(OUT),,OUT=) $(if $(DATE),,DATE=)); \
	if [ $${#lacks[@]} -gt 0 ]; then \
	  echo "error: make nightly needs $${lacks[*]}" >&2; \
	  echo "for example: make nightly SOURCE=shop.yaml INPUT='logs/{date}/' OUT=out/shop DATE=2024-05-02" >&2; \
	  exit 2; \
	fi
	@setup/setup.sh
	@$(py) -m jobs.nightly --source "$(SOURCE)" --input "$(INPUT)" --root "$(OUT)" --date "$(DATE)" \
	  $(if $(CATEGORIES),--categories "$(CATEGORIES)") $(if $(CONF),--conf "$(CONF)") $(FLAGS)

package: setup ## dist/: the project as a zip, Python and packages as an archive, scripts and configuration; for a cluster
	@$(py) -m deploy.package

cluster-up: setup ## A Spark cluster of two workers on this machine; FLAGS='--workers 3 --cores 2 --memory-mib 4096'
	@$(py) -m deploy.cluster up $(FLAGS)

cluster-down: setup ## End that cluster with everything it started
	@$(py) -m deploy.cluster down

test: setup ## All tests, two at a time; TESTS=tests/spark/test_events.py for some of them
	@$(py) -m pytest $(if $(filter tests,$(TESTS)),-n 2 --dist loadscope --no-loadscope-reorder) $(TESTS)

report-test: setup ## The report in headless Chromium (installed by apt where we are root); screenshots in out/report-test
	@if [ ! -x /usr/bin/chromium ]; then \
	  if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	    echo "report-test: installing Debian's package chromium"; \
	    apt-get update -qq >/dev/null; \
	    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq chromium >/dev/null; \
	  else \
	    echo "error: report-test needs /usr/bin/chromium: sudo apt-get update && sudo apt-get install -y chromium" >&2; exit 2; \
	  fi; \
	fi
	@$(py) -m pytest -s tests/browser

test-cluster: setup ## The jobs on a Spark cluster of their own by spark-submit, and failures on purpose; not part of make test; TESTS= for some
	@$(py) -m deploy.package --if-changed
	@$(py) -m pytest $(if $(filter-out tests,$(TESTS)),$(TESTS),tests/cluster)

soak: setup ## The long form of the tests that kill processes at random (half an hour); INTEREST_KILL_SEED=n for a seed
	@$(py) -m pytest -m soak tests

test-unit: setup ## The fast tests
	@$(py) -m pytest tests/unit

lint: setup ## ruff, formatting, mypy --strict, and whether docs/contracts.md is what the schemas say
	@$(py) -m ruff check .
	@$(py) -m ruff format --check .
	@$(py) -m mypy
	@$(py) -m mypy setup/*.py
	@$(py) -m jobs.contracts --check

format: setup ## Let ruff correct what it can and format everything
	@$(py) -m ruff check --fix .
	@$(py) -m ruff format .

golden: setup ## Rewrite the golden files from what the code says now; read the diff before you commit it
	@$(py) -m pytest --update-golden -k golden $(TESTS)

docs: setup ## Write docs/contracts.md from the schemas, and the Python interface as pages below out/docs
	@$(py) -m jobs.contracts
	@$(py) -W error -m pdoc --docformat google --output-directory out/docs jobs.api
	@echo "The Python interface: out/docs/index.html"

clean: ## Remove results below out/ and what tools left behind; .venv and the wheel cache stay
	@rm -rf out build spark-warehouse metastore_db derby.log .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info
	@find . -path ./.venv -prune -o -name __pycache__ -type d -print | xargs rm -rf

clean-all: clean ## The same, and .venv
	@rm -rf .venv
