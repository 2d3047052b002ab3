"""Reward functions: readings of the grader's verdicts, and what they do with what cannot be judged."""

import asyncio
import inspect
import json

import own_rewards
import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.errors import PosttrainError
from posttrain.grading.grader import Grade, Grader, Verdict
from posttrain.methods.grpo.custom_rewards import KEYWORDS, describe_rewards, load_reward, load_rewards
from posttrain.methods.grpo.rewards import FUNCTIONS

FORMATTED = "so 6 / 2 = 3 </think> <answer> \\boxed{3} </answer>"


def grades(*verdicts: Verdict) -> list[Grade]:
    return [Grade(verdict, "3") for verdict in verdicts]


def test_accuracy_is_none_where_the_verifier_could_not_decide():
    asked = grades(Verdict.CORRECT, Verdict.WRONG, Verdict.UNPARSED, Verdict.TRUNCATED, Verdict.TIMEOUT, Verdict.ERROR)
    assert load_reward("accuracy")(grade=asked) == [1.0, 0.0, 0.0, 0.0, None, None]


@pytest.mark.parametrize(
    ("text", "strict", "lenient"),
    [
        (FORMATTED, 1.0, 1.0),
        (FORMATTED.replace("> <answer", ">\n<answer"), 0.0, 1.0),
        (FORMATTED.replace("> <answer", "><answer"), 0.0, 1.0),
        (FORMATTED.removesuffix("</answer>"), 0.0, 0.0),
        ("<answer> 3 </answer>", 0.0, 0.0),
        ("\\boxed{3}", 0.0, 0.0),
    ],
)
def test_r1_zero_formats(text, strict, lenient):
    assert load_reward("r1_zero_format")(completions=[text]) == [strict]
    assert load_reward("r1_zero_format_lenient")(completions=[text]) == [lenient]


def test_r1_zero_pays_for_neither_format_nor_answer_alone():
    texts = [FORMATTED, FORMATTED, "\\boxed{3}", FORMATTED]
    asked = grades(Verdict.CORRECT, Verdict.WRONG, Verdict.CORRECT, Verdict.TIMEOUT)
    assert load_reward("r1_zero")(completions=texts, grade=asked) == [1.0, 0.0, 0.0, None]


def test_cosine_length_has_the_values_of_trls_schedule():
    from trl.rewards import get_cosine_scaled_reward

    reward, theirs = load_reward("cosine_length"), get_cosine_scaled_reward(max_len=100)
    texts = [[{"content": "$\\boxed{1}$"}], [{"content": "$\\boxed{2}$"}]]
    for length in (0, 10, 50, 99, 100, 170):
        ids = [[1] * length] * 2
        asked = grades(Verdict.CORRECT, Verdict.WRONG)
        ours = reward(grade=asked, completion_ids=ids, max_completion_length=[100, 100])
        assert ours == pytest.approx(theirs(texts, ["$1$", "$1$"], ids))


@given(st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=40), min_size=1, max_size=5))
def test_length_rewards_stay_in_their_range(ids):
    for name in ("soft_overlong", "repetition"):
        assert all(-1 <= r <= 0 for r in load_reward(name)(completion_ids=ids, max_completion_length=[30] * len(ids)))
    shaped = load_reward("cosine_length")(
        grade=grades(*[Verdict.WRONG] * len(ids)), completion_ids=ids, max_completion_length=[30] * len(ids)
    )
    assert all(-1 <= r <= -0.5 for r in shaped)


def test_every_reward_on_the_sharp_cases(shared_data):
    """The verdict of a reward is the verdict of evaluation, case by case."""
    lines = (shared_data / "verifier/sharp_cases.jsonl").read_text().splitlines()
    cases = [json.loads(line) for line in lines]
    texts = [case["response"] for case in cases]
    with Grader() as grader:
        asked = grader.grade([case["gold"] for case in cases], texts, [False] * len(cases))
    keywords = {
        "prompts": texts, "completions": texts, "completion_ids": [[1, 2, 3]] * len(cases), "grade": asked,
        "truncated": [False] * len(cases), "max_completion_length": [10] * len(cases),
    }  # fmt: skip
    for name, reward in FUNCTIONS.items():
        values = reward(**keywords)
        assert len(values) == len(cases), name
    right = [g.verdict == Verdict.CORRECT for g in asked]
    assert [value == 1.0 for value in FUNCTIONS["accuracy"](**keywords)] == right


