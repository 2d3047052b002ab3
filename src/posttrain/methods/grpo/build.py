"""GRPO: prompts, trainer and record of one run. `src/grpo.py` is the order of events."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import PartialState
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, ModelConfig

from posttrain.console import say
from posttrain.data.manifest import split_path
from posttrain.data.prompts import render_prompt
from posttrain.data.rows import QUESTIONS, by_content, read_parquet
from posttrain.errors import PosttrainError
from posttrain.generation.slots import SlotEngine
from posttrain.generation.vllm import server
from posttrain.generation.vllm.weight_transfer import our_client
from posttrain.grading.grader import Grader
from posttrain.hardware import Hardware
from posttrain.lineage import digest
from posttrain.methods.grpo.ahead import AskedAhead
from posttrain.methods.grpo.custom_rewards import load_rewards
from posttrain.methods.grpo.dynamic_sampling import ChosenQuestions, DynamicSampling
from posttrain.methods.grpo.guard import GUARD_FILE, Guard, best_line, read_guard
from posttrain.methods.grpo.probe import SignalProbe
from posttrain.methods.grpo.questions import Questions
from posttrain.methods.grpo.trainer import GrpoTrainer
from posttrain.models import loading, trainable
from posttrain.recipe.grpo_options import GrpoOptions
from posttrain.recipe.options import StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.callbacks import MetricsFile, prepare_trackers
from posttrain.training.final import FINAL
from posttrain.training.run import run_arguments

# CS336's names for losses, in TRL's terms: without a ratio on-policy is the same gradient as with one.
NO_CLIP = 1.0e9
CS336_LOSSES: dict[str, dict[str, Any]] = {
    "no_baseline": {"loss_type": "grpo", "epsilon": NO_CLIP},
    "reinforce_with_baseline": {"loss_type": "grpo", "epsilon": NO_CLIP},
    "grpo_no_clip": {"loss_type": "grpo", "epsilon": NO_CLIP},
    "grpo_clip": {"loss_type": "grpo"},
}


@dataclass(frozen=True)
class Prompts:
    """Rendered training prompts with their golds, the guard's questions, and the longest prompt in tokens."""

    train: Dataset
    guard: list[dict[str, Any]]
    longest: int
    held_out: frozenset[str] = frozenset()  # texts of validation questions


def build_arguments(recipe: Recipe, hardware: Hardware) -> GRPOConfig:
    """TRL's arguments, CS336's losses in its terms."""
    ours = CS336_LOSSES.get(recipe.values["loss_type"], {})
    arguments = run_arguments(recipe, hardware, GRPOConfig, **ours)
    arguments.log_completions = bool({"wandb", "trackio"} & set(arguments.report_to))  # they have tables for them
    return arguments


