# From RealMan recordings to a policy on the arms. Bare `make` lists the targets.
# Every recipe is a command that you could type. ARGS passes further flags to it.
.DEFAULT_GOAL := help
SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
MAKEFLAGS += --no-print-directory

# ---- what you may set on the command line ---------------------------------------------------------------------------
# Only make's command line counts. Other programs export such names too: PROMPT is a shell's, HOST is a compiler's.
SETTINGS := CONFIG REPO_ID EXP CKPT DATA OUT HOST PORT PROMPT SIM GPU OPENPI REVERSE ARGS
INTERNAL := VENV PY REALMAN LOCK READY FRAMEWORK newline text is_typed need quote flag typed is_bundle
$(foreach name,$(SETTINGS) $(INTERNAL),$(if $(filter environment%,$(origin $(name))),$(eval override undefine $(name))))

is_typed = $(filter command,$(firstword $(origin $(1))))
# $(call text,VAR): a setting as it was typed, with any characters in it, or its default from below.
text = $(if $(call is_typed,$(1)),$(value $(1)),$($(1)))
CONFIG  ?= pi0_realman
REPO_ID ?= realman/dual_arm
HOST    ?= 127.0.0.1
PORT    ?= 8000
# EXP: name of the training run. `make serve` without EXP takes the run of CONFIG that was saved last.
# CKPT: the folder of a step, of a run (its newest step), of several runs, or a bundle that `make export` wrote.
CKPT    ?= checkpoints/$(call text,CONFIG)$(if $(value EXP),/$(call text,EXP))
# GPU=cuda12 or GPU=cuda13 installs JAX for that CUDA generation. Empty means CPU.
GPU     ?=
# ARGS: further flags, as the shell would read them.
ARGS    ?=

# ---- environment ------------------------------------------------------------------------------------------------------
VENV   := .venv
PY     := $(VENV)/bin/python
REALMAN := $(VENV)/bin/realman
LOCK   := requirements/$(or $(GPU),dev).lock
READY  := $(VENV)/.ready
FRAMEWORK := third_party/openpi

# What another Python's programs use, such as those of a sourced ROS 2, does not belong into this environment.
# The robot's targets keep it, because a camera's driver may be installed there. They put this environment first.
unexport PYTHONPATH PYTHONHOME
client support: export PYTHONPATH := $(value PYTHONPATH)

define newline


endef
# $(call need,VAR,example): stop unless VAR was given.
need = $(if $(value $(1)),,$(error $@ needs $(1): make $@ $(1)=$(2)))
# $(call quote,VAR): the text of a setting as one word of the shell.
quote = "$(subst $(newline),"$$'\n'",$(subst `,\`,$(subst $$,\$$,$(subst ",\",$(subst \,\\,$(call text,$(1)))))))"
# $(call flag,--name,VAR): the flag, only when VAR was given.
flag = $(if $(value $(2)),$(1) $(call quote,$(2)))
# $(call typed,--name,VAR): the flag, only when VAR is on make's command line. A default must not overrule a file.
typed = $(if $(call is_typed,$(2)),$(call flag,$(1),$(2)))

.PHONY: help setup sample convert inspect verify norm-stats train export serve offline client emulator demo support \
  patches check-patches apply-patches test test-all test-compat test-312 test-robot-pc check check-wheels \
  bench-convert bench-serve bench-hostile bench-model bench-client bench-motion bench-train bench-readability torture docs lint fmt types lock clean

help: ## Show this list
	@echo "make TARGET [VARIABLE=value ...]"
	@awk -F ':.*## ' '/^##@ /{printf "\n%s\n", substr($$0, 5)} /^[a-z][a-z0-9-]*:.*## /{printf "  %-18s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo
	@echo "Variables: DATA REPO_ID CONFIG EXP CKPT OUT HOST PORT PROMPT GPU ARGS (further flags of the command)"
	@echo "They count after the target only: make train EXP=run2. What the shell exports is not read."

