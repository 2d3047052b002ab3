"""Give a vLLM server a LoRA adapter alone, in place of the model's weights with the adapter merged into them.

The server reads the adapter from a directory, so trainer and server need one that both see.
"""

from pathlib import Path
from typing import Any

from posttrain.generation.vllm.access import ask

NAME = "policy"  # of the model that the server samples from once it has an adapter
RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # that vLLM takes as --max-lora-rank
ENVIRONMENT = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
TIMEOUT = 120  # seconds


def serve_flags(values: dict[str, Any]) -> list[str]:
    """Flags of a server that takes one adapter of the recipe's rank."""
    rank = next(allowed for allowed in RANKS if allowed >= int(values.get("lora_r", 16)))
    return ["--enable-lora", "--max-loras", "1", "--max-lora-rank", str(rank)]


def send_adapter(client: Any, model: Any, directory: Path) -> None:
    """Write the adapter of a PEFT model, and have the server of TRL's `client` sample with it from now on.

    Raises RuntimeError with the server's answer where it does not load it.
    """
    model.save_pretrained(directory)
    url = f"{client.base_url}/v1/load_lora_adapter"
    named = {"lora_name": NAME, "lora_path": str(directory.resolve()), "load_inplace": True}
    answer = ask("post", url, json=named, timeout=TIMEOUT)
    if answer.status_code == 404:
        raise RuntimeError(f"{url}: takes no adapters; it needs the recipe's vllm_lora_sync: adapter when it starts")
    if answer.status_code != 200:
        raise RuntimeError(f"{url}: {answer.status_code}: {answer.text[:500]}")
    client.model = NAME
    client.reset_prefix_cache()  # what it kept was computed with the adapter before
