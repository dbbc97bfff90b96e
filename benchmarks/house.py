"""How large the server is, and how many files and hand-overs a request takes: `python -m benchmarks.house`.

A *hand-over* is a call that passes a request, a job or an answer (CARRIERS) from one module of Opsin to another one, however often
it does so. Files and hand-overs are counted over warm classifications, each answered while nothing else runs. Only what all of them
touched counts, so that heartbeats are left out; so is the worker's pull for the next one, which may begin before the answer or after it.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
from rich.console import Console
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from benchmarks import reference
from opsin.cli.shared.temporary_service import temporary_service
from server.gateway.inference.admission import AdmittedRequest
from server.gateway.inference.body import RequestBody
from server.gateway.inference.stages import AnsweredRequest, ParsedRequest, PreparedRequest, ResolvedRequest
from server.queue import script as script_types
from server.queue.gateway.reply_inbox import PendingJob
from server.queue.messages import QueuedJob, Reply
from server.queue.script import PARTS, Script
from server.queue.worker.ack import Completion
from server.queue.worker.delivery import Delivery, QueueEntry
from server.queue.worker.job_intake import JobIntake
from server.scheduler.scheduler import RunningBatch
from server.tasks.classify.images import Classification
from server.worker.executors import ComputedBatch, JobOutputs

HERE = Path(__file__).resolve().parent.parent
CARRIERS = (
    *(
        Request,
        *(AdmittedRequest, RequestBody, ParsedRequest, ResolvedRequest, PreparedRequest),
        script_types.RequestRow,
        QueuedJob,
        script_types.JobRow,
        PendingJob,
        script_types.TakenRow,
        QueueEntry,
        Delivery,
        RunningBatch,
    ),
    *(ComputedBatch, JobOutputs, Reply, script_types.EndedRow, Completion, AnsweredRequest, Classification, Response, JSONResponse),
)
"""Classes whose objects are a request, a job or an answer, or hold one. They are imported so that a rename reaches them."""
REQUESTS = 5
SETTLED_S, QUIET_S = 0.1, 0.2
"""Time in seconds after an answer that still belongs to it, and then until the next one: together less than a pull blocks for a job."""
LIMITS = {"server, Python": 26_477, "server, Lua": 1_413, "server/queue, Python": 3_953}
"""Lines that the server may have now; 23,750, 1,380 and 3,404 are wanted."""
FILES, HAND_OVERS = 54, 13
"""Files of `server`, `models` and Lua that one warm classification may touch now, and its hand-overs; 45 and 16 are wanted."""

WATCH = """
import os, sys, threading

ROOT, OUT, PULL = (os.environ[f"HOUSE_{name}"] for name in ("ROOT", "OUT", "PULL"))
CARRIERS = frozenset(os.environ["HOUSE_CARRIERS"].split())
SCRIPTS = "server/queue/scripts/"
seen = set()
began = threading.local()


def is_ours(frame):
    return frame.f_code.co_filename.startswith(ROOT) and "/site-packages/" not in frame.f_code.co_filename


def carries(value):
    if isinstance(value, (list, tuple)) and value:
        value = value[0]
    return type(value).__name__ in CARRIERS or (type(value) is dict and value.get("type") == "http")


def watch(frame, event, argument):
    if event == "return" and frame.f_code.co_qualname == PULL:
        began.request = None
    if event != "call" or not is_ours(frame):
        return
    try:
        request = os.readlink(OUT + "/now")
    except OSError:
        return
    if frame.f_code.co_qualname == PULL:
        began.request = request
    if getattr(began, "request", None) == request:
        return
    callee = frame.f_code.co_filename[len(ROOT):]
    messages = [callee]
    if callee.startswith("server/queue/") and frame.f_code.co_name in ("run", "send") and "script" in frame.f_locals:
        messages.append(SCRIPTS + frame.f_locals["script"].name + ".lua")
    if any(carries(value) for value in frame.f_locals.values()):
        caller = frame.f_back
        while caller is not None and not is_ours(caller):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename[len(ROOT):] != callee:
            messages.append(caller.f_code.co_filename[len(ROOT):] + " > " + callee)
    for what in messages:
        if (request, what) not in seen:
            seen.add((request, what))
            with open(f"{OUT}/{request}", "a") as file:
                file.write(what + "\\n")


