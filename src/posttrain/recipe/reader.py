"""The strict reader of recipes: `script.py recipes/x.yaml [--field value …]`, checked before anything is loaded.

Every fault of a recipe is reported at once, each on one line: where, key, value, what was expected, what to do.
"""

import dataclasses
import difflib
import hashlib
import re
import sys
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from posttrain.errors import PosttrainError, yaml_fault
from posttrain.recipe import rules
from posttrain.recipe.methods import Method, find_method, wrong_trainer
from posttrain.recipe.schema import Field, accepts
from posttrain.secrets import masked, masked_file, masked_text

Config = TypeVar("Config")
EXPONENT = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)[eE][+-]?\d+")

SECRET = "holds a secret, which run.json would keep; set it in the environment (HF_TOKEN, OPENAI_API_KEY for a server)"


class RecipeError(PosttrainError):
    """All faults of a recipe and its overrides."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n       ".join(faults))
        self.faults = faults


@dataclass(frozen=True)
class Entry:
    """One key with its value and the place that set it, as `recipes/x.yaml:7` or `command line`."""

    key: str
    value: Any
    where: str


@dataclass(frozen=True)
class Recipe:
    """A recipe known to be good. `values` holds the keys that the file or the command line set."""

    trainer: str
    path: str
    text: str
    values: dict[str, Any]

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()

    def build(self, config_class: type[Config], **extra: Any) -> Config:
        """An instance of a dataclass from the keys that are its fields; `extra` wins over the recipe."""
        names = {field.name for field in dataclasses.fields(config_class) if field.init}  # type: ignore[arg-type]
        with self.answers_for_library_errors():
            return config_class(**{k: v for k, v in self.values.items() if k in names} | extra)

    @contextmanager
    def answers_for_library_errors(self) -> Iterator[None]:
        """Turn what the libraries refuse while they are set up into a fault of the recipe."""
        try:
            yield
        except (ValueError, TypeError, ImportError) as error:
            raise RecipeError([f"{self.path}: {' '.join(str(error).split())}"]) from error


def read_recipe(argv: Sequence[str] | None, trainer: str, script: str | None = None) -> Recipe:
    """The checked recipe that `argv` asks for, for the script of `trainer`; None is this program's own arguments.

    `script` is named in the help where it is not the trainer's own. Raises RecipeError with every fault, and
    SystemExit(0) after printing the help for `--help`.
    """
    argv = sys.argv[1:] if argv is None else argv
    method = find_method(trainer)
    fields = method.fields
    if not argv or {"-h", "--help"} & set(argv):
        print(help_text(method, script))
        raise SystemExit(0 if argv else 2)
    path, overrides = Path(argv[0]), argv[1:]
    if argv[0].startswith("--"):
        raise RecipeError([f"{argv[0]}: the recipe comes first: {method.command('recipes/….yaml')}"])
    entries, faults = read_entries(path)
    named = {entry.key: entry for entry in entries}.get("trainer")
    if named and named.value != trainer:
        raise RecipeError([wrong_trainer(named.where, named.value, trainer, path)])
    override_entries, override_faults = read_overrides(overrides, fields)
    merged = {entry.key: entry for entry in [*entries, *override_entries]}
    faults += override_faults
    for entry in merged.values():
        faults += entry_faults(entry, fields)
    known = {entry.key: entry for entry in merged.values() if entry.key in fields}
    for key in method.required_keys:
        if key not in merged or merged[key].value is None:
            field = fields[key]
            faults.append(f"{path}: {key}: missing; expected {field.annotation}: {rules.purpose(field.help)}")
    if not faults:
        faults += method.contradictions(str(path), {key: entry.value for key, entry in known.items()})
    if faults:
        raise RecipeError(faults)
    values = {key: entry.value for key, entry in merged.items()}
    return Recipe(trainer, str(path), path.read_text(), values)


def read_entries(path: Path) -> tuple[list[Entry], list[str]]:
    """Keys and values of a recipe file with their lines, and the faults of its form."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8 text"
        raise RecipeError([f"{path}: {reason}; expected a recipe, see recipes/"]) from error
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not isinstance(root, yaml.MappingNode):
            raise RecipeError([f"{path}: expected `key: value` lines, found no mapping"])
        loader = yaml.SafeLoader("")
        pairs = [
            (loader.construct_object(k, deep=True), loader.construct_object(v, deep=True), k.start_mark.line + 1)
            for k, v in root.value
        ]
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise RecipeError([f"{path}{yaml_fault(error)}"]) from error
    entries, faults = [], secret_faults(path, text)
    for key, value, line in pairs:
        if any(key == entry.key for entry in entries):
            faults.append(f"{path}:{line}: {key}: written twice; keep one")
        entries.append(Entry(str(key), value, f"{path}:{line}"))
    return entries, faults


