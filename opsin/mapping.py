"""One task for many inputs: some at a time, outcomes in the order of the inputs, failures beside the others."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar

from opsin import display
from opsin.errors import OpsinError

T = TypeVar("T", covariant=True)
Task = Literal["classify", "inpaint", "reconstruct", "actions"]
Inputs = str | os.PathLike[str] | Iterable[Any]
"""A folder, or inputs one by one."""
ProgressOption = bool | Callable[[int, int], None] | None
Failure = OpsinError | OSError | ValueError
"""What one input can fail with: refused or unreachable, not to be read, not to be encoded."""
_FAILURES = (OpsinError, OSError, ValueError)


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What became of one input: a result, or the error in its place."""

    source: Any
    """The input, as it was given or found."""
    result: T | None
    error: Failure | None


@dataclass(frozen=True, slots=True)
class Outcomes(Generic[T]):
    """What became of all inputs, in their order. A sequence of `Outcome`."""

    all: tuple[Outcome[T], ...]

    @property
    def results(self) -> list[T]:
        """Of the inputs that did not fail, in their order."""
        return [one.result for one in self.all if one.result is not None]

    @property
    def failures(self) -> list[Outcome[T]]:
        return [one for one in self.all if one.error is not None]

    def __len__(self) -> int:
        return len(self.all)

    def __iter__(self) -> Iterator[Outcome[T]]:
        return iter(self.all)

    def __getitem__(self, index: int) -> Outcome[T]:
        return self.all[index]

    def _repr_html_(self) -> str:
        return display.outcomes(self)

    def show(self) -> Path | None:
        """Show them in the notebook or the browser: see `opsin.display.show`."""
        return display.show(self)


def inputs_of(given: Inputs, pattern: str) -> list[Any]:
    """The files of a folder that match, by name, without hidden ones; else what was given. Raises ValueError, OSError."""
    if not isinstance(given, str | os.PathLike):
        return list(given)
    folder = Path(given)
    if not folder.is_dir():
        raise NotADirectoryError(f"inputs: {folder} is no folder; put one file into a list")
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"inputs: no file in {folder} matches {pattern!r}")
    return found


def map_threads(
    asks: Mapping[str, Callable[..., Any]],
    task: str,
    inputs: Sequence[Any],
    concurrency: int,
    progress: ProgressOption,
    options: Mapping[str, Any],
) -> Outcomes[Any]:
    """In threads. Where it is interrupted, what has not begun is not asked any more."""
    ask = _checked(asks, task, concurrency)

    def one(source: Any) -> Outcome[Any]:
        try:
            return Outcome(source, ask(*_arguments(source), **options), None)
        except _FAILURES as error:
            return Outcome(source, None, error)

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="opsin-map")
    try:
        with _told(progress, task, len(inputs)) as tell:
            futures = [pool.submit(one, source) for source in inputs]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()  # what is nobody's input's fault ends it here
                tell(done)
            return Outcomes(tuple(future.result() for future in futures))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


async def map_tasks(
    asks: Mapping[str, Callable[..., Awaitable[Any]]],
    task: str,
    inputs: Sequence[Any],
    concurrency: int,
    progress: ProgressOption,
    options: Mapping[str, Any],
) -> Outcomes[Any]:
    ask = _checked(asks, task, concurrency)
    room = asyncio.Semaphore(concurrency)
    done = 0

    async def one(source: Any) -> Outcome[Any]:
        nonlocal done
        async with room:
            try:
                outcome: Outcome[Any] = Outcome(source, await ask(*_arguments(source), **options), None)
            except _FAILURES as error:
                outcome = Outcome(source, None, error)
        done += 1
        tell(done)
        return outcome

    with _told(progress, task, len(inputs)) as tell:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(one(source)) for source in inputs]
        except BaseExceptionGroup as errors:  # what is nobody's input's fault
            raise errors.exceptions[0] from None
        return Outcomes(tuple(each.result() for each in tasks))


def _checked(asks: Mapping[str, Callable[..., Any]], task: str, concurrency: int) -> Callable[..., Any]:
    if task not in asks:
        raise ValueError(f"task: {task!r}; use one of {', '.join(asks)}")
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency}; it must be at least 1")
    return asks[task]


def _arguments(source: Any) -> tuple[Any, ...]:
    return source if isinstance(source, tuple) else (source,)


@contextmanager
def _told(progress: ProgressOption, task: str, total: int) -> Iterator[Callable[[int], None]]:
    """What hears how many are done."""
    if callable(progress):
        yield lambda done: progress(done, total)
    elif progress or (progress is None and sys.stderr.isatty()):
        from rich.console import Console
        from rich.progress import Progress

        with Progress(console=Console(stderr=True)) as bar:
            row = bar.add_task(task, total=total)
            yield lambda done: bar.update(row, completed=done)
    else:
        yield lambda done: None
