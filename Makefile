# Every target works on a bare clone: it makes .venv first. `make` alone lists them.
.DEFAULT_GOAL := help
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# Packages of another Python, and an ASCII locale, break the virtualenv's.
unexport PYTHONHOME PYTHONPATH
export PYTHONUTF8 := 1

help: ## list these commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-16s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## make .venv: locked packages, and this project, editable
$(READY): pyproject.toml tests/requirements.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo 'Python 3.11 or newer is needed; name one: make PYTHON=python3.13 ...' >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo 'The Python module venv is missing. On Debian and Ubuntu: apt install python3-venv' >&2; exit 1; }
	@echo 'Installing the locked packages into $(VENV): half a minute or so ...'
	@$(PYTHON) -m venv --clear $(VENV)
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/requirements.txt
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## a phone rings on a page in your browser (TEXT=1: in the terminal; ONCE=1: there, and then end)
	@$(BIN)/python -m tests.sandbox.demo $(if $(TEXT),--text) $(if $(ONCE),--once) $(ARGS)

play: setup ## try things in the demo that runs in another terminal (DO=person, jobs, calls, fail, pause, resume, kill, sql)
	@$(BIN)/python -m tests.sandbox.play "$(DO)" "$(or $(Q),$(TO))"

test: setup ## all tests, in a random order (SEED=7 repeats one; ARGS="-k name" for some; PG_BIN=/path/bin: another Postgres)
	$(BIN)/python -m pytest --numprocesses auto --dist loadfile --no-loadscope-reorder --ignore=tests/database_check --ignore=tests/page_check $(if $(SEED),--randomly-seed=$(SEED)) $(ARGS)

database-check: setup ## the Supabase CLI pushes, advises and lints, pgTAP tests (installs them: npm; on Debian, as root, apt)
	@tests/database_check/tools.sh
	$(BIN)/python -m pytest -rs tests/database_check $(ARGS)

hours: setup ## say when calls may ring, rule by rule, and now (HOURS=strict)
	@$(BIN)/python -m shared.screening.print_hours $(HOURS)

page-check: setup ## the telephone page in a real browser (installs it: pip, npm; on Debian, as root, apt)
	@tests/page_check/tools.sh
	$(BIN)/python -m pytest -rs tests/page_check $(ARGS)

pictures: setup ## take the pictures of the telephone page for the README
	@tests/page_check/tools.sh
	@$(BIN)/python -m tests.page_check.pictures $(ARGS)

scripts: setup ## check the scripts of the calls, and read them out
	@$(BIN)/python -m shared.conversation.rehearse check

RUNS ?= 1000
chaos: setup ## prove the guarantee: simulated histories (RUNS=1000 SEED=1), then real crashes, a burst, results under fire
	$(BIN)/python -m tests.chaos.simulation --runs $(RUNS) $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.crash $(if $(SEED),--seed $(SEED))
	$(BIN)/python -m tests.chaos.burst
	$(BIN)/python -m tests.chaos.results $(if $(SEED),--seed $(SEED))

BENCH := $(VENV)/bench
bench: setup ## this product beside other queues: promises and costs, a table and a chart, 15 minutes (ROUNDS=3)
	@[ $(BENCH)/.ready -nt tests/bench/requirements.txt ] || { $(PYTHON) -m venv --clear $(BENCH) && $(BENCH)/bin/python -m pip install --quiet --disable-pip-version-check --require-hashes -r tests/bench/requirements.txt && touch $(BENCH)/.ready; }
	@$(BIN)/python -m tests.bench.compare $(if $(ROUNDS),--rounds $(ROUNDS)) $(if $(SEED),--seed $(SEED)) $(ARGS)

check: setup ## lint, format, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-cache

format: setup ## let ruff put the code in shape
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sandbox: setup ## a Supabase, a Twilio and the function on this machine, until Ctrl-C
	@$(BIN)/python -m tests.sandbox --ready-file $(VENV)/.sandbox.json $(ARGS)

image-check: setup ## build the Dockerfile and try the image, without Docker (root on Debian; TESTS=tests/unit for less)
	$(BIN)/python -m tests.image $(if $(IF_POSSIBLE),--if-possible) $(TESTS)

lock: ## renew the locks from pyproject.toml (needs uv)
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --extra dev -c requirements.txt pyproject.toml -o tests/requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group image -o tests/image/requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group page -o tests/page_check/requirements.txt
	uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group bench -o tests/bench/requirements.txt

size: setup ## lines and imports, beside their goals
	@$(BIN)/python -m tests.size

clean: ## remove the files that these commands made
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis *.egg-info

.PHONY: help setup demo play test hours scripts database-check page-check pictures image-check chaos bench check format size sandbox lock clean
