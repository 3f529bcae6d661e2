# The only front door. `make help` lists it.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

CARGO ?= cargo
BINS := outrigger-proxy outrigger-control-plane outrigger

.PHONY: help build release demo demo-traces test test-long simulate lint check-alerts fmt boundaries deny bench setup clean

help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 14

need-cargo:
	@command -v $(CARGO) >/dev/null || { echo "needs Rust 1.95: install rustup, then 'rustup toolchain install 1.95.0'"; exit 1; }

build: need-cargo ## debug binaries in target/debug
	$(CARGO) build --locked --workspace --bins

release: need-cargo ## optimised binaries in target/release
	$(CARGO) build --locked --release $(BINS:%=--bin %)

demo: need-cargo ## a small shop in the mesh, each workload a pod of its own; needs no root (ONCE=1 ends by itself)
	@./tests/setup.sh demo
	$(CARGO) build --locked --release $(BINS:%=--bin %)
	./target/release/outrigger demo $(if $(ONCE),--once)

demo-traces: need-cargo ## the same with a tracing backend (Jaeger, built once with Go): the trace of a purchase as a tree
	@./tests/setup.sh demo
	@./tests/backends/jaeger.sh >/dev/null
	@test -x target/backends/jaeger || { echo "no Jaeger: see above"; exit 1; }
	$(CARGO) build --locked --release $(BINS:%=--bin %)
	./target/release/outrigger demo --jaeger target/backends/jaeger $(if $(ONCE),--once)

setup: ## what the tests talk to (curl, nginx, Redis, Prometheus, Jaeger, …): installed as root, named otherwise
	./tests/setup.sh tests

test: need-cargo setup check-alerts ## every test that can run here; the others are named and counted as ignored
	$(CARGO) build --locked --workspace --bins
	./tests/run.sh --workspace

test-long: need-cargo setup ## the same promises over minutes instead of seconds: outages of 60 s, 1,000,000 requests and label values
	$(CARGO) build --locked --workspace --bins
	OUTRIGGER_LONG=1 ./tests/run.sh -p outrigger-e2e

simulate: need-cargo ## 100,000 simulated fleets, and the comparison of policies in docs/simulation.md
	OUTRIGGER_SEEDS=100000 $(CARGO) test --locked -p outrigger-testkit --test simulation
	$(CARGO) run --locked -p outrigger-testkit --example simulate

lint: need-cargo boundaries check-alerts ## formatting, clippy with warnings as errors, dependency boundaries
	$(CARGO) fmt --all --check
	$(CARGO) clippy --locked --workspace --all-targets -- -D warnings

fmt: need-cargo ## format the code
	$(CARGO) fmt --all

check-alerts: ## dashboards and alerts: their metrics exist, their expressions parse, the alerts' tests pass (promtool)
	./k8s/check

boundaries: need-cargo ## what each crate must never know, checked on the dependency graph
	./.ci/boundaries

deny: ## licences, sources and duplicate versions (needs cargo-deny)
	@command -v cargo-deny >/dev/null || { echo "needs cargo-deny: 'cargo install --locked cargo-deny'"; exit 1; }
	$(CARGO) deny --offline check bans licenses sources

bench: need-cargo ## side by side with Envoy; writes bench/RESULTS.md
	./bench/setup.sh
	$(CARGO) build --locked --release $(BINS:%=--bin %) --bin outrigger-bench
	./target/release/outrigger-bench $(BENCH)

clean: ## remove what was built
	$(CARGO) clean
