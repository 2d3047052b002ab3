"""Show what a batch of questions looks like as the trainer sees it: shapes, text, and what the loss is on.

    python data_prep/check_sft.py --data-path sft_data/omcq_trex_sft.jsonl --qwen3-model-path Qwen/Qwen3-4B

Exits 0 if the batch is good, 2 with the reason if it is not.
"""

import argparse
from itertools import islice
from pathlib import Path

from posttrain.errors import ArgumentParser, PosttrainError, bounded, run_script
from posttrain.memory.bank.questions import read_questions

SHOWN = 100  # tokens


def main() -> None:
    arguments = parse_arguments()
    questions = list(islice(read_questions(arguments.data_path), arguments.batch_size))
    if not questions:
        raise PosttrainError(f"{arguments.data_path}: holds no questions")
    import torch
    from torch.nn.utils.rnn import pad_sequence

    from posttrain.data.encode import IGNORED, Encoding, encode_rows, load_tokenizer

    tokenizer = load_tokenizer(arguments.qwen3_model_path, None, arguments.eos_token)
    encoding = Encoding(arguments.prompt, tokenizer.eos_token, arguments.max_length, "error")
    ids, labels = encode_rows([question.as_row() for question in questions], tokenizer, encoding)
    longest = max(map(len, ids))
    if longest > arguments.max_length:
        raise PosttrainError(f"{arguments.data_path}: {longest} tokens, but --max-length is {arguments.max_length}")
    columns = ((ids, tokenizer.pad_token_id), (labels, IGNORED))
    for name, (rows, fill) in zip(("input_ids", "labels"), columns, strict=True):
        padded = pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=fill)
        print(f"{name}: shape {list(padded.shape)}, {padded.dtype}")
    for number, (row, row_labels) in enumerate(zip(ids, labels, strict=True), start=1):
        answer = [label for label in row_labels if label != IGNORED]
        print(f"row {number}: {len(row)} tokens, the loss is on {len(answer)}: {tokenizer.decode(answer)!r}")
        print(f"  first {SHOWN} tokens: {tokenizer.decode(row[:SHOWN])!r}")


def parse_arguments() -> argparse.Namespace:
    parser = ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-path", type=Path, required=True, help="conversations (.jsonl) or questions (.json)")
    parser.add_argument(
        "--qwen3-model-path", required=True, help="model whose tokenizer is used; directory or hub name"
    )
    parser.add_argument("--batch-size", type=bounded(1), default=2)
    parser.add_argument("--max-length", type=bounded(1), default=512)
    parser.add_argument("--prompt", default="chat", choices=["chat", "question_only"])
    parser.add_argument("--eos-token", help="ends a turn, <|im_end|> in ChatML; the tokenizer's own without")
    return parser.parse_args()


if __name__ == "__main__":
    run_script(main)
