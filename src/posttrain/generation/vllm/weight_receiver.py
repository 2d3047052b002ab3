"""The worker's side of posttrain.generation.vllm.weight_transfer: imported by vLLM alone, in its worker processes."""

from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferEngine, WeightTransferInitInfo, WeightTransferUpdateInfo

from posttrain.generation.vllm.weight_transfer import Broadcast


@dataclass
class GlooInitInfo(WeightTransferInitInfo):
    """Where the trainer waits, and which ranks the workers have."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int


@dataclass
class GlooUpdateInfo(WeightTransferUpdateInfo):
    """The tensors of an update, in the order in which they are broadcast."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]


class GlooWeightTransferEngine(WeightTransferEngine[GlooInitInfo, GlooUpdateInfo]):
    """Receives tensors under their checkpoint names and hands them to the model's own loader."""

    init_info_cls, update_info_cls = GlooInitInfo, GlooUpdateInfo
    receive: Broadcast | None = None
    loading = False  # the model's own weights are being replaced

    def init_transfer_engine(self, info: GlooInitInfo) -> None:
        """Meet the trainer. A later trainer may come to the same server."""
        parallel = self.parallel_config
        rank = info.rank_offset + parallel.data_parallel_index * parallel.world_size + parallel.rank
        self.receive = Broadcast(info.master_address, info.master_port, rank, info.world_size)

    def start_weight_update(self) -> None:
        """Nothing yet: a trainer that is lost before its tensors are here leaves the model as it was."""
        self.loading = False

    def update_weights(self, update_info: dict[str, Any]) -> None:
        self.receive_weights(self.parse_update_info(update_info))

    def receive_weights(self, info: GlooUpdateInfo) -> None:
        if self.receive is None:
            raise RuntimeError("init_weight_transfer_engine was not called")
        tensors = []
        for dtype, shape in zip(info.dtype_names, info.shapes, strict=True):
            tensors.append(torch.empty(shape, dtype=getattr(torch, dtype)))
            self.receive(tensors[-1])
        if not self.loading:
            from vllm.model_executor.model_loader.reload import initialize_layerwise_reload

            initialize_layerwise_reload(self.model)
            self.loading = True
        self.model.load_weights(zip(info.names, tensors, strict=True))

    def finish_weight_update(self) -> None:
        """Let every layer rebuild what it derives from its weights.

        vLLM's CPU layers keep a packed copy. vLLM rebuilds it for layers that got a tensor; a tied `lm_head` gets none
        and would go on answering from the old embedding (seen in 0.30 to 0.32).
        """
        if not self.loading:
            return
        from vllm.model_executor.model_loader.reload import finalize_layerwise_reload

        finalize_layerwise_reload(self.model, self.model_config)
        for layer in self.model.modules():
            if hasattr(layer, "cpu_linear") and layer.weight.numel():
                layer.quant_method.process_weights_after_loading(layer)

    def shutdown(self) -> None:
        self.receive = None
