"""`opsin batch`: one task for many files, through a running service, while others use it."""

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

from opsin.cli.ask import pairs
from opsin.cli.batch.results_file import AnswerFile, BatchResult, ResultsFile, folder_of
from opsin.cli.batch.rows import RESERVED, BatchRow, Rows
from opsin.cli.shared import output_files
from opsin.cli.shared.console import make_console
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.image_files import IN_FLIGHT
from opsin.cli.shared.interrupts import pending_interrupt
from opsin.cli.shared.options import Url, positive

if TYPE_CHECKING:
    import httpx2

    from opsin.api_request import ApiRequest
    from opsin.connection import ServiceConnection
    from opsin.errors import OpsinError
    from opsin.results import Model

MAX_ROWS_AHEAD = 4 * IN_FLIGHT
"""Rows that are asked or answered before the first of them is written: one slow row holds up no others before that."""
PAUSE_S = 1.0
"""A row is asked again after so long where the service names no time."""
PATIENCE_S = 60.0
"""A service that does not answer at all, as when it is started anew, is asked again for so long after the first failure."""
INTERRUPT_POLL_S = 1.0
"""Seconds between two looks whether Ctrl-C has been pressed, while an answer is waited for: Python may have dropped it."""
FATAL_STATUSES = frozenset({401, 403, 405})
"""Statuses that no row is to blame for."""
UNKNOWN_MODEL = "Unknown model"
"""Title of a problem (404) that a row may be to blame for: by the model that it names, or by parts that no bundle takes."""
EVENTS = "text/event-stream"


