"""What a recipe of distillation or of a value head may not say at once."""

from typing import Any

from posttrain.schema import DISTILLATION_CONFIG, SFT_CONFIG, read_fields

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
