"""From encoded parts to the network's answers: prepare, enqueue, wait. Both protocols share it; tasks say how."""

from __future__ import annotations

import asyncio
import hashlib
import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from typing import Any

import msgspec

from models.bundle import BundleSpec
from server.arrays import Array
from server.concurrency.cancellation import strip_tracebacks
from server.gateway.catalog.worker_grace import WorkerLossWatchdog
from server.gateway.fair_executor import FairExecutor
from server.gateway.inference import error_mapping
from server.gateway.inference.admission import Visit
from server.gateway.inference.body import item_field, job_field
from server.gateway.inference.progress_stream import Follower
from server.gateway.inference.task_interface import Planned
from server.gateway.inference.webhook_headers import Webhook
from server.http.client_identity import owner_of
from server.http.problems import Kind, Problem
from server.media import image_headers, images
from server.media.limits import MediaError
from server.queue.errors import IdempotencyConflict, Refused
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.submitter import INLINE_BYTES
from server.queue.messages import WEBHOOKS, Priority, QueuedJob, Reply
from server.queue.record import Record, RecordDraft
from server.tasks import capabilities
from server.tasks.base import Arrays, Item, Outputs
from server.tasks.capabilities import Counts, EchoesArrays, Previews, RecallsTexts, TakesSteps, TwoStage
from server.tasks.embedding.text_jobs import MAX_INLINE_TEXTS
from server.tasks.options import InvalidOption
from server.telemetry.metrics import GatewayMetrics

INLINE_PIXELS = image_headers.SMALL_PIXELS
"""An image that claims to be small and is larger than this is decoded in a thread after all."""

AT_ONCE_MS = 250
"""So much work of a request has its turn by priority, ..."""
BEHIND = 4
"""... and what follows is queued as `low`, behind by so many times the work before it: others leave it about a quarter of the device."""

RESULT_OVERHEAD = 1024
"""Bytes of a stored reply besides its arrays, and of its share in the record and its events."""

Prepared = list[dict[str, Array]]
"""The arrays of an item's jobs."""


class Timing(msgspec.Struct, frozen=True):
    """Where the time of a request's slowest item went, in milliseconds; `batch_size` counts the items that shared its batch."""

    prepare_ms: float
    queue_ms: float
    batch_wait_ms: float
    inference_ms: float
    total_ms: float
    batch_size: int


@dataclass(frozen=True)
class Asked(Planned):
    """A request that is understood, for one bundle."""

    part: str
    """The part that errors name."""
    priority: Priority


@dataclass(frozen=True)
class Answer:
    """The outputs of every job, in the order of the items."""

    outputs: list[Outputs]
    timing: Timing


