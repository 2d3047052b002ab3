"""Rewards as users write them: those that work, those that cannot be called, and those that return no rewards."""

import functools

import numpy as np
import torch


def plain(completions, **_):
    return [float(len(text)) for text in completions]


def with_scale(completions, scale=1.0, **_):
    return [scale * len(text) for text in completions]


class Scaled:
    def __init__(self, scale):
        self.scale = scale

    def __call__(self, completions, **_):
        return [self.scale * len(text) for text in completions]

    def method(self, completions, **_):
        return self(completions)


class Awaited:
    async def __call__(self, completions, **_):
        return plain(completions)


async def coroutine(completions, **_):
    return plain(completions)


@functools.wraps(plain)
def wrapped(*arguments, **keywords):
    return plain(*arguments, **keywords)


part, part_of_part = functools.partial(with_scale, scale=1.0), functools.partial(functools.partial(with_scale))
thing, awaited, method = Scaled(1.0), Awaited(), Scaled(1.0).method
partial_coroutine = functools.partial(coroutine)


def array(completions, **_):
    return np.array(plain(completions), dtype=np.float32)


def tensor(completions, **_):
    return torch.tensor(plain(completions))


def numpy_scalars(completions, **_):
    return [np.float64(len(text)) for text in completions]


def generator(completions, **_):
    yield from plain(completions)


WORKING = (
    "plain", "with_scale", "wrapped", "part", "part_of_part", "thing", "method", "awaited", "coroutine",
    "partial_coroutine", "array", "tensor", "numpy_scalars", "generator",
)  # fmt: skip


def only_completions(completions):
    return plain(completions)


def missing_column(completions, solution, **_):
    return plain(completions)


REFUSED = {  # before a model loads
    "only_completions": "prompts", "missing_column": "solution", "Scaled": "a class", "WORKING": "a tuple",
}  # fmt: skip


def scalar(completions, **_):
    return 1.0


def text(completions, **_):
    return ["1.0"] * len(completions)


def one(completions, **_):
    return [1.0]


def nested(completions, **_):
    return [[1.0]] * len(completions)


def by_name(completions, **_):
    return dict.fromkeys(completions, 1.0)


def nan(completions, **_):
    return [float("nan")] * len(completions)


def infinite(completions, **_):
    return [1.0, -float("inf"), *[1.0] * (len(completions) - 2)]


def raises(completions, **_):
    raise KeyError("solution")


async def awaited_text(completions, **_):
    return text(completions)


def nothing(completions, **_):
    return None


WRONG = {  # in the first call
    "scalar": "returned a float", "text": "'1.0', a str", "one": "1 rewards", "nested": "a list", "by_name": "a dict",
    "nan": "nan", "infinite": "-inf", "raises": "KeyError: 'solution'", "awaited_text": "'1.0', a str",
    "nothing": "a NoneType",
}  # fmt: skip


def none_applies(completions, **_):
    return [None] * len(completions)
