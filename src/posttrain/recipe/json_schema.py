"""recipes/schema.json: what a recipe may say, for editors that complete and check YAML.

    make schema                         # python -m posttrain.recipe.json_schema recipes/schema.json

It says what `posttrain.recipe.reader` says of a key alone: names, types, choices, ranges, required keys. Faults between
keys are found by the reader. A recipe names the file in its first line, or an editor's settings do for all of recipes/.
"""

import ast
import sys
from pathlib import Path
from typing import Any

from posttrain import atomic
from posttrain.recipe import rules
from posttrain.recipe.methods import METHODS, Method
from posttrain.recipe.schema import Field

NAMES = {"int": "integer", "float": "number", "bool": "boolean", "str": "string", "dict": "object", "list": "array"}
LIMITS = {"minimum": "minimum", "maximum": "maximum", "above": "exclusiveMinimum"}


def recipe_schema() -> dict[str, Any]:
    """The JSON schema (draft 07, which editors read) of the recipes of all trainers."""
    fields: dict[str, Any] = {}
    recipes = {name: _method_schema(method, fields) for name, method in METHODS.items()}
    chosen = [
        {"if": {"properties": {"trainer": {"const": name}}}, "then": {"$ref": f"#/definitions/recipes/{name}"}}
        for name in recipes
    ]
    return {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "title": "A recipe of posttrain",
        "type": "object",
        "required": ["trainer"],
        "properties": {"trainer": {"enum": list(METHODS)}},
        "allOf": chosen,
        "definitions": {"recipes": recipes, "fields": fields},
    }


def _method_schema(method: Method, fields: dict[str, Any]) -> dict[str, Any]:
    """Keys of one trainer's recipes; a field goes into `fields` once, however many trainers have the same."""
    properties = {}
    for field in method.fields.values():
        if rules.refusal(field.name, None):
            continue
        schema, name = field_schema(field, field.name in method.required_keys), field.name
        if fields.setdefault(name, schema) != schema:
            fields[name := f"{name}.{method.name}"] = schema
        properties[field.name] = {"$ref": f"#/definitions/fields/{name}"}
    return {"properties": properties, "required": method.required_keys, "additionalProperties": False}


def field_schema(field: Field, required: bool) -> dict[str, Any]:
    """What values a field takes, and what it is for; a required one must have a value."""
    types = [part for part in field.annotation.split(" | ") if not (required and part == "None")]
    schema = type_schema(ast.parse(" | ".join(types), mode="eval").body)
    if field.choices:
        schema = {"enum": [*field.choices, *([None] if "None" in types else [])]}
    schema |= {word: limit for name, word in LIMITS.items() if (limit := getattr(field, name)) is not None}
    return {"description": rules.purpose(field.help), **schema} if field.help else schema


def type_schema(node: ast.expr) -> dict[str, Any]:
    """The schema of an annotation; the counterpart of `posttrain.recipe.schema.accepts`."""
    match node:
        case ast.BinOp(left=left, op=ast.BitOr(), right=right):
            found = [one for side in (left, right) for one in _alternatives(type_schema(side))]
            return {"anyOf": [one for n, one in enumerate(found) if one not in found[:n]]}
        case ast.Constant(value=None):
            return {"type": "null"}
        case ast.Subscript(value=ast.Name(id="Literal"), slice=choice):
            choices = ast.literal_eval(choice)
            return {"enum": list(choices) if isinstance(choices, tuple) else [choices]}
        case ast.Subscript(value=ast.Name(id="list"), slice=item):
            return {"type": "array", "items": type_schema(item)}
        case ast.Subscript(value=ast.Name(id="dict")):
            return {"type": "object"}
        case ast.Name(id=name):  # an enumeration's values are text in YAML
            return {"type": NAMES.get(name, "string")}
    raise NotImplementedError(f"annotation {ast.unparse(node)}: teach posttrain.recipe.json_schema to read it")


def _alternatives(schema: dict[str, Any]) -> list[dict[str, Any]]:
    return schema.get("anyOf", [schema])


if __name__ == "__main__":
    atomic.write_json(Path(sys.argv[1]), recipe_schema())
