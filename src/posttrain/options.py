"""The recipe keys that are ours; everything else in a recipe is a field of TRL's and transformers' own dataclasses."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class SftOptions:
    """What `src/sft.py` needs beside `SFTConfig` and `ModelConfig`."""

    trainer: str = field(metadata={"help": "The method; the script src/<trainer>.py runs the recipe."})
    dataset_name: str = field(metadata={"help": "Directory written by a data_prep script, with its manifest.json."})
    prompt: str = field(
        metadata={
            "help": "How the question is rendered: `chat` (the tokenizer's template), a file of posttrain/prompts, or "
            "`none` for rows of plain text.",
            "choices": ["chat", "r1_zero", "question_only", "none"],
        }
    )
    append_eos: bool = field(
        default=True, metadata={"help": "Teach the end of the answer. False only for plain text or to show the harm."}
    )
    too_long: str = field(
        default="error",
        metadata={
            "help": "A row longer than max_length ends the run (`error`) or is counted and left out (`drop`). Nothing "
            "is ever truncated.",
            "choices": ["error", "drop"],
        },
    )
    num_train_examples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, chosen by content hash; null for all."}
    )
    random_init: bool = field(
        default=False, metadata={"help": "Draw weights at random from the model's config.json instead of loading them."}
    )
    sample_generations: int = field(
        default=0, metadata={"help": "Validation prompts answered at every evaluation, in generations.jsonl."}
    )


@dataclass(frozen=True)
class DistillOptions(SftOptions):
    """What `src/distill.py` needs beside `ModelConfig`, the keys of `SftOptions` and those of one of TRL's configs.

    That is `SFTConfig` where the teacher reads the dataset's answers, `DistillationConfig` where the student's.
    """

    on_policy: bool = field(
        default=False,
        metadata={
            "help": "Learn on the student's own samples (beta: 1 is reverse KL) instead of the dataset's answers."
        },
    )
    teacher_model_name_or_path: str = field(
        default="", metadata={"help": "Checkpoint of the same tokenizer; its vocabulary may be padded otherwise."}
    )
    teacher_model_revision: str | None = field(default=None, metadata={"help": "Commit of a teacher of the hub."})
    kd_temperature: float = field(
        default=1.0,
        metadata={"help": "Softens both distributions of offline distillation; their KL is times its square."},
    )
    kd_alpha: float = field(
        default=0.5,
        metadata={"help": "Share of the KL in the offline loss; the rest is cross entropy with the answers."},
    )


@dataclass(frozen=True)
class GrpoOptions:
    """What `src/grpo.py` needs beside `GRPOConfig` and `ModelConfig`."""

    trainer: str = field(metadata={"help": "The method; the script src/<trainer>.py runs the recipe."})
    dataset_name: str = field(metadata={"help": "Directory written by a data_prep script; prompts and golds are used."})
    prompt: str = field(
        metadata={
            "help": "How the question is rendered: `chat` (the tokenizer's template) or a file of posttrain/prompts.",
            "choices": ["chat", "r1_zero", "question_only"],
        }
    )
    reward_funcs: list[str] = field(
        metadata={
            "help": "Names from posttrain/rewards.py or a function of your own as `module.path:function`; "
            "reward_weights weighs them."
        }
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "Ends a completion; null keeps the checkpoint's own, as SFT trained it."}
    )
    num_train_examples: int | None = field(
        default=None, metadata={"help": "Train on this many prompts, chosen by content hash; null for all."}
    )
    probe: str = field(
        default="refuse",
        metadata={
            "help": "Before the first step some prompts are sampled with the starting weights: `refuse` to train where "
            "they give no signal, `warn`, do `only` that, or `off`.",
            "choices": ["refuse", "warn", "only", "off"],
        },
    )
    probe_max_truncated: float = field(
        default=0.5, metadata={"help": "Largest share of cut-off completions that the probe lets pass."}
    )
    probe_max_zero_variance: float = field(
        default=0.9, metadata={"help": "Largest share of prompts whose completions all earn the same."}
    )
    guard_steps: int = field(
        default=0,
        metadata={
            "help": "Every this many steps fixed validation questions are answered greedily; the best checkpoint is "
            "kept, and the run stops where accuracy falls significantly below its start. 0 is never."
        },
    )
    guard_prompts: int = field(default=128, metadata={"help": "How many questions the guard asks."})
    canary_tolerance: float = field(
        default=0.1,
        metadata={
            "help": "Largest mean difference of log-probabilities between vLLM and the trainer after a weight sync, in "
            "nats; beyond it the run stops."
        },
    )


@dataclass(frozen=True)
class EvalOptions:
    """What `src/eval.py` needs: which weights, which questions, how to ask, how to sample."""

    trainer: str = field(metadata={"help": "Always `eval`; the script src/eval.py runs the recipe."})
    model: str = field(metadata={"help": "A checkpoint directory or a model of the hub."})
    benchmarks: str = field(metadata={"help": "Names from posttrain/benchmarks.yaml, separated by commas."})
    max_new_tokens: int = field(metadata={"help": "Tokens a completion may have; one that fills it is truncated."})
    seed: int = field(metadata={"help": "Seed of the sampler; irrelevant at temperature 0."})
    prompt: str = field(
        default="trained",
        metadata={
            "help": "`trained` is the prompt in the checkpoint's lineage; end tokens always come from the checkpoint.",
            "choices": [
                "trained",
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
    num_samples: int = field(default=1, metadata={"help": "Samples per question; more than one need a temperature."})
    top_p: float = field(default=1.0, metadata={"help": "Nucleus sampling; 1 keeps the whole distribution."})
    batch_size: int = field(default=64, metadata={"help": "Prompts generated for at once."})
    dtype: str = field(
        default="auto", metadata={"help": "Weights' type.", "choices": ["auto", "float32", "bfloat16", "float16"]}
    )
    server: str | None = field(
        default=None,
        metadata={"help": "URL of an OpenAI-compatible server that serves `model`, such as http://127.0.0.1:8000."},
    )
    data_dir: str = field(default="data", metadata={"help": "Where data_prep scripts wrote the benchmarks."})
    output_dir: str | None = field(
        default=None, metadata={"help": "Directory for <benchmark>/samples.jsonl; null is evals/<name of the model>."}
    )
    limit: int | None = field(default=None, metadata={"help": "Only the first N questions; recorded in the result."})


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
    limit: int | None = field(default=None, metadata={"help": "Only the first N questions of a benchmark."})


@dataclass(frozen=True)
class PairOptions:
    """What `src/dpo.py` needs beside `DPOConfig` and `ModelConfig`."""

    trainer: str = field(metadata={"help": "The method; the script src/<trainer>.py runs the recipe."})
    dataset_name: str = field(metadata={"help": "Directory written by data_prep/preference_pairs.py."})
    prompt: str = field(metadata={"help": "As in SftOptions.", "choices": ["chat", "r1_zero", "question_only"]})
    eos_token: str | None = field(
        default=None, metadata={"help": "Ends a completion; null keeps the checkpoint's own, as SFT trained it."}
    )
    too_long: str = field(
        default="error",
        metadata={
            "help": "A pair with a side longer than max_length ends the run (`error`) or is counted and left out.",
            "choices": ["error", "drop"],
        },
    )


@dataclass(frozen=True)
class RewardOptions(PairOptions):
    """What `src/reward_model.py` needs beside `RewardConfig`, `ModelConfig` and the keys of `PairOptions`."""

    pairwise_loss: str = field(
        default="sigmoid",
        metadata={
            "help": "`sigmoid` is Bradley and Terry's, `logistic` the same by softplus, `hinge` stops at the margin.",
            "choices": ["sigmoid", "logistic", "hinge"],
        },
    )
    margin: float | None = field(
        default=None, metadata={"help": "How far apart the two rewards shall be; null is 1 for `hinge`, else 0."}
    )


@dataclass(frozen=True)
class ValueOptions:
    """What `src/value.py` needs beside `TrainingArguments` and `ModelConfig`."""

    trainer: str = field(metadata={"help": "The method; the script src/<trainer>.py runs the recipe."})
    dataset_name: str = field(metadata={"help": "Directory written by data_prep/preference_pairs.py --outcomes."})
    prompt: str = field(metadata={"help": "As in SftOptions.", "choices": ["chat", "r1_zero", "question_only"]})
    max_length: int = field(metadata={"help": "Tokens that a question and its answer may have."})
    eos_token: str | None = field(
        default=None, metadata={"help": "Ends an answer; null keeps the checkpoint's own, as SFT trained it."}
    )
    too_long: str = field(default="error", metadata={"help": "As in SftOptions.", "choices": ["error", "drop"]})
    value_clip: float = field(
        default=0.2, metadata={"help": "How far a value may move while its batch is trained on; PPO's epsilon."}
    )
    num_iterations: int = field(
        default=2, metadata={"help": "How often a batch is trained on in a row; with 1 nothing is clipped."}
    )
