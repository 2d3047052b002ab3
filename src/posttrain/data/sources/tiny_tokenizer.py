"""The tiny world's tokenizer and model shape: Qwen2.5's small relative, with its special tokens and ChatML."""

from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast, Qwen2Config

from posttrain.data.rows import Row, TextRow

VOCABULARY = 512
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
AnyRow = TypeVar("AnyRow", Row, TextRow)


def write_init(directory: Path, text: list[TextRow], problems: list[Row]) -> None:
    """Train the tokenizer on both kinds of rows and write it with the model's config.json; there are no weights."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [row.text for row in text[:5000]]
    texts += [row.completion[0]["content"] for row in problems[:5000]] + ["user\nassistant\n"] * 5000
    tokenizer.train_from_iterator(texts, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=SPECIAL[0], pad_token=SPECIAL[0], additional_special_tokens=SPECIAL[1:]
    )
    fast.chat_template = CHATML
    fast.save_pretrained(directory)
    model_config(fast).save_pretrained(directory)


def model_config(tokenizer: PreTrainedTokenizerBase) -> Qwen2Config:
    """The shape of the tiny model: 0.85 million parameters, so that float32 weights stay under 4 MB."""
    return Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=384,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.eos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        architectures=["Qwen2ForCausalLM"],
    )


def count_tokens(rows: list[AnyRow], tokenizer: PreTrainedTokenizerBase) -> list[AnyRow]:
    """The rows with `n_tokens` of prompt and completion in the chat form, or of the plain text."""
    texts = [
        row.text
        if isinstance(row, TextRow)
        else tokenizer.apply_chat_template([*row.prompt, *row.completion], tokenize=False)
        for row in rows
    ]
    lengths = map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])
    return [replace(row, n_tokens=length) for row, length in zip(rows, lengths, strict=True)]
