"""Log-probability and entropy of sampled completions under the weights that wrote them, by one teacher-forced pass."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from posttrain.generation.sample import Sample
from posttrain.pipelines.rollouts import Candidate, Rollout

POSITIONS = 32  # converted to float32 at once: small enough that the allocator uses the buffer again


def with_means(rollout: Rollout, measured: list[tuple[float, float]]) -> Rollout:
    """The rollout with mean log-probability and entropy (nats per token at temperature 1) of every candidate."""
    candidates: list[Candidate] = [
        replace(candidate, logprob=round(logprob, 4), entropy=round(entropy, 4))
        for candidate, (logprob, entropy) in zip(rollout.candidates, measured, strict=True)
    ]
    return replace(rollout, candidates=candidates)


def means(
    completions: Sequence[Candidate | Sample], prompt: list[int], model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase, stop: tuple[str, ...] = (),
) -> list[tuple[float, float]]:  # fmt: skip
    """Mean log-probability and entropy of each completion of a prompt.

    One that stopped counts with its end token, unless one of the texts in `stop` ended it. Completions are tokenised
    from their text.
    """
    ids = tokenizer([completion.text for completion in completions], add_special_tokens=False)["input_ids"]
    ends = [
        [tokenizer.eos_token_id] * (completion.finish_reason == "stop" and not completion.text.endswith(stop))
        for completion in completions
    ]
    return _means(prompt, [text + end for text, end in zip(ids, ends, strict=True)], model, tokenizer.pad_token_id)


@torch.inference_mode()
def _means(
    prompt: list[int], completions: list[list[int]], model: PreTrainedModel, pad: int
) -> list[tuple[float, float]]:
    width = max(map(len, completions))
    rows = [prompt + completion + [pad] * (width - len(completion)) for completion in completions]
    ids = torch.tensor(rows, device=model.device)
    lengths = torch.tensor([len(completion) for completion in completions])
    valid = torch.arange(width)[None] < lengths[:, None]
    mask = torch.cat([torch.ones(len(rows), len(prompt), dtype=torch.bool), valid], dim=1).to(model.device)
    logits = model(input_ids=ids, attention_mask=mask.long(), use_cache=False, logits_to_keep=width + 1).logits[:, :-1]
    targets = ids[:, len(prompt) :]
    logprobs, entropies = torch.zeros(valid.shape), torch.zeros(valid.shape)
    for start in range(0, width, max(1, POSITIONS // len(rows))):
        piece = slice(start, start + max(1, POSITIONS // len(rows)))
        log_p = logits[:, piece].float().log_softmax(-1)
        logprobs[:, piece] = log_p.gather(-1, targets[:, piece, None])[..., 0].cpu()
        entropies[:, piece] = -(log_p.exp() * log_p).sum(-1).cpu()
    counts = lengths.clamp(min=1)
    means = [((values * valid).sum(1) / counts).tolist() for values in (logprobs, entropies)]
    return list(zip(*means, strict=True))
