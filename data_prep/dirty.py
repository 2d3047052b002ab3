"""Copy a prepared dataset with a share of wrong solutions among its training rows, to measure what they cost.

    python data_prep/dirty.py data/gsm8k --share 0.1 --out data/gsm8k_dirty_10

A dirty row ends in another row's answer; its gold stays. Which rows are dirty depends on --seed and content alone, and
a larger share holds the rows of a smaller one. Other splits stay as they are.
"""

import argparse
from dataclasses import replace
from pathlib import Path

from posttrain.data.manifest import Source, check_dataset, write_dataset
from posttrain.data.rows import QUESTIONS, ROW_SCHEMA, Row, by_content, read_parquet, row_id
from posttrain.data.token_files import SUFFIX as IDS
from posttrain.errors import ArgumentParser, PosttrainError, bounded, run_script


def main() -> None:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", type=Path, help="directory written by a data_prep script")
    parser.add_argument(
        "--share",
        type=bounded(0, 1, float),
        required=True,
        help="share of the training rows to make wrong, between 0 and 1",
    )
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=bounded(0, 2**63), default=0)
    arguments = parser.parse_args()
    if arguments.share == 0:
        parser.error("--share 0 would change nothing; expected more than 0 and at most 1")
    manifest = check_dataset(arguments.dataset)
    names = [name for name in manifest["files"] if not name.endswith(IDS)]
    splits = {Path(name).stem: read_rows(arguments.dataset / name) for name in names}
    if "train" not in splits:
        raise PosttrainError(f"{arguments.dataset}: has no train split, only {', '.join(splits)}")
    splits["train"], changed = soil(splits["train"], arguments.share, arguments.seed)
    digests = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    source = Source(f"{manifest['source']['id']}, {changed} wrong", manifest["source"]["licence"], None, digests)
    write_dataset(arguments.out, splits, source, arguments.seed, {}, (manifest["tokens"] or {}).get("tokenizer"))
    print(f"{arguments.out}: {changed} of {len(splits['train'])} training rows end in a wrong answer")


def read_rows(path: Path) -> list[Row]:
    """The rows of a split; raises PosttrainError where they are not questions with solutions."""
    rows = read_parquet(path, (*QUESTIONS, "completion", "source"))
    return [Row(**{name: row.get(name) for name in ROW_SCHEMA.names}) for row in rows]


def soil(rows: list[Row], share: float, seed: int) -> tuple[list[Row], int]:
    """Rows of which `share` end in the answer of another row, and their number."""
    keyed = by_content([{"id": row_id(str(seed), row.id), "row": row.id} for row in rows], len(rows))
    chosen = {entry["row"] for entry in keyed[: round(share * len(rows))]}
    answers = sorted({row.answer for row in rows})
    if len(answers) < 2:
        raise PosttrainError(f"all {len(rows)} rows have one answer; none of them can be made wrong")
    result = []
    for row in rows:
        if row.id in chosen:
            text = row.completion[-1]["content"]
            before, box, after = text.rpartition(f"\\boxed{{{row.answer}}}")
            if not box:
                raise PosttrainError(f"row {row.id}: its solution does not end in its answer in a box")
            wrong = answers[(answers.index(row.answer) + 1) % len(answers)]
            content = f"{before}\\boxed{{{wrong}}}{after}"
            row = replace(row, completion=[{"role": "assistant", "content": content}])
        result.append(row)
    return result, len(chosen)


if __name__ == "__main__":
    run_script(main)
