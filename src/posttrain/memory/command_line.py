"""Translate the published command line (`group.key=value`, `--config-name`) to that of a recipe."""

import re

from posttrain.errors import PosttrainError

DOTTED = re.compile(r"\+{0,2}(?:\w+\.)*(\w+)=(.*)", re.DOTALL)
# Published names whose fields are called otherwise here.
NAMES = {
    "qwen3_model_path": "model_name_or_path",
    "sft_dataset_path": "dataset_name",
    "sft_val_dataset_path": "validation_name",
    "batch_size": "per_device_train_batch_size",
    "accumulation_steps": "gradient_accumulation_steps",
    "epochs": "num_train_epochs",
    "max_seq_len": "max_length",
    "log_interval": "logging_steps",
    "save_interval": "save_steps",
    "eval_interval": "eval_steps",
    "out_dir": "output_dir",
    "save_dir": "output_dir",
    "swanlab_project": "project",
}
GONE = {
    "zero_stage": "the machine's file decides: accelerate_configs/zero1.yaml or zero2.yaml",
    "num_selected": "one row is read for each token",
    "use_moe": "there is no mixture of experts",
    "use_ema_update": "the bank changes by data_prep/knowledge_update.py alone, never in training",
    "recompute_cache": "data_prep/knowledge_cache.py --recompute builds the bank",
    "database_init_path": "data_prep/knowledge_cache.py --source builds the bank",
    "max_new_tokens": "src/memory_eval.py has it",
    "judger_mode": "src/memory_eval.py reports every judgement",
    "swanlab_online": "SWANLAB_MODE=offline in the environment decides",
}


def translate(argv: list[str]) -> list[str]:
    """Arguments with `--num_train_epochs 3` for `training.epochs=3`, all others as they are; raises for a gone key."""
    translated, arguments = [], iter(argv)
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if name == "--config-name":
            translated.insert(0, f"recipes/{value if equals else next(arguments, '')}.yaml")
        elif match := DOTTED.fullmatch(argument):
            translated += _field(argument, *match.groups())
        else:
            translated.append(argument)
    return translated


def _field(argument: str, key: str, value: str) -> list[str]:
    if key in GONE:
        raise PosttrainError(f"command line: {argument}: not a key of this version: {GONE[key]}")
    if key == "use_swanlab":
        return ["--report_to", "swanlab" if value.lower() == "true" else "none"]
    return [f"--{NAMES.get(key, key)}", value]
