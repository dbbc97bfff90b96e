"""One task on many inputs, several at a time. Outcomes are in input order; an input that fails does not affect the others."""

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
from opsin.image_encoding import ImageLike
from opsin.inpainting import InpaintOptions
from opsin.reconstruction import MapLike, ReconstructOptions
from opsin.results import Model
from opsin.zero_shot import ZeroShotOptions

T = TypeVar("T", covariant=True)
Inputs = str | os.PathLike[str] | Iterable[Any]
"""A folder, or a sequence of inputs."""
InputError = OpsinError | OSError | ValueError
"""Errors of one input: rejected or unanswered, unreadable, or impossible to encode."""
SERVED_BY: Mapping[str, tuple[str, ...]] = {"embed": embedding.TASKS}
"""Task → tasks of the bundles that can run it, if there are others than the task itself."""
_FAILURES = (OpsinError, OSError, ValueError)
MAX_SHOWN_ROWS = 100
"""Maximum number of outcomes in the table that a notebook shows."""


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """Outcome of one input: a result or an error."""

    source: Any
    """The input, or the path of the file in the folder."""
    result: T | None
    error: InputError | None


@dataclass(frozen=True, slots=True)
class Outcomes(display.HtmlResult, Generic[T]):
    """The outcomes of all inputs, in input order: a sequence of `Outcome`."""

    all: tuple[Outcome[T], ...]

    @property
    def results(self) -> list[T]:
        """Results of the inputs that did not fail, in input order."""
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
        for one in self.all[:MAX_SHOWN_ROWS]:
            cell = _brief(one.result) if one.error is None else f'<span style="color:#c33">{escape(str(one.error))}</span>'
            rows.append(f"<tr><td>{escape(str(one.source)[-80:])}</td><td>{cell}</td></tr>")
        limit_note = f", the first {MAX_SHOWN_ROWS} are shown" if len(self.all) > MAX_SHOWN_ROWS else ""
        summary = f"{len(self.all)} inputs, {len(self.failures)} failed{limit_note}"
        return display.render_table(rows, ("input", "result")) + display.render_small_print(summary)


def inputs_of(inputs: Inputs, pattern: str, argument: str = "inputs") -> list[Any]:
    """Return the files of a folder that match, in order of name and without hidden ones, or the inputs as a list.

    Raises ValueError and OSError.
    """
    if not isinstance(inputs, str | os.PathLike):
        return list(inputs)
    folder = Path(inputs)
    if not folder.is_dir():
        raise NotADirectoryError(f"{argument}: {folder} is not a folder" + ("; put one file into a list" if folder.is_file() else ""))
    files = sorted(path for path in folder.glob(pattern) if path.is_file() and not path.name.startswith("."))
    if not files:
        raise ValueError(f"{argument}: no file in {folder} matches {pattern!r}")
    return files


def map_threads(
    method: Callable[..., Any], task: Task, inputs: Sequence[Any], concurrency: int, progress: ProgressOption, options: Mapping[str, Any]
) -> Outcomes[Any]:
    """Run the method on each input, in threads. On an interruption, inputs that have not started are dropped."""

    def run_one(source: Any) -> Outcome[Any]:
        try:
            return Outcome(source, method(*_arguments(source), **options), None)
        except _FAILURES as error:
            return Outcome(source, None, error)

    pool = ThreadPoolExecutor(concurrency, thread_name_prefix="opsin-map")
    try:
        with _progress_callback(progress, task, len(inputs)) as report_progress:
            futures = [pool.submit(run_one, source) for source in inputs]
            for done, future in enumerate(as_completed(futures), 1):
                future.result()  # errors that are not an input's end the whole call
                report_progress(done)
            return Outcomes(tuple(future.result() for future in futures))
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


async def map_tasks(
    method: Callable[..., Awaitable[Any]],
    task: str,
    inputs: Sequence[Any],
    concurrency: int,
    progress: ProgressOption,
    options: Mapping[str, Any],
) -> Outcomes[Any]:
    semaphore = asyncio.Semaphore(concurrency)
    finished = 0

    async def run_one(source: Any) -> Outcome[Any]:
        nonlocal finished
        async with semaphore:
            try:
                outcome: Outcome[Any] = Outcome(source, await method(*_arguments(source), **options), None)
            except _FAILURES as error:
                outcome = Outcome(source, None, error)
        finished += 1
        report_progress(finished)
        return outcome

    with _progress_callback(progress, task, len(inputs)) as report_progress:
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(run_one(source)) for source in inputs]
        except BaseExceptionGroup as errors:  # errors that are not an input's
            raise errors.exceptions[0] from None
        return Outcomes(tuple(each.result() for each in tasks))


