"""A model with its trained memory, ready to be asked."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encode import Encoding, load_tokenizer
from posttrain.data.prompts import render_prompt
from posttrain.data.tokenise import token_ids
from posttrain.memory.bank.cache import BankShape, load_bank
from posttrain.memory.files import check_bank_of, load_memory, read_description
from posttrain.memory.layer import ExplicitMemory, attach
from posttrain.models.loading import read_config
from posttrain.models.source import check_weights

NO_LIMIT = 10**9


@dataclass(frozen=True)
class Reader:
    """A frozen model with its memory, in evaluation mode, and how it was trained to be asked."""

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    description: dict[str, Any]
    cache: Path

    @property
    def memory(self) -> ExplicitMemory:
        return self.model.memory

    @property
    def encoding(self) -> Encoding:
        return Encoding(self.description["prompt"], self.description["eos_token"], NO_LIMIT, "error")

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of a question, rendered as in training."""
        prompt = render_prompt(self.description["prompt"], [{"role": "user", "content": question}], self.tokenizer)
        return token_ids(self.tokenizer, [prompt])[0].tolist()

    def left_padded(self, prompts: list[list[int]]) -> dict[str, Tensor]:
        """input_ids and attention_mask, (B, S), padded on the left so that every prompt ends at the last place."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    @torch.inference_mode()
    def answer(self, prompts: list[list[int]], max_new_tokens: int) -> list[str]:
        """Greedy answers, without the end token."""
        batch = self.left_padded(prompts)
        ids = self.model.generate(
            **batch,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return self.tokenizer.batch_decode(ids[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)

    def ask(self, question: str, max_new_tokens: int = 50) -> str:
        """The greedy answer to one question."""
        return self.answer([self.prompt_ids(question)], max_new_tokens)[0]


def open_reader(directory: Path, model: str | None = None, cache: Path | None = None, dtype: str = "auto") -> Reader:
    """The memory of a finished run in its model; another copy of the model or bank may be named.

    Raises where the bank is neither the one it was trained with nor made from it by changing rows.
    """
    description = read_description(directory)
    config, name = description["config"], model or description["model"]
    cache = cache or Path(description["bank"]["path"])
    tokenizer = load_tokenizer(name, None, description["eos_token"])
    shape = BankShape(config.knowledge_num, config.knowledge_length, len(tokenizer), config.pad_id)
    bank = load_bank(cache, shape)
    check_bank_of(description, bank, cache)
    check_weights(name)
    loaded = AutoModelForCausalLM.from_pretrained(
        name, config=read_config(name), use_safetensors=True, trust_remote_code=False, dtype=dtype
    ).eval()
    load_memory(directory, attach(loaded, config, bank))
    return Reader(loaded, tokenizer, description, cache)
