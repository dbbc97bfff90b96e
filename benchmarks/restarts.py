"""How soon a killed worker answers again, and what others notice of it: `python -m benchmarks.restarts`.

The service has one worker and the starter bundle that classifies; `--bundles bundles` gives it all starters. Each round waits until nothing
computes, reads how long the bare import of the worker takes, then kills the worker with -9 and asks for a classification at once; the time
until its answer is what a client sees. Both are read in turns, since machines differ from minute to minute.

Then classifications come at random times (a Poisson process), and the worker is killed among them: who waits how long, and who is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import httpx
import psutil

from benchmarks import machine
from benchmarks.load import Target, open_loop
from benchmarks.service import running

PICTURE = Path("docs/pictures/flags/nepal.png")
BUNDLE = Path("bundles/flags")
ROUNDS = 10
IDLE = 0.05
"""CPUs that the service's processes take together at most, in a second, once what a start left to do is done."""
IDLE_SECONDS = 3
"""So many seconds after each other."""
SETTLE_SECONDS = 120
"""To wait for them at most."""
ALLOWANCE = 0.6
"""Seconds that a restart may take beyond the bare import."""
RATE = 10.0
"""Requests/s among which the worker is killed."""
BEFORE_SECONDS, SECONDS = 5.0, 20.0
"""Of these requests: until the worker is killed, and in all."""
Row = tuple[float, float, int]
"""Seconds from the beginning to a request, seconds from there to its answer, and the status; 0 is a broken connection."""


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restarts", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bundles", type=Path, help=f"what is served (default: {BUNDLE} alone)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    here = machine.describe()
    print("\n".join(here.lines()))
    with TemporaryDirectory() as folder:
        bundles = arguments.bundles or alone(Path(folder))
        imports, restarts, answers = measure(arguments.rounds, bundles, Path(folder) / "cache")
    difference = median(restarts) - median(imports)
    print(f"bare import of server.worker.main   {_seconds(imports)}")
    print(f"kill -9 to the first answer         {_seconds(restarts)}")
    print(f"ratio {median(restarts) / median(imports):.2f}, difference {difference:.2f} s (allowed: {ALLOWANCE} s)")
    refused, longest = sum(status != 200 for *_, status in answers), max(seconds for _, seconds, _ in answers)
    print(f"{len(answers)} requests at {RATE:g}/s, the worker killed among them: {refused} refused or lost, longest {longest:.2f} s")
    if arguments.json:
        figures: dict[str, Any] = machine.of_this_run(here, parser.prog) | {
            "bare_import_s": imports,
            "first_answer_s": restarts,
            "killed": {"at_s": BEFORE_SECONDS, "rate": RATE, "answers": answers},
        }
        arguments.json.write_text(json.dumps(figures, indent=2) + "\n")
    return 0


def alone(folder: Path) -> Path:
    """A folder of bundles with `BUNDLE` only."""
    bundles = folder / "bundles"
    bundles.mkdir()
    (bundles / BUNDLE.name).symlink_to(BUNDLE.absolute())
    return bundles


def measure(rounds: int, bundles: Path, cache: Path) -> tuple[list[float], list[float], list[Row]]:
    """Seconds of bare imports, and from kill to answer; answers to requests among which the worker is killed."""
    picture = PICTURE.read_bytes()
    imports, restarts = [], []
    with running(bundles, cache=cache) as url:
        supervisor = _supervisor()
        _classify(url, picture)
        for _ in range(rounds):
            _settle(supervisor)
            imports.append(_bare_import())
            worker = _worker(supervisor)
            started = time.monotonic()
            worker.kill()
            _classify(url, picture)
            restarts.append(time.monotonic() - started)
        _settle(supervisor)
        answers = asyncio.run(killed_under_load(url, picture, _worker(supervisor)))
    return imports, restarts, answers


async def killed_under_load(url: str, picture: bytes, worker: psutil.Process) -> list[Row]:
    target = Target(f"{url}/v1/classify", [picture], "image/png")
    began = time.monotonic()
    asyncio.get_running_loop().call_later(BEFORE_SECONDS, worker.kill)
    await open_loop(target, RATE, began + SECONDS)
    target.close()
    return [(round(one.intended - began, 3), round(one.finished - one.intended, 3), one.status) for one in target.answers]


def _settle(supervisor: psutil.Process) -> None:
    until, idle = time.monotonic() + SETTLE_SECONDS, 0
    while idle < IDLE_SECONDS and time.monotonic() < until:
        spent = _cpu_seconds(supervisor)
        time.sleep(1.0)
        idle = idle + 1 if _cpu_seconds(supervisor) - spent < IDLE else 0


def _cpu_seconds(supervisor: psutil.Process) -> float:
    times = [process.cpu_times() for process in (supervisor, *supervisor.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def _bare_import() -> float:
    started = time.monotonic()
    subprocess.run([sys.executable, "-c", "import server.worker.main"], check=True)
    return time.monotonic() - started


def _classify(url: str, picture: bytes) -> None:
    httpx.post(f"{url}/v1/classify", content=picture, timeout=60).raise_for_status()


def _supervisor() -> psutil.Process:
    [process] = psutil.Process().children()
    return process


def _worker(supervisor: psutil.Process) -> psutil.Process:
    [process] = [child for child in supervisor.children() if "opsin worker" in " ".join(child.cmdline())]
    return process


def _seconds(times: list[float]) -> str:
    return f"{median(times):.2f} s ({min(times):.2f}..{max(times):.2f}, n {len(times)})"


if __name__ == "__main__":
    sys.exit(main())
