"""Rejection SFT: one round of sampling, then epochs on what was verified, with the flags of EZTinker's guide."""

import json
import math
import shutil
from pathlib import Path
from typing import Any

from posttrain import atomic, jsonl, lineage
from posttrain.console import say
from posttrain.data.benchmarks import benchmark_names
from posttrain.errors import PosttrainError
from posttrain.evaluation.results import METRICS_FILE, read_metrics
from posttrain.grading.grader import Verdict
from posttrain.pipelines.candidates import CORRECT_SCORE, accepted, score, selected
from posttrain.pipelines.expert_iteration import Rounds, Stage
from posttrain.pipelines.rollouts import Rollout

BUFFER_FILE = "rejection_buffer.jsonl"
RESULTS_FILE = "rejection_sft_results.json"
STDOUT_FILE = "rejection_sft.stdout"
CORRECT_BONUS = 0.5  # a candidate's score is its confidence, and this for a correct answer
FLAGS = {  # of the guide, and the recipe fields they set
    "--max-samples": "num_questions",
    "--num-candidates": "num_candidates",
    "--epochs": "num_train_epochs",
    "--learning-rate": "learning_rate",
    "--temperature": "temperature",
    "--eval-size": "limit",
    "--output-dir": "output_dir",
}
SWITCHES = ("--checkpoint", "--reset-buffer")


def translate(argv: list[str]) -> tuple[list[str], set[str]]:
    """Arguments with the guide's flags as `--field`, and the switches that were given."""
    translated = []
    for argument in argv:
        name, equals, value = argument.partition("=")
        if name not in SWITCHES:
            translated.append(f"--{FLAGS[name]}{equals}{value}" if name in FLAGS else argument)
    return translated, {name for name in SWITCHES if name in argv}


def check_recipe(rounds: Rounds) -> None:
    """Raise unless the recipe is one round whose epochs can be evaluated one by one."""
    path, values = rounds.recipe.path, rounds.recipe.values
    if rounds.options.num_rounds != 1:
        raise PosttrainError(f"{path}: num_rounds: {rounds.options.num_rounds}: rejection SFT is one round; expected 1")
    if values.get("save_strategy") != "epoch" or values.get("save_total_limit") is not None:
        raise PosttrainError(
            f"{path}: expected save_strategy: epoch and save_total_limit: null; each epoch is evaluated"
        )
    if len(benchmark_names(rounds.options.benchmarks)) != 1:
        raise PosttrainError(f"{path}: benchmarks: {rounds.options.benchmarks!r}: expected one")


def reset(rounds: Rounds, identity: dict[str, Any]) -> None:
    """Remove what follows from the samples, and the evaluation before training where it was one of other settings.

    The buffer says that the directory is one of rejection SFT; it goes last, so that a reset that is killed can be
    started again.
    """
    buffer, run = rounds.output_dir / BUFFER_FILE, rounds.output_dir / lineage.RUN_FILE
    if not buffer.is_file():
        return
    if (lineage.read_json(run) or {}).get("identity") != identity:
        _remove(rounds.directory(0))
    _remove(rounds.directory(1))
    run.unlink(missing_ok=True)
    buffer.unlink()


def _remove(directory: Path) -> None:
    if directory.is_dir():
        shutil.rmtree(directory)


