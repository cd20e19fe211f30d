# `make up` and `make test` are all a newcomer needs; both do their own set-up.
SHELL := /bin/bash
PYTHON ?= python3.11
export PYTHON
VARIANT ?= cpu
BIN := .venv/bin

.PHONY: check-promql help up down setup test check fmt test-unit test-engine test-slow test-cluster kube-assets lock image image-lock drill-image drill-guardrails guardrails-peers drill-metering drill-billing drill-engines drill-limits drill-region drill-partition drill-scaling drill-scenes drill-fairness drill-overload drill-context bench-fetch bench-gateway bench-engine bench-preview bench-routing bench-ttft bench-simulator preview-engine deploy destroy clean

help:            ## show this list
	@grep -hE '^[a-z-]+: .*##' $(MAKEFILE_LIST) | awk -F ': .*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

up: setup        ## set up, then start a region on this machine
	@$(BIN)/flotilla up

down:            ## stop it; what was acknowledged stays
	@$(BIN)/flotilla down

setup: .venv/.flotilla-base .venv-engine/.flotilla-engine

test: setup .venv/.flotilla-dev   ## set up, then every check and test, the real vLLM included
	@$(MAKE) --no-print-directory check test-unit test-engine

check: .venv/.flotilla-dev        ## formatting, lint, types, layering
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

fmt: .venv/.flotilla-dev          ## format
	$(BIN)/ruff check --fix-only --quiet .; $(BIN)/ruff format .

test-unit: .venv/.flotilla-dev    ## unit tests and those on the emulated AWS
	$(BIN)/pytest -q -n 2 --dist loadfile -m "not engine and not slow and not cluster"

test-engine: setup .venv/.flotilla-dev   ## end to end on the real vLLM
	$(BIN)/pytest -q -m "engine and not slow"

test-slow: setup .venv/.flotilla-dev     ## the longer drills: two regions, the supervisor and its engine
	$(BIN)/pytest -q -m slow

test-cluster: .venv/.flotilla-dev kube-assets   ## every object and its pods on a real Kubernetes control plane
	$(BIN)/pytest -q -m cluster --timeout 600

kube-assets:     ## build that Kubernetes from Go modules, once, into the cache folder; FLOTILLA_KUBE_ASSETS names one that is there
	@$(PYTHON) tests/cluster/kube_assets/build.py

lock: .venv/.flotilla-base        ## write the hashed requirements from requirements/*.in
	PATH="$(CURDIR)/$(BIN):$$PATH" requirements/lock.sh

image: .venv/.flotilla-base       ## build the serving image; VARIANT=gpu for NVIDIA GPUs
	@$(BIN)/python -m serving.image.build --variant $(VARIANT)

image-lock: .venv/.flotilla-base  ## pin the newest Debian packages of the image's base
	@$(BIN)/python -m serving.image.build --lock

drill-image: setup .venv/.flotilla-dev   ## build the image twice, look into it and run its roles; needs a builder and runc
	@$(BIN)/python tests/image/drill_image.py $(ARGS)

guardrails-peers: .venv/.flotilla-dev .peers/guardrails/.installed   ## what parliament, cloudsplaining and kubernetes-validate say of prod's graph
	@$(BIN)/python -m tests.drills.guardrails_peers

check-promql: .venv/.flotilla-dev   ## what a real Prometheus makes of alerts and scaling queries; builds promtool once, with Go 1.26
	@$(BIN)/python -m tests.promql.check

drill-guardrails: .venv/.flotilla-dev   ## make 200 mistakes in the graphs of prod, and see which the rules notice
	@$(BIN)/python -m tests.drills.drill_guardrails $(ARGS)

drill-metering: .venv/.flotilla-dev   ## kill gateways, tear journals, fail disks and ledgers, and hold every bill against what was received
	@$(BIN)/python -m tests.drills.drill_metering $(ARGS)

drill-engines: .venv/.flotilla-dev   ## clients leave, engines die, hang, stop, drip and lie, under load
	@$(BIN)/python -m tests.drills.drill_engines $(ARGS)

drill-billing: .venv/.flotilla-dev   ## a month of bills with all that goes wrong: late, twice, repriced, tampered with, rebuilt
	@$(BIN)/python -m tests.drills.drill_billing $(ARGS)

drill-limits: .venv/.flotilla-dev       ## a million operations on limits from eight processes, a cache that stops and dies, cancels
	@$(BIN)/python -m tests.drills.drill_limits $(ARGS)

