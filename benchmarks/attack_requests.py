"""The attacks of `benchmarks.attacks`: each is a coroutine that sends requests to an `AttackTarget` until its time is over."""

from __future__ import annotations

import asyncio
import base64
import gzip
import io
import json
import struct
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass

from PIL import Image

from benchmarks import reference

MIB = 1024 * 1024
PATIENCE = 30.0
AGAIN = 10.0
"""Time in seconds after which one of many connections is opened again if it was closed."""
JSON = "Content-Type: application/json"


@dataclass(frozen=True)
class AttackTarget:
    """The service as one attacker sees it. `seen` counts the statuses that it got; 0 is a closed connection."""

    host: str
    port: int
    source: str
    until: float
    seen: Counter[int]

    @property
    def survives(self) -> bool:
        return time.monotonic() < self.until

    async def connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        return await asyncio.open_connection(self.host, self.port, local_addr=(self.source, 0))

    async def ask(self, request: bytes) -> None:
        """Send one request on a connection of its own, and read the first line of the answer."""
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
        while self.survives:
            await self.ask(request)
            await asyncio.sleep(every)

    async def trickle(self, beginning: bytes, piece: bytes, every: float) -> None:
        """Start a request and send the rest piece by piece, again and again."""
        while self.survives:
            with suppress(OSError):
                reader, writer = await self.connect()
                writer.write(beginning)
                answer = asyncio.create_task(self.note(reader))
                while self.survives and not answer.done():
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


async def model_control(target: AttackTarget) -> None:
    for name, verb in (("%23revision", "load"), (reference.NAME, "unload")):
        await target.ask(post(f"/v2/repository/models/{name}/{verb}", "Origin: http://elsewhere.example"))
    await target.repeat(post(f"/v2/repository/models/{reference.NAME}/unload"), 0.5)


async def announced_bodies(target: AttackTarget) -> None:
    """64 MiB announced, one byte sent."""
    beginning = post("/v1/classify", "X-Request-Timeout: 3600", body=b"\xff", length=64 * MIB)
    await asyncio.gather(*(target.trickle(beginning, b"", 1.0) for _ in range(8)))


async def slow_bodies(target: AttackTarget) -> None:
    beginning = post("/v1/classify", "X-Request-Timeout: 3600", body=b"\xff\xd8\xff", length=MIB)
    await asyncio.gather(*(target.trickle(beginning, bytes(100), 1.0) for _ in range(16)))


async def slow_heads(target: AttackTarget) -> None:
    await asyncio.gather(*(target.trickle(b"GET / HTTP/1.1\r\nHost: victim\r\nX: ", b"x", 1.0) for _ in range(64)))


async def heads_without_end(target: AttackTarget) -> None:
    await target.repeat(b"GET / HTTP/1.1\r\nHost: victim\r\nX: " + bytes(b"x" * 4 * MIB), 0.5)


async def idle_connections(target: AttackTarget) -> None:
    """More than one gateway keeps."""
    opened = []
    with suppress(OSError):
        for _ in range(1200):
            opened.append((await target.connect())[1])
            await asyncio.sleep(0.005)
    await asyncio.sleep(max(0.0, target.until - time.monotonic()))
    for writer in opened:
        writer.close()


async def unread_answers(target: AttackTarget) -> None:
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


async def pipelined_requests(target: AttackTarget) -> None:
    await target.repeat(b"GET /health/live HTTP/1.1\r\nHost: victim\r\n\r\n" * 5_000, 1.0)


