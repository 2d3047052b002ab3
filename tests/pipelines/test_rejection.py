"""Rejection SFT: the guide's flags, and its walk-through on the tiny world."""

import json
import re
import time

import pytest
import torch
from conftest import REPOSITORY, run_script, start
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.errors import PosttrainError
from posttrain.generation.sample import Decoding, MeasuredSample, unheard
from posttrain.generation.samplers import HfSampler
from posttrain.pipelines import likelihood, sampling_stage
from posttrain.pipelines.expert_iteration import Rounds
from posttrain.pipelines.rejection_sft import reset, translate
from posttrain.pipelines.rollouts import Candidate, Question
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.sampling_options import RoundOptions, SampleOptions

KIND = "expert_iteration"


def test_the_guides_flags_become_fields():
    argv, switches = translate(["r.yaml", "--max-samples", "5", "--eval-size=7", "--checkpoint", "--lora_r", "2"])
    assert argv == ["r.yaml", "--num_questions", "5", "--limit=7", "--lora_r", "2"]
    assert switches == {"--checkpoint"}


@pytest.mark.parametrize(
    ("record", "kept"),
    [({"identity": {"limit": 5}}, ["round_0"]), ({"identity": {"limit": 9}}, []), (None, [])],
    ids=["the same settings", "other settings", "a reset that was killed"],
)
def test_a_reset_removes_the_samples_and_what_other_settings_left(record, kept, tmp_path):
    recipe = read_recipe(
        [f"{REPOSITORY}/recipes/qwen2_0.5b_gsm8k_rejection_lora.yaml", "--output_dir", str(tmp_path)], KIND
    )
    rounds = Rounds(recipe, recipe.build(RoundOptions), recipe.build(SampleOptions), "accelerate_configs/cpu.yaml")
    (tmp_path / "round_0").mkdir()
    if record:
        (tmp_path / "round_1").mkdir()
        (tmp_path / "run.json").write_text(json.dumps(record))
    reset(rounds, {"limit": 5})
    assert (tmp_path / "round_0").is_dir(), "without a buffer the directory is another script's"
    (tmp_path / "rejection_buffer.jsonl").touch()
    reset(rounds, {"limit": 5})
    assert [path.name for path in tmp_path.iterdir()] == kept


class SmallMemory(HfSampler):
    """A GPU that holds so many completions: memory runs out after the first sample of a larger batch."""

    holds: int

    def complete_measured(self, prompts, tick, decoding):
        for index, _ in prompts:
            yield MeasuredSample(index, f"{self.batch_size}", 1, "stop", -1.0, 0.5)
            if self.batch_size > self.holds:
                raise torch.cuda.OutOfMemoryError("CUDA out of memory")


def test_out_of_memory_goes_on_with_half_the_batch_and_gives_advice(capsys):
    base = REPOSITORY / "assets/tiny_base"
    model, tokenizer = AutoModelForCausalLM.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    sampler, asked = SmallMemory(model, tokenizer, 8), [(index, [1]) for index in range(6)]
    decoding, sampler.holds = Decoding(4, 0.0, 1.0, 0, (0,)), 2
    samples = list(sampling_stage.complete(sampler, asked, decoding, unheard))
    assert [(s.index, s.text) for s in samples] == [(0, "8"), (1, "4"), (2, "2"), (3, "2"), (4, "2"), (5, "2")]
    assert capsys.readouterr().err.count("going on with half; shorten --max_new_tokens, or ask less at once") == 2
    sampler.holds = 0
    with pytest.raises(PosttrainError, match="at one completion at once"):
        list(sampling_stage.complete(sampler, asked, decoding, unheard))


@pytest.mark.parametrize(("prompt", "stop"), [("r1_zero", ("</answer>",)), ("chat", ())])
def test_candidates_end_where_their_prompt_says(prompt, stop):
    options = SampleOptions(
        trainer="sample", model_name_or_path=str(REPOSITORY / "assets/tiny_base"), dataset_name="x", output_dir="x",
        prompt=prompt, max_new_tokens=8, num_candidates=1, seed=0,
    )  # fmt: skip
    questions = [Question("q", [{"role": "user", "content": "1+1?"}], "2")]
    with sampling_stage.open_stage(options, questions, {"files": {}}) as stage:
        assert stage.decoding.stop == stop
        assert stage.settings["decoding"]["stop"] == list(stop)


def test_an_end_token_that_was_not_sampled_is_not_measured():
    model = AutoModelForCausalLM.from_pretrained(REPOSITORY / "assets/tiny_base")
    tokenizer = AutoTokenizer.from_pretrained(REPOSITORY / "assets/tiny_base")
    candidates = [Candidate("7</answer>", 3, finish, "7", "correct") for finish in ("stop", "length")]
    prompt = tokenizer("1+6?")["input_ids"]
    (stopped, _), (cut, _) = likelihood.means(candidates, prompt, model, tokenizer, ("</answer>",))
    assert stopped == cut
    (ended, _), _ = likelihood.means(candidates, prompt, model, tokenizer)
    assert ended != cut


