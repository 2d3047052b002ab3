"""Open what completes prompts: the model in this process, a running server, or a server started for this command."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

from posttrain.generation.samplers import HfSampler, Sampler
from posttrain.generation.vllm.local_server import vllm_server
from posttrain.generation.vllm.server import check_rope
from posttrain.generation.vllm.server_sampler import ServerSampler
from posttrain.models import loading
from posttrain.models.loading import Checkpoint, load_merged, load_model
from posttrain.models.source import check_model, check_weights
from posttrain.recipe.sampling_options import EvalOptions, SampleOptions


def load_sampler(
    checkpoint: loading.Checkpoint, options: SampleOptions, texts: list[str], context: int
) -> tuple[PreTrainedModel, Sampler]:
    """The model, which also measures what was sampled, and what samples: itself, or a server with its weights."""
    if options.server is None:
        model = loading.load_model(checkpoint, "auto")
        return model, HfSampler(model, checkpoint.tokenizer, options.batch_size)
    from posttrain.generation.vllm.send_weights import send_weights  # needs vLLM

    model = loading.load_merged(checkpoint, "auto")
    served = send_weights(options.server, checkpoint.name, model, checkpoint.tokenizer, texts, context)
    return model, ServerSampler(options.server, served, checkpoint.tokenizer, options.batch_size)


OWN_SERVER = "vllm"  # as `server`: start one


@contextmanager
def open_sampler(
    checkpoint: Checkpoint, options: EvalOptions, rope_overrides: dict[str, Any], texts: list[str]
) -> Iterator[Sampler]:
    """The checkpoint's weights in this process, a server with them, or a server that lives as long as the block.

    rope_overrides: what differs from the checkpoint's own config, as keys of a recipe    texts: rendered prompts
    """
    name, tokenizer = checkpoint.name, checkpoint.tokenizer
    if options.server is None:
        yield HfSampler(load_model(checkpoint, options.dtype), tokenizer, options.batch_size)
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
