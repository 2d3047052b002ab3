"""Checks of a recipe before any process starts: its rows, batches, budgets, port, disk, adapter and teacher."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.data.manifest import split_path
from posttrain.data.prompts import render_prompt
from posttrain.data.rows import QUESTIONS, by_content, read_parquet
from posttrain.data.token_files import KEY, ids_key, ids_path
from posttrain.errors import PosttrainError
from posttrain.generation.vllm.server import base_url, check_port_is_free, is_loopback
from posttrain.hardware import Hardware
from posttrain.pipelines.rehearsal.stand_in import Source
from posttrain.plan.memory.process import GIB, gib
from posttrain.plan.recipe_plan import Plan
from posttrain.plan.shapes import Shape
from posttrain.recipe.methods import find_method
from posttrain.recipe.reader import Recipe

ON_PAPER = Hardware(None, None, False, "sdpa", "no", True, 1)
ASKS = ("grpo", "expert_iteration", "sample")  # trainers whose answers are graded


@dataclass(frozen=True)
class Paper:
    """What the checks look at. `tokenizer` has the recipe's end token; `processes` are those of the real machine."""

    recipe: Recipe
    source: Source
    tokenizer: Any
    manifest: dict[str, Any]
    processes: int
    dataset: Path

    @property
    def values(self) -> dict[str, Any]:
        return self.recipe.values

    def questions(self, limit: int | None = None) -> list[dict[str, Any]]:
        path = split_path(self.dataset, self.manifest, "train")
        wanted = self.values.get("num_train_examples")
        return by_content(read_parquet(path, QUESTIONS), min(limit, wanted) if limit and wanted else limit or wanted)


def check_rows(paper: Paper) -> str:
    """Tokenise and lint all rows as training will; returns what became of them."""
    if paper.recipe.trainer in ASKS:
        prompts = _prompt_lengths(paper)
        return f"{len(prompts):,} prompts of {min(prompts)} to {max(prompts)} tokens"
    rows = _load_rows(paper)
    column = "input_ids" if "input_ids" in rows.train.column_names else None
    lengths = [len(ids) for ids in rows.train[column]] if column else []
    dropped = sum(rows.dropped_too_long.values())
    left_out = f", {dropped:,} left out as too long" if dropped else ""
    packed = " packed" if paper.values.get("packing") else ""
    longest = f", the longest{packed} has {max(lengths)} tokens" if lengths else ""
    return f"{rows.used['train']:,} rows{longest}{left_out}"


def _load_rows(paper: Paper) -> Any:
    """The rows of a method, by its own reader."""
    from posttrain.methods import distill, dpo, kto, pairs, reward_model, sft, value

    recipe, manifest, tokenizer = paper.recipe, paper.manifest, paper.tokenizer
    options: Any = recipe.build(find_method(recipe.trainer).options[0], dataset_name=str(paper.dataset))
    if recipe.trainer == "distill":
        return distill.load_rows(options, manifest, distill.build_arguments(recipe, options, ON_PAPER), tokenizer)
    arguments, load = {
        "sft": (sft.build_arguments, sft.load_rows),
        "dpo": (dpo.build_arguments, pairs.load_pairs),
        "reward_model": (reward_model.build_arguments, pairs.load_pairs),
        "kto": (kto.build_arguments, kto.load_outcomes),
        "value": (value.build_arguments, value.load_rows),
    }[recipe.trainer]
    return load(options, manifest, arguments(recipe, ON_PAPER), tokenizer)


def _prompt_lengths(paper: Paper) -> list[int]:
    texts = []
    for row in paper.questions():
        try:
            texts.append(render_prompt(str(paper.values["prompt"]), row["prompt"], paper.tokenizer))
        except PosttrainError as error:
            raise PosttrainError(f"{paper.dataset}: row {row['id']}: {error}") from error
    return [len(ids) for ids in paper.tokenizer(texts, add_special_tokens=False)["input_ids"]]


