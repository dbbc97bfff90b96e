"""Measurements of warm-up, kept from one start to the next: a restarted worker serves at once instead of measuring again.

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
from math import inf
from pathlib import Path
from typing import Annotated, Literal

import msgspec
import torch
from msgspec import Meta

from models.bundle import BundleSpec
from server.scheduler.step_times import ALMOST, StepTimes
from server.telemetry import logs
from server.worker.backend_times import Backend
from server.worker.device_layout import Layout
from server.worker.stepwise import Usual

log = logs.get(__name__)

VERSION: Literal[3] = 3
"""Version of the files. Raise it also when the code that is measured changes so much that old figures mislead."""
MOST_FILES = 256
MOST_BYTES = 4 * 1024**2
"""Size of a file: a rung takes some 0.5 KB."""
LONGEST = 3600.0
"""Seconds of a batch that are still believed."""
ABANDONED = 3600.0
"""Seconds after which a file that was never finished is removed."""
SCHEDULE = r"^(\d{1,6}(,\d{1,6})*)?\Z"
VECTOR_FLAGS = re.compile(r"avx|amx|sse|fma|f16c|asimd|sve|bf16|i8mm")
"""Names of CPU features that decide how fast a forward pass is."""

Format = Literal["float32", "bfloat16"]
Size = Annotated[int, Meta(ge=1)]
"""Jobs of a batch."""
Seconds = Annotated[float, Meta(gt=0, lt=LONGEST)]


class Conditions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Under which a measurement holds."""

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
    """The setting: `auto` or a format by name."""
    backend: str
    """The setting: `auto` or a backend by name."""
    onnxruntime: str

    @staticmethod
    def of(spec: BundleSpec, layout: Layout, dtype: str, backend: str = "eager") -> Conditions:
        on_gpu = layout.device.type == "cuda"
        cpu, flags = _cpu()
        return Conditions(
            bundle=spec.digest(),
            cpu=cpu,
            flags=flags,
            cpus=len(os.sched_getaffinity(0)),
            torch=str(torch.__version__),
            device=torch.cuda.get_device_name(layout.device) if on_gpu else layout.device.type,
            slots=layout.slots,
            threads=layout.threads,
            largest_batch=layout.largest_batch,
            dtype=dtype,
            backend=backend,
            onnxruntime=_onnxruntime(),
        )


class Measured(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The faster number format, and how long its batches take."""

    dtype: Format
    largest: Size
    """The largest batch that fits into memory."""
    seconds: Annotated[dict[Size, Seconds], Meta(min_length=1)]
    """By batch size."""
    at: float
    """Unix seconds."""
    backends: dict[Annotated[str, Meta(pattern=SCHEDULE)], dict[Backend, dict[Size, Seconds]]] = {}
    """By merge schedule and backend (`BackendTimes.to_json`)."""
    usual: Usual | None = None
    """A usual job; None where a job is one forward pass."""
    max_difference: Annotated[float, Meta(ge=0)] | None = None
    """Between the answers to warm-up's job in `dtype` and in float32. None: it was not measured."""

    @staticmethod
    def nothing(dtype: Format, largest: int) -> Measured:
        """To begin with: no batch has been timed."""
        return Measured(dtype, largest, {}, -inf, max_difference=0.0 if dtype == "float32" else None)

    def plausible(self, largest_batch: int) -> bool:
        """Whether all sizes are those of batches that are run; the other bounds stand in the types of the fields."""
        return max(self.seconds) <= self.largest <= largest_batch

    def step_times(self, share: float = ALMOST) -> StepTimes:
        steps = StepTimes(self.largest, share)
        for size, seconds in sorted(self.seconds.items()):
            steps.record(size, seconds)
        return steps

    @property
    def age(self) -> float:
        """Seconds; infinite if the clock says it comes from the future."""
        age = time.time() - self.at
        return age if age >= 0 else inf


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    v: Literal[3]
    conditions: Conditions
    measured: Measured


class Measurements:
    """The files below `folder`. None, and a folder that cannot be read or written, only mean measuring again."""

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder / "warm-up" if folder is not None else None
        self._said = False

    @property
    def graphs(self) -> Path | None:
        """Where ONNX graphs are kept."""
        return self._folder.parent / "graphs" if self._folder is not None else None

    def find(self, conditions: Conditions) -> Measured | None:
        """Find what was measured under the same conditions. A file that is damaged or somebody else's counts as absent."""
        if self._folder is None:
            return None
        path = self._path(self._folder, conditions)
        try:
            with path.open("rb") as file:
                kept = msgspec.json.decode(file.read(MOST_BYTES), type=_File)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            log.warning("measurement ignored", file=str(path), reason=str(error))
            return None
        if kept.conditions != conditions or not kept.measured.plausible(conditions.largest_batch):
            log.warning("measurement ignored", file=str(path), reason="it is of something else, or no measurement")
            return None
        with suppress(OSError):
            os.utime(path)  # the files that nobody reads are the first to go
        return kept.measured

    def keep(self, conditions: Conditions, measured: Measured) -> None:
        """Readers see the whole file or the one before it."""
        try:
            if self._folder is None:
                raise OSError("there is no cache folder: neither OPSIN_CACHE nor a home folder")
            self._folder.mkdir(parents=True, exist_ok=True)
            handle, draft = tempfile.mkstemp(prefix=".", suffix=".draft", dir=self._folder)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(msgspec.json.encode(_File(v=VERSION, conditions=conditions, measured=measured)))
                Path(draft).replace(self._path(self._folder, conditions))
            finally:
                Path(draft).unlink(missing_ok=True)
            with suppress(OSError):  # another worker may tidy too
                self._tidy(self._folder)
        except OSError as error:
            if not self._said:
                log.warning("measurements cannot be kept: each start measures again", folder=str(self._folder), reason=str(error))
            self._said = True

    @staticmethod
    def _path(folder: Path, conditions: Conditions) -> Path:
        return folder / f"{hashlib.sha256(msgspec.json.encode(conditions)).hexdigest()[:32]}.json"

    @staticmethod
    def _tidy(folder: Path) -> None:
        files: Mapping[Path, float] = {path: path.stat().st_mtime for path in folder.glob("*.json")}
        for path in sorted(files, key=files.__getitem__)[:-MOST_FILES]:
            path.unlink(missing_ok=True)
        for path in folder.glob(".*.draft"):
            if time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink(missing_ok=True)


def _onnxruntime() -> str:
    """Versions of the packages that ONNX Runtime comes in: one for CPUs, one for GPUs, which also runs without the other."""
    found = []
    for package in ("onnxruntime", "onnxruntime-gpu"):
        with suppress(PackageNotFoundError):
            found.append(version(package))
    return " ".join(found)


def _cpu() -> tuple[str, list[str]]:
    """Model name and features, of the first CPU."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine(), []
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*: (.+)$", text, re.MULTILINE)
    known = sorted(flag for flag in flags[1].split() if VECTOR_FLAGS.search(flag)) if flags else []
    return name[1] if name else platform.machine(), known
