"""Several sampling processes: the same samples as one, and every way in which one of them can end."""

import os
import signal
import time
from dataclasses import replace

import psutil
import pytest
import torch
from conftest import REPOSITORY
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.generation.packed_weights import pack_weights
from posttrain.generation.sample import Decoding, Sample
from posttrain.generation.samplers import HfSampler
from posttrain.generation.share import Share, Weight, Work, own_threads, settle, share_cpu
from posttrain.generation.stretches import cut, number_of_stretches
from posttrain.generation.workers import WorkerSampler
from posttrain.models.loading import load_model, read_checkpoint

GB = 2**30
BATCH = 4


@given(st.lists(st.integers(1, 50), max_size=300), st.integers(1, 40), st.integers(1, 5))
def test_every_prompt_is_in_one_stretch_and_questions_stay_whole(lengths, batch_size, together):
    lengths = [length for length in lengths for _ in range(together)]
    stretches = cut(lengths, batch_size, together)
    assert sorted(place for stretch in stretches for place in stretch) == list(range(len(lengths)))
    for stretch in stretches:
        assert all(place // together == stretch[at - at % together] // together for at, place in enumerate(stretch))
    sizes = {len(stretch) // together for stretch in stretches}
    assert not sizes or max(sizes) - min(sizes) <= 1
    in_order = [lengths[place] for stretch in stretches for place in stretch]
    assert in_order == sorted(lengths, reverse=True)


@pytest.mark.parametrize(
    ("prompts", "batch_size", "number"),
    [
        (1, 64, 1),
        (64, 64, 1),
        (128, 64, 2),
        (400, 64, 2),
        (400, 32, 4),
        (1319, 64, 4),
        (1319, 32, 8),
        (9999, 8, 160),
    ],
)
def test_stretches_divide_well_and_are_long(prompts, batch_size, number):
    assert number_of_stretches(prompts, batch_size) == number
    assert prompts / number <= 8 * batch_size


@pytest.mark.parametrize(
    ("stretches", "cores", "threads", "memory", "workers"),
    [
        (8, 2, 1, 20 * GB, 2), (8, 1, 1, 20 * GB, 1), (4, 16, 1, 64 * GB, 4), (8, 16, 4, 64 * GB, 4),
        (8, 16, 1, 5 * GB, 2), (8, 16, 1, GB, 1),
    ],
    ids=["two cores", "a busy machine", "few stretches", "threads that were set", "little memory", "hardly any"],
)  # fmt: skip
def test_cores_memory_and_stretches_bound_the_processes(stretches, cores, threads, memory, workers):
    weight = Weight(shared=GB, own=3 * GB // 2)
    assert share_cpu(stretches, cores, threads, memory, weight) == Share(workers, threads)


def test_one_process_keeps_torchs_threads_and_several_have_few(monkeypatch):
    checkpoint, work = read_checkpoint(str(REPOSITORY / "assets/tiny_base")), Work([40, 8], 10, 16)
    monkeypatch.setenv("OMP_NUM_THREADS", "2,1")
    assert own_threads() == 2
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert settle("auto", work, checkpoint, "auto", BATCH) == Share(1), "not worth the start of processes"
    assert settle(1, work, checkpoint, "auto", BATCH) == Share(1)
    assert settle(8, work, checkpoint, "auto", BATCH) == Share(4, 1), "four stretches keep four processes busy"
    large = Work([100_000], 10, 16)
    assert settle("auto", large, checkpoint, "auto", BATCH).threads == 1, "also where one core is free"


@pytest.fixture(scope="module")
def asked():
    checkpoint = read_checkpoint(str(REPOSITORY / "assets/tiny_base"))
    prompts = checkpoint.tokenizer([f"{a}+{a * b}=" for a in range(1, 7) for b in (3, 17, 170)])["input_ids"]
    return checkpoint, prompts, Decoding(16, 0.9, 1.0, 0, (0, 2))


def two(checkpoint) -> WorkerSampler:
    return WorkerSampler(checkpoint, "auto", BATCH, Share(2, 1))


def test_two_processes_give_the_samples_of_one(asked):
    checkpoint, prompts, decoding = asked
    torch.set_num_threads(1)
    alone = HfSampler(pack_weights(load_model(checkpoint, "auto")), checkpoint.tokenizer, BATCH)
    counts: dict[str, list[int]] = {"one": [], "two": []}
    wanted = sorted(alone.sample(prompts, decoding, tick=counts["one"].append), key=lambda sample: sample.index)
    with two(checkpoint) as sampler:
        assert sampler.backend == alone.backend
        assert sampler.machine()["machine"].startswith("CPU, 2 processes of 1 thread, float32")
        found = sorted(sampler.sample(prompts, decoding, tick=counts["two"].append), key=lambda sample: sample.index)
        done = {sample.index for sample in found[:9]}
        rest = list(sampler.sample(prompts, decoding, done))
    assert found == wanted and len(found) == len(prompts)
    assert sum(counts["one"]) == sum(counts["two"]) >= sum(sample.tokens for sample in found)
    assert sorted(rest, key=lambda sample: sample.index) == [s for s in wanted if s.index not in done]
    assert not sampler.workers


def all_gone(pids: list[int]) -> bool:
    """Whether no such process is left, a moment after its parent was killed."""
    deadline = time.monotonic() + 5
    while (left := [pid for pid in pids if psutil.pid_exists(pid)]) and time.monotonic() < deadline:
        time.sleep(0.01)
    return not left


def fail(sampler, piece, tick):
    yield piece
    raise ValueError("no such\nthing")


def die(sampler, piece, tick):
    yield piece
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (fail, r"^sampling process [12] of 2: ValueError: no such thing$"),
        (die, r"^sampling process [12] of 2 \(pid \d+\) was ended by SIGKILL, most likely for want of memory; use "),
    ],
)
def test_a_process_that_fails_or_dies_is_named_in_one_line_and_the_others_end(function, said, asked):
    with two(asked[0]) as sampler:
        children = [worker.pid for worker in sampler.workers]
        with pytest.raises(PosttrainError, match=said):
            list(sampler.over(function, [1, 2], print))
        assert all_gone(children)


def test_who_leaves_early_leaves_no_process(asked):
    checkpoint, prompts, decoding = asked
    sampler = two(checkpoint)
    children = [worker.pid for worker in sampler.workers]
    samples = sampler.sample(prompts, decoding)
    assert isinstance(next(samples), Sample)
    samples.close()
    assert all_gone(children)


def test_weights_that_cannot_be_loaded_are_one_line(tmp_path, asked):
    with pytest.raises(PosttrainError, match=rf"^sampling process 1 of 2: OSError: .*{tmp_path}"):
        two(replace(asked[0], name=str(tmp_path)))
