# Two commands are all that a fresh machine needs: `make demo` and `make test`. `make` alone lists
# the others.

BIN := .venv/bin
RINGS := tests/unit tests/integration tests/hostile tests/lab tests/faults tests/browser tests/compose

# Two groups that take about as long as each other, measured on two cores.
FIRST := $(wildcard tests/lab/test_[a-o]*.py)
SECOND := $(filter-out tests/lab, $(RINGS)) $(wildcard tests/lab/test_[p-z]*.py)

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint wheel release docs faults soak programs record bench freeze storm control seals clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## set up, then migrate a process between two hosts and back, with proof (root)
	@bin/setup lab
	@$(BIN)/sojourn lab demo $(ARGS)

test: ## set up, then run all rings of tests: unit, integration, hostile, lab, faults, browser, compose
	@bin/setup browser docker
	@bin/rings "$(FIRST)" "$(SECOND)" $(ARGS)

coverage: ## run all rings but compose and report the branches they took, in hosts too (root)
	@bin/setup browser
	@$(BIN)/coverage erase
	-@$(BIN)/coverage run -m pytest -p tests.covered $(filter-out tests/compose,$(RINGS)) $(ARGS)
	@$(BIN)/coverage combine --quiet
	@$(BIN)/coverage html --quiet
	@$(BIN)/coverage report --fail-under=90

lint: ## check style, types and layers
	@bin/setup
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

wheel: ## build the wheel into dist/, as docs/install.md wants it
	@bin/setup
	@$(BIN)/python -m build --no-isolation --wheel

release: ## build and check what would be published, in dist/; ARGS=--draft: uncommitted too
	@bin/setup
	@$(BIN)/python bin/release.py $(ARGS)

faults: ## run the whole fault matrix and write docs/failure.md (root, about an hour)
	@bin/setup tests lab
	@$(BIN)/python -m tests.faults.matrix $(ARGS)

soak: ## migrate 500 times under faults and write docs/soak.md (root, about an hour)
	@bin/setup tests lab
	@$(BIN)/python -m tests.faults.soak $(ARGS)

programs: ## migrate programs of Debian's packages and write docs/programs.md (root, half an hour)
	@bin/setup tests lab
	@$(BIN)/python -m tests.programs $(ARGS)

docs: ## generate parts of docs/, man pages and HTML, links checked: build/docs/index.html
	@bin/setup
	@$(BIN)/python -m manual
	@$(BIN)/sphinx-build --fail-on-warning --quiet --fresh-env --write-all -c manual . build

record: ## record make demo as docs/images/demo.svg (root)
	@bin/setup lab
	@$(BIN)/python -m manual.recording $(ARGS)

bench: freeze storm ## measure what the next two do, one after the other (root)

freeze: ## measure the freeze of each mode against CRIU's commands in a shell script (root)
	@bin/setup tests lab
	@$(BIN)/python benchmarks/freeze.py $(ARGS)

storm: ## measure how post-copy bears that all memory is touched at once (root)
	@bin/setup tests lab
	@$(BIN)/python benchmarks/fault_storm.py $(ARGS)

control: ## measure queue, canvas and journals without CRIU: 10,000 migrations, 1,000 hosts
	@bin/setup
	@$(BIN)/python benchmarks/control_plane.py $(ARGS)

seals: ## measure what seals, signatures and answers cost a migration
	@bin/setup
	@$(BIN)/python benchmarks/seals.py $(ARGS)

clean: ## remove the demo's lab, .venv and caches; the hosts' root stays in /var/cache/sojourn
	@if [ -e /run/sojourn-lab/demo ]; then $(BIN)/sojourn lab down --name demo; fi
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	@rm -rf .coverage htmlcov dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
