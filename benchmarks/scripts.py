"""Cost of the queue's scripts: `python -m benchmarks.scripts OTHER_CHECKOUT`. Two versions in turn, in one private Valkey on one CPU.

Each round runs jobs of one client from admission to answer, and adds up the CPU time that Valkey's main thread takes for each kind of call.
Both versions get the same arguments, so both must read them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import secrets
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec
import redis
from rich.console import Console
from rich.table import Table

from server.queue.keys import Keyspace
from server.queue.script_rows import AdmissionCall, BatchEnd, Bounds, Claim, EndedRow, JobRow, QueueAmount, RequestRow
from server.supervisor.private_valkey import PrivateValkey

HERE = Path(__file__).resolve().parent.parent
SCRIPTS = ("enqueue", "pull", "finish")
SOURCES = f"import json; from server.queue.script import Script as S; print(json.dumps({{n: S(n, str, str).source for n in {SCRIPTS}}}))"
PARTITION = Keyspace().name("")
STREAM = "queue:echo@1:0123456789ab:normal"
PLENTY = QueueAmount(10**6, 2**40)
BOUNDS = Bounds(PLENTY, PLENTY, PLENTY, PLENTY, PLENTY, PLENTY, PLENTY)
MESSAGE, REPLY = b"m" * 1000, b"r" * 400
BATCHES = (1, 8)
"""Jobs that one call ends."""


class ScriptVersion:
    """The scripts of one checkout, each call sent by its SHA-1, and the CPU time that they took."""

    def __init__(self, db: redis.Redis, cpu: Callable[[], int], checkout: Path) -> None:
        found = subprocess.run([sys.executable, "-c", SOURCES], cwd=checkout, check=True, capture_output=True, text=True).stdout
        self._scripts: dict[str, str] = json.loads(found)
        self._db, self._cpu = db, cpu
        self.taken: dict[str, list[float]] = {}
        """Kind of call → µs for one of them, in each round."""

    def round(self, jobs: int) -> None:
        for batch in BATCHES:
            self._db.flushall()
            for source in self._scripts.values():
                self._db.script_load(source)
            for kind in ("gw", "worker"):
                self._db.set(f"{PARTITION}{kind}:us", "1")
            self._db.xgroup_create(PARTITION + STREAM, "workers", 0, mkstream=True)
            ids = [secrets.token_hex(16) for _ in range(jobs)]
            self._time(batch, "enqueue", [_admission(job) for job in ids])
            rows = [row for _, pulled, _ in self._time(batch, "pull", [_look(batch)] * (jobs // batch)) for row in pulled]
            self._time(batch, "finish", [_endings(rows[at : at + batch]) for at in range(0, jobs, batch)])

    def _time(self, batch: int, script: str, calls: Sequence[Sequence[bytes]]) -> list[list[list[bytes]]]:
        name = hashlib.sha1(self._scripts[script].encode(), usedforsecurity=False).hexdigest()
        connection = self._db.connection_pool.get_connection()
        packed = [connection.pack_command("EVALSHA", name, 1, PARTITION, *call) for call in calls]
        answers, before = [], self._cpu()
        for command in packed:
            connection.send_packed_command(command)
            answers.append(connection.read_response())
        if script != "enqueue" or batch == 1:
            kind = script if script == "enqueue" else f"{script} of {batch}"
            self.taken.setdefault(kind, []).append((self._cpu() - before) / 1000 / len(calls))
        self._db.connection_pool.release(connection)
        return answers


def _admission(job: str) -> tuple[bytes, bytes]:
    owner, deadline_ms = "0123456789abcdef", int(time.time() * 1000) + 60_000
    item = JobRow(job, STREAM, "us", deadline_ms, "inline", len(MESSAGE), owner, 20, behind_ms=0, low=False)
    claim = Claim(owner, items=1, nbytes=len(MESSAGE), work_ms=20)
    return msgspec.msgpack.encode(AdmissionCall(BOUNDS, [RequestRow([item], claim, again=False, place=False)])), MESSAGE


def _look(places: int) -> tuple[bytes]:
    return (msgspec.msgpack.encode(("us", True, ([(STREAM, 0, 1)], [places]))),)


def _endings(rows: Sequence[Sequence[bytes]]) -> list[bytes]:
    ended = [
        EndedRow(stream.decode(), entry.decode(), job.decode(), gateway.decode(), int(added), "", "success", 10**6, 10**7, 2 * 10**7)
        for stream, entry, job, gateway, _, added, *_ in rows
    ]
    finished = BatchEnd("echo@1", "us", len(rows), is_counted=False, most_dead=100, jobs=ended)
    return [msgspec.msgpack.encode(finished), *[REPLY] * len(rows)]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scripts", description=__doc__)
    parser.add_argument("other", type=Path, help="another checkout, to compare with")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--jobs", type=int, default=240, help="of each version in each round and batch size")
    options = parser.parse_args()
    server = PrivateValkey()
    server.start()
    try:
        pid = server.process.pid
        os.sched_setaffinity(pid, {max(os.sched_getaffinity(0))})
        used = Path(f"/proc/{pid}/task/{pid}/schedstat")
        db = redis.Redis.from_url(server.url)
        other, this = (ScriptVersion(db, lambda: int(used.read_text().split()[0]), path) for path in (options.other, HERE))
        for number in range(options.rounds):
            for version in (other, this)[:: 1 if number % 2 else -1]:
                version.round(options.jobs)
    finally:
        server.stop()
    table = Table("call", "other, µs", "this, µs", "this ÷ other", "quartiles", title="CPU time of Valkey for one call")
    for kind, before in other.taken.items():
        ratios = [now / then for now, then in zip(this.taken[kind], before, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        table.add_row(
            kind, *(f"{statistics.median(each):.1f}" for each in (before, this.taken[kind])), f"{middle:.3f}", f"{low:.3f}-{high:.3f}"
        )
    Console().print(table)


if __name__ == "__main__":
    main()
