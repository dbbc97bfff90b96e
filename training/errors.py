"""Why training stops. Every message is a sentence for the person who started it: it names the file, the field and what to do."""

from __future__ import annotations


class TrainingError(Exception):
    """Training cannot go on."""


class RecipeError(TrainingError):
    """A recipe cannot be used."""


class DataError(TrainingError):
    """Training data cannot be had, or is not what the recipe says."""
