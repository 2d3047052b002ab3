"""src/grpo.py with every weight sync after the first one lost: what the canary is there for."""

import runpy

from trl.generation.vllm_generation import VLLMGeneration

send = VLLMGeneration.sync_weights
sent: list[int] = []


def send_once(self: VLLMGeneration) -> None:
    if not sent:
        sent.append(1)
        send(self)


VLLMGeneration.sync_weights = send_once
runpy.run_path("src/grpo.py", run_name="__main__")
