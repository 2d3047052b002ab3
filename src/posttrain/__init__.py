"""Recipes that take a base language model to a better mathematical reasoner, and prove it."""

__version__ = "0.1.0"
