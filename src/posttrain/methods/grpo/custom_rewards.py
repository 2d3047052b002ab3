"""Reward functions that a recipe names: found and checked before a model loads, and held to their word at every call.

A reward is anything that can be called: a function, a coroutine function, a functools.partial, an object.
"""

import functools
import hashlib
import importlib
import inspect
import math
import numbers
import sys
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from posttrain.errors import PosttrainError
from posttrain.methods.grpo.rewards import FUNCTIONS, Reward

KEYWORDS = (  # TRL's, the columns of a row, and those of GrpoTrainer
    "prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "id", "answer", "grade",
    "truncated", "max_completion_length",
)  # fmt: skip


def load_rewards(names: Sequence[str]) -> list[Reward]:
    """The rewards of a recipe; each raises PosttrainError with its name where it fails or returns no rewards.

    `__name__`, under which figures are logged, is that of the function where no other has the same.
    """
    short = [name.partition(":")[2] or name for name in names]
    shown = [name if short.count(last) > 1 else last for name, last in zip(names, short, strict=True)]
    return [_held_to_its_word(load_reward(name), name, label) for name, label in zip(names, shown, strict=True)]


def load_reward(name: str) -> Callable[..., Any]:
    """The function of a name of `rewards` or of `module.path:function`; raises PosttrainError."""
    if name in FUNCTIONS:
        return FUNCTIONS[name]
    module, _, attribute = name.partition(":")
    if not module or not attribute:
        raise PosttrainError(f"reward_funcs: {name!r}: expected one of {', '.join(FUNCTIONS)}, or module.path:function")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's may raise anything while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise PosttrainError(f"reward_funcs: {name!r}: {reason}; the module must lie on PYTHONPATH") from error
    _check_signature(name, function)
    return function


def _check_signature(name: str, function: Any) -> None:
    """Raise where `function` cannot be called as a reward is."""
    where = f"reward_funcs: {name!r}: "
    if not callable(function) or isinstance(function, type):
        kind = "a class; name an instance of it" if isinstance(function, type) else f"a {type(function).__name__}"
        raise PosttrainError(f"{where}expected a function, got {kind}")
    try:
        inspect.signature(function).bind(**dict.fromkeys(KEYWORDS))
    except (TypeError, ValueError) as error:
        raise PosttrainError(
            f"{where}cannot be called as a reward: {error}; expected a function of any of {', '.join(KEYWORDS)}, which "
            f"takes the others by **kwargs"
        ) from error


def describe_rewards(names: Sequence[str]) -> dict[str, str | None]:
    """Name → sha256 of the source of a user's own reward, None for those of `rewards`; raises PosttrainError."""
    if repeated := [name for name in names if list(names).count(name) > 1]:
        raise PosttrainError(f"reward_funcs: {repeated[0]!r}: named more than once; give it a weight in reward_weights")
    for name in names:
        load_reward(name)
    return {name: _digest_of_source(name) if ":" in name else None for name in names}


def _digest_of_source(name: str) -> str | None:
    """Digest of the module that a name names, and of the file that defines what is called where it is another one."""
    function = inspect.unwrap(load_reward(name))
    while isinstance(function, functools.partial):
        function = inspect.unwrap(function.func)
    files = [getattr(sys.modules.get(place), "__file__", None) for place in (name.partition(":")[0], _module(function))]
    sources = dict.fromkeys(Path(file) for file in files if file and file.endswith(".py"))
    contents = b"".join(path.read_bytes() for path in sources)
    return hashlib.sha256(contents).hexdigest() if sources else None


def _module(function: Any) -> str:
    return getattr(function, "__module__", None) or type(function).__module__


def _held_to_its_word(function: Callable[..., Any], name: str, shown: str) -> Reward:
    """`function` with its return value checked. TRL awaits coroutine functions together, so such a one stays one."""
    from trl.trainer.utils import is_async_callable

    if is_async_callable(function):

        async def reward(*, completions: list[str], **keywords: Any) -> list[float | None]:
            with _errors_of(name):
                returned: Awaitable[Any] = function(completions=completions, **keywords)
                return _as_rewards(await returned, len(completions))

    else:

        def reward(*, completions: list[str], **keywords: Any) -> list[float | None]:
            with _errors_of(name):
                return _as_rewards(function(completions=completions, **keywords), len(completions))

    reward.__name__ = shown
    return reward


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Name the reward in whatever its code raises: here the code is the user's."""
    try:
        yield
    except _WrongReturn as error:
        raise PosttrainError(f"reward_funcs: {name!r}: returned {error}") from error
    except PosttrainError:
        raise
    except Exception as error:
        raise PosttrainError(
            f"reward_funcs: {name!r}: raised {type(error).__name__}: {error} (POSTTRAIN_TRACEBACK=1 shows where)"
        ) from error


class _WrongReturn(ValueError):
    """What a reward returned instead of one reward per completion."""


def _as_rewards(returned: Any, number: int) -> list[float | None]:
    """One finite number per completion, or None where the function does not apply. Raises _WrongReturn."""
    expected = f"expected a list of {number}, one number or None for each completion"
    values = returned.tolist() if hasattr(returned, "tolist") else returned  # arrays and tensors
    try:
        values = None if isinstance(values, str | bytes | dict) else list(values)
    except TypeError:
        values = None
    if values is None:
        raise _WrongReturn(f"a {type(returned).__name__}; {expected}")
    if len(values) != number:
        raise _WrongReturn(f"{len(values)} rewards; {expected}")
    return [_as_reward(value.item() if hasattr(value, "item") else value) for value in values]


def _as_reward(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, numbers.Real):
        raise _WrongReturn(f"{value!r}, a {type(value).__name__}; expected a number or None")
    if not math.isfinite(value):
        raise _WrongReturn(f"{value}; expected a finite number, or None where the function does not apply")
    return float(value)
