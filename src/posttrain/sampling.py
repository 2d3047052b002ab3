"""Samplers behind one signature: prompts as token ids in, samples out, in any order."""

import bisect
import hashlib
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
import transformers
from transformers import GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from posttrain.results import Sample


@dataclass(frozen=True)
class Decoding:
    """How completions are drawn; temperature 0 is greedy. The repetition penalty is 1 whatever the checkpoint says."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop_token_ids: tuple[int, ...]
    stop: tuple[str, ...] = ()  # text that ends a completion, and stays in it

    def as_record(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "stop_token_ids": list(self.stop_token_ids),
            "stop": list(self.stop),
            "repetition_penalty": 1.0,
        }


class Sampler(Protocol):
    """Anything that completes prompts."""

    backend: dict[str, str]

    def sample(self, prompts: Sequence[list[int]], decoding: Decoding, done: AbstractSet[int]) -> Iterator[Sample]:
        """One sample per prompt that is not in `done`; `index` says which."""
        ...


class HfSampler:
    """`generate` of transformers over batches of similar length, padded on the left."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
        self.model, self.tokenizer, self.batch_size = model.eval(), tokenizer, batch_size
        self.backend = {
            "name": "hf_generate",
            "version": transformers.__version__,
            "dtype": str(model.dtype).removeprefix("torch."),
            "device": model.device.type,
            "attention": model.config._attn_implementation,
            "batch_size": str(batch_size),  # sampled answers depend on it, since a batch has one seed
        }

    def sample(
        self, prompts: Sequence[list[int]], decoding: Decoding, done: AbstractSet[int] = frozenset()
    ) -> Iterator[Sample]:
        """One sample per prompt. A batch that is not wholly `done` is drawn again whole, with its own seed, so that an
        interrupted evaluation ends with the samples of one never interrupted.
        """
        # The checkpoint's own generation config would slip in what is not named here, such as a repetition penalty.
        self.model.generation_config = self._config(decoding)
        # The longest come first: memory runs out at once or never.
        longest_first = sorted(range(len(prompts)), key=lambda i: (-len(prompts[i]), i))
        for start in range(0, len(prompts), self.batch_size):
            batch = longest_first[start : start + self.batch_size]
            if all(index in done for index in batch):
                continue
            torch.manual_seed(_batch_seed(decoding.seed, start))
            completions = self._complete([prompts[i] for i in batch])
            for index, ids in zip(batch, completions, strict=True):
                if index not in done:
                    yield self._sample(index, ids, decoding)

    def _config(self, decoding: Decoding) -> GenerationConfig:
        sampled = decoding.temperature > 0
        return GenerationConfig(
            max_new_tokens=decoding.max_new_tokens,
            do_sample=sampled,
            temperature=decoding.temperature if sampled else None,
            top_p=decoding.top_p if sampled else None,
            top_k=0 if sampled else None,
            repetition_penalty=1.0,
            eos_token_id=list(decoding.stop_token_ids),
            pad_token_id=self.tokenizer.pad_token_id,
            stop_strings=list(decoding.stop) or None,
        )

    @torch.inference_mode()
    def _complete(self, prompts: list[list[int]]) -> list[list[int]]:
        width = max(map(len, prompts))
        padding = [width - len(prompt) for prompt in prompts]
        pad = self.tokenizer.pad_token_id
        ids = torch.tensor([[pad] * n + prompt for n, prompt in zip(padding, prompts, strict=True)])
        mask = torch.tensor([[0] * n + [1] * (width - n) for n in padding])
        device = self.model.device
        inputs = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        return self.model.generate(**inputs, tokenizer=self.tokenizer)[:, width:].tolist()

    def _sample(self, index: int, ids: list[int], decoding: Decoding) -> Sample:
        stops = [position for position, token in enumerate(ids) if token in decoding.stop_token_ids]
        kept = ids[: stops[0]] if stops else ids
        text = self._text(kept)
        ends = [text.find(stop) + len(stop) for stop in decoding.stop if stop in text]
        if ends:  # the token that completes it may hold more, and padding may follow
            text = text[: min(ends)]
            kept = kept[: bisect.bisect_left(range(len(kept)), len(text), key=lambda n: len(self._text(kept[:n])))]
        return Sample(index, text, len(kept), "stop" if stops or ends else "length")

    def _text(self, ids: list[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def _batch_seed(seed: int, start: int) -> int:
    """A seed of the batch's own, that no other seed and batch share."""
    return int.from_bytes(hashlib.sha256(f"{seed}/{start}".encode()).digest()[:7])
