"""The cache of learned backends and step times, from which a restarted worker takes what won before.

One small JSON file for each combination of bundle, machine, torch and layout. Any number of workers and services may share the folder.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta

from models.bundle import BundleSpec
from server.scheduler.batcher import NEAR_BEST_SHARE, StepTimes
from server.telemetry import logs
from server.worker.backends.learner import LearnedRung
from server.worker.device_layout import Layout
from server.worker.stepwise import TypicalJob

log = logs.get(__name__)

VERSION: Literal[4] = 4
"""Version of the files. Raise it also when code changes so much that old figures mislead."""
MAX_FILES = 256
MAX_FILE_BYTES = 4 * 1024**2
"""Maximum size of a file; a rung takes some 0.5 KB."""
MAX_BATCH_S = 3600.0
"""Maximum credible time of a batch, in seconds."""
MAX_DRAFT_AGE_S = 3600.0
"""Age in seconds after which an unfinished file is removed."""
SCHEDULE = r"^(\d{1,6}(,\d{1,6})*)?\Z"
VECTOR_FLAGS = re.compile(r"avx|amx|sse|fma|f16c|asimd|sve|bf16|i8mm")
"""Names of CPU features that decide how fast a forward pass is."""

Size = Annotated[int, Meta(ge=1)]
"""Jobs of a batch."""
Seconds = Annotated[float, Meta(gt=0, lt=MAX_BATCH_S)]


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The machine, the bundle and the settings for which something was learned."""

    bundle: str
    """Digest of its spec, which holds the digest of its weights."""
    cpu: str
    flags: list[str]
    cpus: int
    torch: str
    device: str
    slots: int
    threads: int
    largest_batch: int
    dtype: str
    """Setting: `auto` or the name of a format."""
    backend: str
    """Setting: `auto` or the name of a backend."""
    onnxruntime: str

    @staticmethod
    def from_spec(spec: BundleSpec, layout: Layout, dtype: str, backend: str = "eager") -> Conditions:
        cpu, flags = read_cpu()
        return Conditions(
            bundle=spec.digest(),
            cpu=cpu,
            flags=flags,
            cpus=len(os.sched_getaffinity(0)),
            torch=str(torch.__version__),
            device=torch.cuda.get_device_name(layout.device) if layout.device.type == "cuda" else layout.device.type,
            slots=layout.slots,
            threads=layout.threads,
            largest_batch=layout.largest_batch,
            dtype=dtype,
            backend=backend,
            onnxruntime=_onnxruntime(),
        )


class LearnedBundle(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Backends and step times of a bundle, as learned while serving."""

    largest: Size
    """The largest batch that fits into memory."""
    seconds: dict[Size, Seconds] = {}
    """Time of a batch by its size."""
    rungs: dict[Annotated[str, Meta(pattern=SCHEDULE)], LearnedRung] = {}
    """Learned rungs by merge schedule (`Learner.snapshot`)."""
    typical_job: TypicalJob | None = None
    """None if a job is one forward pass."""

    def is_plausible(self, largest_batch: int) -> bool:
        """Return whether all sizes are those of batches that are run; the types of the fields bound the rest."""
        return max(self.seconds, default=1) <= self.largest <= largest_batch

    def step_times(self, share: float = NEAR_BEST_SHARE, limit: int = 0) -> StepTimes:
        steps = StepTimes(self.largest, share, limit)
        for size, seconds in sorted(self.seconds.items()):
            steps.record(size, seconds)
        return steps


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: Literal[4]
    conditions: Conditions
    learned: LearnedBundle


class LearnedCache:
    """The files below `folder`. Without one, and if it cannot be read or written, each start learns again."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        """Folder of everything that is cached, graphs among it."""
        self._folder = folder / "learned" if folder is not None else None
        self._has_warned = False

    def find(self, conditions: Conditions) -> LearnedBundle | None:
        """Return what was learned under the same conditions. A file that is damaged or another program's counts as absent."""
        if self._folder is None:
            return None
        path = self._path(self._folder, conditions)
        try:
            with path.open("rb") as file:
                stored = msgspec.json.decode(file.read(MAX_FILE_BYTES), type=_File)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("learned file ignored", file=str(path), reason=str(error))
            return None
        if stored.conditions != conditions or not stored.learned.is_plausible(conditions.largest_batch):
            log.warning("learned file ignored", file=str(path), reason="it is of something else, or its figures are impossible")
            return None
        with suppress(OSError):
            os.utime(path)  # files that are not read are the first to go
        return stored.learned

    def store(self, conditions: Conditions, learned: LearnedBundle) -> None:
        """Store what was learned. Readers see the whole file or the one before it."""
        try:
            if self._folder is None:
                raise OSError("there is no cache folder: neither OPSIN_CACHE nor a home folder")
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=".", suffix=".draft", dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(_File(v=VERSION, conditions=conditions, learned=learned)))
                Path(draft).replace(self._path(self._folder, conditions))
            finally:
                Path(draft).unlink(missing_ok=True)
            with suppress(OSError):  # another worker may do so too
                self._evict(self._folder)
        except OSError as error:
            if not self._has_warned:
                log.warning("cache not written: each start learns again", folder=str(self._folder), reason=str(error))
            self._has_warned = True

    @staticmethod
    def _path(folder: Path, conditions: Conditions) -> Path:
        return folder / f"{hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()[:32]}.json"

    @staticmethod
    def _evict(folder: Path) -> None:
        files: Mapping[Path, float] = {path: path.stat().st_mtime for path in folder.glob("*.json")}
        for path in sorted(files, key=files.__getitem__)[:-MAX_FILES]:
            path.unlink(missing_ok=True)
        for path in folder.glob(".*.draft"):
            if time.time() - path.stat().st_mtime > MAX_DRAFT_AGE_S:
                path.unlink(missing_ok=True)


def _onnxruntime() -> str:
    """Return the versions of the packages that ONNX Runtime comes in: one for CPUs, one for GPUs, which also runs without the other."""
    versions = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            versions.append(version(package))
    return " ".join(versions)


def read_cpu() -> tuple[str, list[str]]:
    """Return the model name and the features of the first CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.MULTILINE)
    relevant = sorted(flag for flag in flags[1].split() if VECTOR_FLAGS.search(flag)) if flags else []
    return name[1] if name else platform.machine(), relevant
