"""`opsin embed`: image files → a file of vectors."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from opsin.cli.shared import output_files
from opsin.cli.shared.console import print_note, progress_bar
from opsin.cli.shared.errors import CommandError, UsageError
from opsin.cli.shared.image_files import MAX_CONCURRENT_REQUESTS, expand_folders
from opsin.cli.shared.interrupts import pending_interrupt
from opsin.cli.shared.options import ImageTimeout, Merge, Url

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from opsin.client import Client
    from opsin.embedding import Embeddings
    from opsin.results import Model
    from opsin.vector_file import FileVectors

MIN_SAVE_INTERVAL_S = 5.0
"""Minimum interval between two writes of the file."""
MAX_SAVE_SHARE = 0.05
"""Maximum share of the time spent on writing."""
STATUS_TOO_LARGE = 413
"""Status of the answer to a file that exceeds the service's limits."""
MAX_RETRIES = 8
"""Maximum number of retries while the service is overloaded: this command sends more than others do, and can wait."""


def embed(
    sources: Annotated[list[Path], typer.Argument(metavar="FOLDER|FILE...", help="Image files, and folders of them.")],
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE.npz", help="File of vectors.")],
    url: Url = None,
    model: Annotated[str | None, typer.Option(help="NAME or NAME@VERSION. [default: that of FILE.npz, or the service's]")] = None,
    merge: Merge = None,
    pool: Annotated[str | None, typer.Option(help="cls or mean. [default: the bundle's]")] = None,
    timeout: ImageTimeout = 60.0,
) -> None:
    """Embed image files, and write their vectors to FILE.npz for `opsin search`. Folders are searched for images by suffix, recursively.

    FILE.npz is written every few seconds, and at Ctrl-C. If run again, the command sends only files that are missing in it or have
    changed (size or modification time), or all files if the bundle's content has changed.
    """
    from opsin.client import Client

    output_files.check_writable(output)
    if output.suffix != ".npz":
        raise UsageError(f"{output}: the file's name must end in .npz")
    files, other_count = expand_folders(sources)
    if other_count:
        typer.echo(f"opsin: files without the suffix of an image, passed over: {other_count}", err=True)
    existing = _read_existing(output)
    options: Any = {"merge": merge, "pool": pool, "timeout": timeout}
    with Client(url, timeout=timeout, retries=MAX_RETRIES) as client, pending_interrupt() as stop_if_interrupted:
        work = _EmbedRun(client, output, files, existing, options)
        work.choose(model)
        try:
            failures = work.run(stop_if_interrupted)
        except KeyboardInterrupt:
            if work.saved:
                progress = f"{work.saved} of {len(files)} files are in {output}"
                typer.echo(f"opsin: interrupted; {progress}; run the same command again to continue", err=True)
            raise
    if work.count:
        typer.echo(f"{output}: {work.count} vectors of {work.dim} numbers, {work.bundle.id}, {work.reused} of them kept from before")
        print_note(work.bundle.id, work.bundle.note)
    if failures:
        raise CommandError(*(f"{file}: {error}" for file, error in failures.items()))