setup: $(READY) ## Install everything into .venv (GPU=cuda12 or GPU=cuda13 for an accelerator)

# Each text is compared as a whole, because a list of both generations names none.
ifneq ($(call text,GPU),)
ifneq ($(call text,GPU),cuda12)
ifneq ($(call text,GPU),cuda13)
$(error GPU is '$(call text,GPU)', expected cuda12, cuda13 or nothing)
endif
endif
endif

$(READY): $(LOCK) pyproject.toml requirements/install.sh
	@env -u PYTHONPATH bash requirements/install.sh $(VENV) $(LOCK)
	@touch $@

demo: $(READY) ## Run every stage below on simulated recordings, in minutes, on a CPU
	$(REALMAN) demo $(value ARGS)

support: $(READY) ## Collect what a bug report needs in one file: versions, configuration, last log, no secrets
	$(REALMAN) support $(value ARGS)

##@ data
sample: $(READY) ## Record simulated demonstrations to try the rest on (data/sample)
	$(REALMAN) sample --out-dir $(if $(value DATA),$(call quote,DATA),data/sample) $(value ARGS)

inspect: $(READY) ## Report problems of recordings or a dataset (DATA=folder), and how to fix them
	@: $(call need,DATA,/data/fold_towel)
	$(REALMAN) inspect --data $(call quote,DATA) $(value ARGS)

convert: $(READY) ## Convert recordings (DATA=folder of HDF5) to a LeRobot v2.1 dataset
	@: $(call need,DATA,/data/fold_towel)
	$(REALMAN) convert --raw-dir $(call quote,DATA) --repo-id $(call quote,REPO_ID) $(value ARGS)

verify: $(READY) ## Compare the dataset with its recordings (DATA=folder) through the official lerobot, item by item
	@: $(call need,DATA,/data/fold_towel)
	$(REALMAN) verify --data $(call quote,DATA) --repo-id $(call quote,REPO_ID) $(value ARGS)

##@ train
norm-stats: $(READY) ## Compute the dataset's normalization statistics, for CONFIG
	$(PY) $(FRAMEWORK)/scripts/compute_norm_stats.py --config-name $(call quote,CONFIG) --repo-id $(call quote,REPO_ID) $(value ARGS)

train: $(READY) ## Fine-tune CONFIG on the dataset (EXP names the run, else run1)
	$(PY) $(FRAMEWORK)/scripts/train.py $(call quote,CONFIG) --exp-name $(if $(value EXP),$(call quote,EXP),run1) --data.repo-id $(call quote,REPO_ID) $(value ARGS)

export: $(READY) ## Pack the newest checkpoint of CONFIG (of the run EXP, or CKPT=folder) for serving offline (OUT=folder)
	$(PY) $(FRAMEWORK)/scripts/export.py --config-name $(call quote,CONFIG) --checkpoint-dir $(call quote,CKPT) $(call flag,--out,OUT) $(value ARGS)

# A bundle knows its config, so CONFIG is passed on only when you gave it.
is_bundle = $(shell [ ! -f $(call quote,CKPT)/bundle.json ] || echo yes)
serve: $(READY) ## Serve the newest checkpoint of CONFIG (of the run EXP, or CKPT=folder, a bundle needs no CONFIG)
	$(PY) $(FRAMEWORK)/scripts/serve_policy.py --host $(call quote,HOST) --port $(call quote,PORT) $(call flag,--default-prompt,PROMPT) $(value ARGS) \
	  policy:checkpoint $(if $(and $(is_bundle),$(if $(call is_typed,CONFIG),,y)),,--policy.config $(call quote,CONFIG)) --policy.dir $(call quote,CKPT)

##@ robot
offline: $(READY) ## Replay a recorded episode through the running server: errors, plot, JSON
	$(REALMAN) offline --host $(call quote,HOST) --port $(call quote,PORT) --data $(if $(value DATA),$(call quote,DATA),data/sample/heldout) \
	  $(call flag,--prompt,PROMPT) $(value ARGS)

