"""The recipe keys of evaluation, sampling and expert iteration; all of them are ours."""

from dataclasses import dataclass, field
from typing import Literal

from posttrain.data.prompts import prompt_names
from posttrain.recipe.options import RecipeOptions

SEEDS = 2**32 - 1


@dataclass(frozen=True, kw_only=True)
class EvalOptions(RecipeOptions):
    """What `src/eval.py` needs: which weights, which questions, how to ask, how to sample."""

    model: str = field(metadata={"help": "A checkpoint directory or a model of the hub."})
    benchmarks: str = field(metadata={"help": "Names from posttrain/data/benchmarks.yaml, separated by commas."})
    max_new_tokens: int = field(
        metadata={"help": "Tokens a completion may have; one that fills it is truncated.", "min": 1}
    )
    seed: int = field(metadata={"help": "Seed of the sampler; irrelevant at temperature 0.", "min": 0, "max": SEEDS})
    prompt: str = field(
        default="trained",
        metadata={
            "help": "`trained` is the prompt in the checkpoint's lineage, `benchmark` the usual one of each benchmark "
            "(posttrain/data/benchmarks.yaml); end tokens always come from the checkpoint.",
            "choices": ("trained", "benchmark", *prompt_names()),
        },
    )
    grader: str = field(
        default="posttrain",
        metadata={
            "help": "Who decides what is correct. The others imitate published graders, errors included, to compare "
            "with published numbers; nothing is trained on them.",
            "choices": ["posttrain", "mathverify", "qwen", "drgrpo"],
        },
    )
    temperature: float = field(default=0.0, metadata={"help": "Temperature of sampling; 0 is greedy.", "min": 0})
    num_samples: int | None = field(
        default=None,
        metadata={"help": "Samples per question; null is one where greedy, else the benchmark's own k.", "min": 1},
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Nucleus sampling; 1 keeps the whole distribution.", "above": 0, "max": 1}
    )
    batch_size: int = field(default=64, metadata={"help": "Prompts generated for at once.", "min": 1})
    num_workers: 'Literal["auto"] | int' = field(
        default="auto",
        metadata={
            "help": "Processes that share the work, a copy of the model each; `auto` is one per GPU, or on a CPU "
            "one of one thread for every free core, where the work is worth it. Samples do not depend on it.",
            "min": 1,
        },
    )
    dtype: str = field(
        default="auto",
        metadata={"help": "Data type of the weights.", "choices": ["auto", "float32", "bfloat16", "float16"]},
    )
    rope: str = field(
        default="auto",
        metadata={
            "help": "For weights trained under another rotary base: `base` puts back the base model's own, `trained` "
            "keeps theirs, `auto` takes the one of lower validation loss.",
            "choices": ["auto", "base", "trained"],
        },
    )
    server: str | None = field(
        default=None,
        metadata={
            "help": "URL of an OpenAI-compatible server that serves `model`, such as http://127.0.0.1:8000; `vllm` "
            "starts one for the evaluation, with a copy of the model on every GPU."
        },
    )
    send_weights: bool = field(
        default=False,
        metadata={"help": "Send `model`'s weights to the server first, which may serve another of the same shape."},
    )
    data_dir: str = field(default="data", metadata={"help": "Where data_prep scripts wrote the benchmarks."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Directory for <benchmark>/samples.jsonl; null is evals/<name of the model>."}
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "Ask only N questions, chosen by a hash of their content. The result records N.", "min": 1},
    )


@dataclass(frozen=True, kw_only=True)
class SampleOptions(RecipeOptions):
    """What `src/sample.py` needs: candidates for the questions of a dataset, from one checkpoint."""

    model_name_or_path: str = field(metadata={"help": "A checkpoint directory (an adapter too) or a model of the hub."})
    dataset_name: str = field(metadata={"help": "Directory written by a data_prep script; its train split is asked."})
    prompt: str = field(
        metadata={
            "help": "How a question is rendered: `chat` (the tokenizer's template) or a file of data/prompts.",
            "choices": prompt_names(few_shot=False),
        }
    )
    max_new_tokens: int = field(
        metadata={"help": "Tokens a candidate may have; one that fills it is never accepted.", "min": 1}
    )
    seed: int = field(metadata={"help": "Draws the questions and the samples.", "min": 0, "max": SEEDS})
    output_dir: str = field(metadata={"help": "Directory for rollouts.jsonl."})
    num_questions: int | None = field(
        default=None, metadata={"help": "Questions drawn by seed; null for all.", "min": 1}
    )
    num_candidates: int = field(default=4, metadata={"help": "Samples per question.", "min": 1})
    temperature: float = field(
        default=0.8, metadata={"help": "Temperature of sampling; 0 would draw one candidate many times.", "min": 0}
    )
    top_p: float = field(
        default=1.0, metadata={"help": "Nucleus sampling; 1 keeps the whole distribution.", "above": 0, "max": 1}
    )
    batch_size: int = field(default=64, metadata={"help": "Completions generated at once.", "min": 1})
    num_workers: 'Literal["auto"] | int' = field(
        default="auto",
        metadata={
            "help": "Processes that share the work, a copy of the model each; `auto` is one per GPU, or on a CPU "
            "one of one thread for every free core, where the work is worth it. Samples do not depend on it.",
            "min": 1,
        },
    )
    server: str | None = field(
        default=None,
        metadata={"help": "URL of a vLLM server (make serve MODEL=…); it is sent the weights, and samples from them."},
    )


@dataclass(frozen=True, kw_only=True)
class RoundOptions(RecipeOptions):
    """What `src/expert_iteration.py` needs beside the keys of sampling, training and evaluation."""

    num_rounds: int = field(metadata={"help": "Rounds of sampling, selection and training.", "min": 1})
    benchmarks: str = field(
        metadata={
            "help": "What every round is evaluated on: names from posttrain/data/benchmarks.yaml, separated by commas."
        }
    )
    accept: str = field(
        default="correct",
        metadata={
            "help": "`correct` trains on verified answers alone; `threshold` also on near ones, `best` even on wrong.",
            "choices": ["correct", "threshold", "best"],
        },
    )
    threshold: float = field(
        default=0.9,
        metadata={"help": "For accept: threshold; 1.5 is a verified answer, 0.9 a number within 1e-4 of it.", "min": 0},
    )
    select: str = field(
        default="first",
        metadata={
            "help": "Which accepted candidates of a question are kept; `all_correct` keeps the distinct ones.",
            "choices": ["first", "shortest", "highest_logprob", "all_correct"],
        },
    )
    max_per_question: int | None = field(
        default=None,
        metadata={
            "help": "Candidates of one question that select: all_correct keeps; it balances easy and hard ones.",
            "min": 1,
        },
    )
    start_from: str = field(
        default="last",
        metadata={
            "help": "The weights that the training of a round starts from: the first model or the last round.",
            "choices": ["base", "last"],
        },
    )
    train_on: str = field(
        default="round",
        metadata={
            "help": "Train on the samples of this round, or of all rounds so far.",
            "choices": ["round", "all_rounds"],
        },
    )
    data_dir: str = field(default="data", metadata={"help": "Where data_prep scripts wrote the benchmarks."})
    eval_batch_size: int = field(
        default=64, metadata={"help": "Prompts generated for at once in evaluation.", "min": 1}
    )
    limit: int | None = field(
        default=None,
        metadata={"help": "Ask only N questions of each benchmark, chosen by a hash of their content.", "min": 1},
    )
