"""The recipe keys of `src/memory_sft.py`; all others are fields of TRL's and transformers' own dataclasses."""

from dataclasses import dataclass, field

PARTS = ("memory_norm", "memory_gate", "gated_memory_fusion")


@dataclass(frozen=True)
class MemoryOptions:
    """What `src/memory_sft.py` needs beside `SFTConfig` and `ModelConfig`."""

    trainer: str = field(metadata={"help": "The method; the script src/<trainer>.py runs the recipe."})
    dataset_name: str = field(
        metadata={"help": "Questions of data_prep/omcq.py (.json), or conversations as JSON Lines (.jsonl)."}
    )
    prompt: str = field(
        metadata={
            "help": "How a question is rendered: `chat` (the tokenizer's template) or a file of data/prompts.",
            "choices": ["chat", "question_only"],
        }
    )
    cache_path: str = field(metadata={"help": "The knowledge bank, written by data_prep/knowledge_cache.py."})
    knowledge_num: int = field(metadata={"help": "Rows of the bank, a perfect square."})
    knowledge_length: int = field(metadata={"help": "Tokens of a row."})
    memory_layers: list[int] | int = field(
        metadata={"help": "Layers after which the memory is read, from 0; a number alone spaces so many evenly."}
    )
    knowledge_dim: int = field(default=128, metadata={"help": "Size of queries and product keys, even."})
    num_candidates: int = field(default=16, metadata={"help": "Rows whose sentences are looked at for every token."})
    gumbel_temperature: float = field(default=1.0, metadata={"help": "Noise of the selection in training."})
    dropout: float = field(default=0.0, metadata={"help": "Dropout inside the fusion."})
    fusion_rank: int = field(default=0, metadata={"help": "Rank of the fusion's matrices; 0 is full rank."})
    gate_rank: int = field(default=0, metadata={"help": "Width of the gate's hidden layer; 0 is one matrix."})
    keys_path: str | None = field(
        default=None, metadata={"help": "Product keys as safetensors or torch.save; they are then not trained."}
    )
    validation_name: str | None = field(default=None, metadata={"help": "Questions for eval_strategy."})
    append_eos: bool = field(default=True, metadata={"help": "Teach the end of the answer."})
    too_long: str = field(
        default="error",
        metadata={
            "help": "A row longer than max_length ends the run (`error`) or is counted and left out (`drop`). Nothing "
            "is ever truncated.",
            "choices": ["error", "drop"],
        },
    )
    num_train_examples: int | None = field(
        default=None, metadata={"help": "Train on this many questions, chosen by content hash; null for all."}
    )
    counterfactual_prob: float = field(
        default=0.0,
        metadata={
            "help": "Share of questions whose fact is replaced by a wrong option, in the bank and in the answer alike, "
            "drawn anew every epoch; so the answer can only be read, not memorised."
        },
    )
    similarity_loss_coef: float = field(default=0.1, metadata={"help": "Weight of minus the cosine with what is read."})
    diversity_loss_coef: float = field(default=0.05, metadata={"help": "Weight of the cosine between candidates."})
    router_loss_coef: float = field(
        default=0.0,
        metadata={"help": "Weight of the cross entropy of the keys' scores at the question's row."},
    )
    trainable: list[str] = field(
        default_factory=lambda: list(PARTS), metadata={"help": f"Parts that are trained, of {', '.join(PARTS)}."}
    )
    pretrained_sft_model_path: str | None = field(
        default=None, metadata={"help": "A memory to start from: a directory of a run, or a state dict (.pth)."}
    )
    save_pth: bool = field(default=False, metadata={"help": "Write sft_latest.pth, a state dict, beside the memory."})
    random_init: bool = field(
        default=False, metadata={"help": "Draw weights at random from the model's config.json instead of loading them."}
    )
