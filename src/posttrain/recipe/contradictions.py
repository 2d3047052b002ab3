"""Find keys of a recipe that contradict each other, although each is fine alone.

Which of these rules a recipe must obey is said by its row in `posttrain.recipe.methods`.
"""

import importlib.util
import re
from typing import Any

from posttrain.recipe.schema import DISTILLATION_CONFIG, SFT_CONFIG, read_fields


def strategy_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Faults of the keys that say which weights train, in what form, and when to stop."""
    faults = _memory_contradictions(path, values)
    if values.get("use_peft"):
        faults += [
            f"{path}: {key}: {values[key]!r}: an adapter (use_peft: true) leaves all weights of its base as they are; "
            f"lora_target_modules and freeze_layers choose where it goes"
            for key in ("freeze_embeddings", "freeze_patterns")
            if values.get(key)
        ]
    for pattern in values.get("freeze_patterns") or []:
        try:
            re.compile(pattern)
        except re.error as error:
            faults.append(f"{path}: freeze_patterns: {pattern!r}: not a regular expression: {error}")
    if values.get("early_stopping_patience"):
        if values.get("eval_strategy", "no") == "no":
            faults.append(f"{path}: early_stopping_patience: needs eval_strategy: steps or epoch")
        if not values.get("metric_for_best_model"):
            faults.append(f"{path}: early_stopping_patience: needs metric_for_best_model, such as eval_loss")
    elif "early_stopping_threshold" in values:
        faults.append(f"{path}: early_stopping_threshold: needs early_stopping_patience")
    return faults


def _memory_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    faults = []
    quantised = values.get("load_in_4bit") or values.get("load_in_8bit")
    needs_bitsandbytes = quantised or re.search("8bit|4bit|bnb|paged", values.get("optim", ""))
    if needs_bitsandbytes and importlib.util.find_spec("bitsandbytes") is None:
        faults.append(f"{path}: 8-bit and 4-bit weights or optimizers need the package: pip install bitsandbytes")
    if quantised and not values.get("use_peft"):
        faults.append(f"{path}: load_in_4bit/load_in_8bit: quantised weights cannot be trained; add use_peft: true")
    return faults


OFFLINE_KEYS = {"kd_temperature", "kd_alpha", "too_long", "append_eos"}  # of our own options
SFT_KEYS = {  # of its evaluation, which distillation has none of
    "sample_generations", "eval_benchmarks", "eval_questions", "eval_max_new_tokens", "eval_server", "data_dir",
}  # fmt: skip
TEACHER_KEYS = {"teacher_model_name_or_path", "teacher_model_revision"}


def distill_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Keys of the way of distilling that the recipe does not go, which nothing would read, and missing ones."""
    offline, on_policy = (set(read_fields(source)) for source in (SFT_CONFIG, DISTILLATION_CONFIG))
    if values.get("on_policy"):
        unread = (offline - on_policy - {"eos_token"}) | OFFLINE_KEYS
        needed: tuple[str, ...] = ("max_completion_length", "temperature", "beta")
    else:
        unread, needed = on_policy - offline - TEACHER_KEYS, ("max_length",)
    mode = f"on_policy: {str(bool(values.get('on_policy'))).lower()}"
    faults = [
        f"{path}: {k}: {values[k]!r}: not read with {mode}; leave it out"
        for k in sorted((unread | SFT_KEYS) & set(values))
    ]
    faults += [f"{path}: {key}: missing; expected with {mode}" for key in needed if key not in values]
    for key in {"loss_type", "label_smoothing_factor"} & set(values) - unread:
        faults.append(f"{path}: {key}: {values[key]!r}: distillation has a loss of its own; leave it out")
    if values.get("on_policy") and values.get("eval_strategy", "no") != "no":
        faults.append(f"{path}: eval_strategy: {values['eval_strategy']!r}: not on policy; src/eval.py evaluates")
    if values["prompt"] == "none":
        faults.append(f"{path}: prompt: none: distillation is of answers; expected a prompt")
    return faults


def value_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Adapters, and checkpoints in the middle of a batch's iterations."""
    faults, iterations = [], values.get("num_iterations", 2)
    if values.get("label_smoothing_factor"):
        faults.append(f"{path}: label_smoothing_factor: is read by SFT alone; leave it out")
    if values.get("use_peft"):
        faults.append(f"{path}: use_peft: true: the value head trains whole weights")
    steps = values.get("save_steps") or 0
    if isinstance(steps, int) and steps % iterations:
        faults.append(
            f"{path}: save_steps: {steps}: lies between two iterations on one batch, so a run resumed there would not "
            f"be the same; expected a multiple of num_iterations ({iterations})"
        )
    return faults


def eval_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Several samples of a question that greedy decoding would make all the same."""
    if (values.get("num_samples") or 1) > 1 and not values.get("temperature", 0.0):
        return [f"{path}: num_samples: {values['num_samples']}: greedy samples are all the same; set temperature"]
    return []


def worker_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Sampling processes of this machine where a server samples."""
    wanted = values.get("num_workers", "auto")
    if values.get("server") is None or wanted in ("auto", 1):
        return []
    return [f"{path}: num_workers: {wanted}: with a server, it is the server that samples; leave one of them out"]


