"""Good requests beside attacks: `python -m benchmarks.attacks`. `benchmarks/README.md` explains the figures.

First beside the five that once took the service away, at once and from two loopback addresses, then beside all, each from one of its own.
The attackers are a process of their own, bounded in number and time. Strangers elsewhere would not take the service's CPUs: theirs has the
lowest priority.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import gzip
import io
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import uvloop
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import machine, reference, service
from benchmarks.load import Report

RESULTS = Path(__file__).parent / "results"
MIB = 1024 * 1024
SHARE = 0.3
"""Good clients ask for this part of the capacity."""
REQUESTS = 500
"""Good requests that are counted at least, alone and under attack: a 99th percentile of fewer says little."""
CLIENTS = 16
WARM = 5.0
BEFORE = 3.0
"""Seconds that the attackers get before the good requests count."""
AFTER = 60.0
"""Seconds after which the gateways' memory is read again."""
PATIENCE = 30.0
AGAIN = 10.0
"""Seconds after which one of many connections that was closed is opened again."""
ADDRESSES = 2
"""Loopback addresses from which the five attacks come."""
LEAST_PRIORITY = 19
JSON = "Content-Type: application/json"


@dataclass(frozen=True)
class Target:
    """The service as one attacker sees it. `seen` counts the statuses that it got; 0 is a closed connection."""

    host: str
    port: int
    source: str
    until: float
    seen: Counter[int]

    @property
    def goes_on(self) -> bool:
        return time.monotonic() < self.until

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, local_addr=(self.source, 0))

    async def ask(self, request: bytes) -> None:
        """One request on a connection of its own, to its first line."""
        writer = None
        try:
            async with asyncio.timeout(PATIENCE):
                reader, writer = await self.connect()
                writer.write(request)
                await self.note(reader)
        except (OSError, TimeoutError):
            self.seen[0] += 1
        finally:
            if writer is not None:
                writer.close()

    async def note(self, reader: asyncio.StreamReader) -> None:
        line = await reader.readline()
        self.seen[int(line.split()[1]) if line else 0] += 1

    async def repeat(self, request: bytes, every: float) -> None:
        while self.goes_on:
            await self.ask(request)
            await asyncio.sleep(every)

    async def trickle(self, beginning: bytes, piece: bytes, every: float) -> None:
        """Begin a request and go on with it as slowly as that, again and again."""
        while self.goes_on:
            with suppress(OSError):
                reader, writer = await self.connect()
                writer.write(beginning)
                answer = asyncio.create_task(self.note(reader))
                while self.goes_on and not answer.done():
                    await asyncio.sleep(every)
                    if writer.is_closing():
                        break
                    writer.write(piece)
                answer.cancel()
                writer.close()
            await asyncio.sleep(every)


