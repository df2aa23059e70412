"""Recipes, engine and the command `emtrain`."""

__version__ = "0.1.0"