async def json_bombs(target: AttackTarget) -> None:
    await target.repeat(post("/v1/classify", JSON, body=b'{"image": [' + b"[]," * (16 * MIB // 3)), 2.0)


async def gzip_bombs(target: AttackTarget) -> None:
    tensor = b'{"inputs": [{"name": "image", "shape": [1], "datatype": "BYTES", "data": ['
    body = gzip.compress(tensor + b"[]," * (16 * MIB // 3))
    await target.repeat(post(f"/v2/models/{reference.NAME}/infer", JSON, "Content-Encoding: gzip", body=body), 2.0)


async def deep_json(target: AttackTarget) -> None:
    await target.repeat(post("/v1/classify", JSON, body=b"[" * 5_000), 0.2)


async def endless_forms(target: AttackTarget) -> None:
    body = b"--b\r\nContent-Disposition: form-data; " + b"x" * MIB
    await target.repeat(post("/v1/classify", "Content-Type: multipart/form-data; boundary=b", body=body), 1.0)


async def large_pictures(target: AttackTarget) -> None:
    """10 megapixels with alpha in a few kilobytes: as legal as they are dear."""
    file = io.BytesIO()
    Image.new("RGBA", (4000, 2500)).save(file, "PNG")
    await target.repeat(post("/v1/classify", body=file.getvalue()), 3.0)


async def pictures_of_blocks(target: AttackTarget) -> None:
    await target.repeat(post("/v1/classify", body=b"GIF89a\x08\0\x08\0\0\0\0" + b"\x21\xfe\x01x\0" * 400_000 + b","), 2.0)


async def directories_of_tiffs(target: AttackTarget) -> None:
    """4 × 2 pixels in a million strips, and in 16 million."""
    for count in (1_000_000, 16_000_000):
        await target.ask(post("/v1/classify", body=tiff_of_strips(count)))
    await target.repeat(post("/v1/classify", body=tiff_of_strips(1_000_000)), 1.0)


def tiff_of_strips(count: int) -> bytes:
    tags = {256: (1, 4), 257: (1, 2), 258: (1, 8), 259: (1, 1), 262: (1, 1), 273: (count, 8 + 2 + 7 * 12 + 4), 278: (1, 1)}
    entries = b"".join(struct.pack("<HHLL", tag, 4, values, value) for tag, (values, value) in tags.items())
    return b"II*\0" + struct.pack("<LH", 8, len(tags)) + entries + bytes(4) + bytes(4 * count)


async def escaped_json(target: AttackTarget) -> None:
    """Three bodies of 40 MB of escaped quotes at once."""
    request = post("/v1/classify", JSON, body=b'{"image": "' + b'\\"' * (20 * MIB) + b'"}')
    await asyncio.gather(*(target.repeat(request, 2.0) for _ in range(3)))


async def large_inpaintings(target: AttackTarget) -> None:
    """Three images of 49 megapixels at once, grown and feathered."""
    file = io.BytesIO()
    Image.new("RGB", (7000, 7000), "teal").save(file, "JPEG")
    path = "/v1/inpaint?mask=box:1500,1500,4000,4000&grow=512&feather=128&preset=draft&size=fit"
    await asyncio.gather(*(target.repeat(post(path, body=file.getvalue()), 5.0) for _ in range(3)))


def small_image() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), "teal").save(file, "PNG")
    return file.getvalue()


async def requests_under_way(target: AttackTarget) -> None:
    """More complete requests that take long than one gateway keeps connections."""
    request = post("/v1/inpaint?mask=center&steps=500", "X-Request-Timeout: 3600", body=small_image())

    async def one() -> None:
        while target.survives:
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


async def hours_of_work(target: AttackTarget) -> None:
    """34 requests of 32 inpaintings of 500 steps and 8 samples at once."""
    tensor = {"name": "image", "shape": [32], "datatype": "BYTES", "data": [base64.b64encode(small_image()).decode()] * 32}
    body = {"parameters": {"mask": "center", "steps": 500, "samples": 8}, "inputs": [tensor]}
    request = post("/v2/models/inpaint/infer", JSON, "X-Request-Timeout: 3600", body=json.dumps(body).encode())
    await asyncio.gather(*(target.repeat(request, 2.0) for _ in range(34)))


ATTACKS: tuple[Callable[[AttackTarget], Awaitable[None]], ...] = (
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
