# Every target makes the environment that it needs in $(VENV), once for each content of the requirements files.
# Several clones may share one: make test VENV=/path/to/env

VENV ?= .venv
PYTHON3 ?= python3
PYTHON := $(VENV)/bin/python
PYTEST := $(PYTHON) -m pytest --timeout 300
# Tests of one file share what they prepared, so a file stays in one process.
PROCESSES ?= 2
SEED ?= 0

# The stamps carry a digest of the requirements, not a date: a fresh clone or a branch switch reinstalls nothing.
digest = $(shell cat $(1) | cksum | cut -d ' ' -f 1)
BASE := $(VENV)/.installed-$(call digest,requirements.txt)
DEV := $(VENV)/.installed-dev-$(call digest,requirements.txt requirements-dev.txt)

.DEFAULT_GOAL := help
.PHONY: help demo test test-core test-slow test-faults test-vllm fuzz lint format bench bench-reward bench-video clean

help:  ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' Makefile

demo: $(BASE)  ## Teach a tiny model on generated clips, offline, on the CPU (SEED=0)
	$(PYTHON) cli.py demo --seed $(SEED) --output runs/demo

test: $(DEV)  ## Run the default test suite
	$(PYTEST) -n $(PROCESSES) --dist loadfile -m "not gpu and not vllm and not slow"

CORE := $(addprefix tests/lightning_modules/,functional policy rollouts test_sft_module.py test_grpo_module.py)

test-core: $(DEV)  ## Run the tests of the mathematics: losses, prefix, sampler, modules, a training of each
	$(PYTEST) -m "not gpu and not vllm and not slow" $(CORE)

test-slow: $(DEV)  ## Run the tests that take minutes
	$(PYTEST) --timeout 1800 -m "slow and not gpu and not vllm"

test-faults: $(DEV)  ## Kill runs of the demo at random moments and compare their weights (FAULTS="--kills 8 --seed 1")
	$(PYTHON) -m tests.faults.kill_chains $(FAULTS)

fuzz: $(DEV)  ## Try every property on CASES=1000 random cases, other ones each time
	CASES=$(or $(CASES),1000) $(PYTEST) --timeout 7200 tests/properties --hypothesis-profile fuzz

test-vllm:  ## Run the vLLM tests with VLLM_PYTHON, the interpreter of an environment that has vLLM
	@test -n "$(VLLM_PYTHON)" || { echo "vLLM pins its own torch and lives in its own environment. Name its interpreter:" \
	  "make test-vllm VLLM_PYTHON=/path/to/vllm-env/bin/python" >&2; exit 2; }
	$(VLLM_PYTHON) -m pytest -m vllm

lint: $(DEV)  ## Check style, format, types and file sizes
	$(PYTHON) -m ruff check .
	$(PYTHON) -m ruff format --check .
	$(PYTHON) -m basedpyright --pythonpath $(PYTHON)
	$(PYTHON) .ci/large_files.py

format: $(DEV)  ## Fix style and format in place
	$(PYTHON) -m ruff check --fix .
	$(PYTHON) -m ruff format .

bench: $(DEV)  ## Measure sampling and training of a GRPO group (BENCH="--size 7b")
	$(PYTHON) tests/performance/shared_prefix.py $(BENCH)

bench-reward: $(DEV)  ## Measure the semantic reward
	$(PYTHON) tests/performance/semantic_reward.py

bench-video: $(DEV)  ## Measure the video readers
	$(PYTHON) tests/performance/video_reader.py

clean:  ## Remove caches and runs/; the environment stays
	rm -rf runs .pytest_cache .ruff_cache
	find . -path './$(VENV)' -prune -o -name __pycache__ -type d -exec rm -rf {} +

# The models of tests and demo are too small to gain from more threads, which fight over the cores with the loader's
# worker and the second rank.
demo test test-core test-slow test-faults test-vllm fuzz: export OMP_NUM_THREADS ?= 1

$(BASE):
	@.ci/environment "$(VENV)" "$@" requirements.txt "$(PYTHON3)"

$(DEV):
	@.ci/environment "$(VENV)" "$@" requirements-dev.txt "$(PYTHON3)"
	@touch "$(BASE)"
