"""Why training stops. Every message is a sentence for the person who started it: it names the file, the field and what to do."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path


class TrainingError(Exception):
    """Training cannot go on."""


class RecipeError(TrainingError):
    """A recipe cannot be used."""


class DataError(TrainingError):
    """Training data cannot be had, or is not what the recipe says."""


def exit_code(write: Callable[[], object], folder: Path) -> int:
    """Run what writes files into a folder, which is made first, as a command does: return 0, or 2 after a sentence on standard error."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write()
    except TrainingError as error:
        print(error, file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{folder}: {error.strerror}", file=sys.stderr)
        return 2
    return 0