def check_budget(paper: Paper) -> str:
    """Raise where prompt and answer do not fit the model's positions, or a server's."""
    values, shape = paper.values, paper.source.shape
    positions = int(values.get("max_position_embeddings") or shape.positions)
    if paper.recipe.trainer not in ASKS:
        if (values.get("max_length") or 0) > positions:
            raise PosttrainError(f"max_length: {values['max_length']}: {paper.source.name} has {positions} positions")
        return f"max_length {values.get('max_length')} of {positions:,} positions"
    key = "max_completion_length" if paper.recipe.trainer == "grpo" else "max_new_tokens"
    longest, budget = max(_prompt_lengths(paper)), int(values[key])
    served = values.get("vllm_max_model_length") if values.get("use_vllm") else None
    for name, limit in (("vllm_max_model_length", served), (key, positions)):
        if limit and longest + budget > limit:
            raise PosttrainError(
                f"{name}: {values[name]}: the longest prompt has {longest} tokens and the budget is {budget}, which is "
                f"more than {limit:,} positions; lower {key}, or filter the prompts"
            )
    return f"prompts of up to {longest} and answers of up to {budget} in {served or positions:,} positions"


def check_end(paper: Paper) -> str:
    """Raise where a recipe for answers teaches no end."""
    values, end = paper.values, paper.tokenizer.eos_token
    if values.get("append_eos") is False and values.get("prompt") != "none":
        raise PosttrainError("append_eos: false: no answer's end is trained, so the model would never stop; write true")
    if values.get("append_eos") is False:
        return "plain text has none"
    pads = " (which also pads: labels leave padding out by its place)" if end == paper.tokenizer.pad_token else ""
    return f"{end}{pads}"


def check_token_files(paper: Paper) -> str:
    """Raise where prepared token ids lie beside the rows that are of another tokenizer, prompt or end token."""
    import pyarrow.parquet as pq

    path = ids_path(split_path(paper.dataset, paper.manifest, "train"))
    if path.is_file():
        end = paper.tokenizer.eos_token if paper.values.get("append_eos", True) else None
        key = (pq.read_schema(path).metadata or {}).get(KEY, b"").decode()
        if key != ids_key(paper.tokenizer, str(paper.values["prompt"]), end):
            raise PosttrainError(
                f"{path}: holds ids of another tokenizer, prompt or end token than this recipe's, so that training "
                f"would tokenise all rows again; prepare the dataset with {paper.source.name}"
            )
    counted = (paper.manifest.get("tokens") or {}).get("tokenizer")
    if counted and Path(counted).is_dir() and Path(counted) != paper.source.directory:
        from posttrain.data.tokenise import open_tokenizer

        if open_tokenizer(counted).get_vocab() != paper.tokenizer.get_vocab():
            raise PosttrainError(
                f"{paper.dataset}: its tokens were counted with {counted}, whose vocabulary is not that of "
                f"{paper.source.name}; prepare it with this recipe's model"
            )
    return "ids beside the rows are this recipe's" if path.is_file() else "of this recipe's tokenizer"


def check_batches(paper: Paper, plan: Plan | None) -> str:
    """Raise where batches, groups and rows do not add up on the real machine's processes."""
    values, n = paper.values, paper.processes
    batch, accumulation = values.get("per_device_train_batch_size") or 8, values.get("gradient_accumulation_steps") or 1
    rows = paper.manifest["files"]["train.parquet"]["rows"]
    rows = min(rows, values.get("num_train_examples") or rows)
    product = f"per_device_train_batch_size {batch} × {n} processes"
    if paper.recipe.trainer == "grpo":
        return _check_groups(values, batch * n * (values.get("steps_per_generation") or accumulation), product, rows)
    step = batch * n * accumulation
    whole = paper.recipe.trainer == "value" or values.get("on_policy")  # takes no batch that is not full
    fills = step if whole else batch * n if values.get("dataloader_drop_last") else 1
    if rows < fills:
        raise PosttrainError(f"{product}: {rows} rows fill no batch of {fills}; lower it, or add rows")
    steps = f", {plan.steps:,} steps" if plan and plan.steps else ""
    return f"{step} rows a step of {rows:,}{steps}"


