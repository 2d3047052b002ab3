"""src/eval.py and its sampler on CPU: greedy answers do not depend on the batch, wrong input is refused."""

import json
import time
from dataclasses import replace

import pytest
from conftest import REPOSITORY, kill, run_script, start
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.data.benchmarks import BenchmarkError, load_benchmarks
from posttrain.data.prompts import render_prompt
from posttrain.evaluation.results import Result, ResultError
from posttrain.generation.sample import Decoding, Sample
from posttrain.generation.samplers import HfSampler, to_sample
from posttrain.lineage import read_lineage
from posttrain.models.source import ModelError, check_model, evaluation_name


@pytest.fixture(scope="module")
def checkpoint():
    path = REPOSITORY / "assets/tiny_base"
    return AutoModelForCausalLM.from_pretrained(path), AutoTokenizer.from_pretrained(path)


GREEDY = Decoding(max_new_tokens=12, temperature=0.0, top_p=1.0, seed=0, stop_token_ids=(0, 2))


def prompts_of(tokenizer) -> list[list[int]]:
    texts = ["12+7=", "3*9=27. 27-8=", "Ana has 5 pens. Ana buys 3 more. How many pens are there now?", "1"]
    return tokenizer(texts)["input_ids"]


def completions(checkpoint, batch_size: int, decoding: Decoding) -> dict[int, tuple[str, int, str]]:
    model, tokenizer = checkpoint
    samples = HfSampler(model, tokenizer, batch_size).sample(prompts_of(tokenizer), decoding)
    return {s.index: (s.text, s.tokens, s.finish_reason) for s in samples}


def test_greedy_answers_do_not_depend_on_the_batch(checkpoint):
    one, four = completions(checkpoint, 1, GREEDY), completions(checkpoint, 4, GREEDY)
    assert one == four
    assert set(one) == {0, 1, 2, 3}
    assert one[0][0].startswith("19")


def test_sampling_is_seeded(checkpoint):
    def hot(seed):
        return completions(checkpoint, 4, Decoding(12, 1.5, 1.0, seed, (0, 2)))

    assert hot(0) == hot(0) != hot(1)


def test_tokens_count_neither_padding_nor_the_stop(checkpoint):
    _, tokenizer = checkpoint
    stopped = to_sample(0, [5, 6, 7, 2], GREEDY, tokenizer)
    assert (stopped.tokens, stopped.finish_reason) == (3, "stop")
    cut = to_sample(0, [5, 6, 7], GREEDY, tokenizer)
    assert (cut.tokens, cut.finish_reason) == (3, "length")


def test_text_that_stops_a_completion_stays_in_it(checkpoint):
    """As vLLM does with include_stop_str_in_output; what a token holds beyond it, and padding, do not count."""
    whole = completions(checkpoint, 4, GREEDY)
    stop = whole[1][0][:3]
    found = completions(checkpoint, 4, replace(GREEDY, stop=(stop,)))
    assert found[1][0] == stop
    assert found[1][1:] == (len(checkpoint[1](stop)["input_ids"]), "stop")
    unstopped = {index for index, (text, _, _) in whole.items() if stop not in text}
    assert unstopped
    assert all(found[index] == whole[index] for index in unstopped)


def test_a_repetition_penalty_of_the_checkpoint_is_not_applied(checkpoint):
    model, tokenizer = checkpoint
    plain = completions(checkpoint, 4, GREEDY)
    model.generation_config.repetition_penalty = 5.0
    assert completions((model, tokenizer), 4, GREEDY) == plain


