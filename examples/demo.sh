#!/usr/bin/env bash
# A tiny base model becomes better, step by step: `make demo`, or in an environment with posttrain
#   bash examples/demo.sh [DIRECTORY]        # where data, outputs, evals and reports go; here without it
# About four minutes on two CPU cores.
set -euo pipefail
out=${1:-.}
export OMP_NUM_THREADS=1 # two threads that other work disturbs run models this small many times slower
launch=(accelerate launch --config_file accelerate_configs/cpu.yaml)
step() { printf '── %s\n' "$*"; }

step "1. Data: word problems to train on, and held-out sets of one to four steps"
python data_prep/tiny_math.py --out "$out/data"

step "2. The base model, before anything"
python src/eval.py recipes/tiny_eval.yaml --model assets/tiny_base --data_dir "$out/data" --output_dir "$out/evals/tiny_base"

step "3. Supervised fine-tuning, and its evaluation"
"${launch[@]}" src/sft.py recipes/tiny_sft.yaml --dataset_name "$out/data/tiny_math" --output_dir "$out/outputs/tiny_sft"
python src/eval.py recipes/tiny_eval.yaml --model "$out/outputs/tiny_sft/final" --data_dir "$out/data" --output_dir "$out/evals/tiny_sft"

step "4. The same with too small a learning rate, so that something is left to learn"
"${launch[@]}" src/sft.py recipes/tiny_sft_early.yaml --dataset_name "$out/data/tiny_math" --output_dir "$out/outputs/tiny_sft_early"
python src/eval.py recipes/tiny_eval.yaml --model "$out/outputs/tiny_sft_early/final" --data_dir "$out/data" --output_dir "$out/evals/tiny_sft_early"

step "5. One round of expert iteration from it: it learns from its own verified answers"
POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/cpu.yaml python src/expert_iteration.py recipes/tiny_ei.yaml --num_rounds 1 \
    --model_name_or_path "$out/outputs/tiny_sft_early/final" --dataset_name "$out/data/tiny_math" --data_dir "$out/data" \
    --output_dir "$out/outputs/tiny_ei"

step "6. GRPO from it: questions and verdicts, no solutions"
"${launch[@]}" src/grpo.py recipes/tiny_grpo.yaml --model_name_or_path "$out/outputs/tiny_sft_early/final" \
    --dataset_name "$out/data/tiny_math" --output_dir "$out/outputs/tiny_grpo"
python src/eval.py recipes/tiny_eval.yaml --model "$out/outputs/tiny_grpo/final" --data_dir "$out/data" --output_dir "$out/evals/tiny_grpo"

step "7. Is GRPO's model better than the one it started from? And the page with everything"
python src/compare.py "$out/evals/tiny_sft_early" "$out/evals/tiny_grpo"
python src/report.py "$out"/evals/{tiny_base,tiny_sft,tiny_sft_early,tiny_grpo} --runs "$out"/outputs/{tiny_sft,tiny_grpo} \
    --data_dir "$out/data" --out "$out/reports/tiny"
