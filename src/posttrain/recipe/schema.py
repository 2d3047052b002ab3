"""Field names, types, defaults, choices and ranges of a dataclass.

`import trl` takes about six seconds because it imports torch. A recipe must be known to be good before anything is
loaded, and `--help` must answer at once, so a library's dataclass is read from the file that defines it instead of
being imported. A test holds the result against `dataclasses.fields` of the imported classes. Ours are imported.
"""

import ast
import dataclasses
import functools
import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Enumerations that annotations of transformers' TrainingArguments name, by the file that defines them.
ENUM_FILES = ("transformers/trainer_utils.py", "transformers/training_args.py")
TRAINING_ARGUMENTS = "transformers/training_args.py:TrainingArguments"


def trl_config(source: str) -> tuple[str, ...]:
    """The fields of TRL's arguments class named as `file.py:Class` of trl/trainer, with those that it inherits."""
    return (TRAINING_ARGUMENTS, "trl/trainer/base_config.py:_BaseConfig", f"trl/trainer/{source}")


SFT_CONFIG = trl_config("sft_config.py:SFTConfig")
GRPO_CONFIG = trl_config("grpo_config.py:GRPOConfig")
DISTILLATION_CONFIG = trl_config("distillation_config.py:DistillationConfig")
MODEL_CONFIG = ("trl/trainer/model_config.py:ModelConfig",)


@dataclass(frozen=True)
class Field:
    """One field of a dataclass. `annotation` is source text; `choices` is empty where any value of the type will do.

    `minimum` and `maximum` may be reached, `above` may not.
    """

    name: str
    annotation: str
    default: str
    help: str
    choices: tuple[Any, ...] = ()
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None


Source = str | type  # a library's class as `package/file.py:Class`, which is parsed, or a dataclass of ours


def read_fields(sources: tuple[Source, ...]) -> dict[str, Field]:
    """Fields of the classes, base class first; a later class overrides."""
    fields: dict[str, Field] = {}
    for source in sources:
        fields |= _parsed_fields(*source.split(":")) if isinstance(source, str) else _own_fields(source)
    return fields


def _own_fields(cls: type) -> dict[str, Field]:
    return {field.name: _own_field(field) for field in dataclasses.fields(cls)}


def _own_field(field: "dataclasses.Field[Any]") -> Field:
    default = ""
    if field.default is not dataclasses.MISSING:
        default = repr(field.default)
    elif field.default_factory is not dataclasses.MISSING:
        default = repr(field.default_factory())
    plain = isinstance(field.type, type) and not hasattr(field.type, "__args__")
    annotation = field.type.__name__ if plain else str(field.type)
    about = field.metadata
    limits = (about.get(name) for name in ("min", "max", "above"))
    return Field(field.name, annotation, default, about["help"], tuple(about.get("choices", ())), *limits)


def accepts(annotation: str, value: Any) -> bool:
    """Whether `value`, as YAML reads it, is of the type that `annotation` names.

    An integer is a float, a boolean is never a number, and an enumeration accepts its values as text.
    """
    return _accepts(ast.parse(annotation, mode="eval").body, value)


def _accepts(node: ast.expr, value: Any) -> bool:
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            return _accepts(left, value) or _accepts(right, value)
        case ast.Constant(value=None):
            return value is None
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choice):
            choices = ast.literal_eval(choice)
            return value in choices if isinstance(choices, tuple) else value == choices
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return isinstance(value, list) and all(_accepts(item, element) for element in value)
        case ast.Subscript(value=ast.Name(id="dict")):
            return isinstance(value, dict)
        case ast.Name(id="bool"):
            return isinstance(value, bool)
        case ast.Name(id="int"):
            return isinstance(value, int) and not isinstance(value, bool)
        case ast.Name(id="float"):
            return isinstance(value, int | float) and not isinstance(value, bool)
        case ast.Name(id="dict"):
            return isinstance(value, dict)
        case ast.Name(id="list"):
            return isinstance(value, list)
        case ast.Name():  # str, or an enumeration, whose values are text in YAML
            return isinstance(value, str)
    raise NotImplementedError(f"annotation {ast.unparse(node)}: teach posttrain.recipe.schema to read it")


@functools.cache
def _parse(file: str) -> ast.Module:
    package, _, rest = file.partition("/")
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"package {package} is not installed"
    return ast.parse((Path(spec.submodule_search_locations[0]) / rest).read_text())


def _parsed_fields(file: str, class_name: str) -> dict[str, Field]:
    (definition,) = [n for n in _parse(file).body if isinstance(n, ast.ClassDef) and n.name == class_name]
    return {
        statement.target.id: _parsed_field(statement.target.id, statement)
        for statement in definition.body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def _parsed_field(name: str, statement: ast.AnnAssign) -> Field:
    keywords: dict[str, ast.expr] = {}
    default = "" if statement.value is None else ast.unparse(statement.value)
    if isinstance(statement.value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in statement.value.keywords if keyword.arg}
        default_node = keywords.get("default", keywords.get("default_factory"))
        default = "" if default_node is None else ast.unparse(default_node)
    metadata: dict[str, ast.expr] = {}
    if isinstance(keywords.get("metadata"), ast.Dict):
        for key, value in zip(keywords["metadata"].keys, keywords["metadata"].values, strict=True):
            metadata[ast.literal_eval(key)] = value
    annotation = ast.unparse(statement.annotation)
    choices = ast.literal_eval(metadata["choices"]) if _is_literal(metadata.get("choices")) else ()
    help_text = ast.literal_eval(metadata["help"]) if _is_literal(metadata.get("help")) else ""
    return Field(name, annotation, default, help_text, tuple(choices) or _enum_values(annotation))


def _is_literal(node: ast.expr | None) -> bool:
    try:
        ast.literal_eval(node)  # type: ignore[arg-type]
    except (ValueError, TypeError):
        return False
    return node is not None


def _enum_values(annotation: str) -> tuple[str, ...]:
    """The values of the enumeration that `annotation` names, e.g. `SaveStrategy | str`; empty where it names none."""
    enums = _enums()
    return next((enums[part.strip()] for part in annotation.split("|") if part.strip() in enums), ())


@functools.cache
def _enums() -> dict[str, tuple[str, ...]]:
    return {
        definition.name: tuple(
            statement.value.value
            for statement in definition.body
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)
        )
        for file in ENUM_FILES
        for definition in _parse(file).body
        if isinstance(definition, ast.ClassDef) and any(ast.unparse(base).endswith("Enum") for base in definition.bases)
    }
