"""What a request costs where the model costs nothing: `python -m benchmarks.overhead [--tree OTHER_CHECKOUT …]`.

Each tree's service takes its turn in every round, so figures of one run can be divided by each other. Besides requests/s it shows the CPU
time that each process spends on a request, which says where time goes and depends less on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks import reference
from benchmarks.load import Report
from opsin.cli.own_service import own_service

HERE = Path(__file__).parent.parent
BUNDLE = "null-0"
PROCESSES = {"gateway": "opsin gateway", "worker": "opsin worker", "queue": "valkey"}


@contextmanager
def service(tree: Path, bundles: Path) -> Iterator[str]:
    """`opsin serve` of a checkout."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")}
    with own_service(bundles, environment | {"PYTHONPATH": str(tree), "PYTHONSAFEPATH": "1"}) as url:
        yield url


def burst(url: str, pictures: Path, clients: int, seconds: float) -> dict[str, float]:
    """Requests/s, milliseconds, and microseconds of CPU per request and process."""
    before = cpu_seconds()
    target = f"{url}/v1/classify?model={BUNDLE}&merge=off"
    command = [sys.executable, "-m", "benchmarks.load", "--url", target, "--pictures", str(pictures), "--clients", str(clients)]
    finished = subprocess.run([*command, "--warm", "0.5", "--seconds", str(seconds)], stdout=subprocess.PIPE, check=True, cwd=HERE)
    report = Report(**json.loads(finished.stdout))
    if report.failures or not report.answered:
        raise RuntimeError(f"{report.answered} answers, failures: {report.failures}")
    spent = {kind: (after - before[kind]) * 1e6 / (report.per_second * (seconds + 0.5)) for kind, after in cpu_seconds().items()}
    parts = {part: report.timing[part] for part in ("prepare_ms", "queue_ms", "batch_wait_ms", "inference_ms")}
    figures = {
        "per_second": report.per_second,
        "batch": report.batch_size,
        "p50_ms": report.latency_ms["p50"],
        "rest_ms": report.overhead_ms,
    }
    return figures | parts | spent


def cpu_seconds() -> dict[str, float]:
    """User and system time of the service's processes, by kind."""
    spent = dict.fromkeys(PROCESSES, 0.0)
    for process in psutil.Process().children(recursive=True):
        try:
            command, times = " ".join(process.cmdline()), process.cpu_times()
        except psutil.Error:
            continue
        for kind, name in PROCESSES.items():
            if name in command:
                spent[kind] += times.user + times.system
    return spent


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overhead", description=__doc__)
    parser.add_argument(
        "--tree", type=Path, action="append", default=[], help="another checkout to compare with; may be given several times"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--clients", type=int, action="append", help="default: 1 and 16")
    options = parser.parse_args()
    trees = [HERE, *(tree.resolve() for tree in options.tree)]
    measured: dict[tuple[Path, int], list[dict[str, float]]] = {}
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        reference.make_null_bundle(folder / "bundles", BUNDLE, 0.0)
        reference.write_small_pictures(folder / "pictures")
        for _ in range(options.rounds):
            for tree in trees:
                with service(tree, folder / "bundles") as url:
                    for clients in options.clients or (1, 16):
                        measured.setdefault((tree, clients), []).append(burst(url, folder / "pictures", clients, options.seconds))
    for (tree, clients), rounds in sorted(measured.items(), key=lambda item: item[0][1]):
        print(f"{tree.name} {clients} clients: {_medians(rounds)}")


def _medians(rounds: list[dict[str, Any]]) -> str:
    return ", ".join(f"{name} {statistics.median(entry[name] for entry in rounds):.2f}" for name in rounds[0])


if __name__ == "__main__":
    main()
