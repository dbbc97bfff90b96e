"""`opsin batch`: run one task on many rows or files, at low priority."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.ask import parse_pairs
from opsin.cli.batch.results_file import AnswerFile, BatchResult, ResultsFile, answers_folder
from opsin.cli.batch.rows import RESERVED_NAMES, BatchRow, Rows
from opsin.cli.shared import output_files
from opsin.cli.shared.console import make_console
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.image_files import MAX_CONCURRENT_REQUESTS
from opsin.cli.shared.interrupts import pending_interrupt
from opsin.cli.shared.options import Url, require_positive

if TYPE_CHECKING:
    import httpx2

    from opsin.api_request import ApiRequest
    from opsin.connection import ServiceConnection
    from opsin.errors import OpsinError
    from opsin.results import Model

MAX_ROWS_AHEAD = 4 * MAX_CONCURRENT_REQUESTS
"""Maximum number of rows in progress or waiting to be written, so that one slow row does not hold up the others."""
RETRY_PAUSE_S = 1.0
"""Pause before a row is sent again, unless the service names one."""
MAX_OUTAGE_S = 60.0
"""Time for which an unreachable service, such as one that restarts, is retried after the first failure."""
INTERRUPT_POLL_S = 1.0
"""Interval between two checks for Ctrl-C while waiting for an answer: Python may have dropped the exception."""
FATAL_STATUSES = frozenset({401, 403, 405})
"""Statuses of errors that are not a row's fault."""
UNKNOWN_MODEL = "Unknown model"
"""Title of a problem (404) that may be a row's fault: the model that it names, or parts that no bundle takes."""
EVENT_STREAM = "text/event-stream"


def batch(
    task: Annotated[str, typer.Argument(help="The task's name, as in POST /v1/TASK.")],
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|IN.jsonl", help="Folder of files, or a JSON Lines file with parts and options.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="OUT.jsonl", help="Output file, with a line for each row, in order.")],
    resume: Annotated[
        bool, typer.Option("--resume", help="Continue an interrupted run that wrote OUT.jsonl, with the same rows and options.")
    ] = False,
    option: Annotated[
        list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="Option of every row; may be repeated.")
    ] = None,
    accept: Annotated[str | None, typer.Option(help="Media type of the answers, such as video/mp4. [default: the task's]")] = None,
    url: Url = None,
    timeout: Annotated[float, typer.Option(help="Timeout for each row, in seconds.", callback=require_positive)] = 3600.0,
) -> None:
    """Run one task on every row of IN.jsonl or every file in FOLDER, at low priority and as fast as the service allows.

    A row is {"id"?, parts as paths relative to IN.jsonl, options}, a result {"index", "id"?, "answer" | "error"}. Answers that are files go
    into OUT.files. After an interruption, run the same command with --resume to continue. Exit code 1 if a row failed.
    """
    from opsin.client import Client
    from opsin.connection import ServiceConnection

    output_files.check_writable(output)
    if not source.is_file() and not source.is_dir():
        raise UsageError(f"{source}: no such file or folder")
    options = parse_pairs(option or [], "NAME=VALUE")
    if EVENT_STREAM in (accept or "").lower():
        raise UsageError(f"--accept {accept}: a batch stores answers, not events; leave it out, or name the media type of a file")
    for name in RESERVED_NAMES.keys() & options.keys():
        raise UsageError(f"--option {name}: {RESERVED_NAMES[name]}; leave it out")
    with Client(url) as client:
        models = client.models()
    if not models:
        raise CommandError(f"{client.url}: no bundle is being served")
    task_models = _models_for_task(models, task)
    rows = _open_rows(source, task_models or models if source.is_dir() else models, output)
    count, digest = rows.survey()
    options_digest = hashlib.sha256(json.dumps([options, accept], sort_keys=True).encode()).hexdigest()
    header = {"opsin_batch": 1, "task": task, "inputs": digest, "options": options_digest, "rows": count}
    connection = ServiceConnection(url, None, timeout, retries=0, headers=None)
    with ResultsFile(output, header, resume=resume) as results, pending_interrupt() as stop_if_interrupted:
        run = _BatchRun(rows, task, options, accept, connection, stop_if_interrupted, is_served=bool(task_models))
        try:
            for _ in _write_results(run.results(results.done), count, results):
                stop_if_interrupted()
        except KeyboardInterrupt:
            saved = f"{results.done} of {count} rows are in {output}; use --resume to continue"
            typer.echo(f"opsin: interrupted; {saved if results.done else 'no row was answered, and nothing is stored'}", err=True)
            raise
        finally:
            run.stop()
            connection.http.close()
    if results.first_failure is not None:
        index, detail = results.first_failure
        raise CommandError(f"{output}: {results.failed} of {count} rows failed, the first of them row {index}: {detail}")
    typer.echo(f"{output}: {count} answered")


