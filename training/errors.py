"""Why training stops. Every message is a sentence for the person who started it: it names the file, the field and what to do."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable, Iterator
from pathlib import Path


class TrainingError(Exception):
    """Training cannot go on."""


class RecipeError(TrainingError):
    """A recipe cannot be used."""


class DataError(TrainingError):
    """Training data cannot be had, or is not what the recipe says."""


def disk_is_full(error: BaseException) -> bool:
    """Return True if a full disk caused an error, or one of the errors of processes that wrote a checkpoint together."""
    failures = [failure[0] if isinstance(failure, tuple) else failure for failure in getattr(error, "failures", {}).values()]
    causes = (cause for failure in (error, *failures) for cause in _causes(failure))
    return any(getattr(cause, "errno", None) == errno.ENOSPC or "No space left" in str(cause) for cause in causes)


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """Yield the error and its causes: if PyTorch cannot finish a file, its own error is about the file's length."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


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