class Inference:
    """Runs the items of admitted requests."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        desertion: WorkerLossWatchdog,
        metrics: GatewayMetrics,
        decoder: images.ImageDecoder,
        turns: FairExecutor,
    ) -> None:
        self._dispatcher = dispatcher
        self._desertion = desertion
        self._metrics = metrics
        self._decoder = decoder
        self._inline = images.ImageDecoder(min(INLINE_PIXELS, decoder.max_pixels))
        """The event loop's own decoder, which never waits for what threads have decoded."""
        self._turns = turns

    async def run(self, items: list[Item], asked: Asked, visit: Visit, follower: Follower | None = None) -> Answer:
        """All of the items or none; the list is emptied. Raises Problem, and what the Dispatcher raises.

        The follower, if there is one, hears how far it has come.
        """
        began = time.perf_counter()
        prepared = await self._prepare(items, asked, visit)
        items.clear()
        return await self._run(prepared, asked, visit, began, follower, beside=await self._prepare_beside(asked, visit))

    async def run_again(self, arrays: Arrays, asked: Asked, visit: Visit) -> Answer:
        """One job whose arrays come from an earlier one. Raises what `run` does."""
        began = time.perf_counter()
        return await self._run([_packed([arrays])], asked, visit, began)

    async def _run(
        self,
        prepared: Sequence[Prepared],
        asked: Asked,
        visit: Visit,
        began: float,
        follower: Follower | None = None,
        beside: Sequence[Prepared] = (),
    ) -> Answer:
        """beside: of the request as a whole; their jobs follow those of the items."""
        enqueued = time.perf_counter()
        deadline_ms = int(self._dispatcher.link.now_ms() + visit.seconds_left() * 1000)
        together = [*prepared, *beside]
        jobs = self._jobs(together, asked, visit, deadline_ms, gateway=self._dispatcher.id, follow=follower is not None)
        await _reserve_large(jobs, visit)
        listeners: dict[str, Any] = {}
        if follower is not None:
            follower.expect(len(jobs), _counted(together, asked))
            listeners = {"on_admitted": follower.admitted, "on_progress": follower.progressed, "on_reply": follower.replied}
        fields = [job_field(asked.task, asked.part, index, len(prepared)) for index, arrays in enumerate(together) for _ in arrays]
        replies = await self._replies(jobs, asked, visit, fields, **listeners)
        answered = time.perf_counter()
        timing = timing_of(replies, prepare=enqueued - began, round_trip=answered - enqueued, total=answered - visit.started)
        outputs = _with_echoes(replies, [arrays for item in together for arrays in item], _echoed(asked)[0])
        self._count(outputs, asked.spec, timing)
        return Answer(outputs, timing)

    async def submit(
        self, items: list[Item], asked: Asked, visit: Visit, fingerprint: str, idempotency_key: str, webhook: Webhook
    ) -> Record:
        """Queue the items as one job of the client's, which outlives this gateway; the list is emptied. Returns its record.

        Raises Problem, and what the Dispatcher raises.
        """
        began = time.perf_counter()
        prepared, count = [*await self._prepare(items, asked, visit), *await self._prepare_beside(asked, visit)], len(items)
        items.clear()
        plan, (counted, counted_unit) = msgspec.msgpack.encode(asked.plan), _counted(prepared, asked)
        enqueued = time.perf_counter()
        deadline_ms = int(self._dispatcher.link.now_ms() + (visit.seconds - (enqueued - visit.started)) * 1000)

        def make_jobs(record: str) -> list[QueuedJob]:
            return self._jobs(prepared, asked, visit, deadline_ms, record=record, needs=WEBHOOKS if webhook.url else "", follow=True)

        jobs = make_jobs("")
        await _reserve_large(jobs, visit)
        draft = RecordDraft(
            task=asked.task.name,
            bundle=asked.spec.id,
            digest=asked.spec.digest(),
            part=asked.part,
            items=count,
            counted=counted,
            counted_unit=counted_unit,
            priority=asked.priority,
            request_id=visit.request_id,
            prepare_ms=_milliseconds(enqueued - began),
            fingerprint=fingerprint,
            idem=_idem(visit.key.name, idempotency_key) if idempotency_key else "",
            key_name=visit.key.name,
            bound=len(plan) + sum(_result_bound(asked, job) for job in jobs),
            webhook=webhook.url,
            webhook_events=webhook.events,
        )
        try:
            return await self._dispatcher.records.admit(draft, plan, make_jobs, max_items=visit.key.max_items)
        except IdempotencyConflict:
            raise Problem(Kind.INVALID_OPTION, "another request was sent with this key before", "Idempotency-Key") from None
        except Refused as refused:
            raise error_mapping.of_refused(refused, asked.part) from None

    async def _prepare(self, items: Sequence[Item], asked: Asked, visit: Visit) -> list[Prepared]:
        """Raises Problem that names the first bad item, Refused where there is no room for what they will take at least."""
        if isinstance(asked.task, TakesSteps):
            await visit.reservation.check(work_ms=len(items) * self._work_ms(asked, None))
        if len(items) == 1 and _is_small(items[0], asked):
            result = _prepare(items[0], asked, self._inline)
            if not isinstance(result, images.TooManyPixels):
                return [_good(result, asked.part, 0, 1)]
        items = [await self._looked_at(item, asked, visit, index, len(items)) for index, item in enumerate(items)]
        work = [self._turns.run(visit.client, partial(_prepare, item, asked, self._decoder)) for item in items]
        results = [await work[0]] if len(work) == 1 else await asyncio.gather(*work)
        return [_good(result, asked.part, index, len(items)) for index, result in enumerate(results)]

    async def _looked_at(self, item: Item, asked: Asked, visit: Visit, index: int, count: int) -> Item:
        """The item with what a first job tells of it, where the bundle has to see it before it can be prepared."""
        task = asked.task
        if not isinstance(task, TwoStage) or not task.needs_first_stage(item, asked.spec):
            return item
        result = await self._turns.run(visit.client, partial(_prepare, item, asked, self._decoder, first=True))
        prepared = _good(result, asked.part, index, count)
        deadline_ms = int(self._dispatcher.link.now_ms() + visit.seconds_left() * 1000)
        jobs = self._jobs([prepared], asked, visit, deadline_ms, gateway=self._dispatcher.id, follow=False)
        places = visit.reservation.items, visit.reservation.nbytes
        await _reserve_large(jobs, visit)
        [outputs] = outputs_of(await self._replies(jobs, asked, visit, [item_field(asked.part, index, count)]))
        await visit.reservation.resize(*places)  # the queue counted the first job in its place
        return {**item, **task.parts_from_first_stage(outputs)}

    async def _replies(self, jobs: list[QueuedJob], asked: Asked, visit: Visit, fields: Sequence[str], **listeners: Any) -> list[Reply]:
        """fields: how errors name what each job was made of. Raises Problem for one that failed, and what the Dispatcher raises."""
        with self._desertion.guard(asked.spec, visit.limit):
            replies = await self._dispatcher.submitter.submit(jobs, reservation=visit.reservation, **listeners)
        for field, reply in zip(fields, replies, strict=True):
            if reply.failure is not None:
                raise error_mapping.of_reply(reply.failure, asked.spec.name, field)
        return replies

    async def _prepare_beside(self, asked: Asked, visit: Visit) -> list[Prepared]:
        task = asked.task
        if not isinstance(task, RecallsTexts) or not (texts := task.texts(asked.plan)):
            return []
        prepare = partial(task.prepare_texts, asked.plan, asked.spec)
        return [_packed(prepare() if len(texts) <= MAX_INLINE_TEXTS else await self._turns.run(visit.client, prepare))]

    def _jobs(
        self,
        prepared: Sequence[Prepared],
        asked: Asked,
        visit: Visit,
        deadline_ms: int,
        *,
        gateway: str = "",
        record: str = "",
        needs: str = "",
        follow: bool,
    ) -> list[QueuedJob]:
        """The jobs of one request: answered to a gateway, or to a record."""
        request = record or os.urandom(16).hex()
        told: dict[str, Any] = {}
        echoed, unread = _echoed(asked)
        if echoed:  # results of records are presented by whichever gateway is asked
            told["returned"] = [] if gateway else list(echoed)
        if unread and not gateway:
            told["unread"] = sorted(unread)
        flat = [(arrays, {name: array.shape for name, array in arrays.items()}) for item in prepared for arrays in item]
        batching, takes_long = capabilities.batching(asked.task), isinstance(asked.task, TakesSteps)
        work = [math.ceil(self._work_ms(asked, arrays) * batching.weight(asked.spec, shapes)) for arrays, shapes in flat]
        turns = [_turn(asked, ahead) for ahead in accumulate(work[:-1], initial=0)]
        return [
            QueuedJob(
                id=f"{request}-{index}",
                bundle=asked.spec.id,
                digest=asked.spec.digest(),
                bucket=batching.bucket(asked.plan, asked.spec, shapes),
                arrays={name: array for name, array in arrays.items() if not gateway or name not in unread},
                options=batching.arguments(asked.plan, shapes) | told,
                priority=priority,
                deadline_ms=deadline_ms,
                gateway=gateway,
                record=record,
                progress=follow,
                previews=follow and isinstance(asked.task, Previews),
                trace={"request_id": visit.request_id},
                owner=owner_of(visit.client),
                work_ms=work_ms,
                takes_long=takes_long,
                low=asked.priority == "low",
                behind_ms=behind_ms,
                needs=needs,
            )
            for index, ((arrays, shapes), work_ms, (priority, behind_ms)) in enumerate(zip(flat, work, turns, strict=True))
        ]

    def _work_ms(self, asked: Asked, arrays: Mapping[str, Array] | None) -> int:
        """Work of one usual job; at least, where its item is not prepared yet."""
        task = asked.task
        takes_long = isinstance(task, TakesSteps)
        steps = task.steps(asked.plan, None if arrays is None else _to_numpy(arrays)) if isinstance(task, TakesSteps) else None
        return self._dispatcher.fleet.latest.work_ms(asked.spec.id, steps, takes_long=takes_long)

    def _count(self, outputs: Sequence[Outputs], spec: BundleSpec, timing: Timing) -> None:
        counted = self._metrics.bundle(spec)
        counted.items.inc(len(outputs))
        counted.preprocess.observe(timing.prepare_ms / 1000)
        counted.queue_wait.observe(timing.queue_ms / 1000)
        tokens = [one["tokens"].tolist() for one in outputs if "tokens" in one]
        if tokens:
            total_in, total_out = (sum(column) for column in zip(*tokens, strict=True))
            counted.tokens_in.inc(total_in)
            counted.tokens_out.inc(total_out)
            self._metrics.history_counts.tokens(total_in, total_out)


