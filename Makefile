# Every command that a developer or CI needs; `make` alone lists them.
# A variable can be set on the command line: make test PKGS=./internal/queue TESTFLAGS=-v

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
.NOTPARALLEL:

# The version comes from the linker flag below, so that a checkout without usable
# git metadata builds too.
export GOFLAGS ?= -buildvcs=false

PKGS      ?= ./...
ARGS      ?=
TESTFLAGS ?=
FUZZTIME  ?= 15s
COVER_MIN ?= 80
BIN       ?= bin/sluice
VERSION   ?= $(shell git describe --tags --always --dirty 2>/dev/null || echo dev)

BUILDFLAGS ?= -trimpath -ldflags "-s -w -X main.version=$(VERSION)"

COVER_DIR := $(CURDIR)/bin/coverage
LINT      := go tool -modfile=$(CURDIR)/internal/tools/go.mod golangci-lint
LINT_CONF := $(CURDIR)/.golangci.yml

# What exists for tests alone does not count towards coverage: tests/ (with the
# benchmark), the test kit, and the conformance suites (packages named …test).
COVER_EXCLUDE := sluice/tests,sluice/internal/testkit,sluice/*/*test,sluice/*/*/*test

BENCH          := go run ./tests/performance
BENCH_OUT      ?= bin/bench.json
BENCH_BASELINE ?= tests/performance/baseline.json
BENCHFLAGS     ?=

.PHONY: help
help: ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# make dies of a Ctrl-C whatever its command makes of it. So where a terminal is in
# front of it, the server runs in the shell's job control: the terminal then sends the
# Ctrl-C to the server alone, which drains, and make ends as the server did. (ps shows
# a + for what runs in a terminal's foreground.)
.PHONY: run
run: build ## Serve on loopback with everything embedded (ARGS="--help" for flags)
	@case "$$(ps -o stat= -p $$$$ 2>/dev/null || true)" in \
		*+*) set -m; $(BIN) serve $(ARGS); exit ;; \
	esac; \
	exec $(BIN) serve $(ARGS)

.PHONY: build
build: ## Build bin/sluice
	go build $(BUILDFLAGS) -o $(BIN) ./cmd/sluice

# Packages under tests/ run one at a time, after all others: they start processes
# and measure time, and should have the machine to themselves. Those that build the
# sluice binary see SLUICE_COVER_DIR and let the binary report there what it covered.
GOTEST := go test -race -shuffle=on -timeout=10m -covermode=atomic -coverpkg=sluice/...

.PHONY: test
test: ## Run every test with the race detector and collect coverage
	@rm -rf $(COVER_DIR) && mkdir -p $(COVER_DIR)/binary
	@packages=$$(go list $(PKGS)); status=0; \
	units=$$(grep -v '^sluice/tests/' <<<"$$packages" || true); \
	systems=$$(grep '^sluice/tests/' <<<"$$packages" || true); \
	if [ -n "$$units" ]; then \
		echo "test: packages"; \
		$(GOTEST) -coverprofile=$(COVER_DIR)/packages.txt $(TESTFLAGS) $$units || status=1; \
	fi; \
	if [ -n "$$systems" ]; then \
		echo "test: the system"; \
		SLUICE_COVER_DIR=$(COVER_DIR)/binary \
		$(GOTEST) -p=1 -coverprofile=$(COVER_DIR)/system.txt $(TESTFLAGS) $$systems || status=1; \
		go tool covdata textfmt -i=$(COVER_DIR)/binary -o=$(COVER_DIR)/binary.txt; \
	fi; \
	echo "test: tools"; \
	go -C internal/tools test -race $(TESTFLAGS) ./... || status=1; \
	exit $$status

.PHONY: cover
cover: ## Check the coverage that the last `make test` collected
	go -C internal/tools run ./coverage -min=$(COVER_MIN) -exclude='$(COVER_EXCLUDE)' $(COVER_DIR)/*.txt

.PHONY: check
check: hygiene fmt-check tidy-check compile vet lint test cover ## Everything that CI runs
	@echo "check: all passed"

.PHONY: compile
compile:
	go build $(PKGS)

.PHONY: vet
vet: ## Run go vet on both modules
	go vet $(PKGS)
	go -C internal/tools vet ./...

.PHONY: lint
lint: ## Run the linters on both modules
	$(LINT) run --config=$(LINT_CONF) $(PKGS)
	cd internal/tools && $(LINT) run --config=$(LINT_CONF) ./...

.PHONY: fmt
fmt: ## Format all Go files
	$(LINT) fmt --config=$(LINT_CONF)

.PHONY: fmt-check
fmt-check: ## Show Go files that `make fmt` would change
	$(LINT) fmt --config=$(LINT_CONF) --diff

.PHONY: tidy
tidy: ## Bring go.mod and go.sum of both modules in order
	go mod tidy
	go -C internal/tools mod tidy

.PHONY: tidy-check
tidy-check:
	go mod tidy -diff
	go -C internal/tools mod tidy -diff

.PHONY: hygiene
hygiene: ## Look for machine paths, registry hosts and dead links in committed files
	go -C internal/tools run ./hygiene -root=$(CURDIR)

.PHONY: fuzz
fuzz: ## Run each fuzz target for FUZZTIME
	@grep -rEo --include='*_test.go' '^func Fuzz\w+' . | sort | while IFS=: read -r file target; do \
		target=$${target#func }; \
		echo "fuzz: $$target in $$(dirname "$$file")"; \
		go test -run='^$$' -fuzz="^$$target\$$" -fuzztime=$(FUZZTIME) "$$(dirname "$$file")" </dev/null; \
	done

.PHONY: bench
bench: ## Measure Sluice beside a plain reverse proxy (minutes; never part of test)
	@mkdir -p $(dir $(BENCH_OUT))
	$(BENCH) -out $(BENCH_OUT) $(BENCHFLAGS)

.PHONY: bench-quick
bench-quick: BENCHFLAGS += -quick
bench-quick: bench ## The same, short and rough

.PHONY: bench-compare
bench-compare: ## Hold the last run against the committed baseline
	$(BENCH) compare -baseline $(BENCH_BASELINE) $(BENCH_OUT)

.PHONY: clean
clean: ## Remove what the targets made
	rm -rf bin
