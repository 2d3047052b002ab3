"""Sampling, selection and rounds: pure rules by properties, hostile files, and three rounds end to end."""

import pytest
from conftest import REPOSITORY, run_script
from hypothesis import given
from hypothesis import strategies as st

from posttrain.data.manifest import Source, write_dataset
from posttrain.data.rows import chat_row
from posttrain.errors import PosttrainError
from posttrain.generation.sample import Sample
from posttrain.grading.grader import Grader, Verdict
from posttrain.pipelines.candidates import (
    SELECTS,
    Rule,
    accepted,
    audit_dataset,
    select_rows,
    selected,
    why_nothing,
    write_selection,
)
from posttrain.pipelines.expert_iteration import Rounds
from posttrain.pipelines.rollouts import (
    Candidate,
    Question,
    Rollout,
    RolloutFile,
    draw_questions,
    read_rollouts,
    verify,
)
from posttrain.recipe.reader import read_recipe
from posttrain.recipe.sampling_options import RoundOptions, SampleOptions

PROMPT = [{"role": "user", "content": "What is 1+1?"}]
candidates = st.builds(
    Candidate,
    text=st.text(min_size=1, max_size=20),
    tokens=st.integers(1, 50),
    finish_reason=st.sampled_from(["stop", "length"]),
    answer=st.sampled_from(["1", "2", "2.00001", "x", None]),
    verdict=st.sampled_from([verdict.value for verdict in Verdict]),
    logprob=st.floats(-5, 0),
    entropy=st.floats(0, 5),
)
rollouts = st.lists(
    st.builds(Rollout, st.uuids().map(str), st.just(PROMPT), st.just("2"), st.lists(candidates, max_size=6))
)


def candidate(text: str, verdict: str = "correct", tokens: int = 5, finish: str = "stop", logprob: float | None = None):
    return Candidate(text, tokens, finish, "2", verdict, logprob, 0.1)


def rollout(*all_candidates: Candidate) -> Rollout:
    return Rollout("q", PROMPT, "2", list(all_candidates))


@given(rollouts, st.sampled_from(SELECTS), st.one_of(st.none(), st.integers(1, 3)))
def test_a_wrong_answer_never_becomes_a_training_row(planted, select, cap):
    rows, dropped = select_rows(planted, Rule("correct", select, max_per_question=cap))
    correct = {c.text for r in planted for c in r.candidates if c.verdict == "correct" and c.finish_reason == "stop"}
    assert {row.completion[0]["content"] for row in rows} <= correct
    assert len(rows) + sum(dropped.values()) == sum(len(r.candidates) for r in planted)
    assert len({row.id for row in rows}) == len(rows)


@given(rollouts, st.sampled_from(SELECTS))
def test_a_question_with_an_accepted_candidate_gives_a_row(planted, select):
    for entry in planted:
        kept = selected(entry, Rule("correct", select))
        assert bool(kept) == bool(accepted(entry, Rule("correct", select)))
        assert select == "all_correct" or len(kept) <= 1


def test_selection_rules_choose_as_they_say():
    entry = rollout(
        candidate("wrong", "wrong", 1, logprob=-0.1),
        candidate("long", tokens=9, logprob=-0.5),
        candidate("short", tokens=3, logprob=-0.9),
        candidate("likely", tokens=7, logprob=-0.2),
        candidate("long ", tokens=9, logprob=-0.5),
    )
    chosen = {select: [c.text for c in selected(entry, Rule(select=select))] for select in SELECTS}
    assert chosen["first"] == ["long"]
    assert chosen["shortest"] == ["short"]
    assert chosen["highest_logprob"] == ["likely"]
    assert chosen["all_correct"] == ["long", "short", "likely"]
    assert [c.text for c in selected(entry, Rule(select="all_correct", max_per_question=2))] == ["long", "short"]
    with pytest.raises(PosttrainError, match="carry no log-probabilities"):
        selected(rollout(candidate("x")), Rule(select="highest_logprob"))


def test_named_options_accept_more_than_correct_answers():
    near = Candidate("near", 5, "stop", "2.00001", "wrong")
    entry = rollout(candidate("wrong", "wrong"), near)
    entry = Rollout("q", PROMPT, "2", [Candidate("off", 5, "stop", "7", "wrong"), near])
    assert accepted(entry, Rule("correct")) == []
    assert accepted(entry, Rule("threshold", threshold=0.9)) == [near]
    assert accepted(entry, Rule("threshold", threshold=1.5)) == []
    assert accepted(entry, Rule("best")) == [near]
    assert [c.text for c in accepted(rollout(candidate("off", "unparsed")), Rule("best"))] == ["off"]


def test_a_right_answer_that_was_cut_off_is_not_trained_on():
    assert accepted(rollout(candidate("\\boxed{2} and", finish="length")), Rule()) == []


