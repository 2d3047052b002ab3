"""What a rehearsal found: checks that passed, failed or were left out, each fault by file, line and key."""

import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from posttrain.errors import PosttrainError
from posttrain.recipe.reader import Entry, RecipeError, read_entries, read_overrides
from posttrain.recipe.schema import Field

PASSED, FAILED, LEFT_OUT = "passed", "FAILED", "left out"


class NotHere(Exception):
    """Why something cannot be rehearsed on this machine; no fault of the recipe."""


@dataclass(frozen=True)
class Lines:
    """Where a recipe says what: every key with its value and its line, or `command line` where that set it."""

    path: str
    entries: dict[str, Entry]

    @classmethod
    def of(cls, path: Path, overrides: list[str], fields: dict[str, Field]) -> "Lines":
        """The lines of a recipe under overrides; raises RecipeError where the file is no recipe."""
        entries, _ = read_entries(path)
        entries += read_overrides(overrides, fields)[0]
        return cls(str(path), {entry.key: entry for entry in entries})

    def located(self, text: str, keys: Sequence[str] = ()) -> str:
        """A fault with the line and the key to change in front: the key that it names, or the first of `keys`.

        Words such as `prompt` and `seed` are prose in many messages, so they count only where `keys` has them.
        """
        text = text.removeprefix(f"{self.path}: ")
        if re.match(rf"({re.escape(self.path)}:\d+|command line): ", text):
            return text
        first = re.match(r"(\w+): ", text)
        if first and first[1] in self.entries:
            return f"{self.entries[first[1]].where}: {text}"
        key = self._named(text, keys) or next((key for key in keys if key in self.entries), None)
        if key is None:
            return f"{self.path}: {f'{keys[0]}: (not set): ' if keys else ''}{text}"
        entry = self.entries[key]
        text = text.removeprefix(f"{entry.value}: ")
        return f"{entry.where}: {key}: {entry.value}: {text}"

    def _named(self, text: str, keys: Sequence[str]) -> str | None:
        """The key that stands first in a message, whose list of a file's columns names none."""
        text = text.partition(", only ")[0]
        known = [key for key in self.entries if "_" in key or key in keys]
        places = {key: found.start() for key in known if (found := re.search(rf"(?<![\w./]){key}(?![\w/])", text))}
        return min(places, key=lambda key: places[key]) if places else None


@dataclass(frozen=True)
class Check:
    """One thing that was looked at: its name, how it went, what to read of it, and the seconds it took."""

    name: str
    state: str
    detail: str
    seconds: float = 0.0


@dataclass
class Told:
    """What a check that passes says."""

    text: str = ""


@dataclass
class Findings:
    """All checks of a rehearsal, in their order, and what will be different on the real machine."""

    lines: Lines
    checks: list[Check] = field(default_factory=list)
    differences: dict[str, str] = field(default_factory=dict)

    @property
    def failed(self) -> list[Check]:
        return [check for check in self.checks if check.state == FAILED]

    def fail(self, name: str, text: str, keys: Sequence[str] = (), seconds: float = 0.0) -> None:
        self.checks.append(Check(name, FAILED, self.lines.located(text, keys), seconds))

    @contextmanager
    def check(self, name: str, keys: Sequence[str] = ()) -> Iterator["Told"]:
        """Inside, an error of the user is a fault, of `keys` where it names none; `told` is what to read otherwise.

        What NotHere says is left out.
        """
        told = Told()
        started = time.monotonic()
        try:
            yield told
        except NotHere as reason:
            self.checks.append(Check(name, LEFT_OUT, str(reason), time.monotonic() - started))
        except RecipeError as error:
            for fault in error.faults:
                self.fail(name, fault, keys, time.monotonic() - started)
        except (PosttrainError, OSError) as error:
            self.fail(name, " ".join(str(error).split()), keys, time.monotonic() - started)
        else:
            self.checks.append(Check(name, PASSED, told.text, time.monotonic() - started))
