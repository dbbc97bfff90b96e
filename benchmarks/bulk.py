"""Measures what others notice of `opsin batch`: the latency of requests alone, and beside a bulk client at nice 19.

`python -m benchmarks.bulk`."""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from benchmarks import machine, reference, service
from benchmarks.serving import burst

MILLISECONDS = 20.0
"""A batch of the null bundle takes so long."""
RATE = 40.0
"""Requests per second of everybody else."""
ROWS = 20_000
"""More than a measurement lets through."""
MOST = 1.2
"""Times p99 alone, and one batch more: what p99 may be beside a bulk client."""


@contextmanager
def bulk(url: str, folder: Path) -> Iterator[Path]:
    """A bulk client at work, and the file of its results."""
    rows, output = folder / "rows.jsonl", folder / "results.jsonl"
    output.unlink(missing_ok=True)
    command = ["nice", "-n", "19", sys.executable, "-m", "opsin", "batch", "classify", str(rows), "-o", str(output), "--url", url]
    process = subprocess.Popen(command)
    try:
        while not output.exists() or output.read_bytes().count(b"\n") < 100:
            if process.poll() is not None:
                raise RuntimeError(f"opsin batch ended with {process.returncode}")
        yield output
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=20.0, help="of each measurement")
    options = parser.parse_args()
    how = ["--rate", RATE, "--warm", 1.0, "--seconds", options.seconds]
    print(machine.describe().cpu)
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        reference.make_null_bundle(folder / "bundles", "null", MILLISECONDS)
        reference.write_small_pictures(folder / "small")
        (folder / "rows.jsonl").write_text("".join(json.dumps({"image": f"small/{row % 16:03}.jpg"}) + "\n" for row in range(ROWS)))
        alone, beside, rates = [], [], []
        with service.running(folder / "bundles") as url:
            for _ in range(options.rounds):
                alone.append(burst(url, "null", folder / "small", how).latency_ms["p99"])
                with bulk(url, folder) as output:
                    before = output.read_bytes().count(b"\n")
                    beside.append(burst(url, "null", folder / "small", how).latency_ms["p99"])
                    rates.append((output.read_bytes().count(b"\n") - before) / (options.seconds + 1))
                print(f"p99 alone {alone[-1]:.1f} ms, beside {beside[-1]:.1f} ms and {rates[-1]:.0f} rows/s", flush=True)
        allowed = MOST * median(alone) + MILLISECONDS
        print(f"median of {options.rounds}: p99 alone {median(alone):.1f} ms, beside {median(beside):.1f} ms, allowed {allowed:.1f} ms")


if __name__ == "__main__":
    main()
