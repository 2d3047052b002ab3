"""Every trainer in one row: which keys its recipes take, must set and may not combine, and the command that runs them.

A new one is such a row, its script `src/<name>.py`, and the module of `posttrain.methods` that the script calls.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.recipe import contradictions as rules
from posttrain.recipe import grpo_contradictions as grpo_rules
from posttrain.recipe.grpo_options import GrpoOptions
from posttrain.recipe.memory_options import MemoryOptions
from posttrain.recipe.options import (
    DistillOptions,
    OutcomeOptions,
    PairOptions,
    RewardOptions,
    SftOptions,
    StrategyOptions,
    ValueOptions,
)
from posttrain.recipe.rules import with_range
from posttrain.recipe.sampling_options import EvalOptions, RoundOptions, SampleOptions
from posttrain.recipe.schema import (
    DISTILLATION_CONFIG,
    GRPO_CONFIG,
    MODEL_CONFIG,
    SFT_CONFIG,
    TRAINING_ARGUMENTS,
    Field,
    read_fields,
    trl_config,
)

Rule = Callable[[str, dict[str, Any]], list[str]]
PYTHON = "python"
ACCELERATE = "accelerate launch --config_file accelerate_configs/….yaml"
ACCELERATE_INSIDE = "POSTTRAIN_ACCELERATE_CONFIG=accelerate_configs/….yaml python"  # for the stages it starts


@dataclass(frozen=True)
class Method:
    """One trainer of recipes.

    `options` are our classes and `library` the arguments of TRL's trainer, where `switch` is a key that chooses between
    two. No run should rest on a library's default for the keys `required`, beside our own without a default. A plan
    reads how many `rows` it computes for one of a batch, and the `head` of its loss: TRL's `fused` one, `whole` logits
    over the vocabulary, or `none`.
    """

    name: str
    options: tuple[type, ...]
    rules: tuple[Rule, ...]
    library: tuple[tuple[str, ...], ...] = ()
    required: tuple[str, ...] = ()
    launcher: str = ACCELERATE
    switch: str | None = None
    rows: int = 1
    head: str = "fused"

    @cached_property
    def classes(self) -> tuple[type, ...]:
        """Our classes of options, those of all trainers too; a later one's field replaces an earlier one's."""
        return (StrategyOptions, *self.options) if self.library else self.options

    @cached_property
    def fields(self) -> dict[str, Field]:
        """Every key of a recipe, by name; our own fields replace the library's of the same name."""
        configs = (MODEL_CONFIG, *self.library) if self.library else ()
        library = read_fields(tuple(source for config in configs for source in config))
        return {name: with_range(field) for name, field in library.items()} | read_fields(self.classes)

    @cached_property
    def required_keys(self) -> list[str]:
        """Keys that a recipe must set."""
        return list(dict.fromkeys([*(name for name, f in self.fields.items() if not f.default), *self.required]))

    def contradictions(self, path: str, values: dict[str, Any]) -> list[str]:
        """Faults between keys, each of which is fine alone."""
        return [fault for rule in self.rules for fault in rule(path, values)]

    def config(self, values: dict[str, Any]) -> str | None:
        """The library's class of a recipe's arguments, as `package/file.py:Class`; None where there is none."""
        if not self.library:
            return None
        return self.library[bool(values.get(self.switch)) if self.switch else 0][-1]

    def command(self, recipe: str, script: str | None = None) -> str:
        """The command that runs a recipe, with the trainer's own script or another that takes its recipes."""
        return f"{self.launcher} src/{script or self.name}.py {recipe}"