def secret_faults(path: Path, text: str) -> list[str]:
    """Lines of a recipe, comments too, that hold a secret: a recipe is shared, and its text is kept in run.json."""
    lines = enumerate(text.split("\n"), start=1)
    return [f"{path}:{number}: {SECRET}" for number, line in lines if masked_file(line) != line]


def read_overrides(arguments: list[str], fields: dict[str, Field]) -> tuple[list[Entry], list[str]]:
    """`--field value` and `--field=value` pairs; a value is read as YAML, then as the field's type allows."""
    entries, faults = [], []
    position = 0
    while position < len(arguments):
        name, equals, value = arguments[position].partition("=")
        position += 1
        if not name.startswith("--"):
            faults.append(f"command line: {masked_text(name)}: expected --field value after the recipe")
            continue
        if not equals:
            if position == len(arguments):
                faults.append(f"command line: {name}: has no value; write {name} VALUE")
                continue
            value = arguments[position]
            position += 1
        key = name[2:]
        entries.append(Entry(key, _typed(value, fields[key].annotation) if key in fields else value, "command line"))
    return entries, faults


def override_arguments(values: Mapping[str, Any]) -> list[str]:
    """The command line that sets these fields: what `read_overrides` reads back."""
    texts = {
        key: value if isinstance(value, str) else yaml.safe_dump(value, default_flow_style=True)
        for key, value in values.items()
    }
    return [part for key, text in texts.items() for part in (f"--{key}", text.removesuffix("\n...\n").strip())]


def _typed(text: str, annotation: str) -> Any:
    """The command line's text as a value of the field; text that fits no reading stays text and fails later."""
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = text
    if isinstance(value, str) and EXPONENT.fullmatch(value) and accepts(annotation, 1.0):
        return float(value)  # YAML 1.1 reads 1e-5 as text; a shell has no such rule
    if value is None and text.strip():
        return None  # null, as in a recipe, also where the field takes text and refuses it
    return value if accepts(annotation, value) or not accepts(annotation, text) else text


def entry_faults(entry: Entry, fields: dict[str, Field]) -> list[str]:
    """What is wrong with one key and its value taken alone."""
    where = f"{entry.where}: {entry.key}: "  # the value of a key that is not taken may be a secret
    if reason := rules.refusal(entry.key, entry.value):
        return [where + reason]
    if entry.key not in fields:
        taken = [name for name in fields if not rules.refusal(name, None)]
        close = difflib.get_close_matches(entry.key, taken, n=1, cutoff=0.7)
        return [where + "unknown key" + (f"; did you mean {close[0]}?" if close else "; --help lists the known ones")]
    if str(masked(entry.value, entry.key)) != str(entry.value):
        return [where + SECRET]
    start, field = f"{where}{entry.value!r}: ", fields[entry.key]
    if not accepts(field.annotation, entry.value):
        hint = ""
        if isinstance(entry.value, str) and EXPONENT.fullmatch(entry.value) and accepts(field.annotation, 1.0):
            hint = "; YAML reads this as text, write it with a point and a sign, like 1.0e-5"
        return [start + f"expected {field.annotation}, got {type(entry.value).__name__}{hint}"]
    if field.choices and entry.value is not None and entry.value not in field.choices:
        return [start + f"expected one of {', '.join(map(str, field.choices))}"]
    return [start + reason] if (reason := rules.out_of_range(field, entry.value)) else []


def help_text(method: Method, script: str | None = None) -> str:
    """Usage and every field with its type, default and first sentence."""
    lines = [f"usage: {method.command('recipes/….yaml', script)} [--field value …]", "", "Fields of a recipe:"]
    for field in method.fields.values():
        if rules.refusal(field.name, None):
            continue
        default = " (required)" if field.name in method.required_keys else f" = {field.default}"
        lines.append(f"  {field.name}: {field.annotation}{default}")
        lines += textwrap.wrap(rules.purpose(field.help), 110, initial_indent="      ", subsequent_indent="      ")
        if field.choices:
            choices = ", ".join(map(str, field.choices))
            lines += textwrap.wrap(f"One of {choices}.", 110, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)
