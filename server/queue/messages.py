"""Every message between processes: msgpack on the wire, each with a version `v`; a reader refuses a version it does not know."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from models.bundle import NAME_PATTERN


class Array(msgspec.Struct, frozen=True):
    """A numpy array on the wire: C order, little-endian."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes

    @staticmethod
    def from_numpy(array: NDArray[Any]) -> Array:
        plain = np.asarray(array)
        return Array(plain.dtype.str, plain.shape, plain.tobytes())

    def to_numpy(self) -> NDArray[Any]:
        """Return a read-only view of the message's bytes."""
        return np.frombuffer(self.data, dtype=np.dtype(self.dtype)).reshape(self.shape)


def to_numpy(arrays: Mapping[str, Array]) -> dict[str, NDArray[Any]]:
    return {name: array.to_numpy() for name, array in arrays.items()}


def from_numpy(arrays: Mapping[str, NDArray[Any]]) -> dict[str, Array]:
    return {name: Array.from_numpy(array) for name, array in arrays.items()}


VERSION = 1

Priority = Literal["high", "normal", "low"]
PRIORITIES: tuple[Priority, ...] = ("high", "normal", "low")
PRIORITY_DELAY_S: dict[Priority, float] = {"high": 0.0, "normal": 5.0, "low": 10.0}
"""A job is as urgent as one of priority high that came so many seconds later. Time passes, so no job starves."""


WEBHOOKS = "webhooks"
"""Needed by jobs of a record with a webhook, which the worker that ends it queues."""
WORKER_FORMS = WEBHOOKS
"""A worker of this version understands these words beyond the messages of 0.2.0, separated by spaces. What an older worker would overlook
gets a word of its own."""
GATEWAY_FORMS = ""
"""Words that a gateway of this version understands, as the value of `gw:<id>`."""


class UnknownVersion(ValueError):
    """A message of a version that this process does not speak."""


class QueuedJob(msgspec.Struct, frozen=True, kw_only=True):
    """One unit of queued work. Jobs of the same `bundle` and `bucket` may run in one batch."""

    v: int = VERSION
    id: str
    bundle: str
    """`name@version`."""
    digest: str = ""
    """SHA-256 of the bundle.json that it was prepared for: no worker with another content under the same name takes it."""
    bucket: str
    """Shapes and merge schedule, which must agree inside a batch, as one string made by the gateway."""
    arrays: dict[str, Array]
    options: dict[str, Any]
    """Arguments of the forward call; the same for every job of a bucket. For classify: `{"merge": [r of each block]}`."""
    priority: Priority = "normal"
    deadline_ms: int
    """Unix milliseconds on Redis' clock."""
    gateway: str
    """Id of the gateway whose reply stream gets the answer."""
    record: str = ""
    """The record in Redis that gets the answer instead: the job outlives its gateway. Empty: there is none."""
    progress: bool = False
    """Whether its client follows its progress."""
    previews: bool = False
    """Whether progress should bring what can be shown already."""
    trace: dict[str, str] = {}
    """Trace context and the client's request id, for logs."""
    owner: str = ""
    """The client, hashed; empty: it cannot be distinguished."""
    work_ms: int = 0
    """Milliseconds that the service takes for it, by the rates that were announced when it was made."""
    takes_long: bool = False
    """Whether its route's jobs take more than one pass."""
    low: bool = False
    """Whether its client asked for priority low: parts of larger requests have that priority, too."""
    behind_ms: int = 0
    """Delay behind its priority, in favour of other requests."""
    needs: str = ""
    """A worker must understand these words of `WORKER_FORMS` to run it, separated by spaces: one that does not gives it to the others."""


class WorkerTiming(msgspec.Struct, frozen=True, kw_only=True):
    """Durations on the worker's own monotonic clock, milliseconds."""

    batch_wait_ms: float
    """Time from the pull until the batch starts."""
    inference_ms: float
    """The batch on the device."""
    worker_ms: float
    """Time from the pull until the reply is written; the gateway subtracts it from its round trip to get `queue_ms`."""
    batch_size: int


class Failure(msgspec.Struct, frozen=True, kw_only=True):
    """The reason why a job ended without a result."""

    kind: str
    """`worker-crashed`, `model-error`, `unknown-version`, `deadline`, `cancelled`, `unloaded`, `unusable-input`, `excessive` (it asked
    for too much, as its steps have shown: `detail` begins with the option and a colon); a newer worker may know more."""
    detail: str