if "serve" not in sys.orig_argv:
    threading.setprofile(watch)
    sys.setprofile(watch)
"""
"""Lies on the path of the service's processes as sitecustomize.py. What a link named `now` points to is the number of the request."""


def lines(folder: str, suffix: str) -> int:
    return sum(len(path.read_text().splitlines()) for path in (HERE / folder).rglob(f"*.{suffix}"))


@contextmanager
def watched_service(folder: Path) -> Iterator[str]:
    (folder / "path").mkdir()
    (folder / "path" / "sitecustomize.py").write_text(WATCH)
    (folder / "seen").mkdir()
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPSIN_")} | {
        "PYTHONPATH": os.pathsep.join([str(folder / "path"), str(HERE)]),
        "HOUSE_ROOT": f"{HERE}/",
        "HOUSE_OUT": str(folder / "seen"),
        "HOUSE_PULL": JobIntake.take.__qualname__,
        "HOUSE_CARRIERS": " ".join(carrier.__name__ for carrier in CARRIERS),
    }
    with temporary_service(HERE / "bundles", environment) as url:
        yield url


def trace_classification(folder: Path) -> tuple[list[str], list[str]]:
    """Return the files that a warm classification touches, and its hand-overs, in order."""
    reference.write_pictures(folder / "pictures")
    image = next((folder / "pictures").iterdir()).read_bytes()
    with watched_service(folder) as url, httpx2.Client(base_url=url, timeout=60) as client:

        def classify() -> None:
            client.post("/v1/classify", content=image, headers={"Content-Type": "image/jpeg"}).raise_for_status()

        for _ in range(2 * REQUESTS):
            classify()
        now = folder / "seen" / "now"
        for number in range(REQUESTS):
            time.sleep(QUIET_S)
            now.symlink_to(str(number))
            classify()
            time.sleep(SETTLED_S)
            now.unlink()
    seen = [(folder / "seen" / str(number)).read_text().splitlines() for number in range(REQUESTS)]
    always = [entry for entry in dict.fromkeys(seen[0]) if all(entry in other for other in seen)]
    files = [entry for entry in always if " > " not in entry]
    parts = {part for file in files if file.endswith(".lua") for part in lua_parts(Path(file).stem)}
    return [*files, *sorted(parts)], [entry for entry in always if " > " in entry]


def lua_parts(script: str) -> Iterator[str]:
    """Yield the files of parts whose functions a script calls."""
    source = Script(script, object, object).source
    for part in PARTS:
        file = f"server/queue/scripts/parts/{part}.lua"
        if any(f"local function {name}(" in source for name in re.findall(r"(?m)^local function (\w+)\(", (HERE / file).read_text())):
            yield file


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.house", description=__doc__)
    parser.add_argument("--lines", action="store_true", help="only the lines of code, which takes no time")
    parser.add_argument("--list", action="store_true", help="name the files and the hand-overs, too")
    options = parser.parse_args()
    console, exceeded = Console(highlight=False), False
    for name, limit in LIMITS.items():
        folder, _, language = name.partition(", ")
        count = lines(folder, {"Python": "py", "Lua": "lua"}[language])
        exceeded |= count > limit
        console.print(f"{name}: {count:,} lines (limit {limit:,})")
    if options.lines:
        sys.exit(exceeded)
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as folder:
        files, hand_overs = trace_classification(Path(folder))
    console.print(f"one classify request: {len(files)} files (limit {FILES}), {len(hand_overs)} hand-overs (limit {HAND_OVERS})")
    if options.list:
        console.print(*files, *hand_overs, sep="\n")
    sys.exit(exceeded or len(files) > FILES or len(hand_overs) > HAND_OVERS)


if __name__ == "__main__":
    main()
