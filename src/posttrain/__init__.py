"""Recipes that take a base language model to a better mathematical reasoner, and prove it.

From Python: `posttrain.train("recipes/x.yaml", overrides={…})` and `posttrain.Chat("outputs/x/final")`.
"""

import importlib
from typing import Any

__version__ = "0.1.0"
FROM_PYTHON = {"train": "posttrain.api", "TrainResult": "posttrain.api", "Chat": "posttrain.generation.chat"}


def __getattr__(name: str) -> Any:
    """Names of the Python front, imported when they are asked for: `import posttrain` loads no torch."""
    if name in FROM_PYTHON:
        return getattr(importlib.import_module(FROM_PYTHON[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
