"""The documents of the repository as text: links, code spans, headings, and blocks that are marked as runnable."""

import ast
import functools
import importlib.util
import re
from dataclasses import dataclass
from pathlib import Path

from posttrain.recipe.methods import METHODS

REPOSITORY = Path(__file__).parents[2]
DOCS = REPOSITORY / "docs"
PAGES = sorted([*(REPOSITORY / name for name in ("README.md", "CONTRIBUTING.md", "LOG.md")), *DOCS.rglob("*.md")])
FENCE = re.compile(r"^```(\w*)[^\n]*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
SPAN = re.compile(r"(?<!`)`([^`\n]+(?:\n[^`\n]+)?)`(?!`)")
MARKED = re.compile(r"<!-- runnable(?:: ([^>]*?))? -->\n```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
# Metrics that TRL's trainers and ours put into `_metrics`, read from source; a name with braces is an f-string.
METRIC_FILES = ("sft", "grpo", "dpo", "kto", "reward", "distillation")
NOT_LOGGED = {"num_tokens", "update"}  # WholeRun.log takes the first out; the second is seconds/update
STORE = re.compile(r"(self|self\.trainer)\._metrics\[|figures$|store$")
LOGGING = ("log", "close", "auxiliary")


@dataclass(frozen=True)
class Block:
    """A runnable block: `options` are the words of its mark, such as slow, or `exit 2`."""

    page: Path
    language: str
    options: tuple[str, ...]
    text: str

    @property
    def slow(self) -> bool:
        return "slow" in self.options


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", page.read_text())


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


def runnable_blocks() -> list[Block]:
    """Every block below a `<!-- runnable -->` mark, in the order of the pages."""
    return [
        Block(page, language, tuple(option.strip() for option in (options or "").split(",") if option.strip()), text)
        for page in PAGES
        for options, language, text in MARKED.findall(page.read_text())
    ]


def make_targets() -> set[str]:
    """Targets of the Makefile, the pattern of the benchmarks filled with the files it stands for."""
    targets = set(re.findall(r"^([a-z-]+):", (REPOSITORY / "Makefile").read_text(), re.MULTILINE))
    return targets | {path.stem.replace("_", "-") for path in (REPOSITORY / "speed").glob("bench_*.py")}


@functools.cache
def recipe_keys() -> frozenset[str]:
    """Every key that some recipe may have."""
    return frozenset(name for method in METHODS.values() for name in method.fields)


@functools.cache
def accelerate_keys() -> frozenset[str]:
    """Every key in accelerate_configs/."""
    texts = [path.read_text() for path in (REPOSITORY / "accelerate_configs").glob("*.yaml")]
    return frozenset(re.findall(r"^ *([a-z_0-9]+):", "\n".join(texts), re.MULTILINE))


@functools.cache
def script_options() -> frozenset[str]:
    """Every option that stands in the code of scripts and package."""
    folders = ("src", "data_prep", "speed", "examples")
    texts = [path.read_text() for folder in folders for path in (REPOSITORY / folder).rglob("*.py")]
    return frozenset(re.findall(r"[\"'](--[\w-]+)[\"']", "\n".join(texts)))


@functools.cache
def logged_metrics() -> set[str]:
    """Names under which trainers log figures, by their source; braces for what an f-string fills in.

    TRL's and ours put them into `self._metrics[mode][name]`; ours also into a dict in functions of `LOGGING`.
    """
    package = Path(importlib.util.find_spec("trl").submodule_search_locations[0])
    files = [package / f"trainer/{name}_trainer.py" for name in METRIC_FILES]
    found: set[str] = set()
    ours = [file for file in (REPOSITORY / "src/posttrain").rglob("*.py") if file.name != "probe.py"]  # probe.json
    for file in [*files, *ours]:
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Subscript) and STORE.match(ast.unparse(node.value)):
                found.add(_name(node.slice))
            elif isinstance(node, ast.FunctionDef) and node.name in LOGGING and file in ours:
                found |= _names_in(node)
    return {name for name in found if name.strip("{}")} - NOT_LOGGED


def _names_in(function: ast.FunctionDef) -> set[str]:
    """Keys of dictionaries that a function writes, and the names that it gives to `dict.fromkeys`."""
    found: set[str] = set()
    for node in ast.walk(function):
        if isinstance(node, ast.Dict):
            found |= {_name(key) for key in node.keys if key is not None}
        elif isinstance(node, ast.DictComp):
            found.add(_name(node.key))
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, ast.Store):
            found.add(_name(node.slice))
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "dict.fromkeys":
            found |= {_name(item) for item in node.args[0].elts}
    return found


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "{}" for part in node.values)
    return ""
