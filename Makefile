# Turnout. `make demo` and `make test` do all their set-up; the rest is for developers.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
RUST   := Cargo.toml Cargo.lock $(shell find rust -name '*.rs')

.PHONY: help setup demo test test-rust test-python valgrind instructions check format bench coverage lock clean
.DEFAULT_GOAL := help

help: ## Show what can be made
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(None if sys.version_info >= (3, 11) else "Turnout needs Python 3.11 or newer")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.locked: requirements.lock | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements.lock
	@touch $@

$(VENV)/.built: $(RUST) pyproject.toml $(VENV)/.locked
	PIP_QUIET=1 VIRTUAL_ENV=$(abspath $(VENV)) $(BIN)/maturin develop --release --locked --quiet
	@touch $@

setup: $(VENV)/.built ## Make the virtual environment and build the extension into it

demo: setup ## Train two models, serve them, split traffic, switch versions; leaves the service running
	$(BIN)/turnout demo

test: test-rust test-python ## Build and run every test; print the coverage

test-rust: $(VENV)/.locked
	cargo test --locked --quiet

test-python: setup valgrind
	$(BIN)/python -m pytest -q --cov --cov-report=term

# It counts instructions. Where it cannot be had, the tests that need it are skipped.
valgrind:
	@command -v valgrind >/dev/null \
		|| { test "$$(id -u)" = 0 && apt-get -qq update && apt-get -qq install -y --no-install-recommends valgrind; } \
		|| echo "valgrind is not here and could not be installed: instructions will not be counted"

instructions: $(BIN)/python valgrind ## Count the instructions of the hot path anew, and commit to them
	$(BIN)/python tests/instructions.py

check: setup ## Formatters, linters, type checker, stub check, direction of imports
	cargo fmt --check
	cargo clippy --locked --quiet --all-targets -- -D warnings
	PYO3_PYTHON=$(abspath $(BIN)/python) cargo clippy --locked --quiet --all-targets --features python -- -D warnings
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/stubtest turnout._core --concise
	$(BIN)/python -m pytest -q tests/unit/test_imports.py

format: setup ## Format everything
	cargo fmt
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix-only --quiet .

coverage: setup ## Print the coverage of Rust and Python (the first time builds cargo-tarpaulin, some minutes)
	cargo install --locked --quiet --root target/tools cargo-tarpaulin
	PATH="$(abspath target/tools/bin):$$PATH" cargo tarpaulin --engine llvm --locked --skip-clean --out Stdout \
		--target-dir target/coverage --exclude-files 'tests/*' 'benches/*'
	$(BIN)/python -m pytest -q --cov --cov-report=term

bench: setup ## Run the benches of benches/README.md
	cargo bench --locked
	$(BIN)/python -m pytest benches -q --benchmark-columns=min,median,ops
	$(BIN)/python benches/batch.py
	$(BIN)/python benches/stream.py
	$(BIN)/python benches/score.py
	$(BIN)/python benches/gpu.py
	$(BIN)/python benches/server.py
	$(BIN)/python benches/versions.py
	$(BIN)/python benches/experiment.py
	$(BIN)/python benches/validity/run.py
	$(BIN)/python benches/http/run.py

lock: $(BIN)/python ## Resolve the dependencies anew
	$(BIN)/python -m pip install --quiet uv
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --extra dev \
		--no-header --output-file requirements.lock pyproject.toml
	cargo update

clean: ## Remove what was built
	rm -rf $(VENV) target python/turnout/_core*.so