def test_a_function_of_the_users_own(tmp_path, monkeypatch):
    path = tmp_path / "rewards_of_a_user.py"
    path.write_text("def short(completions, **_):\n    return [1.0 / (1 + len(text)) for text in completions]\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert load_reward("rewards_of_a_user:short")(completions=["", "abc"]) == [1.0, 0.25]
    described = describe_rewards(["accuracy", "rewards_of_a_user:short"])
    assert described["accuracy"] is None
    assert len(described["rewards_of_a_user:short"]) == 64


@pytest.mark.parametrize("name", ["acuracy", "no_such_module:f", "json:no_such_function", "json:__name__"])
def test_an_unknown_reward_is_named(name):
    with pytest.raises(PosttrainError, match="reward_funcs"):
        load_reward(name)


def call(name: str) -> list[float | None]:
    """The rewards of three completions, as TRL would call the function."""
    (reward,) = load_rewards([name])
    keywords = dict.fromkeys(KEYWORDS) | {"completions": ["a", "bc", "d"]}
    returned = reward(**keywords)
    return asyncio.run(returned) if inspect.isawaitable(returned) else returned


@pytest.mark.parametrize("name", own_rewards.WORKING)
def test_a_reward_may_be_anything_that_can_be_called(name):
    assert call(f"own_rewards:{name}") == [1.0, 2.0, 1.0]
    assert len(describe_rewards([f"own_rewards:{name}"])[f"own_rewards:{name}"]) == 64


@pytest.mark.parametrize(("name", "fault"), own_rewards.REFUSED.items())
def test_what_cannot_be_called_as_a_reward_is_refused_by_name(name, fault):
    with pytest.raises(PosttrainError, match=f"reward_funcs: 'own_rewards:{name}'.*{fault}"):
        describe_rewards([f"own_rewards:{name}"])


@pytest.mark.parametrize("name", ["math:sqrt", "os.path:join", "builtins:len", "builtins:print", "operator:itemgetter"])
def test_a_builtin_is_refused_by_name(name):
    with pytest.raises(PosttrainError, match=f"reward_funcs: '{name}'"):
        describe_rewards([name])


@pytest.mark.parametrize(("name", "fault"), own_rewards.WRONG.items())
def test_a_reward_that_returns_no_rewards_is_named(name, fault):
    describe_rewards([f"own_rewards:{name}"])
    with pytest.raises(PosttrainError, match=f"reward_funcs: 'own_rewards:{name}'.*{fault}"):
        call(f"own_rewards:{name}")


def test_a_module_that_cannot_be_imported_is_named(tmp_path, monkeypatch):
    (tmp_path / "broken_rewards.py").write_text("raise RuntimeError('no key')")
    (tmp_path / "unreadable_rewards.py").write_text("def f(:")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("broken_rewards:f", "unreadable_rewards:f", ":f", "json:"):
        with pytest.raises(PosttrainError, match=f"reward_funcs: '{name}'"):
            load_reward(name)


def test_two_rewards_of_one_name_are_logged_apart():
    shown = [reward.__name__ for reward in load_rewards(["accuracy", "own_rewards:plain", "test_rewards:plain"])]
    assert shown == ["accuracy", "own_rewards:plain", "test_rewards:plain"]
    with pytest.raises(PosttrainError, match="named more than once"):
        describe_rewards(["accuracy", "accuracy"])


def plain(completions, **_):
    return [0.0] * len(completions)


def test_the_digest_of_a_reward_covers_where_its_settings_and_its_code_are(tmp_path, monkeypatch):
    (tmp_path / "code_of_reward.py").write_text("def f(completions, scale=1, **_): return [scale] * len(completions)")
    named = tmp_path / "named_reward.py"
    named.write_text("import functools, code_of_reward\nf = functools.partial(code_of_reward.f, scale=2)")
    monkeypatch.syspath_prepend(tmp_path)
    found = set()
    for path, old, new in ((named, "2", "3"), (tmp_path / "code_of_reward.py", "[scale]", "[-scale]")):
        found |= set(describe_rewards(["named_reward:f"]).values())
        path.write_text(path.read_text().replace(old, new))
        found |= set(describe_rewards(["named_reward:f"]).values())
    assert len(found) == 3
