"""The recipe keys of GRPO that are ours; `posttrain.recipe.options` says what a field's metadata means."""

from dataclasses import dataclass, field

from posttrain.recipe.options import TrainOptions


@dataclass(frozen=True, kw_only=True)
class GrpoOptions(TrainOptions):
    """What `src/grpo.py` needs beside `GRPOConfig` and `ModelConfig`."""

    reward_funcs: list[str] = field(
        metadata={
            "help": "Names from posttrain/methods/grpo/rewards.py or a function of your own as "
            "`module.path:function`; reward_weights weighs them."
        }
    )
    probe: str = field(
        default="refuse",
        metadata={
            "help": "Before the first step some prompts are sampled with the starting weights: `refuse` to train where "
            "they give no signal, `warn`, do `only` that, or `off`.",
            "choices": ("refuse", "warn", "only", "off"),
        },
    )
    probe_max_truncated: float = field(
        default=0.5,
        metadata={"help": "Largest share of cut-off completions that the probe lets pass.", "min": 0, "max": 1},
    )
    probe_max_zero_variance: float = field(
        default=0.9,
        metadata={"help": "Largest share of prompts whose completions all earn the same.", "min": 0, "max": 1},
    )
    dynamic_sampling: bool = field(
        default=False,
        metadata={"help": "Replace prompts whose completions all earn the same by fresh ones until the batch is full."},
    )
    max_generation_batches: int = field(
        default=10,
        metadata={
            "help": "Rounds of generation that dynamic_sampling may take for one batch, the first included; places "
            "that are still free teach nothing.",
            "min": 1,
        },
    )
    question_sampling: str = field(
        default="uniform",
        metadata={
            "help": "`uniform` asks all questions equally often; `informative` those more often whose completions "
            "will probably be neither all right nor all wrong, by the run's own history.",
            "choices": ("uniform", "informative"),
        },
    )
    generation_ahead: int = field(
        default=0,
        metadata={
            "help": "1: while a step updates, the server already samples the next step's completions, with the weights "
            "from before the update; 0: one after the other.",
            "min": 0,
            "max": 1,
        },
    )
    guard_steps: int = field(
        default=0,
        metadata={
            "help": "Every this many steps fixed validation questions are answered greedily; the best checkpoint is "
            "kept, and the run stops where accuracy falls significantly below its start. 0 is never.",
            "min": 0,
        },
    )
    guard_prompts: int = field(default=128, metadata={"help": "How many questions the guard asks.", "min": 1})
    canary_tolerance: float = field(
        default=0.1,
        metadata={
            "help": "Largest mean difference of log-probabilities between vLLM and the trainer after a weight sync, in "
            "nats; beyond it the run stops.",
            "above": 0,
        },
    )
    vllm_lora_sync: str = field(
        default="merged",
        metadata={
            "help": "What a server gets of a LoRA run after each update: `merged` weights, or the `adapter` alone, by "
            "a directory that both see.",
            "choices": ("merged", "adapter"),
        },
    )
    vllm_pipeline_parallel_size: int = field(
        default=1,
        metadata={"help": "Stages a server cuts the model into, of vllm_tensor_parallel_size GPUs each.", "min": 1},
    )
    server_args: dict | None = field(
        default=None,
        metadata={"help": "Further flags of vLLM for make serve, such as {max-num-seqs: 256}; its own parser checks."},
    )