@pytest.mark.slow
def test_real_questions_that_nobody_solves_are_counted_right(tmp_path, shared_data, early_sft):
    """The tiny model on GSM8K: every answer is wrong, so nothing is trained on, and the command says so."""
    local = [part for name in ("train", "test") for part in (f"--{name}", shared_data / f"gsm8k/{name}.jsonl")]
    assert run_script("data_prep/gsm8k.py", *local, "--out", tmp_path / "gsm8k", fresh=True).returncode == 0
    command = [
        "src/rejection_sft.py", "recipes/qwen2_0.5b_gsm8k_rejection_lora.yaml", "--max-samples", 5,
        "--num-candidates", 2, "--epochs", 1, "--eval-size", 5, "--output-dir", tmp_path / "out",
        "--model_name_or_path", early_sft, "--dataset_name", tmp_path / "gsm8k", "--data_dir", tmp_path,
        "--max_new_tokens", 64, "--max_length", 512,
    ]  # fmt: skip
    done = run_script(*command)
    assert done.returncode == 2 and "nothing was accepted, so there is nothing to train on" in done.stderr
    assert "Traceback" not in done.stderr
    entries = [json.loads(line) for line in (tmp_path / "out/rejection_buffer.jsonl").read_text().splitlines()]
    assert len(entries) == 5 and not any(entry["trained"] or entry["is_correct"] for entry in entries)
    gone = run_script(*command[:-4], "--server", "http://127.0.0.1:9", "--output_dir", tmp_path / "other")
    assert gone.returncode == 2
    assert "http://127.0.0.1:9: no vLLM server" in gone.stderr and "make serve MODEL=" in gone.stderr


@pytest.mark.slow
def test_the_walk_through(whole_tiny_data, tmp_path):
    data, early, out = whole_tiny_data, tmp_path / "early", tmp_path / "out"
    done = run_script(
        "src/sft.py", "recipes/tiny_sft.yaml", "--dataset_name", data / "tiny_math", "--output_dir", early,
        "--eval_strategy", "no", "--sample_generations", 0,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    command = [
        "src/rejection_sft.py", "recipes/qwen2_0.5b_gsm8k_rejection_lora.yaml", "--max-samples", 8,
        "--num-candidates", 2, "--epochs", 2, "--eval-size", 10, "--checkpoint", "--output-dir", out,
        "--model_name_or_path", early / "final",
        "--dataset_name", data / "tiny_math", "--data_dir", data, "--benchmarks", "tiny_1step",
        "--max_new_tokens", 72, "--max_length", 256, "--temperature", 0.5,
    ]  # fmt: skip
    seen = set()  # lines of the buffer while the command runs
    with (tmp_path / "stderr").open("w") as stderr:
        process = start(command, "accelerate_configs/cpu.yaml", stderr)
        while process.poll() is None:
            if (out / "rejection_buffer.jsonl").exists():
                seen.add((out / "rejection_buffer.jsonl").read_text().count("\n"))
            time.sleep(0.001)
    assert process.returncode == 0, (tmp_path / "stderr").read_text()[-3000:]
    assert len(seen) > 2, "the buffer must grow question by question"
    text = (out / "rejection_sft.stdout").read_text()
    phases = ("Creating Training Run", "Populating Rejection Buffer", "Rejection SFT Training Loop", "Final Evaluation")
    places = [text.index(f"=== Phase {number}: {name} ===") for number, name in enumerate(phases, 1)]
    assert places == sorted(places)
    assert "  machine  CPU, 1 process of 1 thread, float32, sdpa attention" in text
    assert len(re.findall("Epoch.*accuracy", text)) == 2 and re.search(r"Accuracy: \d+\.\d\d%", text)
    entries = [json.loads(line) for line in (out / "rejection_buffer.jsonl").read_text().splitlines()]
    assert len(entries) == 8 and all(len(entry["candidates"]) == 2 for entry in entries)
    assert all(entry["trained"] == entry["is_correct"] == (entry["num_accepted"] > 0) for entry in entries)
    results = json.loads((out / "rejection_sft_results.json").read_text())
    assert results["run_id"] and results["evaluation_metrics"]["total_examples"] == 10 and results["buffer_size"] == 8
    evaluated = sorted(
        str(path.parent.relative_to(out)) for path in out.rglob("metrics.json") if "rollouts" not in str(path)
    )
    assert evaluated == ["round_0/evals/tiny_1step", "round_1/evals/tiny_1step", "round_1/evals_epoch_1/tiny_1step"]
    assert results["training_metrics"]["epoch_stats"][-1]["accuracy"] == results["evaluation_metrics"]["accuracy"]
    timed = [json.loads(line)["stage"] for line in (out / "seconds.jsonl").read_text().splitlines()]
    assert timed == ["evaluate", "sample", "select", "train", "evaluate epoch 1", "evaluate"]
    (kept,) = out.glob("checkpoints/*/rejection_sft_epoch_2")
    assert (kept / "adapter_model.safetensors").is_file() and (kept / "optimizer.pt").is_file()
    alone = run_script(
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", kept, "--data_dir", data, "--benchmarks", "tiny_1step",
        "--limit", 10, "--prompt", "chat", "--max_new_tokens", 72, "--output_dir", tmp_path / "alone",
    )  # fmt: skip
    assert alone.returncode == 0, alone.stderr
    metrics = json.loads((tmp_path / "alone/tiny_1step/metrics.json").read_text())
    assert metrics["accuracy"]["value"] == results["evaluation_metrics"]["accuracy"]
    done = run_script("data_prep/rejection.py", "--audit", out / "round_1/data")
    assert done.returncode == 0, done.stderr
