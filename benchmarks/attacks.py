"""Good requests during attacks: `python -m benchmarks.attacks`. `benchmarks/README.md` explains the figures.

First during the five attacks that once took the service down, all at once and from two loopback addresses, then during all attacks, each
from an address of its own.
The attackers are a process of their own, bounded in number and time. Strangers elsewhere would not take the service's CPUs: theirs has the
lowest priority.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from rich.console import Console
from rich.table import Table

from benchmarks import machine, reference, service
from benchmarks.attack_requests import ATTACKS, FIVE, MIB, PATIENCE, AttackTarget
from benchmarks.load import LoadReport

SHARE = 0.3
"""Share of the capacity that good clients request."""
REQUESTS = 500
"""Good requests that are counted at least, alone and under attack: a 99th percentile of fewer says little."""
CLIENTS = 16
WARM = 5.0
BEFORE = 3.0
"""Time in seconds between the start of the attack and the first good request that counts."""
AFTER = 60.0
"""Time in seconds after which the gateways' memory is read again."""
ADDRESSES = 2
"""Loopback addresses from which the five attacks come."""
LOWEST_PRIORITY = 19


async def attack(url: str, seconds: float, five: bool) -> dict[str, dict[int, int]]:
    """Run the attacks at once, from 127.0.0.2 on, and return their statuses by attack."""
    parts = urlsplit(url)
    attacks, addresses = (FIVE, ADDRESSES) if five else (ATTACKS, len(ATTACKS))
    targets = {
        one: AttackTarget(
            parts.hostname or "", parts.port or 80, f"127.0.0.{2 + number % addresses}", time.monotonic() + seconds, Counter()
        )
        for number, one in enumerate(attacks)
    }
    await asyncio.gather(*(one(target) for one, target in targets.items()))
    return {one.__name__: dict(sorted(target.seen.items())) for one, target in targets.items()}


def start_attack(url: str, seconds: float, five: bool) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "benchmarks.attacks", "--attack", url, "--seconds", str(seconds), *(["--five"] if five else ())]
    folder = Path(__file__).parent.parent
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder, start_new_session=True)


def give_way() -> None:
    """Linux shares CPUs among sessions first, and by priority within them."""
    os.nice(LOWEST_PRIORITY)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(LOWEST_PRIORITY))


def load(url: str, pictures: Path, load_options: Mapping[str, object]) -> LoadReport:
    command = [sys.executable, "-m", "benchmarks.load", "--url", f"{url}/v1/classify?merge=off", "--pictures", str(pictures)]
    command += [str(part) for option, value in load_options.items() for part in (f"--{option}", value)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return LoadReport(**json.loads(finished.stdout))


def gateways_memory() -> float:
    """MiB of all gateways of the service that this process runs."""
    processes = psutil.Process(os.getpid()).children(recursive=True)
    return sum(one.memory_info().rss for one in processes if "opsin gateway" in " ".join(one.cmdline())) / MIB


def measure(requests: int, console: Console) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="opsin-attacks-") as name:
        folder = Path(name)
        reference.make_bundle(folder / "bundles")
        shutil.copytree(Path(__file__).parent.parent / "bundles" / "inpaint", folder / "bundles" / "inpaint")
        reference.write_pictures(folder / "pictures")
        with service.running(folder / "bundles") as url:
            capacity = load(url, folder / "pictures", {"clients": CLIENTS, "warm": WARM, "seconds": 8}).per_second
            rate = SHARE * capacity
            seconds = 1.15 * requests / rate
            load_options = {"rate": rate, "warm": BEFORE, "seconds": seconds}
            console.print(f"capacity {capacity:.1f} requests/s; {rate:.1f}/s for {seconds:.0f} s, alone and then under attack")
            alone = load(url, folder / "pictures", load_options)
            attacked = {
                "five": _load_under_attack(url, folder / "pictures", load_options, five=True),
                "all": _load_under_attack(url, folder / "pictures", load_options, five=False),
            }
    return {"alone": alone, **attacked}


def _load_under_attack(url: str, pictures: Path, load_options: Mapping[str, float], *, five: bool) -> dict[str, Any]:
    before = gateways_memory()
    attackers = start_attack(url, BEFORE + load_options["seconds"] + 5, five)
    try:
        under = load(url, pictures, load_options)
        highest = gateways_memory()
        seen = json.loads(attackers.communicate(timeout=PATIENCE + load_options["seconds"])[0])
    finally:
        attackers.kill()
        attackers.wait()
    time.sleep(AFTER)
    return {"under": under, "before": before, "highest": highest, "after": gateways_memory(), "seen": seen}


def show(figures: dict[str, Any], console: Console) -> None:
    alone = figures["alone"]
    table = Table("good requests", "answered", "refused", "p50 ms", "p95 ms", "p99 ms", "p99 ÷ alone")
    rounds = {"alone": alone, "under five attacks": figures["five"]["under"], f"under {len(ATTACKS)} attacks": figures["all"]["under"]}
    for name, report in rounds.items():
        quantiles = [f"{report.latency_ms[q]:.1f}" for q in ("p50", "p95", "p99")]
        ratio = f"{report.latency_ms['p99'] / alone.latency_ms['p99']:.2f}"
        table.add_row(name, str(report.answered), str(sum(report.failures.values())), *quantiles, ratio)
    console.print(table)
    for attacks in ("five", "all"):
        result = figures[attacks]
        console.print(
            f"{attacks}: failures {result['under'].failures or 'none'}; gateways' memory {result['before']:.0f} MiB before, "
            f"{result['highest']:.0f} at the end of the attack, {result['after']:.0f} after {AFTER:.0f} s"
        )
        for name, statuses in result["seen"].items():
            answers = ", ".join(f"{count} x {status}" for status, count in statuses.items()) or "no answer"
            console.print(f"    {name.replace('_', ' ')}: {answers}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--attack", metavar="URL", help="only attack this service, and print the statuses as JSON")
    parser.add_argument("--seconds", type=float, default=30.0, help="with --attack: for how long")
    parser.add_argument("--five", action="store_true", help="with --attack: only those that once took the service down")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"good requests to count, about (default: {REQUESTS})")
    options = parser.parse_args()
    if options.attack:
        give_way()
        print(json.dumps(uvloop.run(attack(options.attack, options.seconds, options.five))))
        return
    console = machine.show()
    figures = measure(options.requests, console)
    show(figures, console)
    machine.write_result(parser.prog, figures)


if __name__ == "__main__":
    main()