def _turn(asked: Asked, ahead_ms: int) -> tuple[Priority, int]:
    """Return the priority of a job with so much work of its request before it, and by how many milliseconds it is behind that.

    Steps take turns anyway."""
    if asked.priority == "high" or isinstance(asked.task, TakesSteps) or ahead_ms < AT_ONCE_MS:
        return asked.priority, 0
    return "low", BEHIND * (ahead_ms - AT_ONCE_MS)


def _to_numpy(arrays: Mapping[str, Array]) -> Arrays:
    return {name: array.to_numpy() for name, array in arrays.items()}


def _with_echoes(replies: Sequence[Reply], prepared: Sequence[Mapping[str, Array]], names: Sequence[str]) -> list[Outputs]:
    """The outputs, and those of each job's arrays that the answer needs again."""
    if not names:
        return outputs_of(replies)
    sent = [{name: arrays[name].to_numpy() for name in names if name in arrays} for arrays in prepared]
    return [{**outputs, **echoes} for outputs, echoes in zip(outputs_of(replies), sent, strict=True)]


def _idem(key_name: str, idempotency_key: str) -> str:
    """Two names may use the same Idempotency-Key for two things. No header holds the character between them."""
    return hashlib.sha256(f"{key_name}\0{idempotency_key}".encode() if key_name else idempotency_key.encode()).hexdigest()


