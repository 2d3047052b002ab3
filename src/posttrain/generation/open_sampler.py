"""Open what completes prompts: the model in this process, a running server, or a server started for this command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from transformers import PreTrainedModel

from posttrain.generation.packed_weights import pack_weights
from posttrain.generation.samplers import HfSampler, Sampler, StretchSampler
from posttrain.generation.share import NumWorkers, Work, settle
from posttrain.generation.vllm.local_server import vllm_server
from posttrain.generation.vllm.server import check_rope
from posttrain.generation.vllm.server_sampler import ServerSampler
from posttrain.generation.workers import WorkerSampler
from posttrain.models.loading import Checkpoint, load_merged, load_model
from posttrain.models.source import check_model, check_weights
from posttrain.recipe.sampling_options import EvalOptions, SampleOptions


@contextmanager
def local_sampler(
    checkpoint: Checkpoint, dtype: str, batch_size: int, num_workers: NumWorkers, work: Work
) -> Iterator[StretchSampler]:
    """The checkpoint's weights in this process, or in several of this machine that live as long as the block."""
    share = settle(num_workers, work, checkpoint, dtype, batch_size)
    if share.workers > 1:
        with WorkerSampler(checkpoint, dtype, batch_size, share) as sampler:
            yield sampler
        return
    if share.threads:
        torch.set_num_threads(share.threads)
    yield HfSampler(pack_weights(load_model(checkpoint, dtype)), checkpoint.tokenizer, batch_size)


def open_server(
    checkpoint: Checkpoint, options: SampleOptions, texts: list[str], context: int
) -> tuple[PreTrainedModel, ServerSampler]:
    """A model that measures what was sampled, and a server that samples: it was sent the model's weights."""
    from posttrain.generation.vllm.send_weights import send_weights  # needs vLLM

    model = load_merged(checkpoint, "auto")
    served = send_weights(options.server, checkpoint.name, model, checkpoint.tokenizer, texts, context)
    return model, ServerSampler(options.server, served, checkpoint.tokenizer, options.batch_size)


OWN_SERVER = "vllm"  # as `server`: start one


@contextmanager
def open_sampler(
    checkpoint: Checkpoint, options: EvalOptions, rope_overrides: dict[str, Any], texts: list[str], work: Work
) -> Iterator[Sampler]:
    """The checkpoint's weights on this machine, a server with them, or a server that lives as long as the block.

    rope_overrides: what differs from the checkpoint's own config, as keys of a recipe    texts: rendered prompts
    """
    name, tokenizer = checkpoint.name, checkpoint.tokenizer
    if options.server is None:
        with local_sampler(checkpoint, options.dtype, options.batch_size, options.num_workers, work) as sampler:
            yield sampler
    elif options.server == OWN_SERVER:
        check_model(name, may_be_adapter=False)
        check_weights(name)
        with vllm_server({"model_name_or_path": name, **rope_overrides}) as url:
            yield ServerSampler(url, name, tokenizer, options.batch_size)
    elif options.send_weights:
        from posttrain.generation.vllm.send_weights import send_weights  # needs vLLM

        model = load_merged(checkpoint, options.dtype)
        context = max(map(len, tokenizer(texts, add_special_tokens=False)["input_ids"])) + options.max_new_tokens
        served = send_weights(options.server, name, model, tokenizer, texts, context)
        yield ServerSampler(options.server, served, tokenizer, options.batch_size)
    else:
        check_rope(options.server, rope_overrides, f"make serve MODEL={name}")
        yield ServerSampler(options.server, name, tokenizer, options.batch_size)
