"""Hold command lines against vLLM's own parser, in an environment that has vLLM: one line of JSON a command.

As a script: `vllm_parser.py MAPPING…`, each a JSON object of a recipe's keys. A line is what vLLM parsed, or `refused`.
"""

import json
import sys

from posttrain.generation.vllm.server import serve_command
from posttrain.generation.vllm.server_args import ServerArgumentError, check_command, vllm_parser, with_server_args

SHOWN = (
    "tensor_parallel_size", "pipeline_parallel_size", "distributed_executor_backend", "kv_cache_dtype", "max_num_seqs",
    "enable_prefix_caching", "speculative_config", "gpu_memory_utilization", "dtype",
    "enable_lora", "max_lora_rank", "max_loras",
)  # fmt: skip


def main() -> None:
    for text in sys.argv[1:]:
        values = {"model_name_or_path": "m", **json.loads(text)}
        command = with_server_args(serve_command(values, None)[0], values)
        try:
            check_command(command)
        except ServerArgumentError as error:
            print(json.dumps({"refused": str(error)}))
            continue
        parsed = vars(vllm_parser().parse_args(command[3:]))
        print(json.dumps({name: parsed[name] for name in SHOWN}, default=str))


if __name__ == "__main__":
    main()
