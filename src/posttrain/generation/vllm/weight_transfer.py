"""Send weights from a trainer on a CPU to a vLLM server on a CPU, over gloo.

On GPUs TRL sends weights by vLLM's own NCCL engine, and nothing here is used. That engine needs CUDA, so for a CPU this
module registers another one under the name `gloo`, by vLLM's plugin mechanism (`vllm.general_plugins` in
pyproject.toml), and gives TRL's client the same transport. HTTP calls, their order and the names of the tensors stay
TRL's and vLLM's.
"""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
from torch.distributed import PrefixStore, TCPStore
from torch.distributed.distributed_c10d import BroadcastOptions, ProcessGroupGloo

from posttrain.console import say
from posttrain.generation.vllm.access import address_towards, ask, with_token
from posttrain.generation.vllm.ahead import ahead_client

NAME = "gloo"
TIMEOUT = timedelta(seconds=120)  # a lost peer is an error then, not a wait for ever


def register() -> None:
    """Tell vLLM of the engine; every vLLM process calls this when it starts, some more than once."""
    from vllm.distributed.weight_transfer import WeightTransferEngineFactory

    if NAME not in WeightTransferEngineFactory._registry:
        WeightTransferEngineFactory.register_engine(
            NAME, "posttrain.generation.vllm.weight_receiver", "GlooWeightTransferEngine"
        )


class Broadcast:
    """A process group of one trainer (rank 0) and the server's workers, beside whatever other groups there are.

    It listens at no address but the one by which this machine reaches `address`, which is the trainer's.
    """

    def __init__(self, address: str, port: int, rank: int, world_size: int, listener: socket.socket | None = None):
        own = {"master_listen_fd": listener.detach()} if listener else {}
        store = TCPStore(address, port, world_size, is_master=rank == 0, timeout=TIMEOUT, wait_for_workers=False, **own)
        options = ProcessGroupGloo._Options()
        options._timeout = TIMEOUT
        options._devices = [ProcessGroupGloo.create_device(hostname=address_towards(address))]
        self.group = ProcessGroupGloo(PrefixStore("posttrain_weights", store), rank, world_size, options)
        self.store = store  # the group does not keep it alive
        self.options = BroadcastOptions()
        self.options.rootRank, self.options.rootTensor, self.options.timeout = 0, 0, TIMEOUT

    def __call__(self, tensor: torch.Tensor) -> None:
        """Give every rank the bytes of rank 0's tensor, in place. The tensor must be contiguous."""
        self.group.broadcast([tensor.reshape(-1).view(torch.uint8)], self.options).wait()


@contextmanager
def our_client(use_cpu: bool) -> Iterator[None]:
    """Inside, TRL's GRPOTrainer connects to its server with the token, and on a CPU over gloo.

    TRL 1.16 makes its client by a name of its module and leaves no other place to choose token and transport, so the
    name is replaced while a trainer is built.
    """
    from trl.generation import vllm_generation

    theirs = vllm_generation.VLLMClient
    vllm_generation.VLLMClient = client_class(theirs, use_cpu)
    try:
        yield
    finally:
        vllm_generation.VLLMClient = theirs


def client_class(base: type, use_cpu: bool) -> type:
    """TRL's client class as this machine needs it."""
    return with_token(ahead_client(gloo_client(base) if use_cpu else base))


def gloo_client(base: type) -> type:
    """A client class of TRL's with the transport of this module."""

    class GlooClient(base):
        """TRL's VLLMClient, its NCCL calls replaced by `Broadcast`."""

        def init_communicator(self, device: Any = "cpu") -> None:
            """Join the server's workers in a group; raises where the server was started for another transport."""
            configured = (self.get_server_info()["weight_transfer_config"] or {}).get("backend")
            if configured != NAME:
                raise ValueError(
                    f"{self.base_url}: weight transfer {configured!r}: a trainer on CPU needs {NAME!r}; start the "
                    f"server by `make serve RECIPE=…` on this machine"
                )
            own = address_towards(self.host)
            # A port of the kernel's choice, and never free for another one to take.
            listener = socket.create_server((own, 0), family=socket.AF_INET6 if ":" in own else socket.AF_INET)
            port, world_size = listener.getsockname()[1], self.get_world_size() + 1
            say(f"weights go from {own}:{port}, open to the network of {self.base_url} while the run lasts")
            where = {"master_address": own, "master_port": port, "rank_offset": 1, "world_size": world_size}
            with ThreadPoolExecutor(1) as requests:  # the server answers only when all have met
                url = f"{self.base_url}/init_weight_transfer_engine"
                answer = requests.submit(self._post, url, json={"init_info": where})
                self.communicator = Broadcast(own, port, 0, world_size, listener)
                answer.result()

        def update_named_params(self, metadata: list[Any], named_params: Iterator[tuple[str, torch.Tensor]]) -> None:
            """Announce the tensors, then broadcast them in that order."""
            names, dtypes, shapes = (list(column) for column in zip(*metadata, strict=True))
            announced = {"names": names, "dtype_names": dtypes, "shapes": shapes}
            alone = not self._updating_weights
            if alone:
                self._start_weight_update()
            with ThreadPoolExecutor(1) as requests:
                # Not through the client's session, which repeats a POST that failed: nobody would broadcast again.
                answer = requests.submit(_post_once, f"{self.base_url}/update_weights", {"update_info": announced})
                for _, tensor in named_params:
                    if answer.done():
                        answer.result()  # the server refused; its error, instead of a broadcast to nobody
                    self.communicator(tensor.detach().cpu().contiguous())
                answer.result()
            if alone:
                self._finish_weight_update()

        def close_communicator(self) -> None:
            self.communicator = None

    return GlooClient


def _post_once(url: str, body: dict[str, Any]) -> None:
    answer = ask("post", url, json=body, timeout=TIMEOUT.total_seconds())
    if answer.status_code != 200:
        raise RuntimeError(f"{url}: {answer.status_code}: {answer.text[:500]}")
