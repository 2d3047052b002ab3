"""data_prep/filter_traces.py: what is kept is sound, what is dropped has a reason, the bytes follow from the rows."""

import json
import random
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from conftest import REPOSITORY, kill, run_script, script_environment, start
from traces import CHAT, TOKENIZER, digests, solved

SCRIPT = "data_prep/filter_traces.py"
QWEN = ("--eos-token", "<|im_end|>", "--decontaminate", "none")


def write_lines(path: Path, rows: list) -> Path:
    path.write_bytes(b"".join(r if isinstance(r, bytes) else json.dumps(r).encode() + b"\n" for r in rows))
    return path


def prepare(out: Path, *arguments: object, **options) -> dict:
    """By one process where nothing else is said: others import all of it again."""
    processes = () if {"--processes", "--tasks"} & set(arguments) else ("--processes", 1)
    done = run_script(SCRIPT, *arguments, *processes, "--out", out, **options)
    assert done.returncode == 0, done.stderr
    return json.loads((out / "manifest.json").read_text())


REASON_ROWS = {
    "unreadable": [b"{not json\n", b"[1]\n", b'{"question": "\xff\xfe", "response": "x"}\n', {"question": "only"}],
    "invalid_text": [solved(900) | {"response": "\x00 \\boxed{901}"}, solved(901) | {"question": "\ud800 1?"}],
    "too_long": [solved(902) | {"response": " ".join(map(str, range(900))) + "\\boxed{903}"}],
    "too_short": [solved(903) | {"response": ""}],
    "unfinished": [solved(904) | {"response": "<think> hm \\boxed{905}"}],
    "bad_gold": [solved(905) | {"gold": None}, solved(906) | {"gold": {"value": 907}}, solved(907) | {"gold": " "}],
    "no_answer": [solved(908) | {"response": "I give up"}],
    "wrong_answer": [solved(909) | {"response": "it is \\boxed{4}"}],
    "loop": [solved(910) | {"response": "1+1=2 and 2+2=4 and 3+3=6; " * 14 + "\\boxed{911}"}],
    "control_tokens": [solved(911) | {"response": "so <|im_end|> then \\boxed{912}"}],
    "duplicate": [solved(1), solved(2)],
    "near_duplicate": [],
}  # fmt: skip


@pytest.fixture(scope="module")
def mixed(tmp_path_factory) -> Path:
    """Sixty sound rows and a few for every reason."""
    rows = [solved(n) for n in range(60)] + [row for rows in REASON_ROWS.values() for row in rows]
    return write_lines(tmp_path_factory.mktemp("mixed") / "mixed.jsonl", rows)


@pytest.mark.slow
def test_every_reason_is_counted_and_the_dropped_rows_are_kept(mixed, tmp_path):
    manifest = prepare(tmp_path / "out", mixed, *CHAT, "--max-tokens", 512, "--keep-dropped", "--validation", 5)
    expected = {reason: len(rows) for reason, rows in REASON_ROWS.items() if rows}
    assert manifest["counts"]["dropped"] == expected
    assert manifest["counts"]["kept"] == {"train": 55, "validation": 5}
    assert manifest["counts"]["read"] == 60 + sum(expected.values())
    dropped = pq.read_table(tmp_path / "out/dropped.parquet").to_pylist()
    assert {r: sum(row["reason"] == r for row in dropped) for r in expected} == expected
    assert all(row["id"] for row in dropped)


@pytest.fixture(scope="module")
def reference(mixed, tmp_path_factory) -> dict:
    """Digests of the mixed rows' result by one process."""
    out = tmp_path_factory.mktemp("reference") / "out"
    prepare(out, mixed, *CHAT, "--max-tokens", 512, "--keep-dropped", "--processes", 1, "--source", "s", "--n", 40)
    return digests(out)


@pytest.mark.slow
def test_order_processes_shards_and_an_interruption_do_not_change_a_byte(mixed, reference, tmp_path):
    options = (*CHAT, "--max-tokens", 512, "--keep-dropped", "--source", "s", "--n", 40)
    lines = mixed.read_bytes().splitlines(keepends=True)
    shards = tmp_path / "shards"
    shards.mkdir()
    for number in range(4):
        write_lines(shards / f"{number}.jsonl", lines[::-1][number::4])
    prepare(tmp_path / "shards_out", shards, *options, "--processes", 2)
    assert digests(tmp_path / "shards_out") == reference
    prepare(tmp_path / "nodes/out", shards, *options, "--tasks", 2)
    assert digests(tmp_path / "nodes/out") == reference
    # Killed after some of the parts: what is there is used, the rest is made.
    parts = sorted((tmp_path / ".filter_traces").rglob("*.arrow"))
    assert len(parts) == 4
    stamps = {path: path.stat().st_mtime_ns for path in parts[:2]}
    for path in parts[2:]:
        path.unlink()
    parts[3].with_name(f".{parts[3].name}.77.tmp").write_bytes(b"half")
    prepare(tmp_path / "shards_out", shards, *options)
    assert digests(tmp_path / "shards_out") == reference
    assert stamps == {path: path.stat().st_mtime_ns for path in stamps}


