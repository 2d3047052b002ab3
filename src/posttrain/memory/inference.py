"""A model with its trained memory, ready to be asked."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, Cache, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.data.encode import Encoding, load_tokenizer
from posttrain.data.prompts import render_prompt
from posttrain.data.tokenise import token_ids
from posttrain.memory.attach import attach
from posttrain.memory.bank.cache import BankShape, load_bank
from posttrain.memory.by_token.memory import TokenMemory
from posttrain.memory.by_token.states import bank_states, states_of
from posttrain.memory.files import check_bank_of, load_memory, read_description
from posttrain.memory.layer import ExplicitMemory
from posttrain.models.loading import read_config
from posttrain.models.source import check_weights

NO_LIMIT = 10**9


@dataclass(frozen=True)
class Begun:
    """Prompts that the model has run.  batch: ids and mask, (B, S)    logits: (B, V), of what comes next"""

    batch: dict[str, Tensor]
    cache: Cache
    logits: Tensor


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

    @contextmanager
    def reading(self, bank: Tensor | None, rekeyed: bool = True) -> Iterator[None]:
        """Another bank, or None for the frozen model alone, while the block lasts.

        rekeyed: rows that are others than before are found by what they say now, not by what stood there
        """
        memory, states = self.memory, None
        if bank is None:
            with memory.disabled():
                yield
            return
        if rekeyed and isinstance(memory, TokenMemory):
            known = memory.states.cpu(), memory.bank.cpu()
            states, _ = states_of(self.model, bank, memory.config.pad_id, memory.config.router_layer, known)
        with memory.with_bank(bank, states):
            yield

    def left_padded(self, prompts: list[list[int]]) -> dict[str, Tensor]:
        """input_ids and attention_mask, (B, S), padded on the left so that every prompt ends at the last place."""
        width = max(map(len, prompts))
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * (width - len(prompt)) + prompt for prompt in prompts])
        mask = torch.tensor([[0] * (width - len(prompt)) + [1] * len(prompt) for prompt in prompts])
        return {"input_ids": ids.to(self.model.device), "attention_mask": mask.to(self.model.device)}

    @torch.inference_mode()
    def begin(self, prompts: list[list[int]]) -> "Begun":
        """Run prompts once; answers and likelihoods go on from there."""
        batch = self.left_padded(prompts)
        places = (batch["attention_mask"].cumsum(dim=-1) - 1).clamp(min=0)
        # As a number, it would be a slice that is not contiguous, for which torch copies the head once a row.
        last = torch.tensor([places.shape[1] - 1], device=places.device)
        outputs = self.model(**batch, position_ids=places, use_cache=True, logits_to_keep=last)
        return Begun(batch, outputs.past_key_values, outputs.logits[:, -1].float())

    def answer(self, prompts: list[list[int]], max_new_tokens: int, begun: "Begun | None" = None) -> list[str]:
        """Greedy answers, without the end token. Prompts that have begun are not run again; their cache is used up."""
        ids = self.answer_ids(prompts, max_new_tokens, begun)
        return self.tokenizer.batch_decode(ids, skip_special_tokens=True)

    @torch.inference_mode()
    def answer_ids(self, prompts: list[list[int]], max_new_tokens: int, begun: "Begun | None" = None) -> Tensor:
        """Token ids of greedy answers, each with its end token and padding after it, (B, T)."""
        batch = self.left_padded(prompts) if begun is None else begun.batch
        cache = None if begun is None else begun.cache
        if cache is not None:
            cache.crop(-1)  # generate wants a token to go on from
        ids = self.model.generate(
            **batch,
            past_key_values=cache,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            repetition_penalty=1.0,
            eos_token_id=self.tokenizer.eos_token_id,
            pad_token_id=self.tokenizer.pad_token_id,
        )
        return ids[:, batch["input_ids"].shape[1] :]

    def ask(self, question: str, max_new_tokens: int = 50) -> str:
        """The greedy answer to one question."""
        return self.answer([self.prompt_ids(question)], max_new_tokens)[0]


def open_reader(
    directory: Path, model: str | None = None, cache: Path | None = None, keys: Path | None = None, dtype: str = "auto"
) -> Reader:
    """The memory of a finished run in its model; another copy of the model, bank or row states may be named.

    Of rows that are others than those the states were written of, the model computes the states anew.
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
    states = None
    if config.reading == "tokens":
        known = description["keys_path"]
        states = bank_states(loaded, bank, config.pad_id, config.router_layer, keys or (Path(known) if known else None))
    load_memory(directory, attach(loaded, config, bank, states))
    return Reader(loaded, tokenizer, description, cache)
