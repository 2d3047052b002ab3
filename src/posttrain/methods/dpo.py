"""Direct preference optimisation: trainer of one run. `src/dpo.py` is the order of events."""

from pathlib import Path
from typing import Any

from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, ModelConfig

from posttrain.hardware import Hardware
from posttrain.methods.pairs import Pairs
from posttrain.models import loading, trainable
from posttrain.recipe.options import PairOptions, StrategyOptions
from posttrain.recipe.reader import Recipe
from posttrain.training.base_trainer import WholeRun
from posttrain.training.callbacks import MetricsFile, prepare_trackers
from posttrain.training.run import run_arguments


class PairTrainer(WholeRun, DPOTrainer):
    """DPOTrainer for pairs that `posttrain.methods.pairs` has tokenised."""

    def _prepare_dataset(self, dataset: Dataset, *_: Any, **__: Any) -> Dataset:
        """TRL would tokenise prompt and completion together, and drop or cut what is too long."""
        return dataset


def build_arguments(recipe: Recipe, hardware: Hardware) -> DPOConfig:
    """TRL's arguments; tokens are counted without padding."""
    return run_arguments(recipe, hardware, DPOConfig, include_num_input_tokens_seen="non_padding")


def build_trainer(
    recipe: Recipe, options: PairOptions, arguments: DPOConfig, hardware: Hardware,
    tokenizer: PreTrainedTokenizerBase, pairs: Pairs,
) -> PairTrainer:  # fmt: skip
    """The trainer with its model, adapter and callbacks.

    The reference is the model at the start: an adapter switched off, log-probabilities computed once
    (precompute_ref_log_probs), or a second copy of the weights.
    """
    model_config, chosen = recipe.build(ModelConfig), recipe.build(StrategyOptions)
    model = trainable.load_model(model_config, chosen, hardware, arguments.seed)
    trainable.prepare(model, tokenizer, chosen, hardware, recipe.path, arguments.max_length)
    loading.set_generation_end(model, tokenizer)
    peft_config = trainable.adapter_config(model_config, chosen)
    reference = None
    if peft_config is None and not arguments.precompute_ref_log_probs:
        reference = trainable.load_model(model_config, chosen, hardware, arguments.seed)
    output_dir = Path(arguments.output_dir)
    prepare_trackers(arguments.report_to, output_dir)
    trainer = PairTrainer(
        model=model,
        ref_model=reference,
        args=arguments,
        train_dataset=pairs.train,
        eval_dataset=pairs.validation,
        processing_class=tokenizer,
        peft_config=peft_config,
    )
    trainer.add_callback(MetricsFile(output_dir, trainer.window))
    return trainer
