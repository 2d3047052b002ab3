"""A sampler that asks an OpenAI-compatible server; the same prompt ids, ends and token counts as in this process."""

import hashlib
import os
from collections.abc import Iterator, Sequence
from collections.abc import Set as AbstractSet
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

import requests
from transformers import PreTrainedTokenizerBase
from urllib3.util import Retry

from posttrain.console import plural
from posttrain.generation.connection import CONNECT_SECONDS, KeepaliveAdapter
from posttrain.generation.sample import Decoding, Sample, Tick, unheard
from posttrain.generation.samplers import to_sample
from posttrain.generation.vllm import access
from posttrain.generation.vllm.server import ServerError

KEY = "OPENAI_API_KEY"  # for servers of others; only ever from the environment, as the token of ours
TIMEOUT = (CONNECT_SECONDS, 3600)  # and for one completion; a machine that is gone is noticed before
RETRIES = Retry(total=4, backoff_factor=1, status_forcelist=(429, 502, 503, 504), allowed_methods=("GET", "POST"))


class ServerSampler:
    """Completes prompts through `/v1/completions`, `concurrency` of them at a time."""

    def __init__(self, url: str, model: str, tokenizer: PreTrainedTokenizerBase, concurrency: int) -> None:
        """Connect; raises ServerError where there is no server, or one of another model."""
        self.url, self.model, self.tokenizer, self.concurrency = url.rstrip("/"), model, tokenizer, concurrency
        self.session = requests.Session()
        adapter = KeepaliveAdapter(max_retries=RETRIES, pool_maxsize=concurrency)
        self.session.mount("http://", adapter)
        self.session.mount("https://", adapter)
        if access.token():
            self.session.auth = access.Bearer()
        elif os.environ.get(KEY):
            self.session.headers["Authorization"] = f"Bearer {os.environ[KEY]}"
        served = [entry["id"] for entry in self._ask("get", "/v1/models")["data"]]
        if model not in served:
            raise ServerError(f"{self.url}: serves {', '.join(served)}, expected {model}; start a server of that model")
        version = self.session.get(f"{self.url}/version", timeout=TIMEOUT)
        self.backend = {
            "name": "openai_server",
            "version": version.json()["version"] if version.status_code == 200 else "unknown",
        }

    def machine(self) -> dict[str, str]:
        """The server, and how many completions it is asked for at once."""
        return {"server": f"{self.url}, vLLM {self.backend['version']}, {plural(self.concurrency, 'answer')} at once"}

    def sample(
        self, prompts: Sequence[list[int]], decoding: Decoding, done: AbstractSet[int] = frozenset(),
        tick: Tick = unheard,
    ) -> Iterator[Sample]:  # fmt: skip
        """One sample per prompt that is not in `done`, as they come. Each has a seed of its own."""
        with ThreadPoolExecutor(self.concurrency) as threads:
            asked = [threads.submit(self._complete, i, ids, decoding) for i, ids in enumerate(prompts) if i not in done]
            try:
                for answer in as_completed(asked):
                    sample = answer.result()
                    tick(sample.tokens)
                    yield sample
            finally:
                threads.shutdown(wait=False, cancel_futures=True)

    def _complete(self, index: int, prompt: list[int], decoding: Decoding) -> Sample:
        seed = int.from_bytes(hashlib.sha256(f"{decoding.seed}/{index}".encode()).digest()[:4])
        body = {
            "model": self.model, "prompt": prompt, "n": 1, "max_tokens": decoding.max_new_tokens, "seed": seed,
            "temperature": decoding.temperature, "top_p": decoding.top_p, "top_k": 0, "repetition_penalty": 1.0,
            "stop": list(decoding.stop) or None, "include_stop_str_in_output": True,
            "stop_token_ids": list(decoding.stop_token_ids), "return_token_ids": True,
        }  # fmt: skip
        (choice,) = self._ask("post", "/v1/completions", json=body)["choices"]
        if not choice.get("token_ids"):
            raise ServerError(f"{self.url}: returns no token ids, without which tokens cannot be counted; use vLLM")
        if choice.get("prompt_token_ids", prompt) != prompt:
            raise ServerError(f"{self.url}: completed other prompt ids than it was asked to; its tokenizer differs")
        return to_sample(index, choice["token_ids"], decoding, self.tokenizer)

    def _ask(self, method: str, path: str, **arguments: Any) -> dict[str, Any]:
        try:
            answer = self.session.request(method, self.url + path, timeout=TIMEOUT, **arguments)
        except requests.RequestException as error:
            raise ServerError(
                f"{self.url}: no answer ({type(error).__name__}); what was sampled is kept: start the server, then the "
                f"same command goes on"
            ) from error
        if answer.status_code != 200:
            raise ServerError(f"{self.url}{path}: {answer.status_code}: {' '.join(answer.text.split())[:300]}")
        return answer.json()
