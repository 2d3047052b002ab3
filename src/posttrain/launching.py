"""An accelerate config in force under any launcher: what `accelerate launch` sets for a process, it sets itself.

Accelerate, transformers and DeepSpeed read precision and sharding from environment variables alone, which `accelerate
launch` makes of its file. Under torchrun, plain python or `posttrain.train` nobody else would.
"""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

from posttrain import processes
from posttrain.errors import PosttrainError

PREFIXES = ("ACCELERATE_", "FSDP_", "PARALLELISM_CONFIG_", "MEGATRON_LM_")
SHARDED = {"DEEPSPEED": "ACCELERATE_USE_DEEPSPEED", "FSDP": "ACCELERATE_USE_FSDP"}


class LaunchError(PosttrainError):
    """A launch that does what its accelerate config does not say."""


def put_in_force(path: Path, config: dict[str, Any]) -> None:
    """Set the variables of a config in this process; raises LaunchError where launch or environment say otherwise."""
    check_processes(path, config)
    for name, value in launch_variables(path).items():
        if os.environ.get(name, value) != value:
            raise LaunchError(f"{path}: sets {name}={value}, the environment has {os.environ[name]}; unset it")
        os.environ[name] = value
    os.environ[processes.IN_FORCE] = str(path)  # for commands that this process starts


def check_processes(path: Path, config: dict[str, Any]) -> None:
    """Raise LaunchError where the config asks for other processes than these."""
    asked, running = config.get("num_processes"), int(os.environ.get("WORLD_SIZE", "1"))
    kind, start = config.get("distributed_type", "NO"), f"accelerate launch --config_file {path} …"
    if asked is not None and asked != running:
        raise LaunchError(
            f"{path}: num_processes: {asked}: but {running} of them run; start the command by {start}, or write "
            f"num_processes: {running} there"
        )
    if kind != "NO" and "RANK" not in os.environ:
        raise LaunchError(
            f"{path}: distributed_type: {kind}: plain python shards nothing; start the command by {start}"
        )


def launch_variables(path: Path) -> dict[str, str]:
    """What `accelerate launch --config_file path` would set for each of its processes, by accelerate's own code."""
    from accelerate.commands import launch
    from accelerate.utils import launch as environments

    try:
        asked = launch.launch_command_parser().parse_args(["--config_file", str(path), "script.py"])
        arguments, defaults, precision_is_the_files = launch._validate_launch_command(asked)
        if arguments.use_deepspeed:  # as launch_command does it
            fields = [*defaults.deepspeed_config, *["mixed_precision"] * precision_is_the_files]
            arguments.deepspeed_fields_from_accelerate_config = ",".join(fields)
            _, variables = environments.prepare_deepspeed_cmd_env(arguments)
        elif arguments.use_fsdp or arguments.multi_gpu:
            variables = environments.prepare_multi_gpu_env(arguments)
        else:
            _, variables = environments.prepare_simple_launcher_cmd_env(arguments)
    except (ValueError, TypeError, KeyError, AttributeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise LaunchError(f"{path}: accelerate cannot use it: {type(error).__name__}: {reason}") from error
    return {name: value for name, value in variables.items() if name.startswith(PREFIXES)}


def meet(timeout_seconds: float, use_cpu: bool) -> None:
    """Let the processes of this run meet; what one of them then waits for longer than this is lost.

    transformers hands `ddp_timeout` on for GPUs alone, and would let processes on CPUs wait for half an hour.
    """
    if use_cpu and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        from accelerate import PartialState

        PartialState(cpu=True, timeout=timedelta(seconds=timeout_seconds))


def whereabouts() -> dict[str, Any]:
    """The machine of every process of this run, the main one's number and where they met; all of them call this."""
    from accelerate.utils import gather_object

    address, port = os.environ.get("MASTER_ADDR"), os.environ.get("MASTER_PORT")
    met = f"{address}:{port}" if address and int(os.environ.get("WORLD_SIZE", "1")) > 1 else None
    return {"hosts": gather_object([socket.gethostname()]), "pid": os.getpid(), "meeting": met}


def check_launch(path: Path, config: dict[str, Any]) -> None:
    """Raise LaunchError where `accelerate launch` runs without this config, and otherwise than it says."""
    precision, given = str(config.get("mixed_precision") or "no"), os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
    kind = config.get("distributed_type", "NO")
    sharded = next((name for name, variable in SHARDED.items() if os.environ.get(variable) == "true"), None)
    differences = [f"mixed_precision: {precision}, and {given} is in force"] if precision != given else []
    if (kind if kind in SHARDED else None) != sharded:
        differences.append(f"distributed_type: {kind}, and {sharded or 'no sharding'} is in force")
    if differences:
        raise LaunchError(
            f"{path}: {'; '.join(differences)}, as accelerate launch was started without this file; name it by "
            f"--config_file"
        )


@contextmanager
def forgotten_afterwards() -> Iterator[None]:
    """Take back what a run of this process put in force, so that the next one may run under another config."""
    before = {name: value for name, value in os.environ.items() if name.startswith(PREFIXES)}
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(PREFIXES)]:
            del os.environ[name]
        os.environ.update(before)