TRAINING = ("model_name_or_path", "output_dir", "seed", "learning_rate")
ROWS = (
    Method(
        "sft",
        options=(SftOptions,),
        library=(SFT_CONFIG,),
        rules=(rules.sft_contradictions, rules.strategy_contradictions),
        required=(*TRAINING, "max_length"),
    ),
    Method(
        "grpo",
        options=(GrpoOptions,),
        library=(GRPO_CONFIG,),
        rules=(
            grpo_rules.grpo_contradictions, grpo_rules.stop_contradictions, grpo_rules.generation_contradictions,
            grpo_rules.server_contradictions, grpo_rules.question_contradictions,
            grpo_rules.ahead_contradictions, grpo_rules.adapter_contradictions, rules.strategy_contradictions,
        ),
        required=(
            *TRAINING, "max_completion_length", "num_generations", "temperature", "loss_type", "scale_rewards", "beta",
            "num_iterations", "mask_truncated_completions", "use_vllm", "per_device_train_batch_size",
            "gradient_accumulation_steps",
        ),
    ),
    Method(
        "dpo",
        options=(PairOptions,),
        library=(trl_config("dpo_config.py:DPOConfig"),),
        rules=(rules.pair_contradictions, rules.strategy_contradictions),
        required=(*TRAINING, "max_length", "beta", "loss_type"),
        rows=2,
    ),
    Method(
        "kto",
        options=(OutcomeOptions,),
        library=(trl_config("kto_config.py:KTOConfig"),),
        rules=(rules.outcome_contradictions, rules.pair_contradictions, rules.strategy_contradictions),
        required=(*TRAINING, "max_length", "beta", "loss_type", "per_device_train_batch_size"),
    ),
    Method(
        "reward_model",
        options=(RewardOptions,),
        library=(trl_config("reward_config.py:RewardConfig"),),
        rules=(rules.pair_contradictions, rules.strategy_contradictions),
        required=(*TRAINING, "max_length"),
        rows=2,
        head="none",
    ),
    Method(
        "value",
        options=(ValueOptions,),
        library=((TRAINING_ARGUMENTS,),),
        rules=(rules.value_contradictions, rules.pair_contradictions, rules.strategy_contradictions),
        required=TRAINING,
        head="none",
    ),
    Method(
        "distill",
        options=(DistillOptions,),
        library=(SFT_CONFIG, DISTILLATION_CONFIG),
        rules=(rules.distill_contradictions, rules.sft_contradictions, rules.strategy_contradictions),
        required=TRAINING,
        switch="on_policy",
    ),
    Method(
        "memory_sft",
        options=(MemoryOptions,),
        library=(SFT_CONFIG,),
        rules=(rules.memory_sft_contradictions, rules.strategy_contradictions),
        required=(*TRAINING, "max_length"),
        head="whole",
    ),
    Method(
        "eval",
        options=(EvalOptions,),
        rules=(rules.eval_contradictions, rules.worker_contradictions),
        launcher=PYTHON,
    ),
    Method(
        "sample",
        options=(SampleOptions,),
        rules=(rules.sampling_contradictions, rules.worker_contradictions),
        launcher=PYTHON,
    ),
    Method(
        "expert_iteration",
        options=(SftOptions, SampleOptions, RoundOptions),
        library=(SFT_CONFIG,),
        rules=(
            rules.sampling_contradictions, rules.worker_contradictions, rules.sft_contradictions,
            rules.strategy_contradictions, rules.round_contradictions,
        ),
        required=("max_length", "learning_rate"),
        launcher=ACCELERATE_INSIDE,
    ),
)  # fmt: skip
METHODS = {method.name: method for method in ROWS}


def find_method(name: str) -> Method:
    """The row of a trainer; raises PosttrainError for one that has none."""
    if name not in METHODS:
        raise PosttrainError(f"trainer: {name!r}: unknown; known trainers: {', '.join(METHODS)}")
    return METHODS[name]


def wrong_trainer(where: str, named: Any, trainer: str, path: Path) -> str:
    """The fault of a recipe given to another script."""
    start = f"{where}: trainer: {named!r}: src/{trainer}.py runs recipes of trainer {trainer!r}; "
    if str(named) in METHODS:
        return start + f"run {METHODS[named].command(str(path))}"
    return start + f"there is no src/{named}.py in this version, known trainers: {', '.join(METHODS)}"
