# One target a job; `make help` lists them. Everything lives in .venv and target, and is made anew
# only if what it is made from has changed.

PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
TARGET := $(or $(CARGO_TARGET_DIR),$(CURDIR)/target)
RUST_SOURCES := $(shell find rust examples/native-worker -name '*.rs' -o -name Cargo.toml) Cargo.toml Cargo.lock
PACKAGE := $(shell find python/theus -name '*.py')
PYTHON_FILES := python tests benches examples
# pyo3's build script runs this interpreter, so that no other one on the PATH is taken.
export PYO3_PYTHON := $(BIN)/python
export VIRTUAL_ENV := $(CURDIR)/$(VENV)

.DEFAULT_GOAL := help
.PHONY: bench-env bench-rust instructions help kill-points demo build test test-rust test-python model fuzz fuzz-worker asan tsan valgrind lint bench docs clean

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "%-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

$(VENV)/.created:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "theus needs Python 3.11 or later: make PYTHON=...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade 'pip>=25.1' 'maturin>=1.8,<2'
	touch $@

# The release profile serves the demo, the tests of Python and the benches alike: one build.
$(VENV)/.built: $(VENV)/.created pyproject.toml $(RUST_SOURCES)
	$(BIN)/maturin develop --quiet --release
	touch $@

build: $(VENV)/.built ## build the package and install it, with all it needs, into .venv

# The same package with the steps at which the tests of crashes have it killed.
KILLED := $(TARGET)/kill-points/theus
$(KILLED)/.built: $(VENV)/.created $(RUST_SOURCES) $(PACKAGE)
	cargo build --quiet --release --package theus --package theus-python --features theus-python/kill-points
	rm -rf $(KILLED) && mkdir -p $(KILLED)
	cp $(TARGET)/release/lib_theus.so $(KILLED)/_theus.abi3.so
	cd python/theus && cp --parents $(PACKAGE:python/theus/%=%) $(KILLED)/
	touch $@

kill-points: $(KILLED)/.built ## the package that the tests of crashes kill

# The programs in Rust that the demo, the tests and the benches start. The binding stands there so that they
# are built from what the package was built from.
PROGRAMS := $(TARGET)/release/.programs
$(PROGRAMS): $(VENV)/.built $(RUST_SOURCES)
	cargo build --quiet --release --package theus --package theus-python --package native-worker \
		--example aggregate --example conformance --example engine --example floor --example owner --bin native-worker
	touch $@

export THEUS_AGGREGATE := $(TARGET)/release/examples/aggregate
export THEUS_CONFORMANCE := $(TARGET)/release/examples/conformance
export THEUS_ENGINE := $(TARGET)/release/examples/engine
export THEUS_FLOOR := $(TARGET)/release/examples/floor
export THEUS_NATIVE_WORKER := $(TARGET)/release/native-worker

demo: build $(PROGRAMS) ## the main job on real input, beside pickled arguments
	$(BIN)/python examples/demo.py

test: test-rust model test-python ## all tests

test-rust: $(VENV)/.created ## the tests of the core
	@if cargo nextest --version >/dev/null 2>&1; then \
		cargo nextest run --package theus; \
	else \
		cargo test --package theus --all-targets; \
	fi
	cargo test --package theus --doc

test-python: build $(PROGRAMS) $(KILLED)/.built ## the tests of the package, its examples included
	$(BIN)/python -m pytest

model: ## what processes do to shared words, in every order (loom)
	cargo test --quiet --release --package theus --features loom --lib model

# The rest of these take minutes and are run by hand, after changes of unsafe code, formats, locks.
NIGHTLY := RUSTC_BOOTSTRAP=1
HOST := $(shell rustc -vV | sed -n 's/^host: //p')
FUZZ_TARGETS := catalog descriptor frame table tensor
FUZZ_SECONDS ?= 60

fuzz: ## hostile bytes, FUZZ_SECONDS=60 for each target
	@cargo fuzz --version >/dev/null 2>&1 || { echo "needs cargo-fuzz: cargo install cargo-fuzz"; exit 1; }
	@for target in $(FUZZ_TARGETS); do \
		mkdir -p $(TARGET)/fuzz/$$target; \
		(cd rust/theus && $(NIGHTLY) cargo fuzz run $$target $(TARGET)/fuzz/$$target fuzz/corpus/$$target -- \
			-max_total_time=$(FUZZ_SECONDS) -max_len=80000 -timeout=10 \
			-rss_limit_mb=3000 -malloc_limit_mb=512 -print_final_stats=1) || exit 1; \
	done

fuzz-worker: build ## hostile frames for the loop of a Python worker, FUZZ_SECONDS=60 (atheris)
	$(BIN)/python -m pip install --quiet 'atheris>=3'
	mkdir -p $(TARGET)/fuzz/worker
	$(BIN)/python tests/fuzz/worker_loop.py $(TARGET)/fuzz/worker -max_total_time=$(FUZZ_SECONDS) -timeout=10 -print_final_stats=1

