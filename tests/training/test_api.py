"""The Python front: train, chat and predict do what the commands do."""

import json
import os
import subprocess
import sys

import pytest
from conftest import REPOSITORY, record, run_script
from hypothesis import given
from hypothesis import strategies as st
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from transformers.generation.streamers import BaseStreamer

import posttrain
from posttrain import jsonl, lineage
from posttrain.api import read_result
from posttrain.errors import PosttrainError
from posttrain.recipe.options import SftOptions
from posttrain.recipe.reader import RecipeError, override_arguments, read_overrides
from posttrain.recipe.schema import Field

TINY_BASE = str(REPOSITORY / "assets/tiny_base")
QUESTIONS = ["Ann has 3 apples and buys 4 more. How many has she?", "Tom had 9 pens and lost 2.", "1 + 1"]


@pytest.fixture(scope="module")
def chat() -> posttrain.Chat:
    return posttrain.Chat(TINY_BASE)


class Collect(BaseStreamer):
    def __init__(self) -> None:
        self.ids: list[int] = []

    def put(self, value):
        self.ids += value.flatten().tolist()

    def end(self):
        pass


def test_predict_answers_in_order_what_chat_answers_one_by_one(chat):
    answers = chat.predict(QUESTIONS, max_new_tokens=12)
    assert answers == [chat.chat([{"role": "user", "content": q}], max_new_tokens=12) for q in QUESTIONS]
    assert len(set(answers)) == len(QUESTIONS)
    assert chat.predict(QUESTIONS[0], max_new_tokens=12) == answers[:1]
    assert chat.predict([], max_new_tokens=12) == []


def test_the_streamer_gets_the_answer_token_by_token(chat):
    streamer = Collect()
    answer = chat.chat([{"role": "user", "content": QUESTIONS[0]}], 12, streamer)
    assert chat.tokenizer.decode(streamer.ids[-12:], skip_special_tokens=True).endswith(answer)


def test_the_answer_depends_on_the_history(chat):
    alone = chat.chat([{"role": "user", "content": QUESTIONS[2]}], 12)
    told = [{"role": "user", "content": QUESTIONS[2]}, {"role": "assistant", "content": alone}]
    assert chat.chat([*told, {"role": "user", "content": QUESTIONS[2]}], 12) != alone


def test_a_prompt_with_stop_texts_ends_there_too(chat):
    zero = posttrain.Chat(TINY_BASE, prompt="r1_zero")
    question = [{"role": "user", "content": QUESTIONS[2]}]
    answer = zero.chat(question, 12)
    zero.stop = (answer[3:6],)
    assert zero.predict(QUESTIONS[2], 12) == [zero.chat(question, 12)] != [answer]


def test_sampling_depends_on_the_seed_alone():
    def answer(seed: int) -> str:
        hot = posttrain.Chat(TINY_BASE, temperature=1.5, seed=seed)
        return hot.chat([{"role": "user", "content": QUESTIONS[0]}], 16)

    assert answer(0) == answer(0) != answer(1)


def test_a_conversation_that_fills_the_positions_is_an_error(chat):
    with pytest.raises(PosttrainError, match="begin a new one"):
        chat.chat([{"role": "user", "content": "1 " * chat.checkpoint.positions}])
    with pytest.raises(PosttrainError, match="lower max_new_tokens"):
        chat.predict(QUESTIONS, max_new_tokens=chat.checkpoint.positions)
    with pytest.raises(PosttrainError, match="no such directory"):
        posttrain.Chat("outputs/nosuch/final")


def test_an_adapter_loads_and_one_that_changes_nothing_answers_as_its_base(chat, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE)
    get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(TINY_BASE).save_pretrained(tmp_path)
    assert posttrain.Chat(str(tmp_path)).predict(QUESTIONS, 12) == chat.predict(QUESTIONS, 12)


def test_import_is_light_and_unknown_names_are_errors():
    code = "import posttrain, sys; posttrain.train; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
    with pytest.raises(AttributeError, match="nosuch"):
        _ = posttrain.nosuch


@given(
    st.dictionaries(
        st.sampled_from(["a", "b"]),
        st.one_of(
            st.integers(), st.booleans(), st.none(), st.floats(allow_nan=False, allow_infinity=False),
            st.lists(st.integers()), st.lists(st.text("abc: '\"#-[]{}\\", min_size=1)),
        ),
    )
)  # fmt: skip
def test_any_override_arrives_as_it_was_given(values):
    annotation = "int | bool | float | list[int] | list[str] | None"
    fields = {name: Field(name, annotation, "None", "", ()) for name in ("a", "b")}
    entries, faults = read_overrides(override_arguments(values), fields)
    assert not faults
    assert {entry.key: entry.value for entry in entries} == values


