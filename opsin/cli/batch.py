"""`opsin batch`: one task for many files, through a running service, while others use it."""

from __future__ import annotations

import hashlib
import json
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, InvalidStateError, wait
from contextlib import suppress
from itertools import islice
from pathlib import Path
from queue import SimpleQueue
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli import outputs
from opsin.cli.ask import pairs
from opsin.cli.batch_file import File, Result, Results, folder_of
from opsin.cli.batch_rows import RESERVED, Row, Rows
from opsin.cli.exits import Failure, Misuse
from opsin.cli.image_files import IN_FLIGHT
from opsin.cli.interrupts import remembered
from opsin.cli.screen import screen

if TYPE_CHECKING:
    import httpx

    from opsin.calls import Call
    from opsin.client import Client
    from opsin.connection import Connection
    from opsin.errors import OpsinError

AHEAD = 4 * IN_FLIGHT
"""Rows that are asked or answered before the first of them is written: one slow row holds up no others before that."""
PAUSE_S = 1.0
"""Where the service names no time after which it can be asked again."""
PATIENCE_S = 60.0
"""A service that does not answer at all, as when it is started anew, is asked again for so long after the first failure."""
SUFFIXES = {
    "image/png": "png",
    "video/mp4": "mp4",
    "model/gltf-binary": "glb",
    "application/x-ply": "ply",
    "application/x-npy": "npy",
    "application/x-npz": "npz",
}
"""Media types of answers → names of their files; `bin` for others."""
HOPELESS = frozenset({401, 403, 404, 405})
"""Statuses that no row is to blame for, unless it names a model itself."""


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
    url: Annotated[str | None, typer.Option(help="The service. [default: $OPSIN_URL or http://127.0.0.1:8000]", show_default=False)] = None,
    timeout: Annotated[float, typer.Option(help="Seconds per row.")] = 3600.0,
) -> None:
    """Ask one task for every row of IN.jsonl, or every file of FOLDER, at priority low, and as fast as the service lets it.

    A row is {"id"?, parts as paths beside IN.jsonl, options}, a result {"index", "id"?, "answer" | "error"}; answers that are files go into
    OUT.files. Killed or interrupted, the same command goes on by --resume. Exit code 1 if a row failed.
    """
    from opsin.client import Client
    from opsin.connection import Connection

    outputs.check(output)
    if timeout <= 0:
        raise Misuse(f"--timeout: {timeout:g} seconds; it must be positive")
    if not source.is_file() and not source.is_dir():
        raise Misuse(f"{source}: no such file or folder")
    options = pairs(option or [], "NAME=VALUE")
    for name in RESERVED.keys() & options.keys():
        raise Misuse(f"--option {name}: {RESERVED[name]}; leave it out")
    with Client(url) as client:
        rows = Rows(source, _parts(client, task, source), folder_of(output).resolve())
    count, digest = rows.survey()
    asked = hashlib.sha256(json.dumps([options, accept], sort_keys=True).encode()).hexdigest()
    header = {"opsin_batch": 1, "task": task, "inputs": digest, "options": asked, "rows": count}
    connection = Connection(url, None, timeout, retries=0, headers=None)
    with Results(output, header, resume=resume) as results, remembered() as stop_if_interrupted:
        work = _Work(rows, task, options, accept, connection)
        try:
            for _ in _shown(work.results(results.done), count, results):
                stop_if_interrupted()
        except KeyboardInterrupt:
            typer.echo(
                f"opsin: interrupted; {results.done} of {count} rows are in {output}, and --resume goes on with the others", err=True
            )
            raise
        finally:
            work.stop()
            connection.http.close()
    if results.first_failure is not None:
        index, detail = results.first_failure
        raise Failure(f"{output}: {results.failed} of {count} rows failed, the first of them row {index}: {detail}")
    typer.echo(f"{output}: {count} answered")


def _parts(client: Client, task: str, source: Path) -> dict[str, str]:
    """Name → kind of the parts that the service takes; of a folder those that the task's own bundles take. Raises OpsinError, Failure."""
    from opsin.mapping import SERVED_BY

    models, tasks = client.models(), SERVED_BY.get(task, (task,))
    if not models:
        raise Failure(f"{client.url} serves no bundle")
    if source.is_dir():
        models = [model for model in models if model.task in tasks or model.route == task] or models
    return {part["name"]: part["kind"] for model in models for part in model.details["inputs"]}