class Console:
    """Prints, and keeps the same lines in a file that can be searched while the run goes on."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def say(self, line: str) -> None:
        say(line)
        with self.path.open("a") as file:
            file.write(line + "\n")


class Buffer:
    """`rejection_buffer.jsonl`: a line per question, on disk as soon as the question is verified."""

    def __init__(self, rounds: Rounds, rollouts: list[Rollout]) -> None:
        """Start with what is sampled already, so that a line cut by a kill is written whole."""
        self.path, self.rounds = rounds.output_dir / BUFFER_FILE, rounds
        self.entries = [self.entry(rollout) for rollout in rollouts]
        jsonl.rewrite(self.path, [json.dumps(entry, ensure_ascii=False).encode() for entry in self.entries])

    def add(self, rollout: Rollout) -> dict[str, Any]:
        entry = self.entry(rollout)
        self.entries.append(entry)
        jsonl.append(self.path, [entry])
        return entry

    def entry(self, rollout: Rollout) -> dict[str, Any]:
        """The question with its best candidate, whether that is trained on, and every candidate with its verdict."""
        scores = [score(candidate, rollout.gold) for candidate in rollout.candidates]
        kept = selected(rollout, self.rounds.rule)
        best = kept[0] if kept else rollout.candidates[scores.index(max(scores))]
        is_correct = best.verdict == Verdict.CORRECT
        return {
            "example_id": rollout.id,
            "question": rollout.prompt[-1]["content"],
            "prompt": rollout.prompt,
            "ground_truth": rollout.gold,
            "best_response": best.text,
            "best_score": score(best, rollout.gold),
            "confidence": score(best, rollout.gold) - CORRECT_BONUS * is_correct,
            "is_correct": is_correct,
            "trained": bool(kept),
            "temperature": self.rounds.sampling.temperature,
            "num_correct": sum(candidate.verdict == Verdict.CORRECT for candidate in rollout.candidates),
            "num_accepted": len(accepted(rollout, self.rounds.rule)),
            "candidates": [
                {
                    "text": candidate.text, "score": value, "is_correct": value == CORRECT_SCORE,
                    "pred_answer": candidate.answer, "verdict": candidate.verdict,
                    "finish_reason": candidate.finish_reason,
                }
                for candidate, value in zip(rollout.candidates, scores, strict=True)
            ],
        }  # fmt: skip


def epochs(rounds: Rounds) -> list[tuple[int, str]]:
    """(epoch, checkpoint) of the trained run, in order."""
    run = rounds.directory(1) / "sft"
    steps = sorted(int(path.name.partition("-")[2]) for path in run.glob("checkpoint-*"))
    return [(epoch, str(run / f"checkpoint-{step}")) for epoch, step in enumerate(steps, 1)]


def evaluate_epoch(rounds: Rounds, epoch: int, model: str) -> Stage:
    """Greedy evaluation of an epoch's checkpoint, with the recipe of the final one.

    It is the final one where the weights are the same, as the last epoch's are unless an earlier one was best.
    """
    final, out = rounds.evaluate(1), rounds.directory(1) / f"evals_epoch_{epoch}"
    if weights_of(model) == weights_of(rounds.model(1)):
        return final
    command = [*final.command, "--model", model, "--output_dir", str(out)]
    return Stage(f"evaluate epoch {epoch}", command, out / final.mark.parent.name / METRICS_FILE)


def weights_of(model: str) -> dict[str, str]:
    """Digest of each weights file of a directory."""
    return {path.name: atomic.sha256_file(path) for path in Path(model).glob("*.safetensors")}


def epoch_record(
    rounds: Rounds, epoch: int, evaluation: dict[str, Any], entries: list[dict[str, Any]]
) -> dict[str, Any]:
    """Counts of the buffer, losses and learning rates of the epoch's steps, and accuracy after it."""
    run = rounds.directory(1) / "sft"
    steps = lineage.read_metrics(run, lineage.read_record(run))
    logged = [step for step in steps if "loss" in step and math.ceil(step["epoch"]) == epoch]
    return {
        "epoch": epoch,
        "total_entries": len(entries),
        "trained_count": sum(entry["trained"] for entry in entries),
        "correct_count": sum(entry["is_correct"] for entry in entries),
        "loss": [step["loss"] for step in logged],
        "lr": [step["learning_rate"] for step in logged],
        "accuracy": evaluation["accuracy"],
    }


def evaluation_record(stage: Stage) -> dict[str, Any]:
    """Figures of a finished evaluation under the guide's names. The verifier says yes or no: confidence is accuracy."""
    metrics = read_metrics(stage.mark.parent)
    correct, n = metrics["counts"]["correct"], metrics["n"]
    return {
        "total_examples": n, "correct": correct, "accuracy": correct / n, "mean_confidence": correct / n,
        "low": metrics["accuracy"]["low"], "high": metrics["accuracy"]["high"],
    }  # fmt: skip


def keep_checkpoints(rounds: Rounds, run_id: str) -> Path:
    """Names adapter and optimizer of every epoch as checkpoints/<run id>/rejection_sft_epoch_<k>."""
    directory = rounds.output_dir / "checkpoints" / run_id
    directory.mkdir(parents=True, exist_ok=True)
    for epoch, checkpoint in epochs(rounds):
        link = directory / f"rejection_sft_epoch_{epoch}"
        if not link.is_symlink():
            link.symlink_to(Path(checkpoint).resolve())
    return directory
