"""Two services under two prefixes share one Redis and do not feel each other."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path

import redis

from server.queue.keys import Keyspace
from server.supervisor.private_valkey import PrivateValkey
from tests.support.bundles.vit import write_tiny_vit
from tests.support.images import picture
from tests.support.serve_process import Service, serve
from tests.support.waiting import eventually

OURS, THEIRS = "ours:", "theirs:"


def test_killed_service_is_cleaned_up_while_the_other_answers(valkey: PrivateValkey, tmp_path: Path) -> None:
    write_tiny_vit(tmp_path)
    with redis.Redis.from_url(valkey.url, decode_responses=True) as client:
        client.flushall()
        with (
            serve(tmp_path, copied=True, redis_url=valkey.url, key_prefix=OURS) as ours,
            serve(tmp_path, copied=True, redis_url=valkey.url, key_prefix=THEIRS) as theirs,
        ):
            expected = best_labels(ours)
            assert best_labels(theirs) == expected
            assert ours.get("/v1/status").json()["gateways"] == 1
            assert len(ours.get("/v1/status").json()["workers"]) == 1
            others = [key for key in client.scan_iter() if not key.startswith((f"{OURS}{{", f"{THEIRS}{{"))]
            assert not others, "all keys have a prefix"
            answers = answers_during(ours, lambda: kill_and_clean(theirs, client))
            assert answers and all(answer == expected for answer in answers)
            assert not [key for key in client.scan_iter() if key.startswith(THEIRS)]
            assert client.exists(Keyspace(OURS).name("workers"))
            assert best_labels(ours) == expected


def best_labels(service: Service) -> list[str]:
    answer = service.classify(picture(1)).raise_for_status().json()
    return [one["label"] for one in answer["results"][0]["predictions"]]


def answers_during(service: Service, act: Callable[[], None]) -> list[list[str]]:
    """Send requests from before until after an act; return their answers."""
    answers: list[list[str]] = []
    ended = threading.Event()

    def ask() -> None:
        while not ended.is_set():
            answers.append(best_labels(service))

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        act()
    finally:
        ended.set()
        asking.join()
    return answers


def kill_and_clean(service: Service, client: redis.Redis) -> None:
    family = [*service.children("gateway"), *service.children("worker")]
    os.killpg(service.process.pid, signal.SIGKILL)
    service.process.wait()
    eventually(lambda: not any(alive(pid) for pid in family), "its processes have ended with it")
    client.delete(*client.scan_iter(f"{THEIRS}*"))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
