"""The recipe keys that are ours; everything else in a recipe is a field of TRL's and transformers' own dataclasses.

A field's metadata says what it is for (`help`), its values (`choices`) and its range: `min` and `max` may be reached,
`above` may not.
"""

from dataclasses import dataclass, field

from posttrain.data.prompts import prompt_names


@dataclass(frozen=True, kw_only=True)
class RecipeOptions:
    """What every recipe says."""

    trainer: str = field(metadata={"help": "The method; the script src/<trainer>.py runs the recipe."})


@dataclass(frozen=True, kw_only=True)
class TrainOptions(RecipeOptions):
    """What the recipes of all trainers say of their questions."""

    dataset_name: str = field(metadata={"help": "Directory written by a data_prep script, with its manifest.json."})
    prompt: str = field(
        metadata={
            "help": "How a question is rendered: `chat` (the tokenizer's template) or a file of data/prompts.",
            "choices": prompt_names(few_shot=False),
        }
    )
    eos_token: str | None = field(
        default=None, metadata={"help": "Ends a completion; null keeps the checkpoint's own, as SFT trained it."}
    )
    num_train_examples: int | None = field(
        default=None, metadata={"help": "Train on this many rows, chosen by content hash; null for all.", "min": 1}
    )


@dataclass(frozen=True, kw_only=True)
class AnswerOptions(TrainOptions):
    """What those say that train on answers of a dataset."""

    too_long: str = field(
        default="error",
        metadata={
            "help": "A row longer than max_length ends the run (`error`) or is counted and left out (`drop`). Nothing "
            "is ever truncated.",
            "choices": ("error", "drop"),
        },
    )


@dataclass(frozen=True, kw_only=True)
class SftOptions(AnswerOptions):
    """What `src/sft.py` needs beside `SFTConfig` and `ModelConfig`."""

    prompt: str = field(
        metadata={
            "help": "How a question is rendered: `chat` (the tokenizer's template), a file of data/prompts, or "
            "`none` for rows of plain text.",
            "choices": (*prompt_names(few_shot=False), "none"),
        }
    )
    append_eos: bool = field(
        default=True, metadata={"help": "Teach the end of the answer. False only for plain text or to show the harm."}
    )
    random_init: bool = field(
        default=False, metadata={"help": "Draw weights at random from the model's config.json instead of loading them."}
    )
    sample_generations: int = field(
        default=0, metadata={"help": "Validation prompts answered at every evaluation, in generations.jsonl.", "min": 0}
    )
    eval_benchmarks: str | None = field(
        default=None,
        metadata={"help": "Benchmarks answered greedily at every evaluation, separated by commas; null for none."},
    )
    eval_questions: int = field(
        default=100,
        metadata={
            "help": "Questions of each benchmark of eval_benchmarks, always the same, chosen by content hash.",
            "min": 1,
        },
    )
    eval_max_new_tokens: int = field(
        default=1024, metadata={"help": "Tokens that an answer to a question of eval_benchmarks may have.", "min": 1}
    )
    eval_server: str | None = field(
        default=None,
        metadata={"help": "URL of a vLLM server that is sent the weights and answers; null answers in this process."},
    )
    data_dir: str = field(default="data", metadata={"help": "Where data_prep scripts wrote the benchmarks."})


@dataclass(frozen=True, kw_only=True)
class StrategyOptions:
    """Which weights train, under which rope, when to stop, and a user's own callbacks: the same for every trainer."""

    rope_theta: float | None = field(
        default=None,
        metadata={
            "help": "Train under another rotary base than the model's own. Evaluation chooses between the two.",
            "above": 0,
        },
    )
    max_position_embeddings: int | None = field(
        default=None, metadata={"help": "Train with more positions than the model's own config names.", "min": 1}
    )
    freeze_layers: int | list[int] | None = field(
        default=None,
        metadata={
            "help": "Decoder layers that keep their weights: the first N, or a list of indices. With use_peft the "
            "adapter leaves them out.",
            "min": 0,
        },
    )
    freeze_embeddings: bool = field(
        default=False, metadata={"help": "Keep the input embeddings; the output layer too where the two are tied."}
    )
    freeze_patterns: list[str] | None = field(
        default=None,
        metadata={"help": "Regular expressions; a parameter in whose name one of them is found keeps its value."},
    )
    early_stopping_patience: int | None = field(
        default=None,
        metadata={
            "help": "Stop after this many evaluations in a row without a better metric_for_best_model.",
            "min": 1,
        },
    )
    early_stopping_threshold: float = field(
        default=0.0,
        metadata={"help": "What the metric must gain to count as better, for early_stopping_patience.", "min": 0},
    )
    grace: float = field(
        default=30.0,
        metadata={
            "help": "Seconds that a first SIGTERM or SIGUSR1 leaves to write a checkpoint and exit with code 75; 0 for "
            "none.",
            "min": 0,
        },
    )
    plan: str = field(
        default="refuse",
        metadata={
            "help": "A run that by its plan cannot fit into memory is not started (`refuse`), or is (`warn`); `off` "
            "makes no plan.",
            "choices": ("refuse", "warn", "off"),
        },
    )
    callbacks: list[str] | None = field(
        default=None,
        metadata={"help": "Subclasses of transformers' TrainerCallback of your own, as `module.path:Class`."},
    )


@dataclass(frozen=True, kw_only=True)
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
        metadata={"help": "The teacher, which shares the tokenizer; its vocabulary may be padded to another size."}
    )
    teacher_model_revision: str | None = field(default=None, metadata={"help": "Commit of a teacher on the hub."})
    kd_temperature: float = field(
        default=1.0,
        metadata={
            "help": "Softens both distributions in offline distillation; their KL is multiplied by its square.",
            "above": 0,
        },
    )
    kd_alpha: float = field(
        default=0.5,
        metadata={
            "help": "Share of the KL in the offline loss; the rest is cross entropy with the answers.",
            "min": 0,
            "max": 1,
        },
    )


@dataclass(frozen=True, kw_only=True)
class PairOptions(AnswerOptions):
    """What `src/dpo.py` needs beside `DPOConfig` and `ModelConfig`; its rows are of data_prep/preference_pairs.py."""


@dataclass(frozen=True, kw_only=True)
class OutcomeOptions(AnswerOptions):
    """What `src/kto.py` needs beside `KTOConfig` and `ModelConfig`; its rows are of --outcomes."""


@dataclass(frozen=True, kw_only=True)
class RewardOptions(PairOptions):
    """What `src/reward_model.py` needs beside `RewardConfig` and `ModelConfig`."""

    pairwise_loss: str = field(
        default="sigmoid",
        metadata={
            "help": "`sigmoid` is Bradley and Terry's, `logistic` the same by softplus, `hinge` stops at the margin.",
            "choices": ("sigmoid", "logistic", "hinge"),
        },
    )
    margin: float | None = field(
        default=None,
        metadata={"help": "How far apart the two rewards should be; null means 1 for `hinge`, else 0.", "min": 0},
    )


@dataclass(frozen=True, kw_only=True)
class ValueOptions(AnswerOptions):
    """What `src/value.py` needs beside `TrainingArguments` and `ModelConfig`; its rows are of --outcomes."""

    max_length: int = field(metadata={"help": "Tokens that a question and its answer may have.", "min": 1})
    value_clip: float = field(
        default=0.2,
        metadata={"help": "How far a value may move while its batch is trained on; PPO's epsilon.", "above": 0},
    )
    num_iterations: int = field(
        default=2,
        metadata={"help": "How often a batch is trained on in a row; with 1 nothing is clipped.", "min": 1},
    )
