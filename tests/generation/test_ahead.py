"""A request that is sent ahead is answered where the same completions are asked for, and fails there too."""

from threading import Event
from typing import Any

import pytest

from posttrain.generation.vllm.ahead import AheadError, ahead_client

PROMPTS, OTHERS = [[1, 2], [3]], [[4]]


class Server:
    """What TRL's client does: answer, when it may, or fail."""

    def __init__(self) -> None:
        self.may_answer, self.asked, self.fault = Event(), [], None

    def generate(self, prompts: list[list[int]], **sampling: Any) -> dict[str, Any]:
        assert self.may_answer.wait(10)
        if self.fault:
            raise self.fault
        self.asked.append((prompts, sampling))
        return {"completion_ids": prompts, **sampling}


@pytest.fixture
def client() -> Any:
    made = ahead_client(Server)()
    made.may_answer.set()
    made.generate(OTHERS, n=2)
    return made


def test_it_is_sampled_as_the_last_one_and_answered_once(client):
    client.may_answer.clear()
    client.send_ahead(PROMPTS)  # and does not wait
    client.may_answer.set()
    client.wait()
    assert client.generate(PROMPTS, n=2) == {"completion_ids": PROMPTS, "n": 2}
    assert client.asked == [(OTHERS, {"n": 2}), (PROMPTS, {"n": 2})]
    client.generate(PROMPTS, n=2)
    assert len(client.asked) == 3


def test_other_questions_are_asked_beside_it(client):
    client.send_ahead(PROMPTS)
    assert client.generate(OTHERS, n=1) == {"completion_ids": OTHERS, "n": 1}
    assert client.generate(PROMPTS, n=2) == {"completion_ids": PROMPTS, "n": 2}


def test_other_sampling_is_refused(client):
    client.send_ahead(PROMPTS)
    with pytest.raises(AheadError, match=r"asked for ahead with \{'n': 2\}, and are now with \{'n': 3\}"):
        client.generate(PROMPTS, n=3)


@pytest.mark.parametrize("fault", [ConnectionError("gone"), Exception("refused")])
def test_its_failure_is_raised_where_it_is_wanted(client, fault):
    client.fault = fault
    client.send_ahead(PROMPTS)
    with pytest.raises(type(fault), match=str(fault)):
        client.wait()
    with pytest.raises(type(fault), match=str(fault)):
        client.generate(PROMPTS, n=2)
