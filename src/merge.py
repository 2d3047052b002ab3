"""Merge an adapter into its base, and prove that the merged model says the same.

    python src/merge.py outputs/qwen2.5_1.5b_gsm8k_lora/final outputs/qwen2.5_1.5b_gsm8k_lora/merged [--dtype bfloat16]

Training starts from a merged model, and a server loads it like any other.
"""

import argparse
from pathlib import Path

from posttrain.errors import ArgumentParser, check_writable, run_script


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("adapter", type=Path, help="directory of an adapter")
    parser.add_argument("out", type=Path, help="directory to write")
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="data type of the written weights",
    )
    asked = parser.parse_args()
    check_writable(asked.out)

    from posttrain.models.merge import merge

    proof = merge(asked.adapter, asked.out, asked.dtype)
    print(
        f"{asked.out}: logits differ from base and adapter by at most {proof.merged:.2e} merged and "
        f"{proof.written:.2e} as written in {asked.dtype}; the largest logit is {proof.largest_logit:.1f}"
    )


if __name__ == "__main__":
    run_script(main)