client: $(READY) ## Run the robot client against the running server (simulated robot, SIM=1: real driver, emulated arms)
	$(REALMAN) client $(call typed,--host,HOST) $(call typed,--port,PORT) $(if $(SIM),--robot emulated) $(call flag,--prompt,PROMPT) $(value ARGS)

emulator: $(READY) ## Run two emulated RM65 controllers that the vendor's SDK can drive
	$(REALMAN) emulator $(value ARGS)

##@ develop
check: ## Run exactly what continuous integration runs
	bash .ci/run

test: $(READY) ## Run the tests (no network, no GPU)
	JAX_PLATFORMS=cpu $(PY) -m pytest -q -n auto --maxprocesses 4 --max-worker-restart 0 --dist loadfile -m "not slow and not checkpoint and not upstream and not gpu and not hardware" $(value ARGS)

test-all: $(READY) ## Run every test this machine can run, then the framework's with the older JAX set
	$(PY) -m pytest -q $(value ARGS)
	bash requirements/compat.sh $(value ARGS)

test-312: $(READY) ## Run the quick tests with Python 3.12
	bash requirements/python312.sh $(value ARGS)

test-robot-pc: $(READY) ## Run the robot side's tests with Python 3.10 and the robot PC's packages
	bash requirements/robot_pc.sh $(value ARGS)

check-wheels: $(READY) ## Build the wheels and use them in an empty environment
	bash requirements/wheels.sh

test-compat: $(READY) ## Run the framework's tests with the versions that the original openpi pins
	bash requirements/compat.sh $(value ARGS)

bench-convert bench-serve bench-hostile bench-model bench-client bench-motion bench-train bench-readability torture: $(READY)
bench-convert: ## Time the converter next to the official writer and cp
	$(PY) benchmarks/bench_convert.py $(value ARGS)

bench-serve: ## Time the policy server: overhead, fairness, memory
	$(PY) benchmarks/bench_serve.py $(value ARGS)

bench-hostile: ## Time the policy server's health check while hostile requests arrive
	$(PY) benchmarks/bench_hostile.py $(value ARGS)

bench-model: ## Time a training step and sampling, and count operations
	$(PY) benchmarks/bench_model.py $(value ARGS)

bench-client: ## Time the robot client: loop jitter, seams, stopping, size of its environment
	$(PY) benchmarks/bench_client.py $(value ARGS)

bench-motion: ## Measure the largest speed and acceleration at the arms' controllers, with late commands
	$(PY) benchmarks/bench_motion.py $(value ARGS)

bench-train: ## Time norm stats and the data loader next to the official lerobot, and the train loop
	$(PY) benchmarks/bench_train.py $(value ARGS)

bench-readability: ## Measure rooms, arrows, English and remarks (ARGS="--before REVISION" adds an older tree)
	$(PY) benchmarks/readability.py $(value ARGS)

torture: ## Attack everything for 20 minutes: kills, damaged files, malformed requests, robot faults
	$(PY) -m benchmarks.torture $(ARGS)

docs: ## Build the documentation site into build/site, offline, and check its links
	bash requirements/docs.sh $(value ARGS)

patches: $(READY) ## Write the patches for a checkout of the original openpi from this tree
	$(PY) patches/tool.py make

check-patches: $(READY) ## Prove that the patches are up to date and fit the original
	$(PY) patches/tool.py check

apply-patches: $(READY) ## Put the robot into a checkout of the original (OPENPI=folder, REVERSE=1 takes it out)
	@: $(call need,OPENPI,/path/to/openpi)
	$(PY) patches/tool.py $(if $(REVERSE),reverse,apply) $(call quote,OPENPI)

lint: $(READY) ## Check style and types
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy

fmt: $(READY) ## Format the code
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

types: $(READY) ## Check the types
	$(PY) -m mypy

lock: $(READY) ## Renew the hash-pinned requirements from pyproject.toml
	bash requirements/lock.sh $(VENV)/bin/uv

clean: ## Remove the environment and caches (never data, assets or checkpoints)
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
