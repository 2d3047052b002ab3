"""A checkpoint to talk to, asked the way it was trained."""

from collections.abc import Sequence
from typing import Any

import torch
from transformers.generation.streamers import BaseStreamer

from posttrain.data.prompts import declared_prompt, render_prompt
from posttrain.data.prompts.control_tokens import control_tokens
from posttrain.errors import PosttrainError
from posttrain.generation.sample import Decoding
from posttrain.generation.samplers import HfSampler, decode
from posttrain.models.loading import choose_prompt, load_model, read_checkpoint, stop_ids
from posttrain.models.source import check_model

Message = dict[str, str]


class Chat:
    """A model directory, an adapter or a model of the hub; greedy unless a temperature is given.

    `prompt` is that of its training (`trained`), or one that `src/eval.py --prompt` takes.
    """

    def __init__(
        self, model: str, *, prompt: str = "trained", dtype: str = "auto", temperature: float = 0.0, top_p: float = 1.0,
        seed: int = 0,
    ) -> None:  # fmt: skip
        check_model(str(model))
        self.checkpoint = read_checkpoint(str(model))
        self.tokenizer = self.checkpoint.tokenizer
        self.prompt = choose_prompt(prompt, str(model), self.tokenizer)
        self.stop = declared_prompt(self.prompt).stop
        self.stop_ids = stop_ids(self.checkpoint)
        self.temperature, self.top_p, self.seed = temperature, top_p, seed
        self.model = load_model(self.checkpoint, dtype).eval()

    def chat(self, messages: Sequence[Message], max_new_tokens: int = 512, streamer: BaseStreamer | None = None) -> str:
        """The answer to a conversation, which ends with a message of the user.

        `streamer` (transformers' TextStreamer) gets the tokens as they come. A prompt that is no chat template shows
        the model the last message alone. Raises PosttrainError where the conversation fills the model's positions.
        """
        ids = self._prompt_ids(messages)
        room = self.checkpoint.positions - len(ids)
        if room < 1:
            raise PosttrainError(
                f"{self.checkpoint.name}: the conversation has {len(ids)} tokens, max_position_embeddings is "
                f"{self.checkpoint.positions}; begin a new one"
            )
        torch.manual_seed(self.seed)
        with torch.no_grad():
            output = self.model.generate(
                torch.tensor([ids], device=self.model.device),
                attention_mask=torch.ones((1, len(ids)), dtype=torch.long, device=self.model.device),
                max_new_tokens=min(max_new_tokens, room),
                streamer=streamer,
                **self._generation(),
            )
        return decode(output[0, len(ids) :].tolist(), self.tokenizer)

    def predict(self, prompts: str | Sequence[str], max_new_tokens: int = 512, batch_size: int = 64) -> list[str]:
        """One answer per question, in their order; each is asked alone, `batch_size` of them at a time."""
        questions = [prompts] if isinstance(prompts, str) else list(prompts)
        ids = [self._prompt_ids([{"role": "user", "content": question}]) for question in questions]
        longest = max(map(len, ids), default=0)
        if longest + max_new_tokens > self.checkpoint.positions:
            raise PosttrainError(
                f"{self.checkpoint.name}: the longest prompt has {longest} tokens, max_new_tokens is {max_new_tokens}, "
                f"and max_position_embeddings {self.checkpoint.positions}; lower max_new_tokens"
            )
        decoding = Decoding(max_new_tokens, self.temperature, self.top_p, self.seed, self.stop_ids, self.stop)
        samples = HfSampler(self.model, self.tokenizer, batch_size).sample(ids, decoding)
        texts = {sample.index: sample.text for sample in samples}
        return [texts[i] for i in range(len(questions))]

    def _prompt_ids(self, messages: Sequence[Message]) -> list[int]:
        shown = messages if self.prompt == "chat" else messages[-1:]
        as_text = control_tokens(self.tokenizer).as_text  # whoever types must not be able to end a turn
        asked = [{**message, "content": as_text(message["content"])} for message in shown]
        text = render_prompt(self.prompt, asked, self.tokenizer)
        return self.tokenizer(text, add_special_tokens=False)["input_ids"]

    def _generation(self) -> dict[str, Any]:
        """Generation as in evaluation; nothing of the checkpoint's own sampling values is taken."""
        settings: dict[str, Any] = {
            "eos_token_id": list(self.stop_ids), "pad_token_id": self.tokenizer.pad_token_id,
            "repetition_penalty": 1.0, "do_sample": self.temperature > 0,
        }  # fmt: skip
        if self.temperature > 0:
            settings |= {"temperature": self.temperature, "top_p": self.top_p, "top_k": 0}
        if self.stop:
            settings |= {"stop_strings": list(self.stop), "tokenizer": self.tokenizer}
        return settings