drill-region: .venv/.flotilla-dev       ## one of two regions is lost under load, left by the runbook and brought back; its runs are killed too
	@$(BIN)/flotilla drill region-loss --kills $(ARGS)

drill-scenes: .venv/.flotilla-dev       ## a region's cache is lost, its engines turn slow, a third of it is killed: three drills
	@for drill in cache-loss slow-region az-loss; do $(BIN)/flotilla drill $$drill $(ARGS) || exit 1; done
drill-partition: .venv/.flotilla-dev    ## nothing passes between two regions that serve and write; then their ledgers and controls must agree
	@$(BIN)/flotilla drill partition $(ARGS)

drill-scaling: .venv/.flotilla-dev kube-assets   ## one load for the simulated policy, the real KEDA and HPA, and the local scaler
	@$(BIN)/python -m tests.drills.drill_scaling $(ARGS)

drill-fairness: .venv/.flotilla-dev     ## one tenant floods, 199 others ask, before one gateway and four
	@$(BIN)/python -m tests.drills.drill_fairness $(ARGS)

drill-overload: .venv/.flotilla-dev     ## five times what engines can do, for five minutes: goodput, bands, Retry-After
	@$(BIN)/python -m tests.drills.drill_overload $(ARGS)

drill-context: .venv/.flotilla-dev     ## 10,000 conversations of 1 to 60K tokens: none is sent beyond its window, what is dropped is told
	@$(BIN)/python -m tests.drills.drill_context $(ARGS)

bench-fetch: .venv/.flotilla-dev  ## how fast a release is fetched, against a bare parallel download
	@$(BIN)/python tests/bench/bench_fetch.py

bench-gateway: .venv/.flotilla-dev .peers/rust/.installed .peers/litellm/.installed   ## what a request costs here and in peers; ARGS=--write puts it into docs/benchmarks.md
	@$(BIN)/python tests/bench/bench_gateway.py --peers .peers $(ARGS)

.peers/%/.installed: tests/bench/peers-%.txt .venv/.flotilla-base
	@$(BIN)/uv venv --quiet --clear --python $(PYTHON) .peers/$* && $(BIN)/uv pip install --quiet --python .peers/$*/bin/python -r $< && touch $@

bench-engine: setup .venv/.flotilla-dev   ## prefixes, batches and tokens on the real vLLM; ARGS=--write puts it into docs/benchmarks.md
	@$(BIN)/python tests/bench/bench_engine.py $(ARGS)

bench-routing: .venv/.flotilla-dev .peers/rust/.installed   ## how much of prompts is found in caches, by who places requests; needs FLOTILLA_TRACES; ARGS=--write puts it into docs/benchmarks.md
	@$(BIN)/python tests/bench/bench_routing.py --peers .peers/rust/bin $(ARGS)

bench-ttft: .venv/.flotilla-dev         ## how well the time to the first token is predicted, on twins in virtual time
	@$(BIN)/python tests/bench/bench_ttft.py $(ARGS)

bench-preview: .venv/.flotilla-dev   ## how long a preview of every stack takes; ARGS=--write puts it into docs/benchmarks.md
	@$(BIN)/python tests/bench/bench_preview.py $(ARGS)

bench-simulator: .venv/.flotilla-dev   ## the scaling policy beside others over four loads; FLOTILLA_TRACES has the real one; ARGS=--write
	@$(BIN)/python tests/bench/bench_simulator.py $(ARGS)

preview-engine: .venv/.flotilla-base   ## every stack of local through the real Pulumi engine, where `pulumi` is on the PATH
	@$(BIN)/flotilla preview-engine

deploy: .venv/.flotilla-base      ## preflight and `pulumi up` of one region: ENV=staging REGION=us-east-2
	@$(BIN)/flotilla deploy "$(ENV)" "$(REGION)"

destroy: .venv/.flotilla-base     ## `pulumi destroy` of one region, and what is left of it: ENV= REGION= ACCOUNT=
	@$(BIN)/flotilla destroy "$(ENV)" "$(REGION)" --account "$(ACCOUNT)"

clean:           ## remove what was set up and every local state
	-$(BIN)/flotilla down --purge
	rm -rf .venv .venv-engine .flotilla .image

.venv/.flotilla-base: requirements/base.txt requirements/uv.txt pyproject.toml
	@requirements/install.sh .venv base.txt && touch $@

.venv/.flotilla-dev: requirements/dev.txt .venv/.flotilla-base
	@requirements/install.sh .venv dev.txt && touch $@

.venv-engine/.flotilla-engine: requirements/engine.txt .venv/.flotilla-base
	@requirements/install.sh .venv-engine engine.txt && touch $@
