#!/usr/bin/env bash
# After the demo: preference pairs of the early model's own verified samples, a reward model, best of eight by it, and DPO.
#   make preferences, or in an environment with posttrain: bash examples/preferences.sh [DIRECTORY]
set -euo pipefail
out=${1:-.}
export OMP_NUM_THREADS=1 # two threads that other work disturbs run models this small many times slower
launch=(accelerate launch --config_file accelerate_configs/cpu.yaml)
evaluate=(python src/eval.py recipes/tiny_eval.yaml --benchmarks tiny_1step,tiny_2step,tiny_3step,tiny_4step --data_dir "$out/data")
step() { printf '\n── %s\n' "$*"; }

step "1. Sixteen verified samples of every training question"
python src/sample.py recipes/tiny_sample.yaml --model_name_or_path "$out/outputs/tiny_sft_early/final" \
    --dataset_name "$out/data/tiny_math" --output_dir "$out/outputs/tiny_samples"

step "2. Pairs of a right and a wrong answer"
python data_prep/preference_pairs.py "$out/outputs/tiny_samples" --out "$out/data/tiny_pairs"

step "3. A reward model from the pairs"
"${launch[@]}" src/reward_model.py recipes/tiny_reward_model.yaml --model_name_or_path "$out/outputs/tiny_sft/final" \
    --dataset_name "$out/data/tiny_pairs" --output_dir "$out/outputs/tiny_reward_model"

step "4. Eight samples of every held-out question, and the best of them by reward"
"${evaluate[@]}" --model "$out/outputs/tiny_sft_early/final" --output_dir "$out/evals/tiny_sft_early_8" --num_samples 8 --temperature 0.3
python src/best_of_n.py "$out/outputs/tiny_reward_model/final" "$out/evals/tiny_sft_early_8" --greedy "$out/evals/tiny_sft_early" \
    --data_dir "$out/data"

step "5. DPO on the same pairs"
"${launch[@]}" src/dpo.py recipes/tiny_dpo.yaml --model_name_or_path "$out/outputs/tiny_sft_early/final" \
    --dataset_name "$out/data/tiny_pairs" --output_dir "$out/outputs/tiny_dpo"
"${evaluate[@]}" --model "$out/outputs/tiny_dpo/final" --output_dir "$out/evals/tiny_dpo"
python src/compare.py "$out/evals/tiny_sft_early" "$out/evals/tiny_dpo"
