"""A callback that reads precision and sharding from the model while it trains, whoever started it."""

import json
from pathlib import Path
from typing import Any

import torch
from torch.distributed.tensor import DTensor
from transformers import TrainerCallback

LIVE_FILE = "live.json"


class LiveSettings(TrainerCallback):
    """Writes `live.json` beside run.json: what a forward pass of the wrapped model really does."""

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any, **_: Any) -> None:
        self.seen: dict[str, Any] = {}
        layer = next(module for module in model.modules() if isinstance(module, torch.nn.Linear))
        self.weight = layer.weight
        layer.register_forward_hook(self._look)

    def _look(self, layer: torch.nn.Module, inputs: Any, output: torch.Tensor) -> None:
        self.seen = {
            "computes_in": str(output.dtype).removeprefix("torch."),
            "sharded_weights": isinstance(self.weight, DTensor) or getattr(self.weight, "ds_id", None) is not None,
            "weights": str(layer.weight.dtype).removeprefix("torch."),
        }

    def on_step_end(self, args: Any, state: Any, control: Any, optimizer: Any = None, **_: Any) -> None:
        kind = type(getattr(optimizer, "optimizer", optimizer))
        self.seen["optimizer"] = f"{kind.__module__}.{kind.__name__}"
        if state.is_world_process_zero:
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            (Path(args.output_dir) / LIVE_FILE).write_text(json.dumps(self.seen))