def load_prompts(options: GrpoOptions, manifest: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Prompts:
    """The train split's questions as text the model continues, and validation questions for the guard."""
    directory = Path(options.dataset_name)
    rows = by_content(read_parquet(split_path(directory, manifest, "train"), QUESTIONS), options.num_train_examples)
    guard, held_out = [], []
    if options.guard_steps > 0 or (chooses_questions(options) and "validation.parquet" in manifest["files"]):
        held_out = read_parquet(split_path(directory, manifest, "validation"), QUESTIONS)
    if options.guard_steps > 0:
        guard = by_content(held_out, options.guard_prompts)
    texts = [render_prompt(options.prompt, row["prompt"], tokenizer) for row in [*rows, *guard]]
    longest = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"]))
    train = [{"id": row["id"], "prompt": text, "answer": row["answer"]} for row, text in zip(rows, texts, strict=False)]
    asked_elsewhere = frozenset(render_prompt(options.prompt, row["prompt"], tokenizer) for row in held_out)
    return Prompts(Dataset.from_list(train), guard, longest, asked_elsewhere)


def chooses_questions(options: GrpoOptions) -> bool:
    """Whether the run itself chooses its questions, which TRL's sampler does otherwise."""
    return options.dynamic_sampling or options.question_sampling != "uniform" or options.generation_ahead > 0


def choose_questions(trainer: GrpoTrainer, options: GrpoOptions, prompts: Prompts) -> ChosenQuestions:
    """What draws the questions of each generation: of the train split, and none that validation holds as well."""
    rows = [row for row in prompts.train.to_list() if row["prompt"] not in prompts.held_out]
    if left_out := len(prompts.train) - len(rows):
        say(f"{left_out} training questions are validation questions too, and are never asked")
    informative = options.question_sampling == "informative"
    questions = Questions(rows, trainer.args.seed, informative, trainer.num_generations)
    if options.dynamic_sampling:
        return DynamicSampling(trainer, questions, options.max_generation_batches)
    if options.generation_ahead:
        return AskedAhead(trainer, questions)
    return ChosenQuestions(trainer, questions)


def build_trainer(
    recipe: Recipe, options: GrpoOptions, arguments: GRPOConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, prompts: Prompts, grader: Grader,
) -> GrpoTrainer:  # fmt: skip
    """The trainer with its model, adapter, rewards, probe and guard."""
    model_config, chosen = recipe.build(ModelConfig), recipe.build(StrategyOptions)
    rewards = load_rewards(options.reward_funcs)
    model = trainable.load_model(model_config, chosen, hardware, arguments.seed)
    trainable.prepare(model, tokenizer, chosen, hardware, recipe.path)
    check_budget(model, prompts.longest, arguments.max_completion_length, recipe.path)
    if not arguments.use_vllm:
        SlotEngine(model, arguments.per_device_eval_batch_size)  # refuses what it cannot do
    loading.set_generation_end(model, tokenizer)
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    with server_connection(recipe, arguments, hardware, tokenizer, prompts):
        trainer = GrpoTrainer(
            grader=grader,
            subtract_mean=recipe.values["loss_type"] != "no_baseline",
            canary_tolerance=options.canary_tolerance,
            lora_sync=options.vllm_lora_sync,
            model=model,
            args=arguments,
            reward_funcs=rewards,
            train_dataset=prompts.train,
            processing_class=tokenizer,
            peft_config=trainable.adapter_config(model_config, chosen),
        )
    if options.vllm_lora_sync == "adapter" and (trainer._dist.is_fsdp or trainer._dist.is_zero3):
        raise PosttrainError(
            f"{recipe.path}: vllm_lora_sync: adapter: an adapter that is cut among processes is not sent alone; write "
            f"merged, or take an accelerate config of DDP or ZeRO-2"
        )
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    trainer.add_callback(SignalProbe(trainer, options, output_dir))
    if chooses_questions(options):
        trainer.questions = choose_questions(trainer, options, prompts)
        trainer.add_callback(trainer.questions)
    if options.guard_steps:
        trainer.add_callback(Guard(trainer, prompts.guard, options.prompt, options.guard_steps))
    return trainer


@contextmanager
def server_connection(
    recipe: Recipe, arguments: GRPOConfig, hardware: Hardware, tokenizer: PreTrainedTokenizerBase, prompts: Prompts
) -> Iterator[None]:
    """Where the recipe wants a server: wait for it, hold it against the recipe, and connect inside this block."""
    if not arguments.use_vllm or arguments.vllm_mode != "server":
        yield
        return
    url = server.base_url(recipe.values)
    arguments.vllm_server_base_url = url
    if PartialState().is_main_process:
        start = f"make serve RECIPE={recipe.path}"
        server.wait_for_server(url, arguments.vllm_server_timeout, start)
        context = prompts.longest + arguments.max_completion_length
        server.check_server(url, recipe.values, context, tokenizer, start)
    PartialState().wait_for_everyone()
    with our_client(hardware.use_cpu):
        yield


def check_budget(model: Any, longest: int, budget: int, where: str) -> None:
    """Raise where a prompt and its completion would not fit the model's positions."""
    positions = model.config.get_text_config().max_position_embeddings
    if longest + budget > positions:
        raise PosttrainError(
            f"{where}: max_completion_length: {budget}: the longest prompt has {longest} tokens, and the model's "
            f"max_position_embeddings is {positions}; lower it, or filter the prompts"
        )


def describe_dataset(options: GrpoOptions, prompts: Prompts, manifest: dict[str, Any]) -> dict[str, Any]:
    """What run.json says of the dataset."""
    return {
        "path": options.dataset_name,
        "manifest": digest(manifest),
        "source": manifest["source"],
        "used": {"train": len(prompts.train), "guard": len(prompts.guard)},
        "longest_prompt_tokens": prompts.longest,
    }


def outcome(trainer: GrpoTrainer, output_dir: Path) -> dict[str, Any]:
    """What run.json says of the guard and of the questions asked, None where the recipe wanted none of it."""
    totals = dict(trainer.questions.questions.totals) if trainer.questions else None
    return {"guard": guard_result(output_dir), "questions": totals}


def guard_result(output_dir: Path) -> dict[str, Any] | None:
    """The guard's start, end and best line without their answers, None where there was no guard."""
    lines = read_guard(output_dir / GUARD_FILE)
    if not lines:
        return None
    named = {"start": lines[0], "best": best_line(lines), "last": lines[-1]}
    return {name: {k: v for k, v in line.items() if k != "correct"} for name, line in named.items()}


def summary(output_dir: Path, result: dict[str, Any]) -> str:
    """The last line of a run."""
    guard = result["guard"]
    accuracy = f"guard {guard['start']['accuracy']:.1%} → {guard['last']['accuracy']:.1%}, " if guard else ""
    asked = result["questions"]
    questions = f"{asked['trained']} of {asked['asked']} questions trained on, " if asked else ""
    return f"{output_dir / FINAL}: {result['steps']} steps, {accuracy}{questions}{result['wall_seconds']:.0f} s"
