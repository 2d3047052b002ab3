"""Errors a user or a file can cause: shown as one line (or one line per fault), without a traceback."""

import argparse
import contextlib
import errno
import json
import math
import os
import re
import shutil
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from posttrain import processes
from posttrain.console import hold_back_noise
from posttrain.secrets import masked_text

TRACEBACK = "POSTTRAIN_TRACEBACK"
LITTLE = 2**20  # bytes free on a disk that is as good as full
SOURCE = re.compile(r"\[/\S+:\d+\] ")  # where in the code of torch it was raised
NETWORK = re.compile(r"gloo/transport|\[gloo|NCCL|c10d|TCPStore")  # in plain RuntimeErrors of torch
# Control characters but tab and newline, halves of surrogate pairs, and what turns the direction of writing.
STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff\u200e\u200f\u202a-\u202e\u2066-\u2069]")


class PosttrainError(Exception):
    """Base of every error whose text alone tells the user where, which value, what was expected and what to do."""


def printable(text: str) -> str:
    """Text from a file as a terminal may be given it: what would steer the terminal, or is no text, as escapes."""
    return STEERING.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def run_script(main: Callable[[], None]) -> None:
    """Call `main`; end an error of a user, a file or the network with one line on stderr and exit code 2.

    An interruption ends with one line as well, and with 128 plus the signal's number as the exit code. What every
    process finds before they meet is told by the main one alone; later each tells its own.
    POSTTRAIN_TRACEBACK=1 shows where it was raised.
    """
    hold_back_noise()
    try:
        with processes.ended_by_signals():
            main()
            _part()
    except processes.Interrupted as error:
        processes.tell_interrupted(error.signum)
        raise
    except processes.Preempted as left:
        if os.environ.get("RANK", "0") == "0":
            print(left, file=sys.stderr, flush=True)
        _tell_launcher(str(left))
        _part()
        raise
    except (PosttrainError, OSError) as error:
        if os.environ.get(TRACEBACK):
            raise
        rank = int(os.environ.get("RANK", "0"))
        text = masked_text(str(error))
        if not isinstance(error, PosttrainError):
            text = masked_text(_no_space(error)) or f"{type(error).__name__}: {' '.join(text.split())}"
        line = f"error: {f'process {rank}: ' if rank else ''}{printable(text)}"
        if rank == 0 or _processes_have_met():
            print(line, file=sys.stderr, flush=True)
        _tell_launcher(line)
        sys.exit(2)
    except Exception as error:
        if lost := _lost_process(error):
            line = f"error: process {os.environ.get('RANK', '0')}: {printable(masked_text(lost))}"
            print(line, file=sys.stderr, flush=True)
            _tell_launcher(line)
            os._exit(2)  # threads of the network still wait for what is lost
        # A fault of ours or of a library, whose traceback Python prints.
        _tell_launcher(masked_text("".join(traceback.format_exception_only(error)).strip()))
        raise


def _tell_launcher(text: str) -> None:
    """Give the error to torchrun's summary, the last thing on the screen where several processes run.

    The form is that of torch.distributed.elastic.multiprocessing.errors, without importing torch for it.
    """
    if path := os.environ.get("TORCHELASTIC_ERROR_FILE"):
        with contextlib.suppress(OSError):  # then the summary says less; the line above stands
            Path(path).write_text(json.dumps({"message": text, "timestamp": int(time.time())}))


def _no_space(error: OSError) -> str:
    """What to say of a full disk, or nothing; a write that fails does not say where, so the directories held do."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ""
    from posttrain.locks import HELD

    held = {path.parent for path in HELD}
    full = {directory for directory in held if shutil.disk_usage(directory).free < LITTLE}
    where = error.filename or ", ".join(sorted(map(str, full or held))) or "a file of this command"
    return f"{where}: {os.strerror(error.errno)}; what is complete is kept: free space, then the same command goes on"


def _lost_process(error: BaseException | None) -> str | None:
    """What to say of an error of the network between the processes of a run; None for any other one."""
    if not _processes_have_met():
        return None
    while error is not None:
        text, _, _ = SOURCE.sub("", " ".join(str(error).split())).partition(". ")
        if isinstance(error, sys.modules["torch"].distributed.DistError) or NETWORK.search(str(error)):
            return (
                f"another process of this run, or the way to it, is lost ({text[:200]}); what is complete is kept: the "
                f"same command, on all machines, goes on"
            )
        error = error.__cause__ or error.__context__
    return None


def _processes_have_met() -> bool:
    torch = sys.modules.get("torch")
    return torch is not None and torch.distributed.is_available() and torch.distributed.is_initialized()


def _part() -> None:
    """Leave the process group: a process that ends with its threads still running can be aborted (seen with ZeRO-3)."""
    if _processes_have_met():
        sys.modules["torch"].distributed.destroy_process_group()


class ArgumentParser(argparse.ArgumentParser):
    """argparse's own, which shows no secret among the arguments that it refuses."""

    def error(self, message: str) -> NoReturn:
        super().error(masked_text(message))


def bounded(least: float, most: float = math.inf, kind: type = int) -> Callable[[str], float]:
    """A type for `add_argument`: a number from `least` to `most`; what is none is refused with what was expected."""

    def parse(text: str) -> float:
        try:
            value = kind(text)
        except ValueError:
            value = math.nan
        if not (least <= value <= most and math.isfinite(value)):
            name = "a whole number" if kind is int else "a number"
            to = f"from {least:g} to {most:g}" if math.isfinite(most) else f"{least:g} or more"
            raise argparse.ArgumentTypeError(f"{text!r}: expected {name}, {to}")
        return value

    return parse


def share(text: str) -> tuple[int, int]:
    """A type for `add_argument`: `K/N`, the Kth of N shares, counted from 0."""
    k, _, n = text.partition("/")
    if not (k.isdecimal() and n.isdecimal() and int(k) < int(n)):
        raise argparse.ArgumentTypeError(f"{text!r}: expected K/N, the Kth of N shares counted from 0, as 0/2 and 1/2")
    return int(k), int(n)


def check_writable(directory: Path) -> None:
    """Raise where `directory` could not be written to, before any work is done for it."""
    nearest = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        raise PosttrainError(f"{directory}: {nearest} is not a directory that can be written to; choose another")


def yaml_fault(error: Exception) -> str:
    """Line and fault of what is not YAML, without the line itself, in which a secret may stand."""
    mark = getattr(error, "problem_mark", None)
    line = f":{mark.line + 1}" if mark else ""
    return f"{line}: not YAML: {' '.join(str(getattr(error, 'problem', None) or error).split())}"