def _result_bound(asked: Asked, job: QueuedJob) -> int:
    return asked.task.result_bound(asked.plan, asked.spec, _to_numpy(job.arrays)) + RESULT_OVERHEAD


async def _reserve_large(jobs: Sequence[QueuedJob], visit: Visit) -> None:
    """Messages that are written to Redis before the queue counts them count as ours."""
    sizes = [sum(len(array.data) for array in job.arrays.values()) for job in jobs]
    nbytes = sum(size for size in sizes if size > INLINE_BYTES)
    if nbytes > visit.reservation.nbytes:
        await visit.reservation.resize(visit.reservation.items, nbytes)


def outputs_of(replies: Sequence[Reply]) -> list[Outputs]:
    return [{name: array.to_numpy() for name, array in reply.arrays.items()} for reply in replies]


def _prepare(item: Item, asked: Asked, decoder: images.ImageDecoder, *, first: bool = False) -> Prepared | MediaError | InvalidOption:
    """first: the job that comes before the item's own. The error is returned, so that one bad item does not hide which one comes first;
    without its frames, which hold the item."""
    try:
        if first:
            assert isinstance(asked.task, TwoStage)
            return _packed([asked.task.prepare_first_stage(item, asked.plan, asked.spec, decoder)])
        jobs = asked.task.prepare(item, asked.plan, asked.spec, decoder)
    except (MediaError, InvalidOption) as error:
        return strip_tracebacks(error)
    return _packed(jobs)


def _counted(prepared: Sequence[Prepared], asked: Asked) -> tuple[int, str]:
    jobs = [_to_numpy(arrays) for item in prepared for arrays in item]
    return asked.task.progress_total(jobs) if isinstance(asked.task, Counts) else (len(jobs), "images")


def _echoed(asked: Planned) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the names of arrays that presenting needs again, and those of them that no model reads."""
    task = asked.task
    return (task.echoed_arrays, frozenset(task.unread_arrays)) if isinstance(task, EchoesArrays) else ((), frozenset())


def _is_small(item: Item, asked: Planned) -> bool:
    """Return whether preparing takes less than handing it to a thread is worth: texts, or one small image, of a task without steps."""
    if isinstance(asked.task, TakesSteps) or len(item) > 1:
        return False
    ((name, content),) = item.items()
    kind = next(part.kind for part in asked.task.parts if part.name == name)
    return kind == "text" or (kind == "image" and image_headers.is_small(content))


def _packed(jobs: Sequence[Arrays]) -> Prepared:
    return [{name: Array.from_numpy(array) for name, array in arrays.items()} for arrays in jobs]


def _good(result: Prepared | MediaError | InvalidOption, part: str, index: int, count: int) -> Prepared:
    """Raises Problem that names the part, or the one that the error is about, and which of `count` items it belongs to."""
    if isinstance(result, MediaError):
        result.part = item_field(result.part or part, index, count)
    if isinstance(result, (InvalidOption, MediaError)):
        raise error_mapping.of_refusal(result)
    return result


def timing_of(replies: Sequence[Reply], *, prepare: float, round_trip: float, total: float) -> Timing:
    """The timing of the slowest item, from seconds. It holds nothing but durations: no clock of the worker is compared with one of ours."""
    slowest = max((reply.timing for reply in replies if reply.timing is not None), key=lambda timing: timing.worker_ms)
    return Timing(
        prepare_ms=_milliseconds(prepare),
        queue_ms=max(0.0, round(round_trip * 1000 - slowest.worker_ms, 3)),
        batch_wait_ms=round(slowest.batch_wait_ms, 3),
        inference_ms=round(slowest.inference_ms, 3),
        total_ms=_milliseconds(total),
        batch_size=slowest.batch_size,
    )


def _milliseconds(seconds: float) -> float:
    return round(seconds * 1000, 3)