def kill_after(n: int, pattern: str, place: Path, command: list[str]) -> None:
    """Start a command and SIGKILL it, with its processes, as soon as `place` holds `n` files of this pattern."""
    process = start(command, config=None)
    deadline = time.monotonic() + 600
    while len(list(place.rglob(pattern))) < n and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.001)
    ended = process.poll()
    kill(process)
    assert ended is None, f"it ended by itself ({ended}) before there were {n} of {pattern}"


@pytest.mark.slow
def test_killed_at_random_moments_the_next_run_gives_the_same_bytes(mixed, reference, tmp_path):
    lines, shards, moments = mixed.read_bytes().splitlines(keepends=True), tmp_path / "shards", random.Random()
    shards.mkdir()
    for number in range(24):
        write_lines(shards / f"{number}.jsonl", lines[number::24])
    command = [SCRIPT, shards, *CHAT, "--max-tokens", 512, "--keep-dropped", "--source", "s", "--n", 40]
    command = [*map(str, command), "--out", str(tmp_path / "out")]
    kill_after(moments.randint(1, 9), "[!.]*.arrow", tmp_path / ".filter_traces", [*command, "--processes", "2"])
    kill_after(moments.randint(10, 20), "[!.]*.arrow", tmp_path / ".filter_traces", [*command, "--processes", "1"])
    kill_after(moments.randint(1, 3), ".*.parquet.*.tmp", tmp_path / "out", [*command, "--processes", "1"])
    assert not (tmp_path / "out/manifest.json").exists()
    prepare(tmp_path / "out", *command[1:-2], "--processes", 2)
    assert digests(tmp_path / "out") == reference
    assert not list((tmp_path / "out").glob("*.tmp"))


@pytest.mark.slow
@pytest.mark.parametrize("budget", [2048, 4096])
def test_real_traces_fit_the_budget_and_ten_lines_of_others_code_agree(shared_data, traces_work, budget):
    from transformers import AutoTokenizer

    from posttrain.data.encode import Encoding, load_split
    from posttrain.grading.grader import Grader, Verdict

    tokenizer = AutoTokenizer.from_pretrained(shared_data / "tokenizers/qwen2.5")
    out = traces_work / str(budget)
    manifest = prepare(
        out, shared_data / "traces/mip_traces.jsonl", "--tokenizer", shared_data / "tokenizers/qwen2.5", "--eos-token",
        "<|im_end|>", "--max-tokens", budget, "--decontaminate", "none",
    )  # fmt: skip

    lengths, sound = [], set()
    traces = [json.loads(line) for line in (shared_data / "traces/mip_traces.jsonl").open()]
    with Grader() as grader:
        golds = [str(trace["gold"]) for trace in traces]
        grades = grader.grade(golds, [trace["response"] for trace in traces], [False] * len(traces))
    for trace, grade in zip(traces, grades, strict=True):
        question, response = trace["question"], trace["response"].strip()
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": response}]
        lengths.append(len(tokenizer(tokenizer.apply_chat_template(turns, tokenize=False).rstrip("\n"))["input_ids"]))
        if lengths[-1] <= budget and trace["gold"] is not None and grade.verdict is Verdict.CORRECT:
            sound.add((question, response))
    dropped = manifest["counts"]["dropped"]
    assert dropped["too_long"] == sum(length > budget for length in lengths)
    assert manifest["counts"]["kept"]["train"] == len(sound) - dropped.get("loop", 0) - dropped.get("near_duplicate", 0)

    tokenizer.eos_token = "<|im_end|>"
    encoding = Encoding("chat", "<|im_end|>", budget, "error")  # an error, were any row longer
    dataset, _ = load_split(out / "train.parquet", tokenizer, encoding, None)
    rows = pq.read_table(out / "train.parquet").to_pylist()
    assert [len(ids) for ids in dataset["input_ids"]] == [row["n_tokens"] for row in rows]
    trl_tokenises_the_same(rows, dataset, tokenizer, budget)


def trl_tokenises_the_same(rows: list[dict], dataset, tokenizer, budget: int) -> None:
    """TRL's own preparation of the longest rows ends in our ids, and after them the newline of Qwen's template."""
    from datasets import Dataset
    from transformers import Qwen2Config, Qwen2ForCausalLM
    from trl import SFTConfig, SFTTrainer

    places = sorted(range(len(rows)), key=lambda i: -rows[i]["n_tokens"])[:40]
    sample = Dataset.from_list([{name: rows[i][name] for name in ("prompt", "completion")} for i in places])
    model = Qwen2ForCausalLM(
        Qwen2Config(vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8, num_hidden_layers=1,
                    num_attention_heads=1, num_key_value_heads=1)
    )  # fmt: skip
    config = SFTConfig(max_length=budget + 1, use_cpu=True, bf16=False, report_to=[], output_dir="unused")
    trainer = SFTTrainer(model, config, train_dataset=sample, processing_class=tokenizer)
    newline = tokenizer("\n")["input_ids"]
    for place, ids in zip(places, trainer.train_dataset["input_ids"], strict=True):
        assert ids == dataset[place]["input_ids"] + newline