class _EmbedRun:
    """One run of the command: the vectors so far, and the file that they are written to."""

    def __init__(self, client: Client, output: Path, files: Sequence[Path], existing: FileVectors | None, options: dict[str, Any]) -> None:
        self.client, self.output, self.files, self.options = client, output, files, options
        self.bundle: Model
        self.reused = 0
        self._existing = existing
        self._stats: dict[int, os.stat_result] = {}
        self._rows: dict[int, NDArray[np.float32]] = {}
        self._failures: dict[Path, Exception] = {}
        self.saved, self._save_s = 0, 0.0

    @property
    def count(self) -> int:
        return len(self._rows)

    @property
    def dim(self) -> int:
        return len(next(iter(self._rows.values())))

    def choose(self, requested: str | None) -> None:
        """Choose the bundle: the requested one, that of the existing file, or the one that answers the first image.

        Raises OpsinError, and CommandError if the bundle of the existing file is not served any longer.
        """
        from opsin.errors import Refused

        name = requested or (self._existing.model if self._existing else None)
        if name is None:
            name = self._find_default_bundle()
        if name is None:
            return
        try:
            self.bundle = self.client.model(name)
        except Refused as error:
            if requested or not self._existing:
                raise
            raise CommandError(f"{self.output}: its vectors are of {name}; name another bundle by --model ({error})") from error
        self._reuse_known()

    def run(self, stop_if_interrupted: Callable[[], None]) -> Mapping[Path, Exception]:
        """Embed the files that have no vector yet, and return those that cannot be embedded with their errors.

        Raises the first error that is not a file's fault; vectors that arrived before it are written.
        """
        missing = [index for index, file in enumerate(self.files) if index not in self._rows and file not in self._failures]
        pool = ThreadPoolExecutor(MAX_CONCURRENT_REQUESTS, thread_name_prefix="opsin-embed")
        try:
            with progress_bar("Embedding", len(self.files), len(self.files) - len(missing)) as advance:
                futures = {pool.submit(self._embed_file, index, self.bundle.id): index for index in missing}
                saved_at = time.monotonic()
                for future in as_completed(futures):
                    stop_if_interrupted()
                    self._store_result(futures[future], future.result)
                    advance(1)
                    if time.monotonic() - saved_at > max(MIN_SAVE_INTERVAL_S, self._save_s / MAX_SAVE_SHARE):
                        self._save()
                        saved_at = time.monotonic()
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            with suppress(Exception):  # the first error says more
                self._save()
            raise
        pool.shutdown()
        self._save()
        return self._failures

    def _find_default_bundle(self) -> str | None:
        """Return `name@version` of the default bundle, None if no file can be embedded."""
        for index in range(len(self.files)):
            embeddings = self._store_result(index, partial(self._embed_file, index, None))
            if embeddings is not None:
                return f"{embeddings.model}@{embeddings.version}"
        return None

    def _embed_file(self, index: int, model: str | None) -> Embeddings:
        self._stats[index] = self.files[index].stat()  # before reading: a file that changes in between is sent again next time
        embeddings: Embeddings = self.client.embed(self.files[index], model=model, **self.options)
        return embeddings

    def _store_result(self, index: int, result: Callable[[], Embeddings]) -> Embeddings | None:
        """Store a vector, or the error of a file that is invalid. Raises all other errors."""
        from opsin.errors import OpsinError

        try:
            embeddings = result()
        except OSError as error:
            self._failures[self.files[index]] = OSError(f"cannot be read ({error.strerror})")
            return None
        except OpsinError as error:
            if error.field != "image" and error.status != STATUS_TOO_LARGE:
                raise
            self._failures[self.files[index]] = error
            return None
        self._rows[index] = embeddings.vectors[0]
        return embeddings

    def _reuse_known(self) -> None:
        """Reuse the vectors of the existing file that are still valid."""
        from opsin.vector_file import clamp_mtime

        existing = self._existing
        if existing is None:
            return
        if (existing.digest, existing.merge, existing.pool) != (self.bundle.digest, *self._merge_and_pool):
            content = " with another content" if existing.model == self.bundle.id and existing.digest != self.bundle.digest else ""
            before = f"{existing.model}{content}, merge {existing.merge or 'off'}, pool {existing.pool or 'by default'}"
            typer.echo(f"opsin: {self.output}: its vectors are of {before}: all files are embedded again", err=True)
            return
        rows = {path: row for row, path in enumerate(existing.paths.tolist())}
        for index, file in enumerate(self.files):
            row = rows.get(str(file))
            if row is None or index in self._rows:
                continue
            with suppress(OSError):
                stat = file.stat()
                if (stat.st_size, clamp_mtime(stat)) == (existing.sizes[row], existing.mtimes[row]):
                    self._stats[index], self._rows[index] = stat, existing.vectors[row]
                    self.reused += 1

    def _save(self) -> None:
        """Write the file if there are new vectors. Raises CommandError if the bundle has changed, or the file cannot be written."""
        import numpy as np

        from opsin.errors import Unreachable
        from opsin.vector_file import FileVectors, clamp_mtime

        if len(self._rows) == self.saved:
            return
        started_at = time.monotonic()
        with suppress(Unreachable):  # then the vectors are assumed to be valid, and kept
            if self.client.model(self.bundle.id).digest != self.bundle.digest:
                raise CommandError(f"{self.bundle.id} has changed while files were embedded; run the command again")
        indices = sorted(self._rows)
        merge, pool = self._merge_and_pool
        vectors = FileVectors(
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
            vectors.save(self.output)
        except OSError as error:
            raise CommandError(f"{self.output}: cannot be written ({error.strerror})") from error
        self.saved, self._save_s = len(self._rows), time.monotonic() - started_at

    @property
    def _merge_and_pool(self) -> tuple[str, str]:
        return self.options["merge"] or "", self.options["pool"] or ""


def _read_existing(output: Path) -> FileVectors | None:
    """Read the vectors of the existing file, if there is one. Raises UsageError for any other file, which is not overwritten."""
    from opsin.vector_file import FileVectors

    if not output.exists():
        return None
    try:
        return FileVectors.load(output)
    except (OSError, ValueError) as error:
        raise UsageError(str(error)) from error
