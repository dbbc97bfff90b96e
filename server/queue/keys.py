"""The names of everything the queue keeps in Redis. The Lua scripts spell the same names; docs/queue.md explains them."""

from __future__ import annotations

from server.queue.job import PRIORITIES, Priority

GROUP = "workers"
"""Consumer group of every work stream; its consumers are named by worker id."""
HANDED_BACK = "handed-back"
"""A consumer that never lives: what is put under its name can be claimed at once, without a death being counted."""

BYTES = "queue:bytes"
QUEUES = "queues"
WORKERS = "workers"
GATEWAYS = "gateways"
REPOSITORY = "repository"
REVISION = "#revision"
"""Field of the repository that counts its changes; no bundle can have this name."""
DEAD = "dead"
RESTARTS = "restarts"
"""Why workers were restarted → how often, a hash that supervisors write."""
JANITOR = "janitor"


def stream(bundle: str, priority: Priority) -> str:
    return f"queue:{bundle}:{priority}"


def streams(bundle: str) -> list[str]:
    """The work streams of a bundle, most urgent first."""
    return [stream(bundle, priority) for priority in PRIORITIES]


def bundle_of(stream_key: str) -> str:
    return stream_key.removeprefix("queue:").rpartition(":")[0]


def replies(gateway: str) -> str:
    return f"replies:{gateway}"


def gateway(gateway_id: str) -> str:
    return f"gw:{gateway_id}"


def worker(worker_id: str) -> str:
    return f"worker:{worker_id}"


def job(job_id: str) -> str:
    return f"job:{job_id}"


def cancel(job_id: str) -> str:
    return f"cancel:{job_id}"


def spec(digest: str) -> str:
    return f"spec:{digest}"


def statistics(bundle: str) -> str:
    return f"stats:{bundle}"
