"""Choose the best of n samples by a reward model, and test the choice against greedy decoding of the same weights.

    python src/eval.py recipes/tiny_eval.yaml --model M --output_dir evals/greedy
    python src/eval.py recipes/tiny_eval.yaml --model M --output_dir evals/eight --num_samples 8 --temperature 0.3
    python src/best_of_n.py outputs/tiny_reward_model/final evals/eight --greedy evals/greedy

Writes best_of_n.json beside the samples: the table, and which sample of each question was chosen.
"""

import argparse
import dataclasses
import itertools
from pathlib import Path

from posttrain import atomic
from posttrain.console import header, say
from posttrain.data.benchmarks import load_benchmarks
from posttrain.errors import ArgumentParser, bounded, run_script
from posttrain.evaluation import best_of_n
from posttrain.evaluation.comparison import ComparisonError
from posttrain.evaluation.results import METRICS_FILE
from posttrain.hardware import machine_facts
from posttrain.models.source import check_model

OUTPUT_FILE = "best_of_n.json"


def main() -> None:
    arguments = parse_arguments()
    check_model(arguments.reward_model, may_be_adapter=False)
    names = sorted(p.parent.name for p in arguments.samples.glob(f"*/{METRICS_FILE}"))
    if not names:
        raise ComparisonError(f"{arguments.samples}: holds no finished benchmark")
    pairs = {n: [best_of_n.read_sampled(path / n) for path in (arguments.samples, arguments.greedy)] for n in names}
    for sampled, greedy in pairs.values():
        best_of_n.check_alike(sampled, greedy)
    questions = {n: load_benchmarks(n, arguments.data_dir, pairs[n][0].metrics["limit"])[0].rows for n in names}

    from posttrain.methods.reward_model import RewardModel

    model = RewardModel(arguments.reward_model, arguments.batch_size)
    say(f"best_of_n {arguments.reward_model} → {arguments.samples / OUTPUT_FILE}\n{header(machine_facts(model.model))}")
    outcomes, chosen = {}, {}
    for name, (sampled, greedy) in pairs.items():
        rewards = model.score(questions[name], sampled.questions)
        outcomes[name] = best_of_n.outcomes(sampled, greedy, rewards)
        chosen[name] = {question: best_of_n.choose(values) for question, values in rewards.items()}

    results = [best_of_n.compare(name, *outcome) for name, outcome in outcomes.items()]
    if len(results) > 1:
        together = [list(itertools.chain(*parts)) for parts in zip(*outcomes.values(), strict=True)]
        results.append(best_of_n.compare("together", *together))
    record = {"reward_model": arguments.reward_model, "results": [dataclasses.asdict(r) for r in results]}
    atomic.write_json(arguments.samples / OUTPUT_FILE, {**record, "chosen": chosen})
    say(best_of_n.table(results))


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reward_model", help="final/ of a run of src/reward_model.py")
    parser.add_argument("samples", type=Path, help="evals/<run> with several samples a question")
    parser.add_argument("--greedy", type=Path, required=True, help="evals/<run> of the same weights at temperature 0")
    parser.add_argument("--data_dir", type=Path, default=Path("data"), help="where the benchmarks lie")
    parser.add_argument("--batch_size", type=bounded(1), default=64, help="samples scored at once")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
