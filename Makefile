# From RealMan recordings to a policy on the arms. Bare `make` lists the targets.
# Every recipe is a command that you could type; $(ARGS) passes further flags to it.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

# ---- what you may set on the command line ---------------------------------------------------------------------------
CONFIG  ?= pi0_realman
REPO_ID ?= realman/dual_arm
HOST    ?= 127.0.0.1
PORT    ?= 8000
ARGS    ?=
# EXP: name of the training run. When serving, none means the run of CONFIG that was saved last.
# CKPT: a step's folder, a run's (its newest step is meant), a folder of runs, or a bundle that `make export` wrote.
CKPT    ?= checkpoints/$(CONFIG)$(addprefix /,$(EXP))
# GPU=cuda12 or GPU=cuda13 installs JAX for that CUDA generation; empty means CPU.
GPU     ?=

# ---- environment ------------------------------------------------------------------------------------------------------
VENV   := .venv
PY     := $(VENV)/bin/python
LOCK   := requirements/$(or $(GPU),dev).lock
READY  := $(VENV)/.ready
FRAMEWORK := third_party/openpi

# $(call need,VAR,example): stop unless VAR was given.
need = $(if $($(1)),,$(error $@ needs $(1): make $@ $(1)=$(2)))
# $(call flag,--name,VAR): the flag, only when VAR was given.
flag = $(if $($(2)),$(1) "$($(2))")

.PHONY: help setup sample convert inspect verify norm-stats train export serve offline client emulator \
  patches check-patches apply-patches demo test test-all test-compat \
  bench-convert bench-serve bench-model bench-client bench-train lint fmt types lock clean

help: ## Show this list
	@echo "make TARGET [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^[a-z][a-z-]*:.*## /{printf "  %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Variables: DATA REPO_ID CONFIG EXP CKPT OUT HOST PORT PROMPT GPU ARGS (further flags of the command)"

setup: $(READY) ## Install everything into .venv (GPU=cuda12 or GPU=cuda13 for an accelerator)

$(READY): $(LOCK) pyproject.toml requirements/install.sh
	@bash requirements/install.sh $(VENV) $(LOCK)
	@touch $@

sample: $(READY) ## Record simulated demonstrations to try the rest on (data/sample)
	$(PY) -m realman.robots.sim.record --out-dir "$(or $(DATA),data/sample)" $(ARGS)

convert: $(READY) ## Recordings (DATA=folder of HDF5) to a LeRobot v2.1 dataset
	@: $(call need,DATA,/data/fold_towel)
	$(PY) examples/realman/convert_realman_data_to_lerobot.py --raw-dir "$(DATA)" --repo-id "$(REPO_ID)" $(ARGS)

inspect: $(READY) ## Examine recordings or a dataset (DATA=folder): report with findings and what mends them
	@: $(call need,DATA,/data/fold_towel)
	$(PY) -m realman.data.inspection --data "$(DATA)" $(ARGS)

verify: $(READY) ## Compare the dataset with its recordings (DATA=folder) through the official lerobot, item by item
	@: $(call need,DATA,/data/fold_towel)
	$(PY) -m realman.data.verify --data "$(DATA)" --repo-id "$(REPO_ID)" $(ARGS)

norm-stats: $(READY) ## Normalisation statistics of the dataset, for CONFIG
	$(PY) $(FRAMEWORK)/scripts/compute_norm_stats.py --config-name "$(CONFIG)" --repo-id "$(REPO_ID)" $(ARGS)

train: $(READY) ## Fine-tune CONFIG on the dataset (EXP names the run, else run1)
	$(PY) $(FRAMEWORK)/scripts/train.py "$(CONFIG)" --exp-name "$(or $(EXP),run1)" --data.repo-id "$(REPO_ID)" $(ARGS)

export: $(READY) ## Pack the newest checkpoint of CONFIG (of the run EXP, or CKPT=folder) for serving offline (OUT=folder)
	$(PY) $(FRAMEWORK)/scripts/export.py --config-name "$(CONFIG)" --checkpoint-dir "$(CKPT)" $(call flag,--out,OUT) $(ARGS)

# A bundle knows its config: only a CONFIG that was asked for is then passed on.
serve: $(READY) ## Serve the newest checkpoint of CONFIG (of the run EXP, or CKPT=folder; a bundle needs no CONFIG)
	$(PY) $(FRAMEWORK)/scripts/serve_policy.py --host "$(HOST)" --port "$(PORT)" $(call flag,--default-prompt,PROMPT) $(ARGS) \
	  policy:checkpoint $(if $(and $(wildcard $(CKPT)/bundle.json),$(filter file,$(origin CONFIG))),,--policy.config "$(CONFIG)") --policy.dir "$(CKPT)"

offline: $(READY) ## Replay a recorded episode through the running server: errors, plot, JSON
	$(PY) examples/realman/evaluation/offline.py --host "$(HOST)" --port "$(PORT)" --data "$(or $(DATA),data/sample/heldout)" \
	  $(call flag,--prompt,PROMPT) $(ARGS)

client: $(READY) ## Run the robot client against the running server (simulated robot; SIM=1: real driver, emulated arms)
	$(PY) examples/realman/main.py --host "$(HOST)" --port "$(PORT)" $(if $(SIM),--robot emulated) $(call flag,--prompt,PROMPT) $(ARGS)

emulator: $(READY) ## Two emulated RM65 controllers that the vendor's SDK can drive
	$(PY) -m realman.robots.emulator $(ARGS)

patches: $(READY) ## Write the patches for a checkout of the original openpi from this tree
	$(PY) patches/tool.py make

check-patches: $(READY) ## Prove that the patches are up to date and fit the original
	$(PY) patches/tool.py check

apply-patches: $(READY) ## Put the robot into a checkout of the original (OPENPI=folder; REVERSE=1 takes it out)
	@: $(call need,OPENPI,/path/to/openpi)
	$(PY) patches/tool.py $(if $(REVERSE),reverse,apply) "$(OPENPI)"

demo: $(READY) ## All of the above on simulated recordings, in minutes, on a CPU
	$(PY) -m realman.demo $(ARGS)

test: $(READY) ## Run the tests (no network, no GPU)
	JAX_PLATFORMS=cpu $(PY) -m pytest -q -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile -m "not slow and not checkpoint and not upstream and not gpu and not hardware" $(ARGS)

test-all: $(READY) ## Run every test this machine can run
	$(PY) -m pytest -q $(ARGS)

test-compat: $(READY) ## Run the framework's tests with the versions that the original openpi pins
	bash requirements/compat.sh $(ARGS)

bench-convert bench-serve bench-model bench-client bench-train: $(READY)
bench-convert: ## Time the converter beside the official writer and cp
	$(PY) benchmarks/bench_convert.py $(ARGS)

bench-serve: ## Time the policy server: overhead, fairness, memory
	$(PY) benchmarks/bench_serve.py $(ARGS)

bench-model: ## Time a training step and sampling; count operations
	$(PY) benchmarks/bench_model.py $(ARGS)

bench-client: ## Time the robot client: loop jitter, seams, stopping, size of its environment
	$(PY) benchmarks/bench_client.py $(ARGS)

bench-train: ## Time norm stats and the data loader beside the official lerobot, and the train loop
	$(PY) benchmarks/bench_train.py $(ARGS)

lint: $(READY) ## Check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fmt: $(READY) ## Format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(READY) ## Check the types of realman/
	$(PY) -m mypy

lock: $(READY) ## Renew the hash-pinned requirements from pyproject.toml
	bash requirements/lock.sh $(VENV)/bin/uv

clean: ## Remove the environment and caches (never data, assets or checkpoints)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
