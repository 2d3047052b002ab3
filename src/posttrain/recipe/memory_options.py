"""The recipe keys of `src/memory_sft.py`; all others are fields of TRL's and transformers' own dataclasses."""

from dataclasses import dataclass, field

from posttrain.recipe.options import AnswerOptions

PARTS = ("memory_norm", "memory_gate", "gated_memory_fusion")


@dataclass(frozen=True, kw_only=True)
class MemoryOptions(AnswerOptions):
    """What `src/memory_sft.py` needs beside `SFTConfig` and `ModelConfig`."""

    dataset_name: str = field(
        metadata={"help": "Questions of data_prep/omcq.py (.json), or conversations as JSON Lines (.jsonl)."}
    )
    prompt: str = field(
        metadata={
            "help": "How a question is rendered: `chat` (the tokenizer's template) or a file of data/prompts.",
            "choices": ("chat", "question_only"),
        }
    )
    cache_path: str = field(metadata={"help": "The knowledge bank, written by data_prep/knowledge_cache.py."})
    knowledge_num: int = field(metadata={"help": "Rows of the bank, a perfect square.", "min": 1})
    knowledge_length: int = field(metadata={"help": "Tokens of a row.", "min": 1})
    reading: str = field(
        default="mean",
        metadata={
            "help": "How a row is read: `mean`, its mean embedding, looked up anew by every token in every layer (the "
            "published layout), or `tokens`, token by token, one lookup a question at router_layer.",
            "choices": ("mean", "tokens"),
        },
    )
    router_layer: int = field(
        default=0,
        metadata={"help": "With reading: tokens, the layer after which a question is looked up, from 0.", "min": 0},
    )
    router_questions: int = field(
        default=4000,
        metadata={"help": "With reading: tokens, questions that the lookup is fitted to before training.", "min": 10},
    )
    router_steps: int = field(
        default=300, metadata={"help": "With reading: tokens, steps of that fit; 0 leaves it out.", "min": 0}
    )
    memory_layers: list[int] | int = field(
        metadata={
            "help": "Layers after which the memory is read, from 0; a number alone spaces so many evenly.",
            "min": 1,
        }
    )
    knowledge_dim: int = field(default=128, metadata={"help": "Size of queries and product keys, even.", "min": 2})
    num_candidates: int = field(
        default=16,
        metadata={"help": "Rows whose sentences are looked at for every token, or for a question.", "min": 1},
    )
    gumbel_temperature: float = field(
        default=1.0,
        metadata={"help": "Temperature of the Gumbel noise by which a row is selected in training.", "above": 0},
    )
    dropout: float = field(default=0.0, metadata={"help": "Dropout inside the fusion.", "min": 0, "max": 1})
    fusion_rank: int = field(default=0, metadata={"help": "Rank of the fusion's matrices; 0 is full rank.", "min": 0})
    gate_rank: int = field(default=0, metadata={"help": "Width of the gate's hidden layer; 0 is one matrix.", "min": 0})
    keys_path: str | None = field(
        default=None,
        metadata={
            "help": "Product keys as safetensors or torch.save, which are then not trained; with reading: tokens, the "
            "row states of data_prep/knowledge_keys.py --layer, which are computed at every start without it."
        },
    )
    validation_name: str | None = field(
        default=None, metadata={"help": "Questions that eval_strategy asks, in the form of dataset_name."}
    )
    append_eos: bool = field(default=True, metadata={"help": "Teach the end of the answer."})
    counterfactual_prob: float = field(
        default=0.0,
        metadata={
            "help": "Share of questions whose fact is replaced by a wrong option, in the bank and in the answer alike, "
            "drawn anew every epoch; so the answer can only be read, not memorised.",
            "min": 0,
            "max": 1,
        },
    )
    similarity_loss_coef: float = field(
        default=0.1,
        metadata={
            "help": "Weight of the similarity loss, minus the cosine between a token's query and what it reads.",
            "min": 0,
        },
    )
    diversity_loss_coef: float = field(
        default=0.05, metadata={"help": "Weight of the diversity loss, the cosine between candidates.", "min": 0}
    )
    router_loss_coef: float = field(
        default=0.0,
        metadata={
            "help": "Weight of the router's loss, the cross entropy of the keys' scores at the question's row.",
            "min": 0,
        },
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