def method_of(client: object, task: Task, concurrency: int, options: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the client's method for the task. Raises ValueError and TypeError for arguments that it does not take, before any request."""
    if task not in TABLES:
        raise ValueError(f"task: {task!r}; use one of {', '.join(TABLES)}")
    if concurrency < 1:
        raise ValueError(f"concurrency: {concurrency}; it must be at least 1")
    method: Callable[..., Any] = getattr(client, task.replace("-", "_"))
    options_table = TABLES[task].__annotations__
    unknown = [name for name in options if name not in options_table]
    if unknown:
        raise TypeError(f"map: {task} has no option {unknown[0]!r}; the options are {', '.join(options_table)}")
    return method


def has_model_options(options: Mapping[str, Any]) -> bool:
    """Return whether an option can be checked against the served models (`check_served`)."""
    return any(options.get(name) is not None for name in ("model", "merge", "top_k"))


def check_served(models: Sequence[Model], task: str, options: Mapping[str, Any]) -> None:
    """Raise Refused if every input would fail: for a model that is not served for the task, or labels or rungs that it does not have."""
    tasks = SERVED_BY.get(task, (task,))
    candidates = [
        model for model in models if model.task in tasks and model.route in (task, model.task)
    ]  # some label clips for another route
    served, name = candidates, options.get("model")
    if name is None:
        if len(tasks) > 1:  # `default` is reported for the first of a bundle's tasks only
            return
        served = [model for model in served if model.details["default"]]
    elif not (served := [model for model in served if name in (model.name, model.id)]):
        names = ", ".join(model.id if model.state == "ready" else f"{model.id} ({model.state})" for model in candidates) or "none"
        clips = any(name in (model.name, model.id) and model.route == task for model in models)
        hint = f"{name!r} takes clips or sound, but map sends images: call {task}(video=…) for each" if clips else ""
        raise Refused(hint or f"{name!r} is not served for {task}; known: {names}", status=404, title="Unknown model", field="model")
    if len(served) != 1:  # the service decides which of several versions answers, or none
        return
    (model,) = served
    top_k, merge, rungs = options.get("top_k"), options.get("merge"), [rung["name"] for rung in model.details["ladder"]]
    if task == "classify" and isinstance(top_k, int) and not 1 <= top_k <= model.details["labels"]:
        raise _invalid("top_k", f"{top_k}: use an integer from 1 to {model.details['labels']}, the number of labels of {model.id}")
    if isinstance(merge, str) and not merge.isdecimal() and merge not in ("off", *rungs):
        raise _invalid("merge", f"{merge!r}: the rungs of {model.id} are {', '.join(rungs) or 'none'}; or use `off` or an integer")


def _invalid(option: str, detail: str) -> Refused:
    return Refused(detail, status=422, title="Invalid option", field=option)


def _arguments(source: Any) -> tuple[Any, ...]:
    return source if isinstance(source, tuple) else (source,)


@contextmanager
def _progress_callback(progress: ProgressOption, task: str, total: int) -> Iterator[Callable[[int], None]]:
    """Yield the function to call with the number of finished inputs."""
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
    """Render a result for one cell of a table."""
    if hasattr(result, "label"):
        return "no label" if result.label is None else f"{escape(result.label)} {result.score:.1%}"
    if hasattr(result, "vectors"):
        return f"{len(result)} × {result.vectors.shape[-1]} numbers"
    if hasattr(result, "samples"):
        return display.render_image(result.samples[0].png, 96)
    if hasattr(result, "people"):
        return f"{len(result.people)} people"
    return f"{result.count:,} points"


Task = Literal["classify", "zero-shot", "embed", "inpaint", "reconstruct", "actions"]
ProgressOption = bool | Callable[[int, int], None] | None


class MapOptions(TypedDict, total=False):
    concurrency: int
    """Number of inputs to process at a time; 8 by default."""
    pattern: str
    """Glob pattern for the files of a folder; all by default."""
    progress: ProgressOption


class ClassifyMap(ClassifyOptions, MapOptions, total=False): ...


class ZeroShotMap(ZeroShotOptions, MapOptions, total=False):
    labels: Sequence[str]


class EmbedMap(EmbedOptions, MapOptions, total=False):
    output: Output


class InpaintMap(InpaintOptions, MapOptions, total=False):
    mask: ImageLike | None


class ReconstructMap(ReconstructOptions, MapOptions, total=False):
    depth: MapLike | None


class ActionsMap(ActionsOptions, MapOptions, total=False): ...


TABLES: Mapping[Task, type[Any]] = {
    "classify": ClassifyMap,
    "zero-shot": ZeroShotMap,
    "embed": EmbedMap,
    "inpaint": InpaintMap,
    "reconstruct": ReconstructMap,
    "actions": ActionsMap,
}