def test_faults_of_a_recipe_are_raised_before_anything_loads():
    with pytest.raises(RecipeError, match="did you mean learning_rate"):
        posttrain.train("recipes/tiny_sft.yaml", overrides={"learning_rat": 1})
    with pytest.raises(PosttrainError, match=r"runs as a command only: python src/eval\.py"):
        posttrain.train("recipes/tiny_eval.yaml")
    with pytest.raises(PosttrainError, match="expected one of sft"):
        posttrain.train("recipes/tiny_sft.yaml", overrides={"trainer": "nosuch"})
    assert SftOptions  # the light modules are enough for all of this


@pytest.mark.parametrize("result", [None, {"steps": 1, "best_metric": None}], ids=["unfinished", "finished"])
def test_a_run_without_a_logged_line_is_read_or_says_what_to_do(tmp_path, result):
    lineage.start_record(tmp_path, {"seed": 0}, {})
    if result is None:
        with pytest.raises(PosttrainError, match="holds no finished run"):
            read_result(tmp_path)
        return
    record = lineage.read_record(tmp_path)
    lineage.write_closed(tmp_path, lineage.closed(tmp_path, record, result))
    assert (read_result(tmp_path).steps, read_result(tmp_path).losses) == (1, [])
    jsonl.write_sealed(
        tmp_path / "run.json", {**record, "result": result, "finished": "2026-01-01"}
    )  # of before `files`
    with pytest.raises(PosttrainError, match=r"metrics\.jsonl: cannot be read .* restore it, or remove"):
        read_result(tmp_path)


def test_logged_lines_that_are_gone_are_missed(tmp_path):
    record = lineage.start_record(tmp_path, {"seed": 0}, {})
    jsonl.append(tmp_path / "metrics.jsonl", [{"step": 1, "loss": 2.0}])
    lineage.write_closed(tmp_path, lineage.closed(tmp_path, record, {"steps": 1}))
    assert read_result(tmp_path).losses == [2.0]
    (tmp_path / "metrics.jsonl").unlink()
    with pytest.raises(PosttrainError, match=r"metrics\.jsonl: cannot be read"):
        read_result(tmp_path)


class Steps(TrainerCallback):
    def __init__(self) -> None:
        self.seen: list[int] = []

    def on_step_end(self, args, state, control, **kwargs):
        self.seen.append(state.global_step)


@pytest.mark.slow
def test_train_returns_what_the_run_wrote_and_goes_on_after_an_interruption(tiny_data, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    keys = {
        "dataset_name": str(tiny_data / "tiny_math"), "output_dir": str(tmp_path / "run"), "max_steps": 6,
        "logging_steps": 1, "save_steps": 2, "eval_steps": 2, "load_best_model_at_end": True, "sample_generations": 0,
    }  # fmt: skip

    class Interrupted(Exception):
        pass

    class Interrupt(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                raise Interrupted

    with pytest.raises(Interrupted):
        posttrain.train("recipes/tiny_sft.yaml", keys, [Interrupt()])
    steps = Steps()
    resumed = posttrain.train("recipes/tiny_sft.yaml", keys, [steps])
    assert steps.seen == [3, 4, 5, 6]
    whole = posttrain.train("recipes/tiny_sft.yaml", {**keys, "output_dir": str(tmp_path / "whole")})
    assert len(whole.losses) == whole.steps == 6
    assert whole.losses == resumed.losses
    evaluated = [line["eval_loss"] for line in whole.metrics if "eval_loss" in line]
    assert whole.best_metric == min(evaluated) == record(tmp_path / "whole")["result"]["best_metric"]
    assert posttrain.train("recipes/tiny_sft.yaml", keys) == resumed  # finished: read, not trained
    assert "WANDB_DIR" not in os.environ  # or the next run in this process would write into the first one's directory


@pytest.mark.slow
def test_chat_streams_remembers_and_compares(tmp_path):
    def talk(*arguments: str, lines: str) -> str:
        done = run_script(
            "src/chat.py", TINY_BASE, "--max_new_tokens", 12, *arguments, text=lines, fresh="--compare" in arguments
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    question = QUESTIONS[2]
    answers = talk(lines=f"{question}\n\n{question}\n/new\n{question}\n").split("> ")
    once, twice, new = (answer.strip() for answer in answers if answer.strip())
    assert once == new != twice
    compared = talk("--compare", TINY_BASE, lines=f"{question}\n/quit\n")
    assert compared.count("── ") == 2
    assert compared.count(once) == 2
    refused = run_script("src/chat.py", "outputs/nosuch")
    assert (refused.returncode, "no such directory" in refused.stderr) == (2, True)
    assert json.loads((REPOSITORY / "assets/tiny_base/config.json").read_text())["model_type"] == "qwen2"