def _shown(results: Iterable[Result], count: int, written: Results) -> Iterable[None]:
    """Write each result as it comes; a terminal shows how many there are, and when all will be."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = screen(errors=True)
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(elapsed_when_finished=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        shown = bar.add_task("Asking", total=count, completed=written.done)
        for result in results:
            written.write(result)
            bar.update(shown, completed=written.done, description=f"{written.failed} failed" if written.failed else "Asking")
            yield


class _Work:
    """Asks for rows in threads. All of them pause where the service says so to one.

    They are daemons: what they wait for, an hour perhaps, must not hold up the end of the command.
    """

    def __init__(self, rows: Rows, task: str, options: Mapping[str, str], accept: str | None, connection: Connection) -> None:
        self._rows, self._task, self._options, self._accept, self._connection = rows, task, options, accept, connection
        self._free_at = self._answered_at = 0.0
        self._stopped = threading.Event()
        self._asked = SimpleQueue[tuple[Row, Future[Result]] | None]()
        self._broken = Future[Result]()
        """Has the first error that is no row's own."""

    def stop(self) -> None:
        self._stopped.set()
        for _ in range(IN_FLIGHT):
            self._asked.put(None)

    def results(self, first: int) -> Iterable[Result]:
        """In the order of the rows, from the row `first` on. Raises the first error that is no row's own."""
        rows, pending = islice(self._rows, first, None), deque[Future[Result]]()
        try:
            if (alone := next(iter(rows), None)) is not None:
                yield self._answer(alone, alone=first == 0)
            for _ in range(IN_FLIGHT):
                threading.Thread(target=self._ask, name="opsin-batch", daemon=True).start()
            for row in rows:
                pending.append(Future())
                self._asked.put((row, pending[-1]))
                while pending and (len(pending) == AHEAD or pending[0].done()):
                    yield self._next(pending)
            while pending:
                yield self._next(pending)
        finally:
            self.stop()

    def _next(self, pending: deque[Future[Result]]) -> Result:
        """Take the first of them. Raises the error that ends the batch, even while the first is still asked for."""
        wait((pending[0], self._broken), return_when=FIRST_COMPLETED)
        return (pending.popleft() if pending[0].done() else self._broken).result()

    def _ask(self) -> None:
        while (asked := self._asked.get()) is not None and not self._stopped.is_set():
            row, result = asked
            try:
                result.set_result(self._answer(row))
            except Exception as error:
                with suppress(InvalidStateError):  # another row was first
                    self._broken.set_exception(error)

    def _answer(self, row: Row, *, alone: bool = False) -> Result:
        """alone: the first of all rows, which tells whether there is a mistake in the options of all."""
        from opsin.calls import interpreted
        from opsin.errors import OpsinError, Unreachable

        try:
            call = self._rows.call(row, self._task, self._options, self._accept)
            answer, file = interpreted(self._exchange(call), _read)
        except Unreachable:
            raise
        except OpsinError as error:
            everybodys = error.status in HOPELESS and "model" not in row.given
            if everybodys or (alone and (error.field == "Accept" or (error.field in self._options and error.field not in row.names))):
                raise
            return Result(row.index, row.id, error=_told(error))
        except OSError as error:
            return Result(row.index, row.id, error={"detail": f"{error.filename}: cannot be read ({error.strerror})"})
        except ValueError as error:
            return Result(row.index, row.id, error={"detail": str(error)})
        return Result(row.index, row.id, answer, file)

    def _exchange(self, call: Call) -> httpx.Response:
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
                if not isinstance(error, Unavailable):
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


def _read(response: httpx.Response) -> tuple[dict[str, Any], File | None]:
    """An answer in JSON, or a file with what the head tells of it."""
    media_type = response.headers.get("Content-Type", "").partition(";")[0]
    if media_type == "application/json":
        document: dict[str, Any] = response.json()
        return document, None
    told = {name: value for name, value in response.headers.items() if name.startswith("x-") and name != "x-request-id"}
    return {"headers": told}, File(SUFFIXES.get(media_type, "bin"), response.content)


def _told(error: OpsinError) -> dict[str, Any]:
    told = {"status": error.status, "title": error.title, "detail": error.detail, "field": error.field}
    return {name: value for name, value in told.items() if value}
