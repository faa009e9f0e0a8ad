# Two commands are all that a fresh machine needs: `make demo` and `make test`. `make` alone lists the others.

BIN := .venv/bin
RINGS := tests/unit tests/integration tests/lab tests/faults tests/browser tests/compose

.DEFAULT_GOAL := help
.PHONY: help demo test coverage lint wheel release docs faults soak bench control clean

help: ## list these targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

demo: ## set up, then migrate a process between two hosts and back, with proof (root)
	@bin/setup lab
	@$(BIN)/sojourn lab demo $(ARGS)

test: ## set up, then run every ring of tests that this machine can: unit, integration, lab, faults, browser, compose
	@bin/setup browser docker
	@$(BIN)/pytest $(RINGS) $(ARGS)

coverage: ## run the rings but compose, and tell which branches of the machinery they took, in the lab's hosts too (root)
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

release: ## build and check what would be published, in dist/; ARGS=--draft before everything is committed
	@bin/setup
	@$(BIN)/python bin/release.py $(ARGS)

faults: ## run the whole fault matrix on several labs and write docs/failure.md (root, about an hour)
	@bin/setup lab
	@$(BIN)/python -m tests.faults.matrix $(ARGS)

soak: ## migrate 500 times back and forth under faults and write docs/soak.md (root, about an hour)
	@bin/setup lab
	@$(BIN)/python -m tests.faults.soak $(ARGS)

docs: ## write what the code knows into docs/, the man pages, and HTML with its links checked: build/docs/index.html
	@bin/setup
	@$(BIN)/python -m manual
	@$(BIN)/sphinx-build --fail-on-warning --quiet -c manual . build

bench: ## measure the freeze against the same CRIU commands in a shell script (root)
	@bin/setup lab
	@$(BIN)/python benchmarks/freeze.py $(ARGS)

control: ## measure the queue, the canvas and the journals without CRIU: 10,000 migrations between 1,000 hosts
	@bin/setup
	@$(BIN)/python benchmarks/control_plane.py $(ARGS)

clean: ## remove the demo's lab, .venv and caches; the hosts' root stays in /var/cache/sojourn
	@if [ -e /run/sojourn-lab/demo ]; then $(BIN)/sojourn lab down --name demo; fi
	@rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage htmlcov dist build
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +
