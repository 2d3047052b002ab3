"""Groups that teach nothing are replaced, every question that was asked is accounted for, and draws can be repeated."""

import json
import math
import random
from collections import Counter
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scripted_grpo import GRADER, RIGHT, UNDECIDED, WRONG, build

from posttrain.errors import PosttrainError
from posttrain.methods.grpo import rounds
from posttrain.methods.grpo.dynamic_sampling import REASONS, ChosenQuestions, DynamicSampling, account, number_to_ask
from posttrain.methods.grpo.micro_batches import micro_batches
from posttrain.methods.grpo.questions import Questions, chance_of_all, chance_of_signal, uniform

SIZE, PLACES = 8, 2  # of scripted_grpo: sixteen completions of two questions
MIXED = [RIGHT] * 4 + [WRONG] * 4
ANSWERS = {"mixed": MIXED, "right": [RIGHT] * SIZE, "wrong": [WRONG] * SIZE, "undecided": [UNDECIDED[0]] * SIZE}
REASON = {"right": "all_right", "wrong": "all_wrong", "undecided": "undecided"}


@pytest.fixture(scope="module", autouse=True)
def grader():
    yield
    GRADER.pool.close()


def rows(number: int) -> list[dict[str, Any]]:
    return [{"id": f"q{i}", "prompt": f"{i} + 0 = ", "answer": "3"} for i in range(number)]


def question_sampler(names: list[str], seed: int = 0, informative: bool = False) -> Questions:
    return Questions([{"id": n, "prompt": n, "answer": ""} for n in names], seed, informative, SIZE)


@pytest.fixture(scope="module")
def trainer(models, tmp_path_factory):
    """A trainer whose completions are looked up by question; it takes no step."""
    found = build(models / "qwen2", tmp_path_factory.mktemp("dynamic"), [], ("accuracy",))
    found.model.train()
    return found


def generate(trainer: Any, answers: dict[str, str], max_batches: int, seed: int = 0) -> tuple[Any, DynamicSampling]:
    """One generation where question q<i> gets the answers that `answers` names for it."""
    trainer._metrics["train"].clear()
    trainer.ended = None
    sampling = DynamicSampling(trainer, Questions(rows(len(answers)), seed, False, SIZE), max_batches)
    sampling.path.unlink(missing_ok=True)
    ask = sampling.ask

    def scripted(asked: list[dict[str, Any]]) -> Any:
        trainer.texts = [text for row in asked for text in ANSWERS[answers[row["id"]]]]
        return ask(asked)

    sampling.ask = scripted
    return sampling.generation(), sampling


kinds = st.sampled_from(["mixed", "right", "wrong"])


@settings(max_examples=25)
@given(kinds=st.lists(kinds, min_size=PLACES, max_size=9), bound=st.integers(1, 4), seed=st.integers(0, 9))
def test_asked_is_trained_and_skipped_for_every_reason(trainer, kinds, bound, seed):
    answers = {f"q{i}": kind for i, kind in enumerate(kinds)}
    scored, sampling = generate(trainer, answers, bound, seed)
    lines = [json.loads(line) for line in sampling.path.read_text().splitlines()]
    asked = [line["id"] for line in lines]
    assert len(set(asked)) == len(asked) <= len(kinds)  # none twice in one batch
    trained = [line for line in lines if line["trained"]]
    assert all(answers[line["id"]] == "mixed" for line in trained) and len(trained) <= PLACES
    skipped = Counter(REASON.get(answers[line["id"]], "surplus") for line in lines if not line["trained"])
    totals = sampling.questions.totals
    assert totals["asked"] == len(lines) == totals["trained"] + sum(totals[reason] for reason in REASONS)
    assert {reason: totals[reason] for reason in REASONS} == {reason: skipped[reason] for reason in REASONS}
    figures = dict(trainer._metrics["train"])
    assert all(figures[f"questions/{name}"] == [float(count)] for name, count in totals.items())
    assert all(len(values) == 1 for values in figures.values())
    assert figures["effective_prompts"] == [len(trained)]
    # It stops when the batch is full, at the bound, or when nobody is left to ask.
    full, over = len(trained) == PLACES, len(asked) == len(kinds)
    assert full or over or figures["questions/rounds"] == [bound]
    # The batch has its shape, and only groups with a signal have tokens in the loss.
    assert len(scored["advantages"]) == PLACES * SIZE
    teaching = scored["completion_mask"].view(PLACES, -1).any(1)
    assert int(teaching.sum()) == len(trained) and scored["num_items_in_batch"] == scored["completion_mask"].sum()
    assert not scored["advantages"].view(PLACES, SIZE)[~teaching].any()
    assert sampling.questions.drawn == [] and len(sampling.questions.waiting) == len(kinds)  # no question vanishes


def test_a_run_without_anything_to_learn_ends_and_says_what_was_left(trainer, capsys):
    answers = {"q0": "right", "q1": "wrong", "q2": "undecided"}
    _, sampling = generate(trainer, answers, 9)
    assert trainer.ended == "no question gives a signal any more: 1 all right, 1 all wrong, 1 undecided"
    assert "the run stops here" in capsys.readouterr().out
    assert account([])["asked"] == 0 and sampling.questions.totals["skipped_tokens"] > 0
    generate(trainer, {**answers, "q3": "mixed"}, 9)
    assert trainer.ended is None
    generate(trainer, answers, 1)  # the third was not asked
    assert trainer.ended is None


@pytest.mark.parametrize("mode", ["token_truncate", "sequence_mask"])
def test_rounds_of_a_server_keep_what_its_log_probabilities_correct(trainer, monkeypatch, mode):
    """As with vLLM, whose log-probabilities come with the completions; there is no server behind it."""
    sample = trainer._generate_single_turn

    def with_log_probabilities(*arguments: Any, **options: Any) -> tuple[list[list[int]], list[list[float]]]:
        ids, _ = sample(*arguments, **options)
        return ids, [[-1.0 - 0.01 * i for i in range(len(one))] for one in ids]

    monkeypatch.setattr(trainer, "_generate_single_turn", with_log_probabilities)
    settings = {"use_vllm": True, "vllm_mode": "server", "vllm_importance_sampling_correction": True}
    for name, value in {**settings, "vllm_importance_sampling_mode": mode, "canary_tolerance": 1e9}.items():
        monkeypatch.setattr(trainer, name, value, raising=name != "vllm_mode")
    scored, sampling = generate(trainer, {f"q{i}": "mixed" if i > 2 else "wrong" for i in range(6)}, 4)
    assert sampling.questions.totals["trained"] == PLACES
    shape, ratio = scored["completion_ids"].shape, scored["importance_sampling_ratio"]
    assert ratio.shape == (shape if mode.startswith("token") else (shape[0], 1))
    assert scored["sampling_per_token_logps"].shape == scored["old_per_token_logps"].shape == shape
    lengths = scored["completion_mask"].sum(1)
    for row, length in zip(scored["sampling_per_token_logps"], lengths.tolist(), strict=True):
        assert row[:length].tolist() == pytest.approx([-1.0 - 0.01 * i for i in range(length)])
    monkeypatch.setattr(trainer, "current_gradient_accumulation_steps", 4, raising=False)  # set as a run begins
    for batch in micro_batches(scored, 4, 4):
        assert trainer.compute_loss(trainer.model, batch).isfinite()


def test_chosen_questions_that_are_not_replaced_train_as_they_are(trainer):
    trainer._metrics["train"].clear()
    trainer.texts = MIXED + [RIGHT] * SIZE
    scored = ChosenQuestions(trainer, Questions(rows(5), 0, True, SIZE)).generation()
    assert scored["completion_mask"].view(PLACES, -1).any(1).all()
    assert trainer._metrics["train"]["questions/trained"] == [PLACES]
    with pytest.raises(PosttrainError, match="1 different questions are fewer than the 2"):
        ChosenQuestions(trainer, Questions(rows(1), 0, True, SIZE))


@settings(max_examples=40)
@given(st.data(), st.booleans(), st.booleans(), st.integers(0, 5))
def test_a_run_that_goes_on_from_its_state_draws_what_it_would_have_drawn(data, informative, ahead, seed):
    """`ahead`: the next questions are drawn before the outcomes of those at hand are known."""
    names = [f"q{i}" for i in range(data.draw(st.integers(6, 12) if ahead else st.integers(1, 12)))]

    def go_on(questions: Questions, turns: int) -> list[str]:
        drawn = []
        for _ in range(turns):
            asked = list(questions.drawn) or [row["id"] for row in questions.draw(3)]
            if ahead:
                assert not set(asked) & {row["id"] for row in questions.draw(3)}
            for name in asked:
                right = hash_free(name, questions.history[name].draws)
                questions.note(name, "signal" if 0 < right < SIZE else "all_right", right, SIZE - right)
            questions.put_back()
            drawn += asked
        assert len(questions.waiting) + len(questions.drawn) == len(names)  # no question vanishes
        return drawn

    whole, first = question_sampler(names, seed, informative), question_sampler(names, seed, informative)
    before, after = data.draw(st.integers(0, 6)), data.draw(st.integers(0, 6))
    go_on(whole, before), go_on(first, before)
    kept = json.loads(json.dumps(first.state()))
    first.draw(2)  # of a step that is killed
    resumed = question_sampler(list(reversed(names)), seed, informative)
    resumed.restore(kept)
    assert go_on(resumed, after) == go_on(whole, after)
    assert resumed.state() == whole.state()


def hash_free(name: str, draw: int) -> int:
    return int(uniform(7, name, draw) * (SIZE + 1))


@settings(max_examples=30)
@given(st.integers(0, 99), st.lists(st.integers(0, SIZE), min_size=2, max_size=20))
def test_no_question_starves(seed, solved):
    """Uniform draws differ by one at most; informative ones by the ratio of the largest chance to the smallest."""
    names = [f"q{i}" for i in range(len(solved))]
    for informative, ratio in ((False, 1), (True, 6)):
        questions = question_sampler(names, seed, informative)
        for _ in range(20 * len(names)):
            (row,) = questions.draw(1)
            right = solved[names.index(row["id"])]
            questions.note(row["id"], "", right, SIZE - right)
            questions.put_back()
        draws = [history.draws for history in questions.history.values()]
        assert min(draws) >= 1 and max(draws) <= ratio * (min(draws) + 1)


def test_informative_draws_ask_the_half_solved_more_often():
    names = [f"q{i}" for i in range(20)]
    questions = question_sampler(names, informative=True)
    for _ in range(400):
        (row,) = questions.draw(1)
        right = 4 if row["id"] in names[:10] else SIZE
        questions.note(row["id"], "", right, SIZE - right)
        questions.put_back()
    half = sum(questions.history[name].draws for name in names[:10])
    assert half > 2 * (400 - half)


def signals(informative: bool, seed: int) -> float:
    """Share of 4,000 groups with a signal, of 400 questions of which many are nearly always or nearly never solved."""
    draw = random.Random(seed)
    rates = {f"q{i}": draw.betavariate(0.4, 0.4) for i in range(400)}
    questions, found = question_sampler(list(rates), seed, informative), 0
    for _ in range(250):
        for row in questions.draw(16):
            right = sum(draw.random() < rates[row["id"]] for _ in range(SIZE))
            found += 0 < right < SIZE
            questions.note(row["id"], "signal" if 0 < right < SIZE else "all_right", right, SIZE - right)
        questions.put_back()
    return found / 4000


@pytest.mark.parametrize("seed", range(3))
def test_informative_draws_find_more_groups_with_a_signal(seed):
    uniform_share, informative_share = signals(False, seed), signals(True, seed)
    assert 0.5 < uniform_share < 0.6 and informative_share > uniform_share + 0.12


@given(st.floats(0, 40), st.floats(0, 40), st.integers(2, 16))
def test_the_chance_of_a_signal_is_that_of_the_posterior(right, wrong, group):
    """Against the integral of p^G + (1 - p)^G over the Beta density, by midpoints of a variable that flattens it."""
    a, b = 0.5 + right, 0.5 + wrong
    angles = (torch.arange(4000, dtype=torch.float64) + 0.5) * (math.pi / 2 / 4000)
    p = angles.sin() ** 2
    density = angles.sin() ** (2 * a - 1) * angles.cos() ** (2 * b - 1)
    expected = 1 - float((density * (p**group + (1 - p) ** group)).sum() / density.sum())
    assert chance_of_signal(right, wrong, group) == pytest.approx(expected, abs=2e-4)
    assert 0 < chance_of_signal(right, wrong, group) < 1 and chance_of_all(a, b, 0) == 1


