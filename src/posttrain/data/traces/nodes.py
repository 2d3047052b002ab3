"""Parts made on many machines by a `datatrove` pipeline: each task takes every n-th file, all write to one directory.

The command that started them then finds the parts as if it had made them, so the result is the same to the byte.
"""

import functools
from pathlib import Path
from typing import Any

from posttrain.data.traces.contamination import Index
from posttrain.data.traces.inputs import Input
from posttrain.data.traces.parts import Settings, make_parts
from posttrain.errors import PosttrainError


def make_parts_by_tasks(
    inputs: list[Input], settings: Settings, index: Index, directory: Path, tasks: int, workers: int, slurm: str | None
) -> None:
    """Run the tasks here, or, with `slurm` as partition:hours:minutes:seconds, submit them as a job array and end."""
    try:
        from datatrove.executor import LocalPipelineExecutor, SlurmPipelineExecutor
    except ImportError as error:
        raise PosttrainError(f"--tasks needs datatrove: pip install -e '.[nodes]' ({error})") from error
    pipeline = [functools.partial(_task, inputs, settings, index, directory)]
    logs = str(directory / "datatrove")
    if slurm is None:
        LocalPipelineExecutor(pipeline, tasks, workers, logging_dir=logs, skip_completed=False).run()
        return
    partition, _, time = slurm.partition(":")
    SlurmPipelineExecutor(pipeline, tasks, time, partition, logging_dir=logs, skip_completed=False).run()
    raise PosttrainError("the job array is submitted; when it is done, start the same command without --slurm")


def _task(
    inputs: list[Input], settings: Settings, index: Index, directory: Path, _data: Any, rank: int, world_size: int
) -> None:
    for _ in make_parts(inputs[rank::world_size], settings, index, directory, processes=1):
        pass
