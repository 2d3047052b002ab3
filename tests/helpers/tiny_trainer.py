"""A trainer on a tiny random model of each architecture, as src/sft.py builds it, for tests in this process."""

from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import AutoTokenizer, LlamaConfig, Qwen2Config, Qwen3Config
from trl import ModelConfig, SFTConfig

from posttrain.hardware import Hardware
from posttrain.methods.sft import RecipeTrainer
from posttrain.models import trainable
from posttrain.recipe.options import StrategyOptions
from posttrain.training import stopping

CPU = Hardware(None, None, False, "sdpa", "no", True, 1)
SIZES = {
    "vocab_size": 512, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2,
}  # fmt: skip
CONFIGS = {
    "qwen2": Qwen2Config(**SIZES, tie_word_embeddings=True),
    "qwen3": Qwen3Config(**SIZES, head_dim=8, tie_word_embeddings=True),
    "llama": LlamaConfig(**SIZES, tie_word_embeddings=False),
}
LORA = {"use_peft": True, "lora_r": 2, "lora_target_modules": ["all-linear"]}


def build(directory: Path, out: Path, keys: dict[str, Any], **arguments: Any) -> RecipeTrainer:
    """A trainer as src/sft.py builds it, on a few random rows."""
    options = StrategyOptions(**{k: v for k, v in keys.items() if k in StrategyOptions.__dataclass_fields__})
    model_keys = {k: v for k, v in keys.items() if k in ModelConfig.__dataclass_fields__}
    model_config = ModelConfig(model_name_or_path=str(directory), **model_keys)
    model = trainable.load_model(model_config, options, CPU, seed=0)
    trainable.freeze(model, options, "recipe")
    generator = torch.Generator().manual_seed(1)
    rows = torch.randint(0, SIZES["vocab_size"], (40, 16), generator=generator).tolist()
    rows, unseen = rows[:32], rows[32:]  # random ids: what is learnt of the first makes the others less likely
    values = {
        "max_steps": 2, "learning_rate": 1e-2, "weight_decay": 0.1, "logging_steps": 1, "save_strategy": "no",
        "per_device_train_batch_size": 4, "lr_scheduler_type": "constant", **stopping.resume_arguments(options),
        **arguments,
    }  # fmt: skip
    trainer = RecipeTrainer(
        model=model,
        args=SFTConfig(
            output_dir=str(out), use_cpu=True, report_to="none", gradient_checkpointing=False,
            disable_tqdm=True, dataset_kwargs={"skip_prepare_dataset": True}, **{"bf16": False, **values},
        ),
        train_dataset=Dataset.from_dict({"input_ids": rows, "labels": rows}),
        eval_dataset=Dataset.from_dict({"input_ids": unseen, "labels": unseen}),
        processing_class=AutoTokenizer.from_pretrained(directory),
        peft_config=trainable.adapter_config(model_config, options),
    )  # fmt: skip
    stopping.add_callbacks(trainer, options)
    return trainer
