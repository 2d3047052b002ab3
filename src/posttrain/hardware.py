"""What the machine decides: the accelerate config in use, its two toggles, and the precision.

`accelerate launch` refuses unknown keys at the top of its file and exports neither the file's path nor unknown keys of
its sections. So the two toggles lie in `dynamo_config`, the one section that every kind of launch accepts, and this
module reads them from the file itself: named by POSTTRAIN_ACCELERATE_CONFIG, or found on the command line of the
`accelerate launch` that is this process's ancestor. Without such a one, `launching` puts the rest of the file in force.
"""

import importlib.util
import logging
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import yaml

from posttrain.console import FOUR_BIT, held_back, machine_line, plural
from posttrain.errors import PosttrainError, yaml_fault
from posttrain.launching import check_launch, put_in_force

VARIABLE = "POSTTRAIN_ACCELERATE_CONFIG"
SECTION = "dynamo_config"
TOGGLES = ("gradient_checkpointing", "attn_implementation")
KERNELS = "kernels-community/"  # prebuilt kernels that transformers fetches and runs; of nobody else's, ever
KERNEL = re.compile(rf"{KERNELS}\w[\w.-]*(@\w[\w.-]*)?(:\w+)?")
FLASH = {  # what needs a package of its own, a GPU, and half precision: the module, and how it comes
    "flash_attention_2": ("flash_attn", "flash-attn: pip install -e '.[gpu]'"),
    "flash_attention_3": ("flash_attn_interface", "flash-attn-3, from the folder hopper of its repository"),
    "flash_attention_4": ("flash_attn.cute", "flash-attn-4: pip install flash-attn-4"),
}
ATTENTION = ("sdpa", "eager", "varlen_sdpa", "flex_attention", *FLASH)
CPU_INFO = Path("/proc/cpuinfo")
BF16_UNITS = {"avx512_bf16", "amx_bf16", "bf16"}  # names of processor features: the last is ARM's
MOMENT = 0.2  # seconds over which the load of this moment is measured
logger = logging.getLogger(__name__)


class HardwareError(PosttrainError):
    """An accelerate config that this project cannot run with, or that asks for what the machine lacks."""


@dataclass(frozen=True)
class Hardware:
    """Effective values. `path` and `text` are None without `accelerate launch` and `POSTTRAIN_ACCELERATE_CONFIG`."""

    path: str | None
    text: str | None
    gradient_checkpointing: bool
    attn_implementation: str
    mixed_precision: str
    use_cpu: bool
    num_processes: int

    def as_record(self) -> dict[str, Any]:
        return asdict(self)


def read_hardware() -> Hardware:
    """The hardware settings of this process; raises HardwareError where the file is wrong."""
    path, launch = find_config(), _launch()
    if path is None and launch:
        logger.warning(
            "accelerate launch runs without a --config_file that can be found: gradient checkpointing is off and "
            "attention is sdpa; name the file by --config_file or %s",
            VARIABLE,
        )
    text = None if path is None else path.read_text()
    config = {} if text is None else parse_config(str(path), text)
    if path and not launch:
        put_in_force(path, config)
    elif path and launch and launch.config is None:
        check_launch(path, config)
    toggles = config.get(SECTION) or {}
    hardware = Hardware(
        path=None if path is None else str(path),
        text=text,
        gradient_checkpointing=toggles.get("gradient_checkpointing", False),
        attn_implementation=toggles.get("attn_implementation", "sdpa"),
        # What accelerate will use: a command line of `accelerate launch` wins over its file.
        mixed_precision=os.environ.get("ACCELERATE_MIXED_PRECISION", "no"),
        use_cpu=config.get("use_cpu", False),
        num_processes=int(os.environ.get("WORLD_SIZE", "1")),
    )
    check_attention(hardware)
    return hardware


def find_config() -> Path | None:
    """The accelerate config in use, or None without `accelerate launch` and that variable."""
    launch = _launch()
    launched = launch.config if launch else None
    if named := os.environ.get(VARIABLE):
        if not Path(named).is_file():
            raise HardwareError(f"{VARIABLE}={named}: no such file; expected a file of accelerate_configs/")
        if launched and launched.resolve() != Path(named).resolve():
            raise HardwareError(f"{VARIABLE}={named}: but accelerate launch runs with {launched}; unset one of them")
        return Path(named)
    return launched


