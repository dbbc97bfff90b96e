"""One task for many inputs: some at a time, outcomes in the order of the inputs, failures beside the others."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any, Generic, Literal, TypedDict, TypeVar

from opsin import display, embedding
from opsin.actions import ActionsOptions
from opsin.classification import ClassifyOptions
from opsin.embedding import EmbedOptions, Output
from opsin.errors import OpsinError, Refused
from opsin.image_encoding import Picture
from opsin.inpainting import InpaintOptions
from opsin.reconstruction import Map, ReconstructOptions
from opsin.results import Model
from opsin.zero_shot import ZeroShotOptions

T = TypeVar("T", covariant=True)
Inputs = str | os.PathLike[str] | Iterable[Any]
"""A folder, or inputs one by one."""
Failure = OpsinError | OSError | ValueError
"""Failures of one input: refused or unreachable, not to be read, not to be encoded."""
SERVED_BY: Mapping[str, tuple[str, ...]] = {"embed": embedding.TASKS}
"""Tasks of the bundles that answer, where these are not the task alone."""
_FAILURES = (OpsinError, OSError, ValueError)
MOST_ROWS = 100
"""Rows of outcomes that are shown, at most."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """Outcome of one input: a result, or the error in its place."""

    source: Any
    """The input, as it was given or found."""
    result: T | None
    error: Failure | None


@dataclass(frozen=True, slots=True)
class Outcomes(Generic[T]):
    """Outcomes of all inputs, in their order. A sequence of `Outcome`."""

    all: tuple[Outcome[T], ...]

    @property
    def results(self) -> list[T]:
        """Results of the inputs that did not fail, in their order."""
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
        rows = []
        for one in self.all[:MOST_ROWS]:
            told = _brief(one.result) if one.error is None else f'<span style="color:#c33">{escape(str(one.error))}</span>'
            rows.append(f"<tr><td>{escape(str(one.source)[-80:])}</td><td>{told}</td></tr>")
        more = f", the first {MOST_ROWS} are shown" if len(self.all) > MOST_ROWS else ""
        summary = f"{len(self.all)} inputs, {len(self.failures)} failed{more}"
        return display.table(rows, ("input", "result")) + display.line(summary)

    def show(self) -> Path | None:
        """Show them in the notebook or the browser: see `opsin.display.show`."""
        return display.show(self)


def inputs_of(given: Inputs, pattern: str, argument: str = "inputs") -> list[Any]:
    """The files of a folder that match, by name, without hidden ones; else what was given. Raises ValueError, OSError."""
    if not isinstance(given, str | os.PathLike):
        return list(given)
    folder = Path(given)
    if not folder.is_dir():
        raise NotADirectoryError(f"{argument}: {folder} is no folder" + ("; put one file into a list" if folder.is_file() else ""))
    found = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    if not found:
        raise ValueError(f"{argument}: no file in {folder} matches {pattern!r}")
    return found


def map_threads(
    ask: Callable[..., Any], task: Task, inputs: Sequence[Any], concurrency: int, progress: ProgressOption, options: Mapping[str, Any]
) -> Outcomes[Any]:
    """In threads. Where it is interrupted, what has not begun is not asked any more."""

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
    ask: Callable[..., Awaitable[Any]],
    task: str,
    inputs: Sequence[Any],
    concurrency: int,
    progress: ProgressOption,
    options: Mapping[str, Any],
) -> Outcomes[Any]:
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


def method_of(client: object, task: Task, concurrency: int, options: Mapping[str, Any]) -> Callable[..., Any]:
    """The method of a client that does the task. Raises ValueError and TypeError for what it cannot be asked, before anything is sent."""
    if task not in TABLES:
        raise ValueError(f"task: {task!r}; use one of {', '.join(TABLES)}")
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency}; it must be at least 1")
    method: Callable[..., Any] = getattr(client, task.replace("-", "_"))
    known = TABLES[task].__annotations__
    unknown = [name for name in options if name not in known]
    if unknown:
        raise TypeError(f"map: {task} has no option {unknown[0]!r}; the options are {', '.join(known)}")
    return method


def asks_of_model(options: Mapping[str, Any]) -> bool:
    """Whether an option can be checked against what the service serves (`check_served`)."""
    return any(options.get(name) is not None for name in ("model", "merge", "top_k"))


def check_served(models: Sequence[Model], task: str, options: Mapping[str, Any]) -> None:
    """Raises Refused for a model that is not served for the task, and for labels or rungs that it does not have: every input would fail."""
    tasks = SERVED_BY.get(task, (task,))
    known = [model for model in models if model.task in tasks and model.route in (task, model.task)]  # some label clips for another route
    served, wanted = known, options.get("model")
    if wanted is None:
        if len(tasks) > 1:  # `default` is told for the first of a bundle's tasks alone
            return
        served = [model for model in served if model.details["default"]]
    elif not (served := [model for model in served if wanted in (model.name, model.id)]):
        names = ", ".join(model.id if model.state == "ready" else f"{model.id} ({model.state})" for model in known) or "none"
        clips = any(wanted in (model.name, model.id) and model.route == task for model in models)
        hint = f"{wanted!r} takes clips or sound, and map sends images: ask {task}(video=…) for each" if clips else ""
        raise Refused(hint or f"{wanted!r} is not served for {task}; known: {names}", status=404, title="Unknown model", field="model")
    if len(served) != 1:  # which of several versions answers, or none: the service decides
        return
    (model,) = served
    top_k, merge, rungs = options.get("top_k"), options.get("merge"), [rung["name"] for rung in model.details["ladder"]]
    if task == "classify" and isinstance(top_k, int) and not 1 <= top_k <= model.details["labels"]:
        raise _invalid("top_k", f"{top_k}: use an integer from 1 to {model.details['labels']}, the number of labels of {model.id}")
    if isinstance(merge, str) and not merge.isdigit() and merge not in ("off", *rungs):
        raise _invalid("merge", f"{merge!r}: the rungs of {model.id} are {', '.join(rungs) or 'none'}; or use `off` or an integer")


def _invalid(option: str, detail: str) -> Refused:
    return Refused(detail, status=422, title="Invalid option", field=option)


def _arguments(source: Any) -> tuple[Any, ...]:
    return source if isinstance(source, tuple) else (source,)


@contextmanager
def _told(progress: ProgressOption, task: str, total: int) -> Iterator[Callable[[int], None]]:
    """A function that is told how many are done."""
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


def _brief(result: Any) -> str:
    """A result in one cell of a table."""
    if hasattr(result, "label"):
        return "no label" if result.label is None else f"{escape(result.label)} {result.score:.1%}"
    if hasattr(result, "vectors"):
        return f"{len(result)} × {result.vectors.shape[-1]} numbers"
    if hasattr(result, "samples"):
        return display.image(result.samples[0].png, 96)
    if hasattr(result, "people"):
        return f"{len(result.people)} people"
    return f"{result.count:,} points"


Task = Literal["classify", "zero-shot", "embed", "inpaint", "reconstruct", "actions"]
ProgressOption = bool | Callable[[int, int], None] | None


class MapOptions(TypedDict, total=False):
    concurrency: int
    """Number of inputs that are asked at a time; 8 by default."""
    pattern: str
    """Which files of a folder are taken; all by default."""
    progress: ProgressOption


class ClassifyMap(ClassifyOptions, MapOptions, total=False): ...


class ZeroShotMap(ZeroShotOptions, MapOptions, total=False):
    labels: Sequence[str]


class EmbedMap(EmbedOptions, MapOptions, total=False):
    output: Output


class InpaintMap(InpaintOptions, MapOptions, total=False):
    mask: Picture | None


class ReconstructMap(ReconstructOptions, MapOptions, total=False):
    depth: Map | None
    points: Map | None
    mask: Picture | None


class ActionsMap(ActionsOptions, MapOptions, total=False): ...


TABLES: Mapping[Task, type[Any]] = {
    "classify": ClassifyMap,
    "zero-shot": ZeroShotMap,
    "embed": EmbedMap,
    "inpaint": InpaintMap,
    "reconstruct": ReconstructMap,
    "actions": ActionsMap,
}
