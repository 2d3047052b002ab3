"""Devices by name: what one holds, what it computes in a second, and what an hour of it costs."""

import difflib
import re
from dataclasses import dataclass, fields
from pathlib import Path

import psutil
import yaml

from posttrain.errors import PosttrainError, yaml_fault

TABLE = Path(__file__).with_name("devices.yaml")
GIB = 2**30
CONTEXT = 1 * GIB  # of a device's memory is not the run's: CUDA's context, its libraries' workspaces, NCCL's buffers
ASKED = re.compile(r"(?:(\d+)\s*[x×*]\s*)?([\w.-]+)", re.IGNORECASE)
CPU = "CPU"


class DeviceError(PosttrainError):
    """A device that no table knows, or a table that is none."""


@dataclass(frozen=True)
class Device:
    """`memory` in GiB, `tflops` with bfloat16 and `tflops32` with float32 inputs, `bandwidth` in GB/s, `dollars` an
    hour. A processor has a memory alone.
    """

    name: str
    memory: float
    tflops: float | None = None
    tflops32: float | None = None
    bandwidth: float | None = None
    dollars: float | None = None

    @property
    def usable(self) -> float:
        """Bytes that a run can fill."""
        return self.memory * GIB - (CONTEXT if self.name != CPU else 0)


@dataclass(frozen=True)
class Machine:
    """So many devices of one kind, and the date of the table that describes them."""

    device: Device
    count: int
    date: str | None = None


def this_processor() -> Device:
    """The memory of this machine, or what a container may use of it."""
    total, limit = psutil.virtual_memory().total, Path("/sys/fs/cgroup/memory.max")
    if limit.is_file() and (text := limit.read_text().strip()).isdigit():
        total = min(total, int(text))
    return Device(CPU, total / GIB)


def read_devices(own: Path | None = None) -> tuple[dict[str, Device], str]:
    """The table that comes with posttrain under a user's own, and its date; raises DeviceError."""
    devices, date = _read(TABLE)
    if own is None:
        return devices, date
    theirs, their_date = _read(own)
    return devices | theirs, their_date


def _read(path: Path) -> tuple[dict[str, Device], str]:
    known = [field.name for field in fields(Device)][1:]
    try:
        content = yaml.safe_load(path.read_text())
        date, rows = str(content["date"]), content["devices"]
        devices = {
            str(name): Device(str(name), **{k: None if v is None else float(v) for k, v in row.items()})
            for name, row in rows.items()
        }
    except yaml.YAMLError as error:
        raise DeviceError(f"{path}{yaml_fault(error)}") from error
    except (OSError, KeyError, TypeError, ValueError, AttributeError) as error:
        raise DeviceError(
            f"{path}: {type(error).__name__}: {error}; expected `date` and `devices`, each with {', '.join(known)}"
        ) from error
    if wrong := [name for name, device in devices.items() if not device.memory > 0]:
        raise DeviceError(f"{path}: {wrong[0]}: memory: expected GiB, more than 0")
    return devices, date


def find_machine(text: str, own: Path | None = None) -> Machine:
    """`8xH100`, `H200`, `2 x RTX4090`: so many devices; raises DeviceError for a name that no table knows."""
    match = ASKED.fullmatch(text.strip())
    devices, date = read_devices(own)
    by_name = {name.lower(): device for name, device in devices.items()}
    if match and int(match[1] or 1) > 0 and match[2].lower() in by_name:
        return Machine(by_name[match[2].lower()], int(match[1] or 1), date)
    close = difflib.get_close_matches(match[2].lower() if match else text.lower(), by_name, n=1)
    meant = f"; did you mean {by_name[close[0]].name}?" if close else ""
    raise DeviceError(
        f"{text}: no such device{meant}; known: {', '.join(devices)}, written as 8xH100; others go into a file of your "
        f"own (make plan DEVICES=…)"
    )


def named_like(name: str, memory: int) -> Device:
    """The table's device that CUDA calls `name`, with the bytes of memory that were found; else those alone."""
    devices, _ = read_devices()
    words = name.replace(" ", "").lower()
    found = [device for key, device in devices.items() if key.split("-")[0].lower() in words]
    if not found:
        return Device(name, memory / GIB)
    best = min(found, key=lambda device: abs(device.memory - memory / GIB))
    return Device(best.name, memory / GIB, best.tflops, best.tflops32, best.bandwidth, best.dollars)