def sampling_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Greedy candidates."""
    if values.get("temperature") == 0:
        return [f"{path}: temperature: 0: greedy candidates are all the same; expected more than 0"]
    return []


def round_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """What rounds have no use for: validation rows, adapters to go on from, and a model without its end token."""
    faults = []
    if values.get("eval_strategy", "no") != "no":
        faults.append(f"{path}: eval_strategy: {values['eval_strategy']!r}: rounds have no validation rows; write no")
    if values.get("use_peft") and values.get("start_from", "last") == "last" and values["num_rounds"] > 1:
        faults.append(f"{path}: start_from: last: an adapter cannot start a run; write start_from: base")
    if values.get("max_per_question") and values.get("select", "first") != "all_correct":
        faults.append(f"{path}: max_per_question: only select: all_correct keeps several")
    if values.get("random_init") or not values.get("append_eos", True):
        faults.append(f"{path}: random_init and append_eos: false make no sense where the model writes its own rows")
    return faults


def pair_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Evaluation without its steps, and packing of pairs."""
    faults = []
    if values.get("eval_strategy", "no") == "steps" and not values.get("eval_steps"):
        faults.append(f"{path}: eval_steps: missing: expected a number of steps with eval_strategy: steps")
    if values.get("padding_free"):
        faults.append(f"{path}: padding_free: true: pairs are padded; leave it out")
    return faults


KTO_LOSSES = ("kto", "apo_zero_unpaired")  # TRL knows others by silence: a loss that is never set


def outcome_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Losses that TRL does not know, and batches in which KTO has no other answer to compare with."""
    faults, loss = [], values["loss_type"]
    if loss not in KTO_LOSSES:
        faults.append(f"{path}: loss_type: {loss!r}: expected one of {', '.join(KTO_LOSSES)}")
    if values["per_device_train_batch_size"] < 2 and loss == "kto":
        faults.append(
            f"{path}: per_device_train_batch_size: {values['per_device_train_batch_size']}: expected 2 or more: each "
            f"prompt is also given the answer to another one of its batch"
        )
    if loss == "kto" and values.get("train_sampling_strategy", "sequential") != "sequential":
        faults.append(
            f"{path}: train_sampling_strategy: {values['train_sampling_strategy']!r}: expected sequential, as rows are "
            f"shuffled once and paired then; leave it out"
        )
    return faults


def sft_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """Packing that cuts rows, ends of plain text, evaluation without its steps, and adapters on random weights."""
    faults = []
    if values.get("packing") and values.get("packing_strategy", "bfd") != "bfd":
        faults.append(
            f"{path}: packing_strategy: {values['packing_strategy']!r}: expected bfd; the others cut rows in the middle"
        )
    if values["prompt"] == "none" and values.get("append_eos", True):
        faults.append(f"{path}: append_eos: true: plain text (prompt: none) has no end; write append_eos: false")
    if values.get("label_smoothing_factor") and values.get("loss_type", "nll") not in ("nll", "chunked_nll"):
        faults.append(
            f"{path}: label_smoothing_factor: loss_type: {values['loss_type']} has none; write loss_type: nll"
        )
    if values.get("eval_strategy", "no") == "steps" and not values.get("eval_steps"):
        faults.append(f"{path}: eval_steps: missing: expected a number of steps with eval_strategy: steps")
    for key in ("sample_generations", "eval_benchmarks"):
        if values.get(key) and values.get("eval_strategy", "no") == "no":
            faults.append(f"{path}: {key}: needs eval_strategy: steps or epoch")
    if values.get("eval_server") and values.get("use_peft"):
        faults.append(
            f"{path}: eval_server: whole weights are sent, and use_peft: true trains an adapter; leave it out"
        )
    if values.get("use_peft") and values.get("random_init"):
        faults.append(f"{path}: use_peft: true: an adapter on random weights (random_init: true) learns nothing")
    if values.get("load_best_model_at_end") and values.get("eval_strategy", "no") == "no":
        faults.append(f"{path}: load_best_model_at_end: true: needs eval_strategy: steps or epoch")
    return faults


def memory_sft_contradictions(path: str, values: dict[str, Any]) -> list[str]:
    """What a memory beside a frozen model has no use for."""
    faults = [
        f"{path}: {key}: true: a memory is trained beside a frozen model, on rows of their own; leave it out"
        for key in ("packing", "use_peft")
        if values.get(key)
    ]
    faults += [
        f"{path}: {key}: {values[key]!r}: all of the model is frozen but its memory; leave it out"
        for key in ("freeze_layers", "freeze_embeddings", "freeze_patterns")
        if values.get(key)
    ]
    layers = values.get("memory_layers")
    if values.get("reading") == "tokens" and isinstance(layers, list) and layers:
        router = values.get("router_layer", 0)
        if router > min(layers):
            faults.append(f"{path}: router_layer: {router}: expected at most {min(layers)}, the first of memory_layers")
    if values.get("reading", "mean") == "mean":
        faults += [
            f"{path}: {key}: {values[key]!r}: a memory that reads means has product keys; add reading: tokens"
            for key in ("router_layer", "router_questions", "router_steps")
            if key in values
        ]
    if values.get("eval_strategy", "no") != "no" and not values.get("validation_name"):
        faults.append(f"{path}: validation_name: missing: expected a file of questions with eval_strategy")
    if values.get("load_best_model_at_end") and values.get("eval_strategy", "no") == "no":
        faults.append(f"{path}: load_best_model_at_end: true: needs eval_strategy: steps or epoch")
    if values.get("knowledge_dim", 128) % 2:
        faults.append(
            f"{path}: knowledge_dim: {values['knowledge_dim']}: expected an even number; a key has two halves"
        )
    return faults
