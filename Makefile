# Every command of the project. `make serve` and `make test` work on a fresh machine that has
# python3.11, git and make; the second time they start at once.
.DEFAULT_GOAL := help
.PHONY: $(shell sed -n 's/^\([a-z-]*\):.*## .*/\1/p' $(firstword $(MAKEFILE_LIST)))

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
HOST ?= 127.0.0.1
PORT ?= 8000
ARGS ?=
URL ?= http://127.0.0.1:8000/v1
TESTERS ?= 2
PIP_ARGS ?=
PIP := $(BIN)/python -m pip install --quiet --quiet --disable-pip-version-check --constraint constraints.txt $(PIP_ARGS)

help: ## Show this help
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

# What another Python has made would stay, and fail the next time as well.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; v = sys.version_info; sys.exit("TridentServe needs Python 3.11 or newer, and $(PYTHON) is %d.%d. Name another: make serve PYTHON=python3.11" % v[:2] if v < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.engine: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the server needs (about a minute the first time) ..."
	$(PIP) --editable '.[engine]'
	@touch $@

$(VENV)/.dev: pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing what the tests need (about a minute the first time) ..."
	$(PIP) --editable '.[dev]'
	@touch $@ $(VENV)/.engine $(VENV)/.sim

$(VENV)/.train: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[train]'
	@touch $@ $(VENV)/.engine $(VENV)/.sim

install: $(VENV)/.dev ## Set up .venv with everything for development

serve: $(VENV)/.engine ## Start the server with the model that ships (PORT=8000 HOST=127.0.0.1 ARGS="...")
	$(BIN)/trident serve --host $(HOST) --port $(PORT) $(ARGS)

test: lint type unit ## Set up and run everything that must be green: lint, types, imports, tests

lint: $(VENV)/.dev ## ruff and the import contracts
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/lint-imports

type: $(VENV)/.dev ## mypy --strict on the packages
	$(BIN)/mypy

unit: $(VENV)/.dev ## All tests, on two cores (TESTERS=1 for one after the other)
	$(BIN)/pytest -n $(TESTERS) --dist loadfile

test-node: ## The official Node SDK against a live server with the models that ship (URL=http://127.0.0.1:8000/v1; needs node and npm)
	cd tests/node && npm install --no-audit --no-fund --silent && URL=$(URL) node --test sdk.mjs

test-fuzz: $(VENV)/.dev ## Fifty thousand malformed requests: no 5xx, nothing left behind (minutes)
	$(BIN)/pytest -m slow tests/gateway/test_fuzz.py $(ARGS)

test-schema: $(VENV)/.dev ## schemathesis against a live server: no 5xx, no answer but those of /schema (ten minutes)
	$(BIN)/pytest -m slow tests/gateway/test_openapi_document.py $(ARGS)

# The SDK's tests ask a mock for made-up ids and models: what is compared is that the SDK's own
# calls reach a route of ours and that its own types read the answer. See docs/development.md.
test-openai-sdk: $(VENV)/.dev ## The openai-python repository's resource tests against a server (SDK=path/to/openai-python URL=http://127.0.0.1:8000/v1)
	cd $(SDK) && TEST_API_BASE_URL=$(URL) $(abspath $(BIN))/python -m pytest -q -p no:cacheprovider -W ignore \
		tests/api_resources/test_images.py tests/api_resources/test_videos.py tests/api_resources/test_models.py $(ARGS)

bench-gateway: $(VENV)/.dev ## What the gateway adds to a request, beside a bare handler
	$(BIN)/python -m benchmarks.gateway.overhead $(ARGS)

soak: $(VENV)/.dev ## The slow checks: a thousand cancels, workers killed at random (minutes)
	$(BIN)/pytest -m slow $(ARGS)

$(VENV)/.browser: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[browser]'
	@touch $@ $(VENV)/.dev $(VENV)/.engine $(VENV)/.sim

test-browser: $(VENV)/.browser ## Drive both pages in headless Chromium (CHROMIUM=/path; apt-get install chromium)
	$(BIN)/pytest -o addopts= tests/browser $(ARGS)

screenshots: $(VENV)/.browser ## Take the pictures of the pages for README and docs
	$(BIN)/python -m tests.browser.screenshots $(ARGS)

fmt: $(VENV)/.dev ## Format and fix what can be fixed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

$(VENV)/.sim: pyproject.toml constraints.txt | $(BIN)/python
	$(PIP) --editable '.[sim]'
	@touch $@

simulate: $(VENV)/.sim ## Replay half an hour of video requests on 128 simulated GPUs (ARGS="...")
	$(BIN)/trident simulate --workload hetu --profile l20 --model cogvideox1.5-5b --gpus 128 \
		--policy trident --plot timeline.png $(ARGS)

bench-engine: $(VENV)/.dev ## One request through three processes against one diffusers call
	$(BIN)/python -m benchmarks.engine.stage_split $(ARGS)

