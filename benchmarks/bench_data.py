"""What preparing traces costs beside tokenising them, in one run: aims C1 to C6.

    make bench-data ARGS="--data ../shared/data/traces/mip_traces.jsonl --tokenizer ../shared/data/tokenizers/qwen2.5"

Times are CPU seconds of this process on one thread, so a shared machine matters less; the sides of a ratio take turns
and the median of the rounds' ratios is printed with its range. So the ratios are those of one core; data_prep uses all
of them, the loop one. What all cores take together is wall time, once, starts included: (b) beside data_prep's own
processes, these over `COPIES` copies of the file whose questions differ. Both sides must find the same rows within the
budget. Symbolic comparison of answers runs in a process of its own and is not in the CPU seconds.
"""

import argparse
import functools
import itertools
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["TOKENIZERS_PARALLELISM"] = "false"  # before the tokenizer is loaded: one thread each

from datasets import Dataset
from transformers import Qwen2Config, Qwen2ForCausalLM
from trl import SFTConfig, SFTTrainer, pack_dataset

from posttrain import prepared, selection
from posttrain.contamination import build_index
from posttrain.encode import Encoding, load_split, load_tokenizer, pack
from posttrain.parts import PartMaker, Settings, make_parts, write_part
from posttrain.readers import batches, find_inputs
from posttrain.shapes import Shape, read_trace
from posttrain.tokenise import fastest, token_ids
from posttrain.trainer import RecipeTrainer

EOS, BUDGET, COPIES = "<|im_end|>", 4096, 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="JSON lines of traces")
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, help="of 4 MB; the CPU side reads so many, all without it")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as directory:
        bench = Bench(arguments.data, arguments.tokenizer, arguments.batches, Path(directory))
        print(f"{bench.megabytes:.1f} MB, {len(bench.messages)} rows")
        rounds: list[dict[str, float]] = []
        for number in range(arguments.rounds + 1):
            seconds = {name: cpu_seconds(side) for name, side in bench.sides().items()}
            if number:  # the first is the warm-up
                rounds.append(seconds)
        show(rounds, bench.megabytes, len(bench.messages))
        bench.check()
        bench.packing()
        bench.all_cores()


