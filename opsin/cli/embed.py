"""`opsin embed`: image files → a file of vectors, through a running service."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import output_files
from opsin.cli.shared.console import make_console, print_note
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.image_files import IN_FLIGHT, expand_folders
from opsin.cli.shared.interrupts import pending_interrupt
from opsin.cli.shared.options import Merge, TimeoutOfImage, Url

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from opsin.client import Client
    from opsin.embedding import Embeddings
    from opsin.results import Model
    from opsin.vector_file import FileVectors

SAVE_S = 5.0
"""Seconds between two writings of the file, at least."""
SAVE_SHARE = 0.05
"""Share of the time that writing may take."""
TOO_LARGE = 413
"""Status of a file that is beyond the service's limits."""
RETRIES = 8
"""How often a request is repeated that the service has no place for: this command sends more than others do, and can wait."""


def embed(
    sources: Annotated[list[Path], typer.Argument(metavar="FOLDER|FILE...", help="Image files, and folders of them.", show_default=False)],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.npz", help="File of vectors.", show_default=False)],
    url: Url = None,
    model: Annotated[
        str | None, typer.Option(help="NAME or NAME@VERSION. [default: that of the file, or the service's]", show_default=False)
    ] = None,
    merge: Merge = None,
    pool: Annotated[str | None, typer.Option(help="cls or mean. [default: the bundle's]", show_default=False)] = None,
    timeout: TimeoutOfImage = 60.0,
) -> None:
    """Write the vectors of image files to FILE.npz, for opsin search. In folders, also inner ones, images are known by their suffix.

    FILE.npz is written every few seconds, and at Ctrl-C: called again, the command sends only files that are not in it, or that have
    another size or time of change, or all of them if the service has another content of the bundle now.
    """
    from opsin.client import Client

    output_files.check(output)
    if output.suffix != ".npz":
        raise UsageError(f"{output}: the file's name must end in .npz")
    files, others = expand_folders(sources)
    if others:
        typer.echo(f"opsin: files without the suffix of an image, passed over: {others}", err=True)
    known = _read(output)
    options: Any = {"merge": merge, "pool": pool, "timeout": timeout}
    with Client(url, timeout=timeout, retries=RETRIES) as client, pending_interrupt() as stop_if_interrupted:
        work = _EmbedRun(client, output, files, known, options)
        work.choose(model)
        try:
            refused = work.run(stop_if_interrupted)
        except KeyboardInterrupt:
            if work.saved:
                kept = f"{work.saved} of {len(files)} files are in {output}"
                typer.echo(f"opsin: interrupted; {kept}, and the same command goes on with the others", err=True)
            raise
    if work.count:
        typer.echo(f"{output}: {work.count} vectors of {work.dim} numbers, {work.bundle.id}, {work.recalled} of them known before")
        print_note(work.bundle.id, work.bundle.note)
    if refused:
        raise CommandError(*(f"{file}: {error}" for file, error in refused.items()))


