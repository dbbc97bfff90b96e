"""The state of one request for inference, from its admission to its end."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from starlette.types import Receive

from models.bundle import BundleSpec
from server.concurrency.cancellation import Deadline, TimerWheel
from server.gateway.auth.key_file import ApiKey
from server.http.problems import Problem, ProblemKind
from server.http.requests import DisconnectWatcher, Head
from server.http.sse import EventStream
from server.queue.gateway.reservations import Reservation
from server.queue.messages import PRIORITIES, Priority

Mode = Literal["answer", "events", "job"]
"""A request is answered at once, as a stream of events, or by a job that outlives it."""
Protocol = Literal["rest", "open-inference"]


@dataclass(eq=False, slots=True)
class RequestContext:
    """The only value of a request that changes: who sent it, its deadline, and its reservation in the queue."""

    head: Head
    receive: Receive
    request_id: str
    client: str
    """The client's address, or the name of its API key."""
    key: ApiKey
    mode: Mode
    protocol: Protocol
    is_long_running: bool
    deadline: Deadline
    """Also ends the request if the client disconnects, or if no worker serves the bundle any more."""
    reservation: Reservation
    """Released once the queue counts the jobs itself."""
    stream: EventStream | None = None
    """Receives the reason if the request fails after its response has started."""
    started_at: float = 0.0
    """Seconds of `time.perf_counter()`."""
    timeout_s: float = 0.0
    """Value of `X-Request-Timeout`, or the default; of the job if the request is asynchronous."""
    model: str = ""
    version: str = ""
    payload_bytes: int | None = None
    """Size of what was sent, for metrics."""
    cancelled_by_shutdown: bool = False
    _watcher: DisconnectWatcher | None = None

    def set_bundle(self, spec: BundleSpec) -> None:
        """Count the request for this bundle."""
        self.model, self.version = spec.name, spec.version

    def set_deadline(self, seconds: float) -> None:
        """Set the deadline to so many seconds after the start."""
        self.deadline.set(seconds - (time.perf_counter() - self.started_at))

    def seconds_left(self) -> float:
        assert self.deadline.until is not None
        return self.deadline.until - time.monotonic()

    def watch(self, timers: TimerWheel) -> None:
        """End the request if the client disconnects. The body must have been read."""
        self._watcher = DisconnectWatcher(timers, self.receive, self.deadline)
        self._watcher.start()

    def stop_watching(self) -> None:
        """Idempotent."""
        if self._watcher is not None:
            self._watcher.stop()
            self._watcher = None

    def cancel(self) -> None:
        """End the request because the gateway shuts down."""
        self.cancelled_by_shutdown = True
        self.deadline.end(TimeoutError())

    def check_priority(self, priority: Priority | None) -> Priority:
        """Return the priority of the request. None: `normal`, or the highest that the key allows if that is lower.

        Raises Problem (422) if the key does not allow it."""
        maximum = self.key.priority
        if priority is None:
            return max("normal", maximum, key=PRIORITIES.index)
        if PRIORITIES.index(priority) < PRIORITIES.index(maximum):
            raise Problem(
                ProblemKind.INVALID_OPTION, f"the key of {self.key.name} may ask for {maximum} at most, not {priority}", "priority"
            )
        return priority
