"""src/eval.py and its sampler on CPU: greedy answers do not depend on the batch, wrong input is refused."""

import json

import pytest
from conftest import REPOSITORY, run_script
from transformers import AutoModelForCausalLM, AutoTokenizer

from posttrain.benchmarks import BenchmarkError, load_benchmarks
from posttrain.model_source import ModelError, check_model, evaluation_name
from posttrain.prompts import render_prompt
from posttrain.sampling import Decoding, HfSampler


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
    model, tokenizer = checkpoint
    sampler = HfSampler(model, tokenizer, 4)
    stopped = sampler._sample(0, [5, 6, 7, 2, 0, 0], GREEDY)
    assert (stopped.tokens, stopped.finish_reason) == (3, "stop")
    cut = sampler._sample(0, [5, 6, 7], GREEDY)
    assert (cut.tokens, cut.finish_reason) == (3, "length")


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
