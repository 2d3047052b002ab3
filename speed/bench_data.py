"""Measure what preparing traces costs beside tokenising them, in one run: aims C1 to C6.

    make bench-data ARGS="--data ../shared/data/traces/mip_traces.jsonl --tokenizer ../shared/data/tokenizers/qwen2.5"

First CPU seconds of one thread, so a shared machine matters less. The sides take turns, each in a process of its own,
as they would be run: a heap that another side has used made `encode_batch_fast` up to 60 % slower. Every process does
its work twice and times the second; the median of the rounds' ratios is printed with its range. Both sides must find
the same rows within the budget. Symbolic comparison of answers runs in a further process and is not in these seconds.

Then wall time on all cores, from the start of a command to its end, over `COPIES` copies of the file whose questions
differ: the loop on its one core, `encode_batch` on all, `datasets.map` with a process per core, and
`data_prep/filter_traces.py` with and without fastokens.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # before the tokenizer is loaded: one thread each

from datasets import Dataset

from posttrain.data import token_files
from posttrain.data.encode import Encoding, load_split, load_tokenizer
from posttrain.data.packing import pack
from posttrain.data.tokenise import FASTOKENS
from posttrain.data.traces import selection, writer
from posttrain.data.traces.contamination import build_index
from posttrain.data.traces.inputs import batches, find_inputs
from posttrain.data.traces.parts import PartMaker, Settings, write_part
from posttrain.data.traces.shapes import Shape, read_trace

EOS, BUDGET, COPIES = "<|im_end|>", 4096, 8
TEXTS = 10_000  # that encode_batch gets at once: its encodings of a large file would not fit into memory
FILTER = Path(__file__).parent.parent / "data_prep" / "filter_traces.py"
RATIOS = {
    "C1 posttrain by (a), aim 1.8 on two cores, 0.9 on one": ("(a) row by row", "posttrain"),
    "C2 with fastokens by (a), aim 10 on two cores, 5 on one": ("(a) row by row", "posttrain, fastokens"),
    "C3 posttrain by (c), aim 0.85": ("(c) encode_batch", "posttrain"),
    "C4 new limit by (a), aim 100": ("(a) row by row", "new limit"),
    "C5 ready for SFT by TRL on messages, aim 20": ("ready, TRL", "ready, posttrain"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="JSON lines of traces")
    parser.add_argument("--tokenizer", help="directory or hub name")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--wall-rounds", type=int, default=1)
    parser.add_argument("--side", help="run this one alone and print its seconds: what the benchmark calls itself for")
    parser.add_argument("--directory", type=Path, help="of --side: where the prepared dataset lies")
    arguments = parser.parse_args()
    if arguments.data is None or arguments.tokenizer is None:
        sys.exit("error: needs traces and a tokenizer: make bench-data ARGS='--data FILE --tokenizer DIRECTORY'")
    if arguments.side:
        run_side(arguments)
        return
    with tempfile.TemporaryDirectory() as directory:
        one_thread(arguments, Path(directory))
        all_cores(arguments, Path(directory))


# Sides, each in a process of its own


class Sides:
    """The sides of the comparison, over the same rows."""

    def __init__(self, data: Path, tokenizer: str, directory: Path) -> None:
        self.data, self.directory = data, directory
        self.tokenizer = load_tokenizer(tokenizer, None, EOS)
        self.settings = Settings(tokenizer, None, "chat", EOS, False, True, 8, "bench", Shape())
        self.known: dict[str, Callable[[], int | None]] = {
            "(a) row by row": self.naive,
            "(b) datasets.map": self.map,
            "(c) encode_batch": self.encode_batch,
            "posttrain": self.prepare,
            "posttrain, fastokens": self.prepare,
            "new limit": self.new_limit,
            "ready, TRL": self.trl_ready,
            "ready, posttrain": self.ready,
        }

    @functools.cached_property
    def lines(self) -> list[list[tuple[int, bytes | str]]]:
        return list(batches(find_inputs([self.data])[0].items()))

    @functools.cached_property
    def messages(self) -> list[list[dict[str, str]]]:
        traces = [read_trace(line, Shape()) for batch in self.lines for _, line in batch]
        return [[*t.prompt, {"role": "assistant", "content": t.response.strip()}] for t in traces]

    @functools.cached_property
    def rendered(self) -> list[str]:
        return self.tokenizer.apply_chat_template(self.messages, tokenize=False)

    @functools.cached_property
    def maker(self) -> PartMaker:
        return PartMaker(self.settings, build_index("none", self.directory))

    def naive(self) -> int:
        """The loop that everybody writes first."""
        kept = 0
        for batch in self.lines:
            for _, line in batch:
                row = json.loads(line)
                turns = [{"role": "user", "content": row["question"]}]
                turns.append({"role": "assistant", "content": row["response"].strip()})
                text = self.tokenizer.apply_chat_template(turns, tokenize=False)
                kept += len(self.tokenizer(text.rstrip("\n")).input_ids) <= BUDGET
        return kept

    def map(self) -> None:
        rows = Dataset.from_list([{"messages": messages} for messages in self.messages])
        rows = rows.map(functools.partial(map_length, self.tokenizer), num_proc=cores())
        rows.filter(lambda n: n <= BUDGET, input_columns=["n"])

    def encode_batch(self) -> None:
        """Nothing but the tokenizer, on texts that are rendered already."""
        for start in range(0, len(self.rendered), TEXTS):
            self.tokenizer.backend_tokenizer.encode_batch(self.rendered[start : start + TEXTS])

    def prepare(self) -> int:
        """Everything: parse, filter, tokenise, grade, sign, decide, write rows and ids."""
        parts = []
        for number, batch in enumerate(self.lines):
            parts.append(self.directory / f"{number}.arrow")
            write_part(self.maker.table(batch), parts[-1])
        table = selection.load_table(parts)
        split = selection.decide(table, limits(), parts)
        key = token_files.ids_key(self.tokenizer, "chat", EOS)
        writer.write_files(self.directory, parts, 0, table, split, key, dropped=False)
        return len(split) - selection.counts(table).get("too_long", 0)

    def new_limit(self) -> None:
        """What a recipe with another max_length does to a prepared dataset."""
        load_split(self.directory / "train.parquet", self.tokenizer, Encoding("chat", EOS, 2048, "drop"), None)

    def ready(self) -> None:
        from posttrain.methods.sft import RecipeTrainer

        encoding = Encoding("chat", EOS, BUDGET, "error")
        dataset, _ = load_split(self.directory / "train.parquet", self.tokenizer, encoding, None)
        self.trainer(RecipeTrainer, dataset, dataset_kwargs={"skip_prepare_dataset": True})

    def trl_ready(self) -> None:
        from trl import SFTTrainer

        rows = selection.pq.read_table(self.directory / "train.parquet", columns=["prompt", "completion"]).to_pylist()
        self.trainer(SFTTrainer, Dataset.from_list(rows))

    def trainer(self, kind: type, dataset: Dataset, **options: Any) -> None:
        from transformers import Qwen2Config, Qwen2ForCausalLM
        from trl import SFTConfig

        config = SFTConfig(
            max_length=BUDGET + 1,
            use_cpu=True,
            bf16=False,
            report_to=[],
            disable_tqdm=True,
            output_dir=str(self.directory),
            **options,
        )
        sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
        model = Qwen2ForCausalLM(Qwen2Config(vocab_size=len(self.tokenizer), num_key_value_heads=1, **sizes))
        kind(model=model, args=config, train_dataset=dataset, processing_class=self.tokenizer)

    def packing(self) -> None:
        """C6: how full packed rows are, of what is kept and of everything within the budget."""
        from trl import pack_dataset

        self.settings = Settings(*{**vars(self.settings), "check_answer": False}.values())
        table = self.maker.table([item for batch in self.lines for item in batch])
        everything = self.directory / "everything.arrow"
        write_part(table, everything)
        rows = selection.load_table([everything])
        split = selection.decide(rows, limits(near=None), [everything])
        (self.directory / "everything").mkdir()
        key = token_files.ids_key(self.tokenizer, "chat", EOS)
        writer.write_files(self.directory / "everything", [everything], 0, rows, split, key, dropped=False)
        for name, length in itertools.product((".", "everything"), (2048, BUDGET)):
            path = self.directory / name / "train.parquet"
            dataset, _ = load_split(path, self.tokenizer, Encoding("chat", EOS, length, "drop"), None)
            tokens = sum(map(len, dataset["input_ids"]))
            ours, theirs = (
                tokens / (len(packed) * length) for packed in (pack(dataset, length), pack_dataset(dataset, length))
            )
            kind = "kept rows" if name == "." else "rows right or wrong"
            print(f"C6 packing fill at {length}, {len(dataset)} {kind}: {ours:.2%}, TRL {theirs:.2%}")


def run_side(arguments: argparse.Namespace) -> None:
    """One side twice, and the CPU seconds of the second; after `all cores:`, once."""
    sides = Sides(arguments.data, arguments.tokenizer, arguments.directory)
    if arguments.side == "packing":
        sides.packing()
        return
    name = arguments.side.removeprefix("all cores: ")
    kept = sides.known[name]()
    began = time.process_time()
    if name == arguments.side:
        kept = sides.known[name]()
    print(json.dumps({"seconds": time.process_time() - began, "kept": kept}))


def map_length(tokenizer: Any, row: dict[str, Any]) -> dict[str, int]:
    return {"n": len(tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False)).input_ids)}


def limits(near: float | None = 0.8) -> selection.Limits:
    return selection.Limits(BUDGET, "prompt+response", 2, near, None, None, 0, None, 42)


def cores() -> int:
    return len(os.sched_getaffinity(0))


# What calls them


def call(arguments: argparse.Namespace, side: str, data: Path, directory: Path, **environment: str) -> str:
    """The last line a side prints."""
    fastokens = {FASTOKENS: "1" if side.endswith("fastokens") else "0"}
    command = [sys.executable, __file__, "--side", side, "--data", str(data), "--tokenizer", arguments.tokenizer]
    command += ["--directory", str(directory)]
    done = subprocess.run(command, env={**os.environ, **fastokens, **environment}, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return done.stdout.strip() if side == "packing" else done.stdout.strip().splitlines()[-1]


def one_thread(arguments: argparse.Namespace, directory: Path) -> None:
    """CPU seconds of every side, in turn, and their ratios."""
    megabytes, rows = arguments.data.stat().st_size / 1e6, sum(1 for _ in arguments.data.open())
    print(f"{megabytes:.1f} MB, {rows} rows")
    names = ["(a) row by row", "(c) encode_batch", "posttrain", "posttrain, fastokens", "new limit"]
    names += ["ready, TRL", "ready, posttrain"]
    rounds: list[dict[str, float]] = []
    for _ in range(arguments.rounds):
        found = {name: json.loads(call(arguments, name, arguments.data, directory)) for name in names}
        kept = {name: one["kept"] for name, one in found.items() if one["kept"] is not None}
        if len(set(kept.values())) != 1:
            raise SystemExit(f"the sides disagree on what fits: {kept}")
        rounds.append({name: one["seconds"] for name, one in found.items()})
    for name in names:
        seconds = statistics.median(one[name] for one in rounds)
        print(f"{name:22} {seconds:8.3f} s {megabytes / seconds:10.2f} MB/s {rows / seconds:12,.0f} rows/s")
    show_ratios(rounds, RATIOS)
    print(f"the sides find the same {kept['posttrain']} rows within {BUDGET} tokens")
    print(call(arguments, "packing", arguments.data, directory))


def all_cores(arguments: argparse.Namespace, directory: Path) -> None:
    """Wall seconds of whole commands."""
    large = directory / "large.jsonl"
    with large.open("w") as file:
        for copy, line in itertools.product(range(COPIES), arguments.data.open()):
            row = json.loads(line)
            print(json.dumps({**row, "question": f"Case {copy}. {row['question']}"}), file=file)
    megabytes = large.stat().st_size / 1e6
    rounds = []
    for _ in range(arguments.wall_rounds):
        seconds = {}
        for name in ("(a) row by row", "(c) encode_batch", "(b) datasets.map"):
            threads = "true" if name.startswith("(c)") else "false"
            began = time.perf_counter()
            call(arguments, f"all cores: {name}", large, directory, TOKENIZERS_PARALLELISM=threads)
            seconds[name] = time.perf_counter() - began
        for name, fastokens in (("posttrain", "0"), ("posttrain, fastokens", "1")):
            command = [sys.executable, str(FILTER), str(large), "--tokenizer", arguments.tokenizer, "--eos-token", EOS]
            command += ["--max-tokens", str(BUDGET), "--decontaminate", "none", "--out", str(directory / name / "out")]
            began = time.perf_counter()
            subprocess.run(command, env={**os.environ, FASTOKENS: fastokens}, capture_output=True, check=True)
            seconds[name] = time.perf_counter() - began
        rounds.append(seconds)
    print(f"{cores()} cores, {megabytes:.0f} MB, wall, from the start of a command to its end:")
    for name in rounds[0]:
        median = statistics.median(one[name] for one in rounds)
        print(f"{name:22} {median:8.1f} s {megabytes / median:10.2f} MB/s")
    show_ratios(rounds, {name: sides for name, sides in RATIOS.items() if name.startswith(("C1", "C2", "C3"))})


def show_ratios(rounds: list[dict[str, float]], ratios: dict[str, tuple[str, str]]) -> None:
    for name, (slow, fast) in ratios.items():
        found = sorted(one[slow] / one[fast] for one in rounds)
        print(f"{name}: {statistics.median(found):.2f} ({found[0]:.2f}–{found[-1]:.2f})")


if __name__ == "__main__":
    main()