def _check_groups(values: dict[str, Any], generation: int, product: str, rows: int) -> str:
    group, steps = int(values["num_generations"]), values.get("steps_per_generation")
    generation = int(values.get("generation_batch_size") or generation)
    if generation % group:
        raise PosttrainError(
            f"num_generations: {group}: does not divide the {generation} completions of a generation ({product} × "
            f"{'steps_per_generation' if steps else 'gradient_accumulation_steps'}); groups would be cut"
        )
    if generation // group > rows:
        raise PosttrainError(f"{product}: a generation asks {generation // group} questions, the dataset has {rows}")
    return f"{generation} completions of {generation // group} prompts in a generation"


def check_port(paper: Paper) -> str:
    """Raise where something listens already where the recipe's server shall."""
    if not is_loopback(str(paper.values.get("vllm_server_host", "127.0.0.1"))):
        return f"{base_url(paper.values)} is another machine's"
    check_port_is_free(paper.values)
    return f"{base_url(paper.values)} is free"


def check_disk(plan: Plan, free: float | None, output_dir: Path) -> str:
    """Raise where checkpoints and caches do not fit. free: GiB of the real machine, None for this one."""
    there = next(path for path in (output_dir.absolute(), *output_dir.absolute().parents) if path.exists())
    usable = free * GIB if free is not None else float(shutil.disk_usage(there).free)
    needed = sum(plan.disk.values())
    parts = ", ".join(f"{gib(size)} {name}" for name, size in plan.disk.items())
    if needed > usable:
        raise PosttrainError(
            f"output_dir: {output_dir}: {gib(needed)} are written ({parts}), {gib(usable)} are free; lower "
            f"save_total_limit, or choose another disk"
        )
    return f"{gib(needed)} of {gib(usable)} ({parts})" if parts else "nothing to speak of"


def check_adapter(paper: Paper, model: Path) -> str:
    """Raise where a name of lora_target_modules matches no layer of the model."""
    import torch
    from peft import get_peft_model
    from trl import ModelConfig

    from posttrain.models import trainable
    from posttrain.recipe.options import StrategyOptions

    bare = bare_model(model)
    names = {name.rpartition(".")[2] for name, module in bare.named_modules() if isinstance(module, torch.nn.Linear)}
    targets = paper.values.get("lora_target_modules")
    for target in targets if isinstance(targets, list) else []:
        if target != "all-linear" and not any(name.endswith(target) for name, _ in bare.named_modules()):
            raise PosttrainError(
                f"lora_target_modules: {target!r} matches no layer of {paper.source.name}; it has "
                f"{', '.join(sorted(names - {'lm_head'}))}"
            )
    with paper.recipe.answers_for_library_errors():
        config = trainable.adapter_config(paper.recipe.build(ModelConfig), paper.recipe.build(StrategyOptions))
        adapted = get_peft_model(bare, config)
    kinds = {name.rpartition(".")[2] for name in config.target_modules}
    return f"{', '.join(sorted(kinds))}; {adapted.get_nb_trainable_parameters()[0]:,} parameters here"


def bare_model(model: Path) -> Any:
    """The layers of a model without its weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model, trust_remote_code=False)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=False)


def check_frozen(paper: Paper, model: Path) -> str:
    """Raise where what a recipe freezes matches no weight of the model, or leaves none to train."""
    from posttrain.models import trainable
    from posttrain.recipe.options import StrategyOptions

    bare = bare_model(model)
    trainable.freeze(bare, paper.recipe.build(StrategyOptions), paper.recipe.path)
    frozen = sum(not parameter.requires_grad for parameter in bare.parameters())
    return f"{frozen} of {len(list(bare.parameters()))} matrices and vectors keep their values"


def check_teacher(student: Any, shape: Shape, teacher: Source, tokenizer: Any) -> str:
    """Raise where the token ids of a teacher and its tokenizer mean something else than the student's."""
    from posttrain.methods.distill import check_vocabularies

    check_vocabularies(student, tokenizer, shape.vocabulary, teacher.shape.vocabulary, teacher.name)
    return f"{teacher.name} has the student's {len(tokenizer.get_vocab()):,} tokens"