bench-monitor: $(VENV)/.dev ## What the online monitor costs a span
	$(BIN)/python -m benchmarks.observability.monitor_cost $(ARGS)

live-shift: $(VENV)/.dev ## Shift the mix on real workers and in the simulator, and record both (4 minutes)
	$(BIN)/python -m benchmarks.observability.live_shift $(ARGS)

dashboards: $(VENV)/.dev ## Write deploy/'s Grafana dashboard and alert rules anew
	$(BIN)/python -m deploy.grafana.generate

check-deploy: dashboards ## Have promtool check the alert rules (needs Prometheus' promtool)
	promtool check config deploy/prometheus/prometheus.yaml

bench-degrees: $(VENV)/.dev ## How far a diffuse on several devices is from one on one
	$(BIN)/python -m benchmarks.engine.degrees $(ARGS)

bench-loading: $(VENV)/.dev ## Loads of stages from files and from the host copy, against from_pretrained
	$(BIN)/python -m benchmarks.engine.loading $(ARGS)

bench-saving: $(VENV)/.dev ## What a long diffuse pays for saving where it stands, by size of latent
	$(BIN)/python -m benchmarks.engine.saving $(ARGS)

bench-startup: $(VENV)/.dev ## Start to first picture, and what an idle server takes of a core (quiet machine, 2 minutes)
	$(BIN)/python -m benchmarks.engine.startup $(ARGS)

bench-gpu: $(VENV)/.dev ## Stages of large models, copies, batches, pauses on one GPU (ten minutes; says why where there is none)
	$(BIN)/python -m benchmarks.gpu.run $(ARGS)

compare-sim: $(VENV)/.dev ## Profile this machine, replay requests on it and in the simulator; how far are they apart? (quiet machine, 6 minutes)
	$(BIN)/trident profile --model models/shapes --devices 2 --threads 1 --minutes 2 --out benchmarks/results/profile_shapes.json
	$(BIN)/trident bench --model models/shapes --devices 2 --threads 1 --profile benchmarks/results/profile_shapes.json \
		--rate 2 --duration 120 --compare-sim --json benchmarks/results/compare_sim.json $(ARGS)

bench-scheduling: $(VENV)/.dev ## Simulate every table of docs/benchmarks.md (hours; ARGS=--quick: five minutes; goes on where it stopped)
	$(BIN)/python -m benchmarks.scheduling.run all $(ARGS)
	$(BIN)/python -m benchmarks.scheduling.run report

# A trial of the whole chain in minutes: make train-models SHARE=0.0003 MODELS=/tmp/trial \
# RUNS=/tmp/trial/runs CAPTIONS=4 STYLED=1 SIZED=2 CLIPS=6 OTHER_CLIPS=1
SHARE ?= 1
MODELS ?= models
RUNS ?= runs
CAPTIONS ?= 500
STYLED ?= 50
SIZED ?= 40
CLIPS ?= 500
OTHER_CLIPS ?= 40
TRAIN := $(BIN)/python -m models.training
LARGER := shapes-128 shapes-256

train-models: $(VENV)/.train ## Train the models that ship anew (hours on a CPU; resumes where it stopped)
	$(TRAIN).train --run $(RUNS)/shapes --out $(MODELS)/shapes --share $(SHARE)
	$(TRAIN).export --run $(RUNS)/shapes --out $(MODELS)/shapes
	$(TRAIN).larger --run $(RUNS)/shapes --stills $(MODELS)/shapes --share $(SHARE)
	$(TRAIN).plot --run $(RUNS)/shapes --out $(MODELS)/shapes/training.png
	$(TRAIN).motion.train --stills $(MODELS)/shapes --run $(RUNS)/motion --out $(MODELS)/motion --share $(SHARE)
	$(TRAIN).motion.export --stills $(MODELS)/shapes --run $(RUNS)/motion --out $(MODELS)/motion
	$(TRAIN).motion.larger --motion $(MODELS)/motion --stills $(MODELS)/shapes-128
	for model in shapes $(LARGER); do \
		$(TRAIN).evaluate --model $(MODELS)/$$model --captions $(CAPTIONS) --styled-captions $(STYLED) \
			--size-captions $(SIZED) && $(TRAIN).sheet --model $(MODELS)/$$model || exit 1; done
	for model in motion motion-128; do \
		$(TRAIN).motion.evaluate --model $(MODELS)/$$model --clips $(CLIPS) \
			&& $(TRAIN).motion.sheet --model $(MODELS)/$$model || exit 1; done
	$(TRAIN).motion.evaluate --model $(MODELS)/motion --clips 0 \
		--longer-clips $(OTHER_CLIPS) --bouncing-clips $(OTHER_CLIPS)
	$(TRAIN).motion.sheet --model $(MODELS)/motion --longer

clean: ## Delete the environment, caches and local data
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache .hypothesis .import_linter_cache data
