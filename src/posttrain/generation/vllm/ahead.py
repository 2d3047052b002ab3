"""Requests for completions that a vLLM server answers while the trainer does something else."""

from concurrent.futures import Future
from threading import Thread
from typing import Any


class AheadError(RuntimeError):
    """What was asked ahead is not what is asked now."""


def ahead_client(base: type) -> type:
    """A client class of TRL's that can also send a request before its answer is wanted."""

    class AheadClient(base):
        """TRL's VLLMClient; `generate` gives the answer to a request that was sent ahead for the same prompts."""

        sampling: dict[str, Any]  # how completions were asked for last
        ahead: tuple[list[list[int]], dict[str, Any], Future[dict[str, Any]]] | None = None

        def generate(self, prompts: list[list[int]], **sampling: Any) -> dict[str, Any]:
            """TRL's own, but for prompts that were sent ahead; raises AheadError where they are sampled otherwise."""
            self.sampling = sampling
            if self.ahead is None or self.ahead[0] != prompts:
                return super().generate(prompts, **sampling)
            _, sent, answer = self.ahead
            self.ahead = None
            if sent != sampling:
                raise AheadError(f"completions were asked for ahead with {sent}, and are now with {sampling}")
            return answer.result()

        def send_ahead(self, prompts: list[list[int]]) -> None:
            """Ask for completions of `prompts`, sampled as those of the last `generate`, and do not wait for them."""
            answer: Future[dict[str, Any]] = Future()
            self.ahead = prompts, self.sampling, answer
            # A daemon, as an interrupted run does not wait for completions that nobody will train on.
            Thread(target=self._answer, args=(*self.ahead,), daemon=True).start()

        def _answer(self, prompts: list[list[int]], sampling: dict[str, Any], answer: Future[dict[str, Any]]) -> None:
            try:
                answer.set_result(super().generate(prompts, **sampling))
            except BaseException as error:  # raised again where the answer is wanted
                answer.set_exception(error)

        def wait(self) -> None:
            """Return when no request is under way; raises what it failed with."""
            if self.ahead is not None:
                self.ahead[2].result()

    return AheadClient
