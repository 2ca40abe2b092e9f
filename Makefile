# Thin names for the commands of this project: `make` lists them.
# What a change must pass before it goes in is .ci/run.

CARGO ?= cargo
# Percent; the targets `coverage` and `mutants` fail below them.
COVERAGE_MINIMUM ?= 90
MUTANTS_MINIMUM ?= 80
# A slice of the mutants, for example MUTANTS_ARGS='--shard 0/50'.
MUTANTS_ARGS ?=
MUTANTS_PACKAGE ?= entrenar-core
TARGET_DIR := $(or $(CARGO_TARGET_DIR),target)

.DEFAULT_GOAL := help
.PHONY: build release test lint format deny-check tier1 tier2 tier3 coverage mutants ci bench instructions doc clean help

build: ## Build everything for development
	$(CARGO) build --workspace --all-targets

release: ## Build the optimised binary
	$(CARGO) build --release

test: ## Run every test except the slow tier (ENTRENAR_SLOW=1 adds it)
	$(CARGO) test --workspace

lint: ## Formatting, clippy and the project's own checks
	$(CARGO) fmt --all --check
	$(CARGO) clippy --workspace --all-targets -- -D warnings
	$(CARGO) xtask check

format: ## Format the sources
	$(CARGO) fmt --all

deny-check: ## Licences, bans and sources of the dependencies
	$(CARGO) deny check bans licenses sources

tier1: ## Under 5 s once compiled: the ground floor and the project checks
	$(CARGO) xtask check
	$(CARGO) test --quiet --lib -p entrenar-base -p entrenar-io

tier2: ## Under 30 s once compiled: every unit test
	$(CARGO) test --quiet --workspace --lib --bins

tier3: ## Under 5 min once compiled: every test and documentation example
	$(CARGO) test --quiet --workspace

# tarpaulin reads the compiler's own counters without LLVM's tools.
coverage: ## Line coverage by tests, fails below COVERAGE_MINIMUM (needs cargo-tarpaulin)
	@$(CARGO) tarpaulin --version >/dev/null 2>&1 || \
		{ echo "cargo-tarpaulin is missing: cargo install --locked cargo-tarpaulin"; exit 1; }
	$(CARGO) tarpaulin --engine llvm --workspace --exclude entrenar-bench --skip-clean --timeout 600 \
		--exclude-files 'crates/bench/*' --target-dir $(TARGET_DIR)/coverage \
		--out Stdout --out Html --output-dir $(TARGET_DIR)/coverage --fail-under $(COVERAGE_MINIMUM)

# cargo-mutants ends with 2 or 3 where mutants were missed or timed out; the rate decides.
mutants: ## Share of mutants that tests catch, fails below MUTANTS_MINIMUM (needs cargo-mutants)
	@$(CARGO) mutants --version >/dev/null 2>&1 || \
		{ echo "cargo-mutants is missing: cargo install --locked cargo-mutants"; exit 1; }
	$(CARGO) mutants -p $(MUTANTS_PACKAGE) --output $(TARGET_DIR) $(MUTANTS_ARGS) || [ $$? -eq 2 ] || [ $$? -eq 3 ]
	$(CARGO) xtask mutants-rate $(TARGET_DIR)/mutants.out/outcomes.json $(MUTANTS_MINIMUM)

ci: tier3 coverage mutants deny-check ## tier3, coverage, mutants and deny-check

bench: ## Time the workloads
	$(CARGO) run --release -p entrenar-bench

instructions: ## Count the instructions of small workloads, fails on a rise (needs valgrind)
	$(CARGO) xtask instructions

doc: ## Build the documentation
	RUSTDOCFLAGS="-D warnings" $(CARGO) doc --workspace --no-deps

clean: ## Remove what was built
	$(CARGO) clean

help: ## List the targets
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
