"""Ways in which a Redis that is there refuses to work, each with what mends it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path

import redis

from tests.support.queue import Server, free_port
from tests.support.waiting import eventually

NOT_PERMITTED = {"NOPERM": ("-@write", "-@scripting"), "ACL": ("-@write",)}
"""What an operator took from us: writing, and running scripts, or only what they write."""
EVERY_WRITE = ("NOREPLICAS", "MISCONF", "BUSY", "READONLY", *NOT_PERMITTED)


@contextlib.contextmanager
def server(folder: Path) -> Iterator[Server]:
    """A server that is expected to save its data, and so minds if it cannot."""
    made = Server(folder, "--save", "3600 1000000")
    try:
        yield made
    finally:
        made.kill()


@contextlib.contextmanager
def refusing(behind: Server, kind: str) -> Iterator[None]:
    """The server answers writes with this error, until the `with` block ends."""
    with redis.Redis(port=behind.port, decode_responses=True) as operator:
        if kind == "NOREPLICAS":
            operator.config_set("min-replicas-to-write", 1)
            yield
            operator.config_set("min-replicas-to-write", 0)
        elif kind == "MISCONF":
            in_the_way = behind.folder / "dump.rdb"
            in_the_way.mkdir()
            _save(operator, "err")
            yield
            in_the_way.rmdir()
            _save(operator, "ok")
        elif kind == "BUSY":
            operator.config_set("busy-reply-threshold", 1)
            busy = threading.Thread(target=_loop_for_ever, args=(behind.port,))
            busy.start()
            eventually(lambda: _is_busy(operator), "it is busy")
            yield
            operator.execute_command("SCRIPT", "KILL")
            busy.join()
        elif kind == "READONLY":
            operator.replicaof("127.0.0.1", free_port())
            yield
            operator.replicaof("NO", "ONE")
        elif kind in NOT_PERMITTED:
            operator.execute_command("ACL", "SETUSER", "default", *NOT_PERMITTED[kind])
            yield
            operator.execute_command("ACL", "SETUSER", "default", "+@all")


def _save(operator: redis.Redis, outcome: str) -> None:
    def saved() -> bool:
        facts = operator.info("persistence")
        return facts["rdb_last_bgsave_status"] == outcome and not facts["rdb_bgsave_in_progress"]

    operator.bgsave()
    eventually(saved, f"saving ended with {outcome}")


def _is_busy(operator: redis.Redis) -> bool:
    try:
        operator.ping()
    except redis.ResponseError as error:
        return str(error).startswith("BUSY")
    return False


def _loop_for_ever(port: int) -> None:
    with redis.Redis(port=port, socket_timeout=60) as client, contextlib.suppress(redis.RedisError):
        client.eval("while true do end", 0)