class Bench:
    """The sides of the comparison, over the same rows."""

    def __init__(self, data: Path, tokenizer: str, n: int | None, directory: Path) -> None:
        self.data, self.directory = data, directory
        self.batches = list(itertools.islice(batches(find_inputs([data])[0].items()), n))
        self.megabytes = sum(len(line) for batch in self.batches for _, line in batch) / 1e6
        self.tokenizer = load_tokenizer(tokenizer, None, EOS)
        self.settings = Settings(tokenizer, None, "chat", EOS, False, True, 8, "bench", Shape())
        self.index = build_index("none", directory)
        self.exact, self.fast = (PartMaker(self.settings, self.index) for _ in range(2))
        self.exact.tokenise = functools.partial(token_ids, self.exact.tokenizer)
        self.fast.tokenise = fastest(self.fast.tokenizer)
        traces = [read_trace(line, Shape()) for batch in self.batches for _, line in batch]
        self.messages = [[*t.prompt, {"role": "assistant", "content": t.response.strip()}] for t in traces]
        self.rendered = self.tokenizer.apply_chat_template(self.messages, tokenize=False)
        self.kept = {"naive": 0, "posttrain": 0}

    def sides(self) -> dict[str, Callable[[], Any]]:
        return {
            "(a) row by row": self.naive,
            "(c) encode_batch": lambda: self.tokenizer.backend_tokenizer.encode_batch(self.rendered),
            "posttrain": lambda: self.prepare(self.exact),
            "posttrain, fastokens": lambda: self.prepare(self.fast),
            "new limit": self.new_limit,
            "ready, TRL": self.trl_ready,
            "ready, posttrain": self.ready,
        }

    def naive(self) -> None:
        """The loop that everybody writes first."""
        kept = 0
        for batch in self.batches:
            for _, line in batch:
                row = json.loads(line)
                turns = [{"role": "user", "content": row["question"]}]
                turns.append({"role": "assistant", "content": row["response"].strip()})
                text = self.tokenizer.apply_chat_template(turns, tokenize=False)
                kept += len(self.tokenizer(text.rstrip("\n")).input_ids) <= BUDGET
        self.kept["naive"] = kept

    def prepare(self, maker: PartMaker) -> None:
        """Everything: parse, filter, tokenise, grade, sign, decide, write rows and ids."""
        parts = []
        for number, batch in enumerate(self.batches):
            parts.append(self.directory / f"{number}.arrow")
            write_part(maker.table(batch), parts[-1])
        table = selection.load_table(parts)
        split = selection.decide(table, limits(), parts)
        self.kept["posttrain"] = len(split) - selection.counts(table).get("too_long", 0)
        key = prepared.ids_key(self.tokenizer, "chat", EOS)
        selection.write_files(self.directory, parts, 0, table, split, key, dropped=False)

    def new_limit(self) -> None:
        """What a recipe with another max_length does to a prepared dataset."""
        load_split(self.directory / "train.parquet", self.tokenizer, Encoding("chat", EOS, 2048, "drop"), None)

    def ready(self) -> None:
        encoding = Encoding("chat", EOS, BUDGET, "error")
        dataset, _ = load_split(self.directory / "train.parquet", self.tokenizer, encoding, None)
        self.trainer(RecipeTrainer, dataset, dataset_kwargs={"skip_prepare_dataset": True})

    def trl_ready(self) -> None:
        rows = selection.pq.read_table(self.directory / "train.parquet", columns=["prompt", "completion"]).to_pylist()
        self.trainer(SFTTrainer, Dataset.from_list(rows))

    def trainer(self, kind: type, dataset: Dataset, **options: Any) -> None:
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

    def check(self) -> None:
        """The naive loop and data_prep agree on what fits."""
        if self.kept["naive"] != self.kept["posttrain"]:
            raise SystemExit(f"the sides disagree: {self.kept}")
        print(f"both sides find the same {self.kept['naive']} rows within {BUDGET} tokens")

    def packing(self) -> None:
        """C6: how full packed rows are."""
        for length in (2048, BUDGET):
            encoding = Encoding("chat", EOS, length, "drop")
            dataset, _ = load_split(self.directory / "train.parquet", self.tokenizer, encoding, None)
            tokens = sum(map(len, dataset["input_ids"]))
            ours, theirs = (
                tokens / (len(rows) * length) for rows in (pack(dataset, length), pack_dataset(dataset, length))
            )
            print(f"C6 packing fill at {length}: {ours:.2%}, TRL {theirs:.2%}")

    def all_cores(self) -> None:
        """(b): datasets.map with a process per core against data_prep's processes; wall, starts included."""
        cores = len(os.sched_getaffinity(0))
        large = self.directory / "large.jsonl"
        with large.open("w") as file:
            for copy, line in itertools.product(range(COPIES), self.data.open()):
                row = json.loads(line)
                print(json.dumps({**row, "question": f"Case {copy}. {row['question']}"}), file=file)
        megabytes = large.stat().st_size / 1e6
        began = time.perf_counter()
        rows = Dataset.from_list([{"messages": messages} for messages in self.messages])
        rows = rows.map(functools.partial(map_length, self.tokenizer), num_proc=cores)
        rows.filter(lambda n: n <= BUDGET, input_columns=["n"])
        mapped = self.megabytes / (time.perf_counter() - began)
        began = time.perf_counter()
        parts, sizes = zip(
            *make_parts(find_inputs([large]), self.settings, self.index, self.directory / "all", cores), strict=True
        )
        made = time.perf_counter()
        table = selection.load_table(list(parts))
        split = selection.decide(table, limits(), list(parts))
        (self.directory / "out").mkdir()
        selection.write_files(self.directory / "out", list(parts), sum(sizes), table, split, "bench", dropped=False)
        ended = time.perf_counter()
        print(f"{cores} processes, wall: (b) datasets.map {mapped:.2f} MB/s")
        print(
            f"{cores} processes, wall: posttrain {megabytes / (ended - began):.2f} MB/s of {megabytes:.0f} MB "
            f"({made - began:.1f} s row by row, {ended - made:.1f} s together)"
        )


def map_length(tokenizer: Any, row: dict[str, Any]) -> dict[str, int]:
    return {"n": len(tokenizer(tokenizer.apply_chat_template(row["messages"], tokenize=False)).input_ids)}


def limits() -> selection.Limits:
    return selection.Limits(BUDGET, "prompt+response", 2, 0.8, None, None, 0, None, 42)


def cpu_seconds(side: Callable[[], Any]) -> float:
    began = time.process_time()
    side()
    return time.process_time() - began


def show(rounds: list[dict[str, float]], megabytes: float, rows: int) -> None:
    """Rates of every side, and the ratios that the aims are about."""
    for name in rounds[0]:
        seconds = statistics.median(one[name] for one in rounds)
        print(f"{name:22} {seconds:8.3f} s {megabytes / seconds:10.2f} MB/s {rows / seconds:12,.0f} rows/s")
    ratios = {
        "C1 posttrain by (a), aim 1.8 on two cores, 0.9 on one": ("(a) row by row", "posttrain"),
        "C2 with fastokens by (a), aim 10 on two cores, 5 on one": ("(a) row by row", "posttrain, fastokens"),
        "C3 posttrain by (c), aim 0.85": ("(c) encode_batch", "posttrain"),
        "C4 new limit by (a), aim 100": ("(a) row by row", "new limit"),
        "C5 ready for SFT by TRL on messages, aim 20": ("ready, TRL", "ready, posttrain"),
    }
    for name, (slow, fast) in ratios.items():
        found = sorted(one[slow] / one[fast] for one in rounds)
        print(f"{name}: {statistics.median(found):.2f} ({found[0]:.2f}–{found[-1]:.2f})")


if __name__ == "__main__":
    main()
