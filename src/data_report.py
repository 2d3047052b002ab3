"""Write one page about a prepared dataset. It opens from disk and needs no network.

    python src/data_report.py data/tiny_math
    python src/data_report.py data/gsm8k --tokenizer Qwen/Qwen2.5-1.5B --prompt r1_zero --budget 1024

Rows are encoded exactly as src/sft.py would, so that lengths, packing and the loss mask are those of training.
"""

import argparse
from pathlib import Path

from posttrain.data.manifest import check_dataset
from posttrain.errors import ArgumentParser, PosttrainError, bounded, check_writable, run_script


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="directory that a data_prep script wrote")
    parser.add_argument("--out", type=Path, help="directory of the page; reports/<name of the dataset> without it")
    parser.add_argument("--tokenizer", help="directory or hub name; without it the one the manifest names")
    parser.add_argument("--prompt", help="as in a recipe; without it the one the rows were filtered for, else chat")
    parser.add_argument("--budget", type=bounded(1), help="tokens of a packed row; without it the filter's max_tokens")
    arguments = parser.parse_args()

    manifest = check_dataset(arguments.dataset)
    if manifest["tokens"] is None:
        raise PosttrainError(
            f"{arguments.dataset}: its manifest counts no tokens: not rows to train on but what was made of samples; a "
            f"report is on datasets of data_prep's gsm8k, tiny_math, filter_traces and the like"
        )
    out = arguments.out or Path("reports") / arguments.dataset.resolve().name
    check_writable(out)
    from posttrain.report.dataset_page import default_budget, write_data_report
    from posttrain.report.dataset_rows import default_prompt, load_rows, load_tokenizer

    tokenizer = load_tokenizer(arguments.tokenizer or manifest["tokens"]["tokenizer"], arguments.dataset)
    prompt = arguments.prompt or default_prompt(manifest, tokenizer)
    splits = load_rows(arguments.dataset, manifest, tokenizer, prompt)
    budget = arguments.budget or default_budget(manifest, splits)
    out.mkdir(parents=True, exist_ok=True)
    print(f"→ {write_data_report(out, arguments.dataset, manifest, splits, tokenizer, prompt, budget)}")


if __name__ == "__main__":
    run_script(main)
