# Names for commands; no logic. `make demo` and `make test` install what they need first.
VENV ?= .venv
PYTHON ?= python3
BIN = $(VENV)/bin
ACCELERATE ?= accelerate_configs/cpu.yaml
RECIPE ?= recipes/tiny_sft.yaml
EVAL_RECIPE ?= recipes/eval_greedy.yaml
MODEL ?= outputs/tiny_sft/final
BENCHMARKS ?= gsm8k
DATA ?= data/tiny_math
RESULTS ?= evals/tiny_sft/tiny_1step
# Where the demo writes; the tests run it into a directory of their own.
DEMO ?= .
ARGS ?=

.PHONY: install demo test unit lint train eval score compare report data-report bench-sft bench-verifier

install: $(VENV)/.installed

$(VENV)/.installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check -e '.[dev]'
	touch $@

demo: install
	$(BIN)/python data_prep/tiny_math.py --out $(DEMO)/data
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --model assets/tiny_base --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_base
	$(BIN)/accelerate launch --config_file accelerate_configs/cpu.yaml src/sft.py recipes/tiny_sft.yaml --dataset_name $(DEMO)/data/tiny_math --output_dir $(DEMO)/outputs/tiny_sft
	$(BIN)/python src/eval.py recipes/tiny_eval.yaml --model $(DEMO)/outputs/tiny_sft/final --data_dir $(DEMO)/data --output_dir $(DEMO)/evals/tiny_sft
	$(BIN)/python src/report.py $(DEMO)/evals/tiny_base $(DEMO)/evals/tiny_sft --runs $(DEMO)/outputs/tiny_sft --data_dir $(DEMO)/data --out $(DEMO)/reports/tiny

test: install
	$(BIN)/python -m pytest $(ARGS)

unit: install
	$(BIN)/python -m pytest -m 'not slow' $(ARGS)

lint: install
	$(BIN)/ruff check . && $(BIN)/ruff format --check .

train: install
	$(BIN)/accelerate launch --config_file $(ACCELERATE) src/$$(sed -n 's/^trainer: *//p' $(RECIPE)).py $(RECIPE) $(ARGS)

eval: install
	$(BIN)/python src/eval.py $(EVAL_RECIPE) --model $(MODEL) --benchmarks $(BENCHMARKS) $(ARGS)

compare: install
	$(BIN)/python src/compare.py $(A) $(B) $(ARGS)

score: install
	$(BIN)/python src/score.py $(RESULTS)

report: install
	$(BIN)/python src/report.py $(ARGS)

data-report: install
	$(BIN)/python src/data_report.py $(DATA) $(ARGS)

bench-verifier: install
	$(BIN)/python benchmarks/bench_verifier.py $(ARGS)

bench-sft: install
	OMP_NUM_THREADS=1 $(BIN)/python benchmarks/bench_sft.py $(ARGS)