@pytest.fixture(scope="module")
def traces_work(tmp_path_factory) -> Path:
    """A directory of datasets that share their parts: the second budget tokenises nothing."""
    return tmp_path_factory.mktemp("traces")


@pytest.mark.slow
def test_gsm8k_math_and_trex_go_through_and_what_touches_a_benchmark_is_reported(shared_data, tmp_path):
    data = tmp_path / "data"
    for name, file in {"math500": "math/math500", "aime24": "aime24/test", "amc23": "amc23/test"}.items():
        done = run_script("data_prep/benchmarks.py", name, "--file", shared_data / f"{file}.jsonl", "--out", data)
        assert done.returncode == 0, done.stderr
    done = run_script(
        "data_prep/gsm8k.py", "--train", shared_data / "gsm8k/train.jsonl", "--test", shared_data / "gsm8k/test.jsonl",
        "--out", data / "gsm8k",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    against = ("--tokenizer", shared_data / "tokenizers/qwen2.5", "--eos-token", "<|im_end|>", "--max-tokens", 2048)
    against += ("--decontaminate", "gsm8k,math500,aime24,amc23", "--data-dir", data)
    for file, n in {"gsm8k/train.jsonl": 7473, "math/math_train_12k.jsonl": 12000}.items():
        out = tmp_path / file.replace("/", "_")
        manifest = prepare(out, shared_data / file, *against, "--near-duplicates", 0)
        counts = manifest["counts"]
        assert counts["read"] == n == sum(counts["kept"].values()) + sum(counts["dropped"].values())
        assert counts["dropped"]["contaminated"] > 0
        assert set(manifest["decontamination"]["against"]) == {"gsm8k", "math500", "aime24", "amc23"}
    # The benchmark itself, as a planted copy: every question is caught.
    done = run_script(SCRIPT, shared_data / "gsm8k/test.jsonl", *against, "--out", tmp_path / "none", "--dry-run")
    assert "contaminated       1,319" in done.stdout
    assert not (tmp_path / "none").exists()
    triples = prepare(
        tmp_path / "trex", shared_data / "trex/triples.jsonl", *against[:6], "--decontaminate", "none", "--no-gold",
        "--prompt-template", "{subject}: {relation}?", "--response-template", "{object}", "--near-duplicates", 0,
    )  # fmt: skip
    assert triples["counts"]["read"] == 26278
    assert set(triples["counts"]["dropped"]) <= {"duplicate"}


def test_a_template_that_ends_otherwise_says_what_to_set(mixed, tmp_path):
    flags = ["--tokenizer", "assets/tiny_init", "--decontaminate", "none", "--max-tokens", 512, "--processes", 1]
    done = run_script(SCRIPT, mixed, *flags, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "untrainable" in done.stdout and "too_short" not in done.stdout
    assert "does not end an answer with '<|endoftext|>'" in done.stderr and "set eos_token" in done.stderr


def test_inputs_without_rows_are_named(tmp_path):
    (tmp_path / "empty.json").write_text("[]")
    done = run_script(SCRIPT, tmp_path, *CHAT, "--max-tokens", 512, "--processes", 1, "--out", tmp_path / "out")
    assert done.returncode == 2 and "empty.json: no rows there" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.slow
def test_what_cannot_be_done_says_why_and_keeps_what_was_complete(mixed, tmp_path):
    def refused(*arguments: object) -> str:
        done = run_script(SCRIPT, *arguments, "--max-tokens", 512, "--out", tmp_path / "out", "--processes", 1)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    assert f"{mixed}:61: not JSON" in refused(mixed, *CHAT, "--strict")
    (tmp_path / "a.csv").write_text("question,gold\nq,1\n")
    error = refused(tmp_path / "a.csv", *CHAT)
    assert "a.csv:2: no known pair of question and response among the columns question, gold" in error
    assert "no row is left to train on" in error
    # A disk that takes no more: bash's limit on the size of a file gives the same error.
    command = [
        sys.executable,
        SCRIPT,
        mixed,
        *CHAT,
        "--max-tokens",
        512,
        "--out",
        tmp_path / "full/out",
        "--processes",
        1,
    ]
    script = f"ulimit -f 8; exec {shlex.join(map(str, command))}"
    full = subprocess.run(
        ["bash", "-c", script], cwd=REPOSITORY, env=script_environment(), capture_output=True, text=True
    )
    assert full.returncode == 2
    assert "could not be written" in full.stderr
    assert "it continues" in full.stderr
    assert not list(tmp_path.rglob("*.tmp"))
    missing = ("--tokenizer", TOKENIZER, "--eos-token", "<|im_end|>", "--data-dir", tmp_path)
    assert "missing; benchmark gsm8k is written by" in refused(mixed, *missing)
    assert not (tmp_path / "out/manifest.json").exists()