@dataclass(frozen=True)
class Launch:
    """The `accelerate launch` that is this process's ancestor, and its --config_file."""

    config: Path | None


def _launch() -> Launch | None:
    for ancestor in psutil.Process().parents():
        try:
            arguments, folder = ancestor.cmdline(), ancestor.cwd()
        except psutil.Error:
            continue
        word = next((i for i, argument in enumerate(arguments) if argument.endswith(("launch", "launch.py"))), None)
        if word is None or not any("accelerate" in argument for argument in arguments[: word + 1]):
            continue
        for position, argument in enumerate(arguments[word:], word):
            flag, equals, value = argument.partition("=")
            if flag == "--config_file":
                return Launch(_relative(Path(folder, value if equals else arguments[position + 1])))
        return Launch(None)
    return None


def parse_config(path: str, text: str) -> dict[str, Any]:
    """An accelerate config with its toggles checked; accelerate itself checks the rest."""
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise HardwareError(f"{path}{yaml_fault(error)}") from error
    if not isinstance(config, dict) or not isinstance(config.get(SECTION) or {}, dict):
        raise HardwareError(f"{path}: expected `key: value` lines, and {SECTION} as a section of them")
    toggles = config.get(SECTION) or {}
    unknown = [key for key in toggles if key not in TOGGLES and not str(key).startswith("dynamo_")]
    if unknown:
        raise HardwareError(f"{path}: {SECTION}.{unknown[0]}: unknown key; expected {' or '.join(TOGGLES)}")
    checkpointing, attention = toggles.get("gradient_checkpointing", False), toggles.get("attn_implementation", "sdpa")
    if not isinstance(checkpointing, bool):
        raise HardwareError(f"{path}: {SECTION}.gradient_checkpointing: {checkpointing!r}: expected true or false")
    if attention not in ATTENTION and not KERNEL.fullmatch(str(attention)):
        expected = ", ".join([*ATTENTION, f"{KERNELS}…"])
        raise HardwareError(f"{path}: {SECTION}.attn_implementation: {attention!r}: expected one of {expected}")
    if config.get("distributed_type") == "MULTI_CPU":
        raise HardwareError(
            f"{path}: distributed_type: MULTI_CPU: accelerate starts a single process for it, without a word; write "
            f"MULTI_GPU with use_cpu: true, as accelerate_configs/cpu_2proc.yaml does"
        )
    if config.get("distributed_type") == "FSDP" and config.get("use_cpu"):
        raise HardwareError(
            f"{path}: distributed_type: FSDP with use_cpu: true: accelerate shards nothing on CPUs then, without "
            f"a word; use a machine with GPUs, or accelerate_configs/zero2.yaml, which shards on CPUs too"
        )
    if checkpointing and (config.get("fsdp_config") or {}).get("fsdp_activation_checkpointing"):
        raise HardwareError(
            f"{path}: fsdp_config.fsdp_activation_checkpointing: true: {SECTION}.gradient_checkpointing does the same; "
            f"leave one of them out"
        )
    return config


