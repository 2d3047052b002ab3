"""Send the weights of this process to a running vLLM server, and prove that it answers from them.

How expert iteration samples through one server whose weights change every round. The transport is that of GRPO: TRL's
client over NCCL on GPUs, `posttrain.generation.vllm.weight_transfer` on CPUs.
"""

from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl.generation.vllm_client import VLLMClient

from posttrain.console import say
from posttrain.generation.sample import Decoding
from posttrain.generation.samplers import HfSampler
from posttrain.generation.vllm import canary, server
from posttrain.generation.vllm.server_sampler import ServerSampler
from posttrain.generation.vllm.weight_transfer import client_class

TOLERANCE = {"torch.float32": 1e-3}  # nats, of the mean difference; other types round more
OTHER_TOLERANCE = 0.1
GREEDY_PROMPTS, GREEDY_TOKENS = 4, 32


def send_weights(
    url: str, name: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, texts: list[str], context: int
) -> str:
    """Send a model's weights to the server at `url`, which serves one of the same shape; the name it serves it under.

    texts: rendered prompts, to compare log-probabilities and greedy text on    context: tokens a sequence may have
    Raises ServerError for a server that cannot take them, StaleWeightsError where it does not answer from them.
    """
    url = url.rstrip("/")
    server.wait_for_server(url, 0, f"make serve MODEL={name}")
    kind = client_class(VLLMClient, use_cpu=model.device.type != "cuda")
    client = kind(base_url=url)
    served = {"model_name_or_path": client.model}
    server.check_server(url, served, context, tokenizer, f"make serve MODEL={client.model}")
    client.init_communicator(model.device)
    client.update_model_params(model)
    client.reset_prefix_cache()
    mean = _check_freshness(client, model, tokenizer, texts, name)
    same, asked = _greedy_agreement(url, client.model, model, tokenizer, texts)
    client.close_communicator()
    say(
        f"{url}: has the weights of {name}: log-probabilities within {mean:.1e} nats, greedy text equal on {same} of "
        f"{asked} prompts"
    )
    return client.model


def _check_freshness(client: Any, model: Any, tokenizer: Any, texts: list[str], name: str) -> float:
    """Mean difference of log-probabilities of fixed tokens, which must be within tolerance."""
    sequences = canary.sequences(texts, tokenizer)
    scored = client.get_sequence_logprobs(sequences, [1] * len(sequences), top_logprobs=1)["actual_logprobs"]
    theirs = [[token[0] for token in sequence] for sequence in scored]
    mean, _ = canary.difference(canary.log_probabilities(model, sequences), theirs)
    canary.check(mean, TOLERANCE.get(str(model.dtype), OTHER_TOLERANCE), f"weights of {name}")
    return mean


def _greedy_agreement(url: str, served: str, model: Any, tokenizer: Any, texts: list[str]) -> tuple[int, int]:
    """On how many of how many prompts the server writes the text that the model writes here."""
    prompts = tokenizer(texts[:GREEDY_PROMPTS], add_special_tokens=False)["input_ids"]
    decoding = Decoding(GREEDY_TOKENS, 0.0, 1.0, 0, (tokenizer.eos_token_id,))
    here = HfSampler(model, tokenizer, GREEDY_PROMPTS).sample(prompts, decoding)
    there = ServerSampler(url, served, tokenizer, GREEDY_PROMPTS).sample(prompts, decoding)
    ours, theirs = ({sample.index: sample.text for sample in samples} for samples in (here, there))
    return sum(ours[i] == theirs[i] for i in ours), len(prompts)
