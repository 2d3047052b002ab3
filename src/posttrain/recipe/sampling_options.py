"""The recipe keys of evaluation, sampling and expert iteration; all of them are ours."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class EvalOptions:
    """What `src/eval.py` needs: which weights, which questions, how to ask, how to sample."""

    trainer: str = field(metadata={"help": "Always `eval`; the script src/eval.py runs the recipe."})
    model: str = field(metadata={"help": "A checkpoint directory or a model of the hub."})
    benchmarks: str = field(metadata={"help": "Names from posttrain/data/benchmarks.yaml, separated by commas."})
    max_new_tokens: int = field(metadata={"help": "Tokens a completion may have; one that fills it is truncated."})
    seed: int = field(metadata={"help": "Seed of the sampler; irrelevant at temperature 0."})
    prompt: str = field(
        default="trained",
        metadata={
            "help": "`trained` is the prompt in the checkpoint's lineage, `benchmark` the usual one of each benchmark "
            "(posttrain/data/benchmarks.yaml); end tokens always come from the checkpoint.",
            "choices": [
                "trained",
                "benchmark",
                "chat",
                "qwen_math_cot",
                "qwen_boxed",
                "question_only",
                "r1_zero",
                "gsm8k_fewshot",
                "minerva_4shot",
            ],
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
    temperature: float = field(default=0.0, metadata={"help": "0 is greedy."})
    num_samples: int | None = field(
        default=None,
        metadata={"help": "Samples per question; null is one where greedy, else the benchmark's own k."},
    )
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 keeps the whole distribution."})
    batch_size: int = field(default=64, metadata={"help": "Prompts generated for at once."})
    dtype: str = field(
        default="auto", metadata={"help": "Weights' type.", "choices": ["auto", "float32", "bfloat16", "float16"]}
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
        default=None, metadata={"help": "Only N questions, chosen by a hash of their content; recorded."}
    )


@dataclass(frozen=True)
class SampleOptions:
    """What `src/sample.py` needs: candidates for the questions of a dataset, from one checkpoint."""

    trainer: str = field(metadata={"help": "Always `sample`; the script src/sample.py runs the recipe."})
    model_name_or_path: str = field(metadata={"help": "A checkpoint directory (an adapter too) or a model of the hub."})
    dataset_name: str = field(metadata={"help": "Directory written by a data_prep script; its train split is asked."})
    prompt: str = field(metadata={"help": "As in SftOptions.", "choices": ["chat", "r1_zero", "question_only"]})
    max_new_tokens: int = field(metadata={"help": "Tokens a candidate may have; one that fills it is never accepted."})
    seed: int = field(metadata={"help": "Draws the questions and the samples."})
    output_dir: str = field(metadata={"help": "Directory for rollouts.jsonl."})
    num_questions: int | None = field(default=None, metadata={"help": "Questions drawn by seed; null for all."})
    num_candidates: int = field(default=4, metadata={"help": "Samples per question."})
    temperature: float = field(default=0.8, metadata={"help": "Of sampling; 0 would draw one candidate many times."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 keeps the whole distribution."})
    batch_size: int = field(default=64, metadata={"help": "Completions generated at once."})
    server: str | None = field(
        default=None,
        metadata={"help": "URL of a vLLM server (make serve MODEL=…); it is sent the weights, and samples from them."},
    )


@dataclass(frozen=True)
class RoundOptions:
    """What `src/expert_iteration.py` needs beside the keys of sampling, training and evaluation."""

    trainer: str = field(metadata={"help": "The method; the script src/<trainer>.py runs the recipe."})
    num_rounds: int = field(metadata={"help": "Rounds of sampling, selection and training."})
    benchmarks: str = field(metadata={"help": "What every round is evaluated on, as in EvalOptions."})
    accept: str = field(
        default="correct",
        metadata={
            "help": "`correct` trains on verified answers alone; `threshold` also on near ones, `best` even on wrong.",
            "choices": ["correct", "threshold", "best"],
        },
    )
    threshold: float = field(
        default=0.9,
        metadata={"help": "For accept: threshold; 1.5 is a verified answer, 0.9 a number within 1e-4 of it."},
    )
    select: str = field(
        default="first",
        metadata={
            "help": "Which accepted candidates of a question are kept; `all_correct` keeps the distinct ones.",
            "choices": ["first", "shortest", "highest_logprob", "all_correct"],
        },
    )
    max_per_question: int | None = field(
        default=None, metadata={"help": "Cap of select: all_correct, so that easy questions do not outweigh hard ones."}
    )
    start_from: str = field(
        default="last",
        metadata={"help": "Weights a round's training starts from.", "choices": ["base", "last"]},
    )
    train_on: str = field(
        default="round",
        metadata={"help": "Samples of this round, or of all rounds so far.", "choices": ["round", "all_rounds"]},
    )
    data_dir: str = field(default="data", metadata={"help": "Where data_prep scripts wrote the benchmarks."})
    eval_batch_size: int = field(default=64, metadata={"help": "Prompts generated for at once in evaluation."})
    limit: int | None = field(
        default=None, metadata={"help": "Only N questions of a benchmark, chosen by a hash of their content."}
    )