def check_attention(hardware: Hardware) -> None:
    """Raise HardwareError where the attention that is asked for cannot run; it never falls back."""
    name = hardware.attn_implementation
    if name not in FLASH and not KERNEL.fullmatch(name):
        return
    import torch

    where = f"{hardware.path}: {SECTION}.attn_implementation: {name}: "
    if lack := what_attention_lacks(name, torch.cuda.is_available(), hardware.mixed_precision):
        raise HardwareError(where + lack)
    if name.startswith(KERNELS):
        from transformers.integrations.hub_kernels import load_and_register_attn_kernel

        try:
            load_and_register_attn_kernel(name)
        except (OSError, ValueError, ImportError, RuntimeError, AttributeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise HardwareError(
                f"{where}cannot be loaded ({type(error).__name__}: {reason}); write sdpa there"
            ) from error


def what_attention_lacks(name: str, cuda: bool, precision: str) -> str | None:
    """What an attention of FLASH or of the hub needs and has not; None where nothing is missing."""
    module, package = FLASH.get(name, ("kernels", "kernels: pip install kernels"))
    if not cuda:
        return "needs a CUDA GPU, this machine has none; use accelerate_configs/cpu.yaml"
    if not _is_installed(module):
        prebuilt = "" if name.startswith(KERNELS) else f"; or kernels, and write {KERNELS}flash-attn{name[-1]} there"
        return f"needs the package {package}{prebuilt}; or write sdpa there"
    return "needs half precision; write mixed_precision: bf16 in the same file" if precision == "no" else None


def _is_installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # of the package that it lies in
        return False


def _relative(path: Path) -> Path:
    """The path from the working directory where it lies below it, so that records do not name the machine."""
    return path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path


def machine_facts(model: Any, processes: int = 1, autocast: str = "no") -> dict[str, str]:
    """The header's lines on what computes with a loaded model, and on what makes it slower than it need be."""
    import torch

    first = next(model.parameters())
    device = "CPU" if first.device.type == "cpu" else torch.cuda.get_device_name(first.device)
    threads, dtype = torch.get_num_threads(), str(model.dtype).removeprefix("torch.")
    precision = dtype if autocast == "no" else f"{dtype} weights under {autocast}"
    line = machine_line(device, processes, threads, precision, model.config._attn_implementation)
    warnings = []
    if device == "CPU":
        warnings = [crowding(threads, processes, usable_cores(), busy_cores()) or ""]
        warnings += [slow_bf16(CPU_INFO)] if autocast == "bf16" or dtype == "bfloat16" else []
        warnings += held_back(FOUR_BIT) if getattr(model, "is_loaded_in_4bit", False) else []
    return {"machine": line, "warning": "\n".join(filter(None, warnings))}


def slow_bf16(info: Path) -> str:
    """What is slow about bf16 on the processor that a file like /proc/cpuinfo describes; empty where it is fast.

    Without units for it every product is computed in float32 between two conversions.
    """
    named = re.search(r"^(?:flags|Features)\s*:(.*)", info.read_text() if info.is_file() else "", re.MULTILINE)
    if named is None or BF16_UNITS & set(named[1].split()):
        return ""
    return "bf16 without units for it (avx512_bf16, amx_bf16) is slower than float32; use cpu.yaml and dtype: float32"


def usable_cores() -> int:
    """Cores this process may run on: its affinity, and a container's quota where there is one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = Path("/sys/fs/cgroup/cpu.max")
    limit, _, period = quota.read_text().partition(" ") if quota.is_file() else ("max", "", "")
    return cores if limit == "max" else max(1, min(cores, round(int(limit) / int(period))))


def busy_cores() -> float:
    """Cores that other work keeps busy: the load of the last minute, or of this moment where that is less.

    The minute alone remembers what has ended meanwhile, the moment alone sees the start of this command's processes.
    """
    return min(os.getloadavg()[0], psutil.cpu_percent(interval=MOMENT) / 100 * (os.cpu_count() or 1))


def free_cores(cores: int, busy: float) -> int:
    """Cores that a new computation may count on, at least one; a tenth of them busy is what an idle machine does."""
    return cores if busy < cores / 10 else max(1, round(cores - busy))


def free_memory() -> int:
    """Bytes that this process may still take: of the machine, and of a container's limit where there is one."""
    free, group = psutil.virtual_memory().available, Path("/sys/fs/cgroup")
    limit = (group / "memory.max").read_text().strip() if (group / "memory.max").is_file() else "max"
    if limit == "max":
        return free
    used = int((group / "memory.current").read_text())
    kept = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    return max(0, min(free, int(limit) - used + int(kept.get("inactive_file", 0))))


def crowding(threads: int, processes: int, cores: int, busy: float) -> str | None:
    """What is wrong with so many threads on a CPU, and what to do; None where every thread finds a core.

    One thread beside other work shares a core and takes its time. Threads of one computation wait for the last of
    them, so one that finds no core makes small models many times slower.
    """
    free = free_cores(cores, busy)
    wanted = threads * processes
    if wanted <= free or (threads == 1 and processes <= cores):
        return None
    counted = plural(threads, "thread") if processes == 1 else f"{processes} processes of {plural(threads, 'thread')}"
    beside = f", of which other work keeps {busy:.1f} busy" if wanted <= cores else ""
    fewer_threads = processes <= free and threads > 1
    remedy = f"set OMP_NUM_THREADS={free // processes}" if fewer_threads else "start fewer processes"
    place = plural(cores, "core")
    return f"{counted} on {place}{beside}: they wait for one another, often many times as long; {remedy}"