@pytest.mark.parametrize("names", ["gsm8k,", "math500, gsm8k"])
def test_the_mark_of_an_evaluation_is_that_of_its_last_benchmark(names, tmp_path):
    recipe = read_recipe(
        [str(REPOSITORY / "recipes/tiny_ei.yaml"), "--benchmarks", names, "--output_dir", str(tmp_path)],
        "expert_iteration",
    )
    rounds = Rounds(recipe, recipe.build(RoundOptions), recipe.build(SampleOptions), "accelerate_configs/cpu.yaml")
    assert rounds.evaluate(0).mark == tmp_path / "round_0/evals/gsm8k/metrics.json"


def test_why_nothing_was_accepted_names_the_commonest_verdict():
    assert "raise max_new_tokens" in why_nothing({"truncated": 9, "wrong": 1}, 0)
    assert "teach the format" in why_nothing({"unparsed": 9, "wrong": 1}, 0)
    assert "too hard" in why_nothing({"unparsed": 1, "wrong": 9}, 0)
    assert "does not stop" in why_nothing({"correct": 3, "wrong": 9}, 3)


def test_questions_are_drawn_by_content_and_never_with_two_answers():
    rows = [vars(chat_row(f"question {i}", f"solution {i}", str(i), "test")) for i in range(50)]
    drawn = draw_questions(rows, 10, seed=1)
    assert drawn == draw_questions(rows[::-1], 10, seed=1)
    assert drawn != draw_questions(rows, 10, seed=2)
    assert len(draw_questions([*rows, vars(chat_row("question 3", "otherwise", "3", "test"))], None, 0)) == 50
    with pytest.raises(PosttrainError, match="two answers"):
        draw_questions([*rows, vars(chat_row("question 3", "wrong", "4", "test"))], None, 0)


def test_questions_after_other_messages_are_other_questions():
    rows = [vars(chat_row("And doubled?", f"solution {i}", str(i), "test")) for i in range(2)]
    for i, row in enumerate(rows):
        row["prompt"] = [{"role": "system", "content": f"The number is {i}."}, *row["prompt"]]
    questions = draw_questions(rows, None, 0)
    assert {question.answer for question in questions} == {"0", "1"}
    drawn = [Rollout(q.id, q.prompt, q.answer, [candidate("\\boxed{2}")]) for q in questions]
    assert len(select_rows(drawn, Rule())[0]) == 2


def test_verifying_grades_every_candidate_in_order():
    question = Question("q", PROMPT, "2")
    samples = [Sample(7, "\\boxed{3}", 4, "stop"), Sample(6, "\\boxed{2}", 4, "stop"), Sample(8, "hm", 1, "length")]
    with Grader() as grader:
        verified = verify(question, samples, grader)
    assert [c.verdict for c in verified.candidates] == ["correct", "wrong", "truncated"]


@given(st.binary(max_size=40))
def test_what_a_kill_left_behind_never_counts_as_a_question(tmp_path_factory, tail):
    directory = tmp_path_factory.mktemp("rollouts")
    file = RolloutFile(directory, {"seed": 1})
    whole = rollout(candidate("\\boxed{2}"))
    file.keep(whole)
    with file.partial.open("ab") as partial:
        partial.write(tail)
    assert file.done() == {"q"}
    assert list(file.kept()) == [whole]


def test_rollouts_are_finished_in_the_order_of_their_questions(tmp_path):
    file = RolloutFile(tmp_path, {"seed": 1})
    questions = [Question(name, PROMPT, "2") for name in "abc"]
    for question in questions[::-1]:
        file.keep(Rollout(question.id, PROMPT, "2", [candidate("\\boxed{2}"), candidate("no", "unparsed")]))
    with pytest.raises(PosttrainError, match=r"start its src/sample\.py command again"):
        list(read_rollouts(tmp_path))
    metrics = file.finish(questions)
    assert [entry.id for entry in read_rollouts(tmp_path)] == ["a", "b", "c"]
    assert (metrics["solved"], metrics["candidates"], metrics["correct_rate"]) == (3, 6, 0.5)
    assert RolloutFile(tmp_path, {"seed": 1}).metrics() == metrics
    with pytest.raises(PosttrainError, match="other settings"):
        RolloutFile(tmp_path, {"seed": 2})


def test_a_selection_says_where_its_rows_come_from_and_an_audit_finds_what_is_wrong(tmp_path):
    file = RolloutFile(tmp_path / "rollouts", {})
    file.keep(rollout(candidate("so \\boxed{2}"), candidate("so \\boxed{3}", "wrong"), candidate("so \\boxed{2}")))
    file.finish([Question("q", PROMPT, "2")])
    counts = write_selection([tmp_path / "rollouts"], Rule(select="all_correct"), tmp_path / "data")
    assert counts["kept"] == {"train": 1} and counts["read"] == 3
    assert audit_dataset(tmp_path / "data") == 1
    wrong = chat_row("What is 1+1?", "\\boxed{3}", "2", "test")
    write_dataset(tmp_path / "bad", {"train": [wrong]}, Source("test", "none"), None, {}, None)
    done = run_script("data_prep/rejection.py", "--audit", tmp_path / "bad", fresh=True)
    assert done.returncode == 2 and "1 of 1 rows are not correct" in done.stderr and wrong.id in done.stderr