class _EmbedRun:
    """The vectors of files, as far as they have come, and the file that they are written to."""

    def __init__(self, client: Client, output: Path, files: Sequence[Path], known: FileVectors | None, options: dict[str, Any]) -> None:
        self.client, self.output, self.files, self.options = client, output, files, options
        self.bundle: Model
        self.recalled = 0
        self._known = known
        self._stats: dict[int, os.stat_result] = {}
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._refused: dict[Path, Exception] = {}
        self.saved, self._save_s = 0, 0.0

    @property
    def count(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        return len(next(iter(self._rows.values())))

    def choose(self, wanted: str | None) -> None:
        """Decide the bundle: the one that is wanted, that of the file, or the one that answers the first image. Raises OpsinError, and
        Failure where that of the file is gone."""
        from opsin.errors import Refused

        name = wanted or (self._known.model if self._known else None)
        if name is None:
            name = self._ask_first()
        if name is None:
            return
        try:
            self.bundle = self.client.model(name)
        except Refused as error:
            if wanted or not self._known:
                raise
            raise CommandError(f"{self.output}: its vectors are of {name}; name another bundle by --model ({error})") from error
        self._recall()

    def run(self, stop_if_interrupted: Callable[[], None]) -> Mapping[Path, Exception]:
        """Embed what is missing. Returns the files that cannot be, with their errors. Raises the first error that is no file's own fault;
        what came before it is written."""
        missing = [index for index, file in enumerate(self.files) if index not in self._rows and file not in self._refused]
        pool = ThreadPoolExecutor(IN_FLIGHT, thread_name_prefix="opsin-embed")
        try:
            with _progress(len(self.files), len(self.files) - len(missing)) as advance:
                futures = {pool.submit(self._ask, index, self.bundle.id): index for index in missing}
                written = time.monotonic()
                for future in as_completed(futures):
                    stop_if_interrupted()
                    self._take(futures[future], future.result)
                    advance()
                    if time.monotonic() - written > max(SAVE_S, self._save_s / SAVE_SHARE):
                        self._save()
                        written = time.monotonic()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with suppress(Exception):  # the first error tells more
                self._save()
            raise
        pool.shutdown()
        self._save()
        return self._refused

    def _ask_first(self) -> str | None:
        """`name@version` of the bundle that answers by default; None if no file can be embedded."""
        for index in range(len(self.files)):
            found = self._take(index, partial(self._ask, index, None))
            if found is not None:
                return f"{found.model}@{found.version}"
        return None

    def _ask(self, index: int, model: str | None) -> Embeddings:
        self._stats[index] = self.files[index].stat()  # before it is read: what changes meanwhile is sent again next time
        found: Embeddings = self.client.embed(self.files[index], model=model, **self.options)
        return found

    def _take(self, index: int, result: Callable[[], Embeddings]) -> Embeddings | None:
        """Keep a vector, or the error of a file that is at fault itself. Raises every other error."""
        from opsin.errors import OpsinError

        try:
            found = result()
        except OSError as error:
            self._refused[self.files[index]] = OSError(f"cannot be read ({error.strerror})")
            return None
        except OpsinError as error:
            if error.field != "image" and error.status != TOO_LARGE:
                raise
            self._refused[self.files[index]] = error
            return None
        self._rows[index] = found.vectors[0]
        return found

    def _recall(self) -> None:
        """Take over the vectors of the file that are still right."""
        from opsin.vector_file import clamp_mtime

        known = self._known
        if known is None:
            return
        if (known.digest, known.merge, known.pool) != (self.bundle.digest, *self._asked):
            content = " with another content" if known.model == self.bundle.id and known.digest != self.bundle.digest else ""
            before = f"{known.model}{content}, merge {known.merge or 'off'}, pool {known.pool or 'by default'}"
            typer.echo(f"opsin: {self.output}: its vectors are of {before}: all files are embedded again", err=True)
            return
        rows = {path: row for row, path in enumerate(known.paths.tolist())}
        for index, file in enumerate(self.files):
            row = rows.get(str(file))
            if row is None or index in self._rows:
                continue
            with suppress(OSError):
                stat = file.stat()
                if (stat.st_size, clamp_mtime(stat)) == (known.sizes[row], known.mtimes[row]):
                    self._stats[index], self._rows[index] = stat, known.vectors[row]
                    self.recalled += 1

    def _save(self) -> None:
        """Write the file, if there is anything new in it. Raises Failure where the bundle has changed since, or it cannot be written."""
        import numpy as np

        from opsin.errors import Unreachable
        from opsin.vector_file import FileVectors, clamp_mtime

        if len(self._rows) == self.saved:
            return
        began = time.monotonic()
        with suppress(Unreachable):  # what has come is kept, as far as can be known
            if self.client.model(self.bundle.id).digest != self.bundle.digest:
                raise CommandError(f"{self.bundle.id} has changed while files were embedded; call the command again")
        indices = sorted(self._rows)
        merge, pool = self._asked
        found = FileVectors(
            vectors=np.stack([self._rows[index] for index in indices]),
            paths=np.array([str(self.files[index]) for index in indices]),
            sizes=np.array([self._stats[index].st_size for index in indices], np.int64),
            mtimes=np.array([clamp_mtime(self._stats[index]) for index in indices], np.int64),
            model=self.bundle.id,
            digest=self.bundle.digest,
            merge=merge,
            pool=pool,
        )
        try:
            found.save(self.output)
        except OSError as error:
            raise CommandError(f"{self.output}: cannot be written ({error.strerror})") from error
        self.saved, self._save_s = len(self._rows), time.monotonic() - began

    @property
    def _asked(self) -> tuple[str, str]:
        return self.options["merge"] or "", self.options["pool"] or ""


def _read(output: Path) -> FileVectors | None:
    """The vectors of the file that is there already. Raises UsageError for a file of something else: it is not written over."""
    from opsin.vector_file import FileVectors

    if not output.exists():
        return None
    try:
        return FileVectors.load(output)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error


@contextmanager
def _progress(total: int, done: int) -> Iterator[Callable[[], None]]:
    """A bar on a terminal."""
    from rich.progress import Progress

    console = make_console(errors=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        row = bar.add_task("Embedding", total=total, completed=done)
        yield lambda: bar.advance(row)