@given(*[st.integers(1, 64)] * 2, st.integers(2, 16), st.integers(1, 16))
def test_processes_have_equally_many_completions_and_few_questions_too_many(free, waiting, size, processes):
    number = number_to_ask(free, waiting, size, processes)
    assert number * size % processes == 0 and number <= waiting
    whole = next(n for n in range(1, 17) if n * size % processes == 0)
    assert number < free + whole and (number >= free or waiting - number < whole)


def test_draws_are_spread_evenly():
    found = [uniform(0, f"q{i}", 0) for i in range(2000)]
    assert all(0 <= number < 1 for number in found) and abs(sum(found) / 2000 - 0.5) < 0.03


def test_figures_of_rounds_weigh_by_their_questions():
    figures = {
        "reward": [9.0, 1.0, 0.0], "completions/min_length": [9.0, 4.0, 2.0], "completions/max_length": [9.0, 4.0, 2.0],
        "effective_prompts": [9.0, 1.0, 2.0], "once": [9.0, 5.0], "rewards/r/mean": [math.nan, 0.5],
        "none": [math.nan] * 2,
    }  # fmt: skip
    before = {**dict.fromkeys(figures, 1), "rewards/r/mean": 0, "none": 0}
    rounds.combine(figures, before, [3, 1])
    assert figures["reward"] == [9.0, 0.75] and figures["effective_prompts"] == [9.0, 3.0]
    assert (figures["completions/min_length"], figures["completions/max_length"]) == ([9.0, 2.0], [9.0, 4.0])
    assert figures["once"] == [9.0, 5.0] and figures["rewards/r/mean"] == [0.5] and math.isnan(figures["none"][0])


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(1, 6)), min_size=1, max_size=4), st.booleans())
def test_joined_rows_keep_their_tokens(widths, per_token):
    parts = []
    for number, (prompt, completion) in enumerate(widths):
        mark = 10.0 * (number + 1)
        parts.append(
            {
                "prompt_ids": torch.full((2, prompt), mark), "completion_ids": torch.full((2, completion), mark),
                "completion_mask": torch.ones(2, completion, dtype=torch.long), "advantages": torch.full((2,), mark),
                "importance_sampling_ratio": torch.full((2, completion if per_token else 1), mark),
            }
        )  # fmt: skip
    joined = rounds.join(parts, per_token)
    longest = max(completion for _, completion in widths)
    for i, (prompt, completion) in enumerate(widths):
        row, mark = 2 * i, 10.0 * (i + 1)
        assert joined["prompt_ids"][row].tolist() == [0.0] * (max(p for p, _ in widths) - prompt) + [mark] * prompt
        assert joined["completion_ids"][row].tolist() == [mark] * completion + [0.0] * (longest - completion)
        ratio = [mark] * completion + [1.0] * (longest - completion) if per_token else [mark]
        assert joined["importance_sampling_ratio"][row].tolist() == ratio


def test_training_stops_after_the_step_that_found_nothing(models, tmp_path):
    trainer = build(models / "qwen2", tmp_path / "run", [RIGHT] * 64, ("accuracy",), max_steps=5)
    trainer.questions = DynamicSampling(trainer, Questions(rows(4), 0, False, SIZE), 3)
    trainer.add_callback(trainer.questions)
    trainer.train()
    assert trainer.state.global_step == 1 and trainer.ended.endswith("4 all right")
    trainer.save_beside(tmp_path)
    trainer.ended = None
    trainer.questions.questions.totals.clear()
    trainer.restore_beside(tmp_path)  # a run that was killed before it wrote final/ takes no further step
    assert trainer.ended.endswith("4 all right") and trainer.questions.questions.totals["asked"] == 4
