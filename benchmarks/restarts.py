"""How soon a killed worker answers again, and a service that starts for the first time: `python -m benchmarks.restarts`.

The service is what ships, in its default layout. Each round waits until nothing computes, reads how long a bare import of torch takes, then
kills the worker with -9 and asks for one task at once; the time until the answer is what a client sees. Both are read in turns, since
machines differ from minute to minute. The time of the same request in a running worker is printed next to it: a reconstruction takes long.
Starts are read with an empty and with a filled cache, in turns, from the command to the first classification.

Then classifications come at random times (a Poisson process), and the worker is killed among them: who waits how long, and who is refused.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil

from benchmarks import machine
from benchmarks.load import LoadTarget, open_loop
from opsin import Client

PICTURE = Path("docs/pictures/flags/nepal.png")
DRAWING, HOLE = Path("docs/pictures/drawings/daisy.png"), Path("docs/pictures/drawings/daisy-mask.png")
VIDEO = Path("server/tasks/sample.mp4")
SIDE = 112
"""Side in pixels of the depth map of the reconstruction, a slanted plane."""
BUNDLES = Path("bundles")
ROUNDS, OTHERS, STARTS = 10, 3, 3
IDLE = 0.05
"""CPUs that the service's processes take together at most, in a second, once what a start left to do is done."""
IDLE_SECONDS = 3
"""Number of consecutive seconds that must be idle."""
SETTLE_SECONDS = 120
"""Maximum time in seconds to wait for that."""
START_SECONDS = 120
"""Timeout in seconds of a first answer."""
ALLOWANCE = {"classify": 0.5, "inpaint": 1.2, "reconstruct": 1.2, "actions": 1.2}
"""Maximum time in seconds that an answer takes on top of the bare import and of its time in a running worker, by task."""
FIRST_ALLOWANCE = 3.0
"""Maximum time in seconds that an empty cache costs the first answer."""
RATE = 10.0
"""Requests/s among which the worker is killed."""
BEFORE_SECONDS, SECONDS = 5.0, 20.0
"""Duration in seconds of these requests: until the worker is killed, and in total."""
Ask = Callable[[Client], object]


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restarts", description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=ROUNDS, help="of classification")
    parser.add_argument("--others", type=int, default=OTHERS, help="rounds of each other task")
    parser.add_argument("--starts", type=int, default=STARTS, help="with an empty cache, and with a filled one")
    parser.add_argument("--bundles", type=Path, default=BUNDLES, help="what is served (default: what ships)")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    arguments = parser.parse_args()

    machine.show()
    rounds = {"classify": arguments.rounds, **dict.fromkeys(("inpaint", "reconstruct", "actions"), arguments.others)}
    tasks: dict[str, dict[str, list[float]]] = {}
    with TemporaryDirectory() as folder:
        cache = Path(folder) / "cache"
        with service(arguments.bundles, cache) as (url, supervisor), Client(url, timeout=START_SECONDS) as client:
            for task, count in rounds.items():
                if not count:
                    continue
                tasks[task] = measure(client, supervisor, asks()[task], count)
                _print(task, tasks[task])
            _settle(supervisor)
            answers = asyncio.run(killed_under_load(url, PICTURE.read_bytes(), _worker(supervisor)))
        refused, longest = sum(status != 200 for _, status in answers), max(seconds for seconds, _ in answers)
        print(
            f"{len(answers)} requests at {RATE:g}/s, the worker killed among them: {refused} refused or lost, longest {longest:.2f} s",
            flush=True,
        )
        starts = [
            {
                name: first_answer(arguments.bundles, start_cache)
                for name, start_cache in (("empty", Path(folder) / str(number)), ("filled", cache))
            }
            for number in range(arguments.starts)
        ]
    if starts:
        empty, filled = ([start[name] for start in starts] for name in ("empty", "filled"))
        print(f"start to the first classification: filled cache {_seconds(filled)}; empty cache {_seconds(empty)}", end="; ")
        print(f"difference {median(empty) - median(filled):+.2f} s (allowed: {FIRST_ALLOWANCE} s)")
    if arguments.json:
        killed = {"requests": len(answers), "refused": refused, "longest_s": longest}
        machine.write_result(parser.prog, {"tasks": tasks, "starts_s": starts, "killed": killed}, arguments.json)
    return 0