def _models_for_task(models: Sequence[Model], task: str) -> list[Model]:
    from opsin.bulk import SERVED_BY

    return [model for model in models if model.task in SERVED_BY.get(task, (task,)) or model.route == task]


def _open_rows(source: Path, models: Sequence[Model], output: Path) -> Rows:
    """Return the rows of a source. models: those whose parts rows may have."""
    parts = {part["name"]: part for model in models for part in model.details["inputs"]}
    kinds = {name: part["kind"] for name, part in parts.items()}
    max_bytes = max((part["max_bytes"] for part in parts.values()), default=0)
    return Rows(source, kinds, max_bytes, frozenset((output.resolve(), answers_folder(output).resolve())))


def _write_results(results: Iterable[BatchResult], count: int, written: ResultsFile) -> Iterable[None]:
    """Write each result as it arrives, with a progress bar on a terminal."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = make_console(errors=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task_id = bar.add_task("Running", total=count, completed=written.done)
        for result in results:
            written.write(result)
            bar.update(task_id, completed=written.done, description=f"{written.failed} failed" if written.failed else "Running")
            yield


class _BatchRun:
    """One run of the command: threads send rows. If the service asks one of them to wait, all of them pause.

    They are daemon threads: a request that may take an hour must not hold up the end of the command.
    """

    def __init__(
        self,
        rows: Rows,
        task: str,
        options: Mapping[str, str | list[str]],
        accept: str | None,
        connection: ServiceConnection,
        stop_if_interrupted: Callable[[], None],
        *,
        is_served: bool,
    ) -> None:
        """Prepare the run. is_served: whether there is a bundle for the task."""
        self._stop_if_interrupted = stop_if_interrupted
        self._rows, self._task, self._options, self._accept, self._connection = rows, task, options, accept, connection
        self._is_served = is_served
        self._answered_names = set[frozenset[str]]()
        """Names of the parts and options of rows that were answered."""
        self._paused_until = self._answered_at = 0.0
        self._stopped = threading.Event()
        self._queue = SimpleQueue[tuple[BatchRow, Future[BatchResult]] | None]()
        self._batch_error = Future[BatchResult]()
        """The first error that is not a row's fault."""

    def stop(self) -> None:
        self._stopped.set()
        for _ in range(MAX_CONCURRENT_REQUESTS):
            self._queue.put(None)

    def results(self, first: int) -> Iterable[BatchResult]:
        """Yield results in the order of the rows, from the row `first` on. Raises the first error that is not a row's fault."""
        rows, pending = islice(self._rows, first, None), deque[Future[BatchResult]]()
        try:
            if (first_row := next(iter(rows), None)) is not None:
                yield self._answer(first_row, is_first=first == 0)
            for _ in range(MAX_CONCURRENT_REQUESTS):
                threading.Thread(target=self._process_queue, name="opsin-batch", daemon=True).start()
            for row in rows:
                pending.append(Future())
                self._queue.put((row, pending[-1]))
                while pending and (len(pending) == MAX_ROWS_AHEAD or pending[0].done()):
                    yield self._next(pending)
            while pending:
                yield self._next(pending)
        finally:
            self.stop()

    def _next(self, pending: deque[Future[BatchResult]]) -> BatchResult:
        """Wait for the first result and return it. Raises the error that ends the batch, even while the first row is in progress."""
        while not wait((pending[0], self._batch_error), INTERRUPT_POLL_S, FIRST_COMPLETED).done:
            self._stop_if_interrupted()
        return (pending.popleft() if pending[0].done() else self._batch_error).result()

    def _process_queue(self) -> None:
        while (entry := self._queue.get()) is not None and not self._stopped.is_set():
            row, result = entry
            try:
                result.set_result(self._answer(row))
            except Exception as error:
                with suppress(InvalidStateError):  # another row has failed before
                    self._batch_error.set_exception(error)

    def _answer(self, row: BatchRow, *, is_first: bool = False) -> BatchResult:
        """Send a row and return its result. is_first: it is the first row, which shows whether the options of all rows are valid."""
        from opsin.api_request import parse_answer
        from opsin.errors import OpsinError, Unreachable

        try:
            request = self._rows.request(row, self._task, self._options, self._accept)
            answer, file = parse_answer(self._exchange(request), _read_answer)
            self._answered_names.add(row.names)
        except Unreachable:
            raise
        except OpsinError as error:
            if self._affects_all_rows(error, row, is_first=is_first):
                raise
            return BatchResult(row.index, row.id, error=_error_document(error))
        except OSError as error:
            return BatchResult(row.index, row.id, error={"detail": f"{error.filename}: cannot be read ({error.strerror})"})
        except ValueError as error:
            return BatchResult(row.index, row.id, error={"detail": str(error)})
        return BatchResult(row.index, row.id, answer, file)

    def _affects_all_rows(self, error: OpsinError, row: BatchRow, *, is_first: bool) -> bool:
        """Return whether the other rows would fail with this error, too. That includes a missing bundle that answered such rows before."""
        is_option_error = error.field in self._options and error.field not in row.names
        if error.status == 404 or error.is_lasting:
            is_bundle_gone = "model" not in row.names and (error.is_lasting or not self._is_served or row.names in self._answered_names)
            return is_option_error or is_bundle_gone or (error.status == 404 and error.title != UNKNOWN_MODEL)
        return error.status in FATAL_STATUSES or (is_first and (is_option_error or error.field == "Accept"))

    def _exchange(self, request: ApiRequest) -> httpx2.Response:
        """Send a request, and retry it while the service is overloaded or unreachable. Raises OpsinError."""
        from opsin.errors import OpsinError, Unavailable, Unreachable

        unreachable_since = -math.inf
        while True:
            self._pause()
            try:
                response = self._connection.exchange(request)
                self._answered_at = time.monotonic()
                return response
            except Unreachable:
                now, pause = time.monotonic(), RETRY_PAUSE_S
                if unreachable_since < self._answered_at:  # a row was answered since then
                    unreachable_since = now
                if self._stopped.is_set() or now > unreachable_since + MAX_OUTAGE_S:
                    raise
            except OpsinError as error:
                self._answered_at = time.monotonic()
                if not isinstance(error, Unavailable) or error.is_lasting:
                    raise
                pause = RETRY_PAUSE_S if error.retry_after is None else error.retry_after
            self._paused_until = max(self._paused_until, time.monotonic() + pause)

    def _pause(self) -> None:
        """Wait until requests may be sent. Raises Unreachable if the command ends before."""
        from opsin.errors import Unreachable

        while (pause := self._paused_until - time.monotonic()) > 0 and not self._stopped.wait(pause):
            pass
        if self._stopped.is_set():
            raise Unreachable("the batch has ended")


def _read_answer(response: httpx2.Response) -> tuple[dict[str, Any], AnswerFile | None]:
    """Read an answer in JSON, or a file with its headers."""
    media_type = response.headers.get("Content-Type", "").partition(";")[0]
    if media_type == "application/json":
        document = response.json()
        if not isinstance(document, dict):
            raise TypeError("not a JSON object")
        return document, None
    headers = {name: value for name, value in response.headers.items() if name.startswith("x-") and name != "x-request-id"}
    return {"headers": headers}, AnswerFile(media_type, response.content)


def _error_document(error: OpsinError) -> dict[str, Any]:
    document = {"status": error.status, "title": error.title, "detail": error.detail, "field": error.field}
    return {name: value for name, value in document.items() if value}