class Reply(msgspec.Struct, frozen=True, kw_only=True):
    """The end of a job: arrays, or a failure."""

    v: int = VERSION
    id: str
    worker: str
    arrays: dict[str, Array] = {}
    stored: str = ""
    """Key of the msgpack of `arrays`, if these are large; the reader deletes it. Empty: they are here."""
    timing: WorkerTiming | None = None
    failure: Failure | None = None


class Progress(msgspec.Struct, frozen=True, kw_only=True):
    """Progress of a job of several steps."""

    v: int = VERSION
    id: str
    worker: str
    done: int
    """Steps; 0 when the job starts, also where it starts again after its worker's death."""
    total: int
    """0: the work begins, and its number of steps is not known yet."""
    unit: str
    """The unit of a step: `steps`, `levels`, `windows`."""
    preview: dict[str, Array] = {}
    """Arrays that can be shown already; the task knows how."""


UNLOADED = "unloaded"
"""The reason of a bundle that an operator has unloaded, also while its worker has not heard yet that it is wanted again."""


class ServedBundle(msgspec.Struct, frozen=True, kw_only=True):
    """One bundle as a worker announces it. The spec itself lies under `spec:<digest>`."""

    name: str
    version: str
    task: str
    digest: str
    """SHA-256 of bundle.json."""
    state: Literal["loading", "ready", "unloading", "unavailable"]
    reason: str = ""
    items_per_second: float = 0.0
    """Measured; 0 while unknown."""
    steps_per_second: float = 0.0
    """Measured, where jobs take several; 0 while unknown."""
    batch_budget: int = 0
    """The learned batch size; 0 while unknown."""
    unit: str = ""
    """The unit of a step, where jobs take several; empty: a job is one forward pass."""
    backends: dict[str, str] = {}
    """The backend that runs batches of the learned size, by rung and `off`; empty if only PyTorch could."""
    format: str = ""
    """Number format of usual batches: `float32`, `bfloat16`, `float16` or `int8`; empty while unknown."""
    max_difference: float | None = None
    """Maximum difference of warm-up's answers in that format and in float32; None if unknown."""


class WorkerInfo(msgspec.Struct, frozen=True, kw_only=True):
    """`worker:<id>`: what a worker says of itself every second."""

    v: int = VERSION
    id: str
    host: str
    pid: int
    state: Literal["starting", "ready", "draining"]
    device: str
    bundles: list[ServedBundle]
    slots: int = 0
    """Batches at once; 0: an older version, which does not say."""
    progress_age_s: float = 0.0
    """Since the last batch ended or, when idle, since the last look at the queue."""
    metrics_port: int = 0
    repository_revision: int = 0
    """The change of the repository that its bundles are in line with."""
    restarts: int = 0
    """How often its supervisor had restarted it before this start."""
    folder: str = ""
    """Folder of its bundles; empty: an older version, which does not say."""
    forms: str = ""
    """This worker understands these forms beyond the messages of 0.2.0: `WORKER_FORMS` of its version."""


Message = TypeVar("Message", QueuedJob, Reply, Progress, WorkerInfo)

_fields = msgspec.msgpack.Decoder(type=dict[str, msgspec.Raw])
_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind) for kind in (QueuedJob, Reply, Progress, WorkerInfo)
}


def decode(kind: type[Message], data: bytes) -> Message:
    """Decode a message. Raises UnknownVersion, or msgspec.MsgspecError for anything else."""
    try:
        message: Message = _decoders[kind].decode(data)
        version: object = message.v
    except msgspec.ValidationError:
        # a newer layout may not even fit the struct: say that its version is the reason, if it is
        raw = _fields.decode(data).get("v")
        version = msgspec.msgpack.decode(raw) if raw is not None else None
        if version == VERSION:
            raise
    if version != VERSION:
        raise UnknownVersion(f"message version {version!r}; this process speaks version {VERSION}")
    return message


REPOSITORY_STATES = frozenset({"loaded", "unloaded"})


def repository_states(flat: Sequence[bytes]) -> dict[str, str]:
    """Read `[name, state, name, state, …]` of the repository's hash. Other programs may have written to it: names that no bundle can have
    and unknown states are left out."""
    texts = [item.decode(errors="replace") for item in flat]
    pairs = zip(texts[::2], texts[1::2], strict=True)
    return {name: state for name, state in pairs if NAME_PATTERN.fullmatch(name) and state in REPOSITORY_STATES}
