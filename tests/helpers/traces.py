"""Traces for tests of filter_traces, and what its result is compared by."""

import hashlib
from pathlib import Path

from conftest import REPOSITORY

TOKENIZER = REPOSITORY / "assets/tiny_init"
CHAT = ("--tokenizer", TOKENIZER, "--eos-token", "<|im_end|>", "--decontaminate", "none")


def solved(number: int) -> dict:
    """A sound row; every number gives another one."""
    words = " ".join(hashlib.sha256(f"{number}.{i}".encode()).hexdigest()[:6] for i in range(6))
    return {
        "question": f"{words}: {number} + 1 = ?",
        "response": f"{words} so \\boxed{{{number + 1}}}",
        "gold": str(number + 1),
    }


def digests(out: Path) -> dict:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(out.glob("*.parquet"))}