asan: build ## the core's tests, and the conformance suite's worker in Rust, with AddressSanitizer
	THEUS_SANITIZED=1 THEUS_BIT_STEP=29 $(NIGHTLY) RUSTFLAGS=-Zsanitizer=address \
		cargo test --no-fail-fast --package theus --lib --tests --target $(HOST) --target-dir $(TARGET)/asan
	$(NIGHTLY) RUSTFLAGS=-Zsanitizer=address \
		cargo build --package theus --example conformance --target $(HOST) --target-dir $(TARGET)/asan
	THEUS_SANITIZED=1 ASAN_OPTIONS=quarantine_size_mb=4 \
		THEUS_CONFORMANCE=$(TARGET)/asan/$(HOST)/debug/examples/conformance \
		$(BIN)/python -m pytest -q tests/conformance -k rust

# The standard library is built too: without it, its own synchronisation is not seen.
tsan: ## the core's tests with ThreadSanitizer; needs rustup component add rust-src
	THEUS_SANITIZED=1 THEUS_BIT_STEP=29 $(NIGHTLY) RUSTFLAGS=-Zsanitizer=thread \
		cargo test --no-fail-fast --package theus --lib --tests -Zbuild-std \
		--target $(HOST) --target-dir $(TARGET)/tsan

valgrind: build ## the binding in valgrind; errors in our own code fail
	$(BIN)/python tests/memory/under_valgrind.py

lint: build ## formatting, lints and types; warnings fail
	cargo fmt --check
	cargo clippy --workspace --all-targets --features theus/loom,theus/criterion -- -D warnings
	@# Alone, as a program that needs no more of it has it.
	cargo clippy --quiet --package theus --no-default-features -- -D warnings
	$(BIN)/ruff check $(PYTHON_FILES)
	$(BIN)/ruff format --check $(PYTHON_FILES)
	$(BIN)/pyright
	$(BIN)/python -m mypy.stubtest theus._theus --allowlist tests/typing/stubtest-allowlist.txt
	$(BIN)/python benches/python/readme.py --check
	@count=$$(cargo tree --workspace --prefix none --format '{p}' | grep -o '^arrow v[^ ]*' | sort -u | wc -l); \
		test "$$count" = 1 || { echo "expected one arrow version in the tree, found $$count"; exit 1; }
	@! cargo tree --package theus --edges normal,build --prefix none | grep -i -E '^(py|numpy)' || \
		{ echo "the core has Python in its tree"; exit 1; }

# The binding stands here so that the core is built with the features that its package has.
CARGO_BENCH := cargo bench --quiet --package theus --package theus-python

bench-rust: ## times of the core alone (criterion), ONLY=put for those of that name
	$(CARGO_BENCH) --features theus/criterion --bench core -- $(if $(ONLY),"$(ONLY)")

instructions: ## instructions of the core against what they were, RENEW=1 to keep the new ones (valgrind)
	$(CARGO_BENCH) --bench instructions -- $(if $(RENEW),--renew)

# A short run needs no peers but those that .venv has: Ray and Dask are hundreds of megabytes.
ifdef SMOKE
bench: build $(PROGRAMS) ## peers side by side; SMOKE=1 for a short run, README=1 to show the figures there
	$(BIN)/python benches/python/run.py --smoke
	$(CARGO_BENCH) --features theus/criterion --bench core -- --test --quiet
	$(CARGO_BENCH) --bench instructions
else
bench: bench-env $(PROGRAMS)
	$(BENCH_ENV)/bin/python benches/python/run.py $(if $(ONLY),--only $(ONLY) $(if $(README),--add,--into $(TARGET)/bench))
	$(if $(README),$(BENCH_ENV)/bin/python benches/python/readme.py)
endif

# The peers and what draws the figures: an environment of its own, and in it the package as a user gets it.
BENCH_ENV := $(TARGET)/bench-env
$(BENCH_ENV)/.created: $(VENV)/.created benches/requirements.txt
	rm -rf $(BENCH_ENV)
	$(BIN)/python -m venv $(BENCH_ENV)
	$(BENCH_ENV)/bin/python -m pip install --quiet --requirement benches/requirements.txt
	touch $@

$(BENCH_ENV)/.built: $(BENCH_ENV)/.created $(VENV)/.built $(PACKAGE)
	rm -rf $(TARGET)/bench-wheel
	$(BIN)/maturin build --quiet --release --out $(TARGET)/bench-wheel
	$(BENCH_ENV)/bin/python -m pip install --quiet --no-deps --force-reinstall $(TARGET)/bench-wheel/*.whl
	touch $@

bench-env: $(BENCH_ENV)/.built ## the environment of the benches: peers, and what draws

docs: ## the Rust documentation
	cargo doc --package theus --no-deps

clean: ## remove everything that was built
	rm -rf $(VENV) target .pytest_cache .ruff_cache .mypy_cache
