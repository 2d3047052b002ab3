"""The small runs that tests/cluster starts on hosts, and what is compared of them."""

import json
from pathlib import Path

TWO = "accelerate_configs/cpu_2proc.yaml"
SHORT = {
    "max_steps": 10, "logging_steps": 1, "save_steps": 5, "eval_strategy": "no", "sample_generations": 0,
}  # fmt: skip
HALF = {"per_device_train_batch_size": 2}  # on each of two processes


def arguments(data: Path, out: Path, **changes: object) -> list[str]:
    values = {"dataset_name": data / "tiny_math", "output_dir": out, **SHORT, **changes}
    return ["src/sft.py", "recipes/tiny_sft.yaml", *flags(values)]


def flags(values: dict[str, object]) -> list[str]:
    """Values of recipe keys as words of a command line."""
    return [str(part) for key, value in values.items() for part in (f"--{key}", value)]


def grpo_with_a_server(model: Path, data: Path, out: Path, **changes: object) -> list[str]:
    """Recipe and overrides of a short GRPO run whose server is the host of that name; both sides are given them."""
    values = {
        "model_name_or_path": model, "use_vllm": "true", "vllm_mode": "server", "vllm_server_host": "server",
        "vllm_server_timeout": 60, "vllm_importance_sampling_correction": "true", "canary_tolerance": 1e-4,
        "max_steps": 3, "per_device_train_batch_size": 8, "gradient_accumulation_steps": 1, "num_generations": 4,
        "save_steps": 2, "guard_steps": 0, "probe": "warn", "vllm_max_model_length": 768,
        "dataset_name": data / "tiny_math", "output_dir": out, **changes,
    }  # fmt: skip
    return ["recipes/tiny_grpo.yaml", *flags(values)]


def losses(out: Path) -> list[float]:
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def write_traces(out: Path, files: int = 4, rows: int = 30) -> None:
    """A directory of files of rows, the third of which holds one that is no row."""
    for number in range(files):
        made = [
            {"problem": f"What is {n} + {number}?", "solution": f"It is \\boxed{{{n + number}}}."} for n in range(rows)
        ]
        lines = [json.dumps({**row, "answer": row["solution"][13:-2]}) for row in made]
        (out / f"{number}.jsonl").write_text("\n".join([*lines, "no row" if number == 2 else lines[0], ""]))


def trace_options(traces: Path) -> list[object]:
    return [
        traces, "--tokenizer", "assets/tiny_base", "--eos-token", "<|im_end|>", "--max-tokens", 512, "--keep-dropped",
        "--source", "s", "--decontaminate", "none", "--no-gold",
    ]  # fmt: skip


def files(out: Path) -> dict[str, bytes]:
    """Every file of a dataset; its manifest without the command that wrote it."""
    found = {path.name: path.read_bytes() for path in out.iterdir() if path.suffix == ".parquet"}
    return found | {"counts": json.dumps(json.loads((out / "manifest.json").read_text())["counts"]).encode()}