def batch(
    task: Annotated[str, typer.Argument(help="As in POST /v1/TASK.", show_default=False)],
    source: Annotated[
        Path, typer.Argument(metavar="FOLDER|IN.jsonl", help="Files, or one JSON object a line: parts and options.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("-o", "--output", metavar="OUT.jsonl", help="One line for each row, in order.", show_default=False)
    ],
    resume: Annotated[bool, typer.Option("--resume", help="Go on with OUT.jsonl, of the same rows and options.")] = False,
    option: Annotated[list[str] | None, typer.Option("--option", metavar="NAME=VALUE", help="For every row; may be repeated.")] = None,
    accept: Annotated[
        str | None, typer.Option(help="Media type of the answers, such as video/mp4. [default: the task's]", show_default=False)
    ] = None,
    url: Url = None,
    timeout: Annotated[float, typer.Option(help="Seconds per row.", callback=positive)] = 3600.0,
) -> None:
    """Ask one task for every row of IN.jsonl, or every file of FOLDER, at priority low, and as fast as the service lets it.

    A row is {"id"?, parts as paths beside IN.jsonl, options}, a result {"index", "id"?, "answer" | "error"}; answers that are files go into
    OUT.files. Killed or interrupted, the same command goes on by --resume. Exit code 1 if a row failed.
    """
    from opsin.client import Client
    from opsin.connection import ServiceConnection

    output_files.check(output)
    if not source.is_file() and not source.is_dir():
        raise UsageError(f"{source}: no such file or folder")
    options = pairs(option or [], "NAME=VALUE")
    if EVENTS in (accept or "").lower():
        raise UsageError(f"--accept {accept}: a batch keeps answers, no events; leave it out, or name the media type of a file")
    for name in RESERVED.keys() & options.keys():
        raise UsageError(f"--option {name}: {RESERVED[name]}; leave it out")
    with Client(url) as client:
        models = client.models()
    if not models:
        raise CommandError(f"{client.url} serves no bundle")
    own = _models_for_task(models, task)
    rows = _rows(source, own or models if source.is_dir() else models, output)
    count, digest = rows.survey()
    asked = hashlib.sha256(json.dumps([options, accept], sort_keys=True).encode()).hexdigest()
    header = {"opsin_batch": 1, "task": task, "inputs": digest, "options": asked, "rows": count}
    connection = ServiceConnection(url, None, timeout, retries=0, headers=None)
    with ResultsFile(output, header, resume=resume) as results, pending_interrupt() as stop_if_interrupted:
        work = _BatchRun(rows, task, options, accept, connection, stop_if_interrupted, served=bool(own))
        try:
            for _ in _shown(work.results(results.done), count, results):
                stop_if_interrupted()
        except KeyboardInterrupt:
            kept = f"{results.done} of {count} rows are in {output}, and --resume goes on with the others"
            typer.echo(f"opsin: interrupted; {kept if results.done else 'no row was answered, and nothing is kept'}", err=True)
            raise
        finally:
            work.stop()
            connection.http.close()
    if results.first_failure is not None:
        index, detail = results.first_failure
        raise CommandError(f"{output}: {results.failed} of {count} rows failed, the first of them row {index}: {detail}")
    typer.echo(f"{output}: {count} answered")


def _models_for_task(models: Sequence[Model], task: str) -> list[Model]:
    from opsin.bulk import SERVED_BY

    return [model for model in models if model.task in SERVED_BY.get(task, (task,)) or model.route == task]


def _rows(source: Path, models: Sequence[Model], output: Path) -> Rows:
    """models: those whose parts rows may have."""
    parts = {part["name"]: part for model in models for part in model.details["inputs"]}
    kinds = {name: part["kind"] for name, part in parts.items()}
    max_bytes = max((part["max_bytes"] for part in parts.values()), default=0)
    return Rows(source, kinds, max_bytes, frozenset((output.resolve(), folder_of(output).resolve())))


def _shown(results: Iterable[BatchResult], count: int, written: ResultsFile) -> Iterable[None]:
    """Write each result as it comes; a terminal shows how many there are, and when all will be."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = make_console(errors=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task("Asking", total=count, completed=written.done)
        for result in results:
            written.write(result)
            bar.update(shown, completed=written.done, description=f"{written.failed} failed" if written.failed else "Asking")
            yield


class _BatchRun:
    """Asks for rows in threads. All of them pause where the service says so to one.

    They are daemons: what they wait for, an hour perhaps, must not hold up the end of the command.
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
        served: bool,
    ) -> None:
        """served: there is a bundle for the task."""
        self._stop_if_interrupted = stop_if_interrupted
        self._rows, self._task, self._options, self._accept, self._connection = rows, task, options, accept, connection
        self._served = served
        self._answered = set[frozenset[str]]()
        """Names of parts and options of rows that were answered."""
        self._free_at = self._answered_at = 0.0
        self._stopped = threading.Event()
        self._asked = SimpleQueue[tuple[BatchRow, Future[BatchResult]] | None]()
        self._broken = Future[BatchResult]()
        """Has the first error that is no row's own."""

    def stop(self) -> None:
        self._stopped.set()
        for _ in range(IN_FLIGHT):
            self._asked.put(None)

    def results(self, first: int) -> Iterable[BatchResult]:
        """Yield results in the order of the rows, from the row `first` on. Raises the first error that is no row's own."""
        rows, pending = islice(self._rows, first, None), deque[Future[BatchResult]]()
        try:
            if (alone := next(iter(rows), None)) is not None:
                yield self._answer(alone, alone=first == 0)
            for _ in range(IN_FLIGHT):
                threading.Thread(target=self._ask, name="opsin-batch", daemon=True).start()
            for row in rows:
                pending.append(Future())
                self._asked.put((row, pending[-1]))
                while pending and (len(pending) == MAX_ROWS_AHEAD or pending[0].done()):
                    yield self._next(pending)
            while pending:
                yield self._next(pending)
        finally:
            self.stop()

    def _next(self, pending: deque[Future[BatchResult]]) -> BatchResult:
        """Take the first of them. Raises the error that ends the batch, even while the first is still asked for."""
        while not wait((pending[0], self._broken), INTERRUPT_POLL_S, FIRST_COMPLETED).done:
            self._stop_if_interrupted()
        return (pending.popleft() if pending[0].done() else self._broken).result()

    def _ask(self) -> None:
        while (asked := self._asked.get()) is not None and not self._stopped.is_set():
            row, result = asked
            try:
                result.set_result(self._answer(row))
            except Exception as error:
                with suppress(InvalidStateError):  # another row was first
                    self._broken.set_exception(error)

    def _answer(self, row: BatchRow, *, alone: bool = False) -> BatchResult:
        """alone: the first of all rows, which tells whether there is a mistake in the options of all."""
        from opsin.api_request import parse_answer
        from opsin.errors import OpsinError, Unreachable

        try:
            call = self._rows.call(row, self._task, self._options, self._accept)
            answer, file = parse_answer(self._exchange(call), _read)
            self._answered.add(row.names)
        except Unreachable:
            raise
        except OpsinError as error:
            if self._affects_all_rows(error, row, alone=alone):
                raise
            return BatchResult(row.index, row.id, error=_told(error))
        except OSError as error:
            return BatchResult(row.index, row.id, error={"detail": f"{error.filename}: cannot be read ({error.strerror})"})
        except ValueError as error:
            return BatchResult(row.index, row.id, error={"detail": str(error)})
        return BatchResult(row.index, row.id, answer, file)

    def _affects_all_rows(self, error: OpsinError, row: BatchRow, *, alone: bool) -> bool:
        """Whether the other rows would end in the same error. Others miss a bundle, too, where one answered to such a row before."""
        of_options = error.field in self._options and error.field not in row.names
        if error.status == 404 or error.is_lasting:
            gone = "model" not in row.names and (error.is_lasting or not self._served or row.names in self._answered)
            return of_options or gone or (error.status == 404 and error.title != UNKNOWN_MODEL)
        return error.status in FATAL_STATUSES or (alone and (of_options or error.field == "Accept"))

    def _exchange(self, call: ApiRequest) -> httpx2.Response:
        """Asked again and again while the service has no room or is away. Raises OpsinError."""
        from opsin.errors import OpsinError, Unavailable, Unreachable

        silent_since = -math.inf
        while True:
            self._pause()
            try:
                response = self._connection.exchange(call)
                self._answered_at = time.monotonic()
                return response
            except Unreachable:
                now, pause = time.monotonic(), PAUSE_S
                if silent_since < self._answered_at:  # some row was answered since
                    silent_since = now
                if self._stopped.is_set() or now > silent_since + PATIENCE_S:
                    raise
            except OpsinError as error:
                self._answered_at = time.monotonic()
                if not isinstance(error, Unavailable) or error.is_lasting:
                    raise
                pause = PAUSE_S if error.retry_after is None else error.retry_after
            self._free_at = max(self._free_at, time.monotonic() + pause)

    def _pause(self) -> None:
        """Until the service may be asked. Raises Unreachable where the command ends meanwhile."""
        from opsin.errors import Unreachable

        while (pause := self._free_at - time.monotonic()) > 0 and not self._stopped.wait(pause):
            pass
        if self._stopped.is_set():
            raise Unreachable("the batch has ended")


def _read(response: httpx2.Response) -> tuple[dict[str, Any], AnswerFile | None]:
    """An answer in JSON, or a file with what the head tells of it."""
    media_type = response.headers.get("Content-Type", "").partition(";")[0]
    if media_type == "application/json":
        document = response.json()
        if not isinstance(document, dict):
            raise TypeError("no object")
        return document, None
    told = {name: value for name, value in response.headers.items() if name.startswith("x-") and name != "x-request-id"}
    return {"headers": told}, AnswerFile(media_type, response.content)


def _told(error: OpsinError) -> dict[str, Any]:
    told = {"status": error.status, "title": error.title, "detail": error.detail, "field": error.field}
    return {name: value for name, value in told.items() if value}