def _print(task: str, read: Mapping[str, list[float]]) -> None:
    beyond = [again - usual - bare for again, usual, bare in zip(read["again_s"], read["usual_s"], read["bare_import_s"], strict=True)]
    print(
        f"{task:<12} kill -9 to the answer {_seconds(read['again_s'])}; running worker {_seconds(read['usual_s'])}; bare import of torch "
        f"{_seconds(read['bare_import_s'])}; beyond both {median(beyond):+.2f} s (allowed: {ALLOWANCE[task]} s)",
        flush=True,
    )


def asks() -> Mapping[str, Ask]:
    """Return a function that sends a small request, for each task."""
    across, down = np.meshgrid(*[np.linspace(-1.0, 1.0, SIDE, dtype=np.float32)] * 2)
    image = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE, 3), np.uint8)
    points = np.stack([across, down, 2.0 + 0.3 * across], axis=-1)
    return {
        "classify": lambda client: client.classify(PICTURE),
        "inpaint": lambda client: client.inpaint(DRAWING, HOLE, steps=5),
        "reconstruct": lambda client: client.reconstruct(image, points=points),
        "actions": lambda client: client.actions(VIDEO),
    }


def measure(client: Client, supervisor: psutil.Process, ask: Ask, rounds: int) -> dict[str, list[float]]:
    """Seconds of bare imports, of answers by a worker that runs, and from kill to answer."""
    read: dict[str, list[float]] = {"bare_import_s": [], "usual_s": [], "again_s": []}
    for _ in range(rounds):
        ask(client)
        _settle(supervisor)
        read["bare_import_s"].append(_seconds_of(_bare_import))
        read["usual_s"].append(_seconds_of(lambda: ask(client)))
        worker = _worker(supervisor)

        def kill_and_ask(worker: psutil.Process = worker) -> None:
            worker.kill()
            ask(client)

        read["again_s"].append(_seconds_of(kill_and_ask))
    return read


def first_answer(bundles: Path, cache: Path, device: str = "auto") -> float:
    """Seconds from the command to the first classification."""
    started = time.monotonic()
    with service(bundles, cache, device) as (url, _), Client(url, timeout=START_SECONDS) as client:
        client.classify(PICTURE)
        return time.monotonic() - started


@contextmanager
def service(bundles: Path, cache: Path, device: str = "auto") -> Iterator[tuple[str, psutil.Process]]:
    """`opsin serve` as soon as it listens: its URL, and its process."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    environment |= {"OPSIN_CACHE": str(cache), "OPSIN_DEVICE": device}
    command = [sys.executable, "-m", "opsin", "serve", "--port", str(port), "--bundles", str(bundles)]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until = time.monotonic() + START_SECONDS
        while not _listens(port) and time.monotonic() < until:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{port}", psutil.Process(process.pid)
    finally:
        process.terminate()
        process.wait()


async def killed_under_load(url: str, picture: bytes, worker: psutil.Process) -> list[tuple[float, int]]:
    """Kill the worker among random arrivals: return latency in seconds and status of each request; 0 is a broken connection."""
    target = LoadTarget(f"{url}/v1/classify", [picture], "image/png")
    started_at = time.monotonic()
    asyncio.get_running_loop().call_later(BEFORE_SECONDS, worker.kill)
    await open_loop(target, RATE, started_at + SECONDS)
    target.close()
    return [(round(one.finished - one.intended, 3), one.status) for one in target.answers]


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def _settle(supervisor: psutil.Process) -> None:
    until, idle = time.monotonic() + SETTLE_SECONDS, 0
    while idle < IDLE_SECONDS and time.monotonic() < until:
        spent = _cpu_seconds(supervisor)
        time.sleep(1.0)
        idle = idle + 1 if _cpu_seconds(supervisor) - spent < IDLE else 0


def _cpu_seconds(supervisor: psutil.Process) -> float:
    times = [process.cpu_times() for process in (supervisor, *supervisor.children(recursive=True))]
    return float(sum(one.user + one.system for one in times))


def _seconds_of(work: Callable[[], object]) -> float:
    started = time.monotonic()
    work()
    return time.monotonic() - started


def _bare_import() -> None:
    subprocess.run([sys.executable, "-c", "import torch"], check=True)


def _worker(supervisor: psutil.Process) -> psutil.Process:
    [process] = [child for child in supervisor.children(recursive=True) if "opsin worker" in " ".join(child.cmdline())]
    return process


def _seconds(times: list[float]) -> str:
    return f"{median(times):.2f} s ({min(times):.2f}..{max(times):.2f}, n {len(times)})"


if __name__ == "__main__":
    sys.exit(main())
