"""What a recipe says of its vLLM server beside what GRPO needs: how many GPUs share the model, and any flag of vLLM's.

Flags are checked by vLLM's own parser where the server starts, which is where vLLM is installed: before a model is
loaded, and with the name that may have been meant.
"""

import difflib
import importlib
import json
from collections.abc import Callable, Mapping
from typing import Any, NoReturn

from posttrain.errors import PosttrainError

PARALLEL = {  # a recipe's key: vLLM's flag
    "vllm_tensor_parallel_size": "--tensor-parallel-size",
    "vllm_pipeline_parallel_size": "--pipeline-parallel-size",
}
PARSERS = ("vllm.entrypoints.launchers.cli_args", "vllm.entrypoints.openai.cli_args")  # of vLLM 0.30, and before it
RAY = "distributed-executor-backend"
UNKNOWN = "unrecognized arguments: "  # argparse's


class ServerArgumentError(PosttrainError):
    """A flag that vLLM does not take."""


def gpus_of_a_copy(values: Mapping[str, Any]) -> int:
    """How many GPUs share one copy of the model."""
    tensor, pipeline = (int(values.get(key) or 1) for key in PARALLEL)
    return tensor * pipeline


def check_gpus(values: Mapping[str, Any], visible: int) -> None:
    """Raise ServerArgumentError where one copy of the model needs more GPUs than this machine shows, without Ray."""
    backend = {str(k).replace("_", "-"): v for k, v in (values.get("server_args") or {}).items()}.get(RAY)
    if (needed := gpus_of_a_copy(values)) > visible > 0 and backend != "ray":
        raise ServerArgumentError(
            f"vllm_tensor_parallel_size × vllm_pipeline_parallel_size: {needed} GPUs share the model, and {visible} "
            f"are visible here; lower them, or take GPUs of several nodes by server_args: {{{RAY}: ray}}"
        )


def with_server_args(command: list[str], values: Mapping[str, Any]) -> list[str]:
    """The server's command with the recipe's flags behind ours; of a flag given twice, vLLM takes the last."""
    words = list(command)
    for key, flag in PARALLEL.items():
        if (values.get(key) or 1) > 1:
            words += [flag, str(values[key])]
    for name, value in (values.get("server_args") or {}).items():
        words += flag_words(str(name).replace("_", "-"), value)
    return words


def checked_server_args(command: list[str], values: Mapping[str, Any]) -> list[str]:
    """As `with_server_args`; raises ServerArgumentError for what vLLM would refuse. For that it imports vLLM."""
    complete = with_server_args(command, values)
    if values.get("server_args"):
        check_command(complete)
    return complete


def flag_words(name: str, value: Any) -> list[str]:
    """A flag as words of a command line: true and false switch it, a mapping is JSON, a list is several words."""
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    if isinstance(value, dict):
        return [f"--{name}", json.dumps(value)]
    return [f"--{name}", *map(str, value if isinstance(value, list) else [value])]


def check_command(command: list[str], parser: Any = None) -> None:
    """Raise ServerArgumentError where vLLM would refuse the words after `python -m MODULE`."""
    parser = parser or vllm_parser()
    known = [name for name in parser._option_string_actions if name.startswith("--")]

    def refuse(message: str) -> NoReturn:
        unknown = message.removeprefix(UNKNOWN).split() if message.startswith(UNKNOWN) else []
        meant = [_meant(word, known) for word in unknown if word.startswith("--")]
        said = "; ".join(meant) if meant else " ".join(message.split())
        raise ServerArgumentError(f"server_args: {said}; vLLM's own --help=all lists its flags")

    parser.error, parser.allow_abbrev = refuse, False  # a shortened name could mean another flag in another version
    parser.parse_args(command[3:])


def _meant(word: str, known: list[str]) -> str:
    name = word.partition("=")[0]
    close = difflib.get_close_matches(name.replace("_", "-"), known, n=1, cutoff=0.6)
    shown = name.removeprefix("--")
    return f"{shown}: vLLM has no such flag" + (f", did you mean {close[0].removeprefix('--')}?" if close else "")


def vllm_parser() -> Any:
    """The parser of vLLM's server. Raises ServerArgumentError where this version keeps it elsewhere."""
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    for module in PARSERS:
        try:
            make: Callable[[Any], Any] = importlib.import_module(module).make_arg_parser
        except ImportError:
            continue
        return make(FlexibleArgumentParser())
    raise ServerArgumentError(f"server_args: this vLLM keeps its parser in none of {', '.join(PARSERS)}; leave it out")
