"""Make a model directory of a GGUF file: weights dequantised, tied embeddings tied again, tokenizer beside them.

    python src/import_gguf.py FILE.gguf models/qwen2.5-coder-0.5b-instruct [--tokenizer DIR] [--dtype bfloat16]

The tokenizer is the file's own, or that of --tokenizer, which must have the same words. Every written tensor is held
against what the file dequantises to. Needs the package gguf: pip install -e '.[gguf]'
"""

import argparse
import importlib.util
from pathlib import Path

from posttrain.errors import ArgumentParser, PosttrainError, check_writable, run_script


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="a GGUF file of Llama, Qwen2 or Qwen3")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument("--tokenizer", help="directory or name on the hub; the file's own without it")
    parser.add_argument("--dtype", default="bfloat16", choices=["float32", "bfloat16", "float16"], help="of weights")
    asked = parser.parse_args()
    if importlib.util.find_spec("gguf") is None:
        raise PosttrainError("the package gguf is not installed, which reads GGUF files: pip install -e '.[gguf]'")
    check_writable(asked.out)

    from posttrain.models.gguf import import_file

    found = import_file(asked.file, asked.out, asked.tokenizer, asked.dtype)
    types = ", ".join(f"{n} of {name}" for name, n in found.tensors.items())
    print(
        f"{asked.out}: {found.architecture}, tensors {types}{'; head and embeddings are one matrix' * found.tied}. "
        f"Every tensor is the file's own in {found.dtype}; logits of random tokens differ from the file's in "
        f"float32 by at most {found.logits_differ:.2e}, the largest is {found.largest_logit:.1f}"
    )


if __name__ == "__main__":
    run_script(main)