def post(path: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    lines = [f"POST {path} HTTP/1.1", "Host: victim", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + body


async def model_control(target: Target) -> None:
    for name, verb in (("%23revision", "load"), (reference.NAME, "unload")):
        await target.ask(post(f"/v2/repository/models/{name}/{verb}", "Origin: http://elsewhere.example"))
    await target.repeat(post(f"/v2/repository/models/{reference.NAME}/unload"), 0.5)


async def announced_bodies(target: Target) -> None:
    """64 MiB announced, one byte sent."""
    beginning = post("/v1/classify", "X-Request-Timeout: 3600", body=b"\xff", length=64 * MIB)
    await asyncio.gather(*(target.trickle(beginning, b"", 1.0) for _ in range(8)))


async def slow_bodies(target: Target) -> None:
    beginning = post("/v1/classify", "X-Request-Timeout: 3600", body=b"\xff\xd8\xff", length=MIB)
    await asyncio.gather(*(target.trickle(beginning, bytes(100), 1.0) for _ in range(16)))


async def slow_heads(target: Target) -> None:
    await asyncio.gather(*(target.trickle(b"GET / HTTP/1.1\r\nHost: victim\r\nX: ", b"x", 1.0) for _ in range(64)))


async def heads_without_end(target: Target) -> None:
    await target.repeat(b"GET / HTTP/1.1\r\nHost: victim\r\nX: " + bytes(b"x" * 4 * MIB), 0.5)


async def idle_connections(target: Target) -> None:
    """More than one gateway keeps."""
    opened = []
    with suppress(OSError):
        for _ in range(1200):
            opened.append((await target.connect())[1])
            await asyncio.sleep(0.005)
    await asyncio.sleep(max(0.0, target.until - time.monotonic()))
    for writer in opened:
        writer.close()


async def unread_answers(target: Target) -> None:
    request = b"GET /docs/static/swagger-ui-bundle.js HTTP/1.1\r\nHost: victim\r\n\r\n" * 30
    writers = []
    for _ in range(4):
        reader, writer = await target.connect()
        reader._transport.pause_reading()  # type: ignore[attr-defined]  # nothing public stops a stream from reading ahead
        writer.write(request)
        writers.append(writer)
    await asyncio.sleep(max(0.0, target.until - time.monotonic()))
    for writer in writers:
        writer.close()


async def pipelined_requests(target: Target) -> None:
    await target.repeat(b"GET /health/live HTTP/1.1\r\nHost: victim\r\n\r\n" * 5_000, 1.0)


async def json_bombs(target: Target) -> None:
    await target.repeat(post("/v1/classify", JSON, body=b'{"image": [' + b"[]," * (16 * MIB // 3)), 2.0)


async def gzip_bombs(target: Target) -> None:
    tensor = b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ['
    body = gzip.compress(tensor + b"[]," * (16 * MIB // 3))
    await target.repeat(post(f"/v2/models/{reference.NAME}/infer", JSON, "Content-Encoding: gzip", body=body), 2.0)


async def deep_json(target: Target) -> None:
    await target.repeat(post("/v1/classify", JSON, body=b"[" * 5_000), 0.2)


async def endless_forms(target: Target) -> None:
    body = b"--b\r\nContent-Disposition: form-data; " + b"x" * MIB
    await target.repeat(post("/v1/classify", "Content-Type: multipart/form-data; boundary=b", body=body), 1.0)


async def large_pictures(target: Target) -> None:
    """10 megapixels with alpha in a few kilobytes: as legal as they are dear."""
    file = io.BytesIO()
    Image.new("RGBA", (4000, 2500)).save(file, "PNG")
    await target.repeat(post("/v1/classify", body=file.getvalue()), 3.0)


async def pictures_of_blocks(target: Target) -> None:
    await target.repeat(post("/v1/classify", body=b"GIF89a\x08\0\x08\0\0\0\0" + b"\x21\xfe\x01x\0" * 400_000 + b","), 2.0)


async def directories_of_tiffs(target: Target) -> None:
    """4 × 2 pixels in a million strips, and in 16 million."""
    for count in (1_000_000, 16_000_000):
        await target.ask(post("/v1/classify", body=tiff_of_strips(count)))
    await target.repeat(post("/v1/classify", body=tiff_of_strips(1_000_000)), 1.0)


def tiff_of_strips(count: int) -> bytes:
    tags = {256: (1, 4), 257: (1, 2), 258: (1, 8), 259: (1, 1), 262: (1, 1), 273: (count, 8 + 2 + 7 * 12 + 4), 278: (1, 1)}
    entries = b"".join(struct.pack("<HHLL", tag, 4, values, value) for tag, (values, value) in tags.items())
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + bytes(4 * count)


async def escaped_json(target: Target) -> None:
    """Three bodies of 40 MB of escaped quotes at once."""
    request = post("/v1/classify", JSON, body=b'{"image": "' + b'\\"' * (20 * MIB) + b'"}')
    await asyncio.gather(*(target.repeat(request, 2.0) for _ in range(3)))


async def large_inpaintings(target: Target) -> None:
    """Three images of 49 megapixels at once, grown and feathered."""
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000), "teal").save(file, "JPEG")
    path = "/v1/inpaint?mask=box:1500,1500,4000,4000&grow=512&feather=128&preset=draft&size=fit"
    await asyncio.gather(*(target.repeat(post(path, body=file.getvalue()), 5.0) for _ in range(3)))


def small_image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    return file.getvalue()


async def requests_under_way(target: Target) -> None:
    """More complete requests that take long than one gateway keeps connections."""
    request = post("/v1/inpaint?mask=center&steps=500", "X-Request-Timeout: 3600", body=small_image())

    async def one() -> None:
        while target.goes_on:
            with suppress(OSError, TimeoutError):
                reader, writer = await target.connect()
                writer.write(request)
                try:
                    async with asyncio.timeout(max(0.0, target.until - time.monotonic())):
                        await target.note(reader)
                finally:
                    writer.close()
            await asyncio.sleep(AGAIN)

    await asyncio.gather(*(one() for _ in range(1200)))


async def hours_of_work(target: Target) -> None:
    """34 requests of 32 inpaintings of 500 steps and 8 samples at once."""
    tensor = {"name": "image", "shape": [32], "datatype": "BYTES", "data": [base64.b64encode(small_image()).decode()] * 32}
    asked = {"parameters": {"mask": "center", "steps": 500, "samples": 8}, "inputs": [tensor]}
    request = post("/v2/models/inpaint/infer", JSON, "X-Request-Timeout: 3600", body=json.dumps(asked).encode())
    await asyncio.gather(*(target.repeat(request, 2.0) for _ in range(34)))


ATTACKS: tuple[Callable[[Target], Awaitable[None]], ...] = (
    model_control,
    announced_bodies,
    slow_bodies,
    slow_heads,
    heads_without_end,
    idle_connections,
    unread_answers,
    pipelined_requests,
    json_bombs,
    gzip_bombs,
    deep_json,
    endless_forms,
    large_pictures,
    pictures_of_blocks,
    directories_of_tiffs,
    escaped_json,
    large_inpaintings,
    requests_under_way,
    hours_of_work,
)
FIVE = (directories_of_tiffs, requests_under_way, hours_of_work, large_inpaintings, escaped_json)


async def attack(url: str, seconds: float, five: bool) -> dict[str, dict[int, int]]:
    """At once, from 127.0.0.2 on. Statuses by attack."""
    parts = urlsplit(url)
    attacks, addresses = (FIVE, ADDRESSES) if five else (ATTACKS, len(ATTACKS))
    targets = {
        one: Target(parts.hostname or "", parts.port or 80, f"127.0.0.{2 + number % addresses}", time.monotonic() + seconds, Counter())
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
    os.nice(LEAST_PRIORITY)
    with suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(LEAST_PRIORITY))


def load(url: str, pictures: Path, how: Mapping[str, object]) -> Report:
    command = [sys.executable, "-m", "benchmarks.load", "--url", f"{url}/v1/classify?merge=off", "--pictures", str(pictures)]
    command += [str(part) for option, value in how.items() for part in (f"--{option}", value)]
    finished = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent)
    return Report(**json.loads(finished.stdout))


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
            how = {"rate": rate, "warm": BEFORE, "seconds": seconds}
            console.print(f"capacity {capacity:.1f} requests/s; {rate:.1f}/s for {seconds:.0f} s, alone and then under attack")
            alone = load(url, folder / "pictures", how)
            attacked = {
                "five": _attacked(url, folder / "pictures", how, five=True),
                "all": _attacked(url, folder / "pictures", how, five=False),
            }
    return {"alone": alone, **attacked}


def _attacked(url: str, pictures: Path, how: Mapping[str, float], *, five: bool) -> dict[str, Any]:
    before = gateways_memory()
    attackers = start_attack(url, BEFORE + how["seconds"] + 5, five)
    try:
        under = load(url, pictures, how)
        highest = gateways_memory()
        seen = json.loads(attackers.communicate(timeout=PATIENCE + how["seconds"])[0])
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
        told = figures[attacks]
        console.print(
            f"{attacks}: failures {told['under'].failures or 'none'}; gateways' memory {told['before']:.0f} MiB before, "
            f"{told['highest']:.0f} at the end of the attack, {told['after']:.0f} after {AFTER:.0f} s"
        )
        for name, statuses in told["seen"].items():
            answers = ", ".join(f"{count} x {status}" for status, count in statuses.items()) or "no answer"
            console.print(f"    {name.replace('_', ' ')}: {answers}")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.attacks", description=__doc__)
    parser.add_argument("--attack", metavar="URL", help="only attack this service, and print the statuses as JSON")
    parser.add_argument("--seconds", type=float, default=30.0, help="with --attack: for how long")
    parser.add_argument("--five", action="store_true", help="with --attack: only those that once took the service away")
    parser.add_argument("--requests", type=int, default=REQUESTS, help=f"good requests to count, about (default: {REQUESTS})")
    options = parser.parse_args()
    if options.attack:
        give_way()
        print(json.dumps(uvloop.run(attack(options.attack, options.seconds, options.five))))
        return
    console = Console(width=None if sys.stdout.isatty() else 150)
    here = machine.describe()
    console.print(*here.lines(), sep="\n")
    figures = measure(options.requests, console)
    show(figures, console)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"attacks-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}.json"
    file.write_text(json.dumps({"machine": here.to_json(), **figures}, indent=2, default=asdict) + "\n")
    console.print(f"wrote {file}")


if __name__ == "__main__":
    main()