def test_prompt_files_are_exact():
    r1 = render_prompt("r1_zero", [{"role": "user", "content": "1+1?"}], tokenizer=None)
    assert r1.endswith("\nUser: 1+1?\nAssistant: <think>")
    assert r1.startswith("A conversation between User and Assistant. The User asks a question,")
    assert render_prompt("question_only", [{"role": "user", "content": "{question}"}], tokenizer=None) == "{question}"


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("outputs/qwen_math_sft/final", "qwen_math_sft"),
        ("outputs/x/checkpoint-50", "x-checkpoint-50"),
        ("Qwen/Qwen2.5-Math-1.5B", "Qwen-Qwen2.5-Math-1.5B"),
        ("assets/tiny_base", "tiny_base"),
    ],
)
def test_results_are_named_after_the_run(model, name, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    assert evaluation_name(model) == name


def test_models_are_checked_before_they_are_loaded(tmp_path):
    check_model("Qwen/Qwen2.5-Math-1.5B")  # a name on the hub is not looked up here
    with pytest.raises(ModelError, match="no such directory"):
        check_model("outputs/none")
    with pytest.raises(ModelError, match=r"has no config.json"):
        check_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(ModelError, match="has no weights"):
        check_model(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    check_model(str(tmp_path), needs_weights=False)
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelError, match="pickle"):
        check_model(str(tmp_path))


def test_benchmarks_are_checked_before_a_model_is_loaded(tiny_data, tmp_path):
    (loaded,) = load_benchmarks("tiny_1step", tiny_data, limit=5)
    assert len(loaded.rows) == 5
    with pytest.raises(BenchmarkError, match="unknown: poetry; known: tiny_1step"):
        load_benchmarks("tiny_1step,poetry", tiny_data, None)
    with pytest.raises(BenchmarkError, match=r"missing; benchmark gsm8k is written by python data_prep/gsm8k.py"):
        load_benchmarks("gsm8k", tmp_path, None)


def test_a_checkpoint_of_a_run_has_the_lineage_of_the_run(tmp_path):
    (tmp_path / "checkpoint-4").mkdir()
    rope = {"rope_theta": 10000.0, "rope_type": "default", "max_position_embeddings": 1024}
    run = {"run_id": "a", "prompt": "r1_zero", "eos_token": None, "rope": {"base": rope, "trained": rope}}
    (tmp_path / "run.json").write_text(json.dumps(run))
    assert read_lineage(tmp_path / "checkpoint-4") == run
    assert read_lineage(tmp_path / "final") is None


def test_a_result_of_nobody_is_not_taken_over(tmp_path):
    (tmp_path / "metrics.json").write_text("{}")
    with pytest.raises(ResultError, match=r"a result without settings.json"):
        Result(tmp_path, {"seed": 0})


def test_an_interrupted_evaluation_keeps_its_samples(tmp_path):
    settings = {"seed": 0, "expected_samples": 4}
    result = Result(tmp_path, settings)
    result.keep(Sample(0, "a", 1, "stop"))
    result.keep(Sample(1, "b", 1, "stop"))
    with (tmp_path / "samples.partial.jsonl").open("a") as file:
        file.write('{"index": 2, "te')
    assert [sample.index for sample in Result(tmp_path, settings).sampled()] == [0, 1]
    with pytest.raises(ResultError, match=r"other settings \(seed\)"):
        Result(tmp_path, settings | {"seed": 1})


def test_samples_cut_inside_a_character_are_read_up_to_there(tmp_path):
    result = Result(tmp_path, {"expected_samples": 2})
    result.keep(Sample(0, "a", 1, "stop"))
    result.keep(Sample(1, "√2", 1, "stop"))
    whole = result.partial.read_bytes()
    result.partial.write_bytes(whole[: whole.index("√".encode()) + 1])
    assert result.sampled() == [Sample(0, "a", 1, "stop")]
    assert result.sampled() == [Sample(0, "a", 1, "stop")]


@pytest.mark.parametrize("temperature", [0.0, 1.3])
def test_what_is_done_is_not_drawn_again_and_the_rest_is_the_same(checkpoint, temperature):
    model, tokenizer = checkpoint
    decoding = Decoding(12, temperature, 1.0, 0, (0, 2))
    sampler = HfSampler(model, tokenizer, 2)
    whole = {s.index: s.text for s in sampler.sample(prompts_of(tokenizer), decoding)}
    done = set(list(whole)[:3])  # one batch and half of the next
    rest = {s.index: s.text for s in sampler.sample(prompts_of(tokenizer), decoding, done)}
    assert rest == {index: text for index, text in whole.items() if index not in done}


@pytest.mark.slow
def test_a_killed_evaluation_ends_with_the_same_bytes_and_score_rebuilds_them(tiny_data, tmp_path):
    def command(out):
        return [
            "src/eval.py", "recipes/tiny_eval.yaml", "--model", "assets/tiny_base", "--data_dir", tiny_data,
            "--benchmarks", "tiny_1step,tiny_2step", "--output_dir", out, "--batch_size", 4, "--num_samples", 2,
            "--temperature", 0.7, "--prompt", "question_only", "--max_new_tokens", 32,
        ]  # fmt: skip

    assert run_script(*command(tmp_path / "whole")).returncode == 0
    process = start([*command(tmp_path / "killed"), "--num_workers", 2], config=None)  # and it goes on with one
    partial = tmp_path / "killed/tiny_1step/samples.partial.jsonl"
    while process.poll() is None and not (partial.is_file() and len(partial.read_bytes()) > 2000):
        time.sleep(0.01)
    kill(process)
    kept = len(partial.read_text().splitlines())
    assert 0 < kept < 40
    done = run_script(*command(tmp_path / "killed"))
    assert done.returncode == 0, done.stderr
    for benchmark in ("tiny_1step", "tiny_2step"):
        for name in ("metrics.json", "samples.jsonl"):
            path = f"{benchmark}/{name}"
            assert (tmp_path / "whole" / path).read_bytes() == (tmp_path / "killed" / path).read_bytes()
        assert not (tmp_path / "killed" / benchmark / "samples.partial.jsonl").exists()
    metrics = tmp_path / "whole/tiny_1step/metrics.json"
    before = metrics.read_bytes()
    metrics.unlink()
    assert run_script("src/score.py", metrics.parent, fresh=True).returncode == 0
    assert metrics.read_bytes() == before
    assert json.loads(before)["pass_at_k"]["1"]


@pytest.mark.slow
def test_a_finished_evaluation_is_kept_and_another_is_refused(tiny_data, tmp_path):
    command = [
        "src/eval.py", "recipes/tiny_eval.yaml", "--model", "assets/tiny_base", "--data_dir", tiny_data,
        "--benchmarks", "tiny_1step", "--output_dir", tmp_path,
    ]  # fmt: skip
    first = run_script(*command)
    assert first.returncode == 0, first.stderr
    path = tmp_path / "tiny_1step/metrics.json"
    written, content = path.stat().st_mtime_ns, json.loads(path.read_text())
    assert content["counts"]["truncated"] == content["n"] == 20
    assert run_script(*command).returncode == 0
    assert path.stat().st_mtime_ns == written
    other = run_script(*command, "--max_new_tokens", 32)
    assert other.returncode == 2
    assert "holds a result of other settings (decoding)" in other.stderr
    too_long = run_script(*command, "--max_new_tokens", 2000)
    assert "max_position_embeddings is 1024" in too_long.stderr
