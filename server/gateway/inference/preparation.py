"""A parsed request → its bundle and plan → jobs → outputs: resolve it, prepare its items, queue their jobs and wait for the replies."""

from __future__ import annotations

import asyncio
import math
import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from models.bundle import BundleSpec
from server.concurrency import strip_tracebacks
from server.gateway.fair_executor import FairExecutor
from server.gateway.inference import error_mapping, stages
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.progress_stream import ProgressStream
from server.gateway.inference.stages import AnsweredRequest, ParsedRequest, PreparedRequest, ResolvedRequest, TaskPlan, Timing, item_field
from server.gateway.inference.text_cache import RECORDED_BYTES, TextCache
from server.http.problems import Problem, ProblemKind
from server.http.requests import owner_id
from server.media import image_headers, images
from server.media.limits import MediaError
from server.media.part_hints import suggest_recording_part
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.submitter import INLINE_BYTES
from server.queue.messages import Array, Priority, QueuedJob, Reply, from_numpy, to_numpy
from server.tasks import base, registry
from server.tasks.base import Counts, EchoesArrays, Item, KeepsScenes, Outputs, Previews, RecallsTexts, TakesSteps, TwoStage
from server.tasks.embedding.vector_jobs import MAX_INLINE_TEXTS
from server.tasks.options import InvalidOption
from server.telemetry.metrics import GatewayMetrics

if TYPE_CHECKING:
    from server.gateway.app_state import GatewayState

INLINE_PIXELS = image_headers.SMALL_PIXELS
"""Maximum number of pixels of an image that is decoded in the event loop."""
FULL_PRIORITY_WORK_MS = 250
"""Work of a request that keeps its priority. Jobs after it are queued as `low`."""
BEHIND = 4
"""Factor by which such a job is queued behind, times the work before it: others leave the request about a quarter of the device."""

PreparedItem = list[dict[str, Array]]
"""Arrays of an item's jobs."""


async def resolve_request(parsed: ParsedRequest, gateway: GatewayState) -> ResolvedRequest:
    """Find the bundle and make the plan, then fetch the parts that are named by URL: nothing is fetched for a request that is refused.

    Raises Problem for parts that the bundle does not take or lacks, and for options beyond it; and what the fetcher raises."""
    context, interface, parts = parsed.context, parsed.interface, parsed.parts
    requested = interface.task_for(parts)
    assert requested is not None, "`parse_request` has refused it"
    spec = await gateway.directory.find(parsed.common.model, registry.default_name(requested, parts))
    context.set_bundle(spec)
    task = next((task for task in interface.tasks if registry.serves(task, spec)), requested)
    accepted = {part.name: part for part in base.accepted_parts(task, spec)}
    for name in parts:
        if name not in accepted:
            hint = f"; a bare body is its `{name}`: send a form, as with curl -F {next(iter(accepted))}=@FILE" if parsed.is_raw_body else ""
            raise Problem(ProblemKind.INVALID_OPTION, f"{spec.id} takes {', '.join(accepted)}, and no {name}{hint}", name)
    for part in accepted.values():
        if part.required and part.name not in parts:
            raise Problem(ProblemKind.INVALID_OPTION, f"missing: {spec.id} needs `{part.name}`; send it, too", part.name)
    try:
        plan = base.plan_of(task, parsed.options, spec)
    except InvalidOption as error:
        _check_images(parts.get("image", ()))  # the option may suit what was really sent
        raise error_mapping.refusal_to_problem(error) from error
    if isinstance(task, KeepsScenes):
        plan = task.with_cell(plan, gateway.dispatcher.link.keyspace.digits)
    priority = context.check_priority(parsed.common.priority)
    if parsed.urls:
        assert gateway.fetcher is not None, "`parse_request` has refused it"
        parts = {**parts, **await gateway.fetcher.fetch(parsed.urls, context.reservation, context.client)}
    if context.payload_bytes is None:
        context.payload_bytes = sum(len(content) for elements in parts.values() for content in elements)
    return ResolvedRequest(
        task,
        spec,
        plan,
        context,
        part=interface.find_repeated(parts) or next(iter(parts)),
        priority=priority,
        items=interface.items(parts),
        media_type=parsed.media_type,
        fingerprint=parsed.fingerprint,
    )


def _check_images(images: Sequence[bytes]) -> None:
    """Refuse a video or a sound that was sent as an image. Raises Problem (415)."""
    for index, content in enumerate(images):
        if reason := suggest_recording_part(content):
            raise Problem(ProblemKind.NOT_AN_IMAGE, reason, item_field("image", index, len(images)))


class InferenceRunner:
    """Prepares resolved requests and runs their jobs."""

    def __init__(
        self,
        dispatcher: Dispatcher,
        metrics: GatewayMetrics,
        decoder: images.ImageDecoder,
        executor: FairExecutor,
        text_cache: TextCache,
    ) -> None:
        self._dispatcher = dispatcher
        self._metrics = metrics
        self._decoder = decoder
        self._inline = images.ImageDecoder(min(INLINE_PIXELS, decoder.max_pixels))
        """The event loop's own decoder, which never waits for what threads have decoded."""
        self._executor = executor
        self._text_cache = text_cache

    async def prepare(self, resolved: ResolvedRequest) -> PreparedRequest:
        """Make the jobs of a request, and reserve the bytes that are written before they are queued.

        Raises Problem that names the first bad item, and what the Dispatcher raises."""
        context = resolved.context
        if isinstance(resolved.task, RecallsTexts):
            max_bytes = RECORDED_BYTES if context.mode == "job" else math.inf
            resolved = await self._text_cache.recall(resolved, context.client, max_bytes)
        started_at = time.perf_counter()
        items = await self._prepare_items(resolved) if resolved.scene is None else [[from_numpy(resolved.scene)]]
        count = len(items)
        items += await self._prepare_texts(resolved)
        prepared_at = time.perf_counter()
        if context.trace is not None:
            context.trace.record_stage("prepare", started_at, prepared_at)
        now_ms, is_job = self._dispatcher.link.now_ms(), context.mode == "job"
        seconds_left = context.timeout_s - (prepared_at - context.started_at) if is_job else context.seconds_left()
        deadline_ms, gateway = int(now_ms + seconds_left * 1000), "" if is_job else self._dispatcher.id
        jobs = self._make_jobs(items, resolved, deadline_ms, gateway=gateway, follow=context.mode != "answer")
        await _reserve_large(jobs, context)
        names, _ = _echoed_arrays(resolved)
        arrays = [arrays for item in items for arrays in item]
        return PreparedRequest(
            resolved.task,
            resolved.spec,
            resolved.plan,
            context,
            part=resolved.part,
            priority=resolved.priority,
            media_type=resolved.media_type,
            fingerprint=resolved.fingerprint,
            items=count,
            jobs=jobs,
            fields=[stages.job_field(resolved.task, resolved.part, index, count) for index, item in enumerate(items) for _ in item],
            echoes=[{name: one[name].to_numpy() for name in names if name in one} for one in arrays] if names else (),
            progress_total=_progress_total(arrays, resolved),
            prepare_s=prepared_at - started_at,
            prepared_at=prepared_at,
        )

    async def submit(self, prepared: PreparedRequest) -> AnsweredRequest:
        """Run all jobs of a request or none; its stream, if it has one, gets their progress. Raises Problem, and what the Dispatcher
        raises."""
        context, listeners = prepared.context, dict[str, Any]()
        if context.stream is not None:
            progress = ProgressStream(context.stream, prepared, len(prepared.jobs), prepared.progress_total)
            listeners = {"on_admitted": progress.on_admitted, "on_progress": progress.on_progress, "on_reply": progress.on_reply}
        replies = await self._run(prepared.jobs, prepared.spec, context, prepared.fields, **listeners)
        now = time.perf_counter()
        timing = build_timing(
            replies, prepare_s=prepared.prepare_s, round_trip_s=now - prepared.prepared_at, total_s=now - context.started_at
        )
        outputs = [to_numpy(reply.arrays) for reply in replies]
        if prepared.echoes:
            outputs = [{**one, **echoes} for one, echoes in zip(outputs, prepared.echoes, strict=True)]
        self._count(outputs, prepared.spec, timing)
        answered = AnsweredRequest(
            *(prepared.task, prepared.spec, prepared.plan, outputs, timing),
            media_type=prepared.media_type,
            client=context.client,
            key_name=context.key.name,
            request_id=context.request_id,
        )
        if isinstance(prepared.task, RecallsTexts):
            await self._text_cache.store(answered)
        return answered

    async def _prepare_items(self, resolved: ResolvedRequest) -> list[PreparedItem]:
        """Prepare the items. Raises Problem that names the first bad item, Refused if the queue has no capacity for the least that
        they will take."""
        items, client = resolved.items, resolved.context.client
        if isinstance(resolved.task, TakesSteps):
            await resolved.context.reservation.check(work_ms=len(items) * self._work_ms(resolved, None))
        if len(items) == 1 and _is_small(items[0], resolved):
            result = _prepare(items[0], resolved, self._inline)
            if not isinstance(result, images.TooManyPixels):
                return [_raise_refusal(result, resolved.part, 0, 1)]
        items = [await self._with_first_pass(item, resolved, index) for index, item in enumerate(items)]
        plan = TaskPlan(resolved.task, resolved.spec, resolved.plan)  # calls that are cancelled go on, and must not hold other items
        calls = [self._executor.run(client, partial(_prepare, item, plan, self._decoder)) for item in items]
        results = [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)
        return [_raise_refusal(result, resolved.part, index, len(items)) for index, result in enumerate(results)]

    async def _with_first_pass(self, item: Item, resolved: ResolvedRequest, index: int) -> Item:
        """Return the item with the parts that a first job finds, if the bundle has to see it before it can be prepared."""
        task, context, count = resolved.task, resolved.context, len(resolved.items)
        if not isinstance(task, TwoStage) or not task.needs_first_stage(item, resolved.spec):
            return item
        result = await self._executor.run(context.client, partial(_prepare, item, resolved, self._decoder, first=True))
        prepared = _raise_refusal(result, resolved.part, index, count)
        deadline_ms = int(self._dispatcher.link.now_ms() + context.seconds_left() * 1000)
        jobs = self._make_jobs([prepared], resolved, deadline_ms, gateway=self._dispatcher.id, follow=False)
        reserved = context.reservation.items, context.reservation.nbytes
        await _reserve_large(jobs, context)
        [reply] = await self._run(jobs, resolved.spec, context, [item_field(resolved.part, index, count)])
        await context.reservation.resize(*reserved)  # the queue counted the first job in its place
        return {**item, **task.parts_from_first_stage(to_numpy(reply.arrays))}

    async def _run(
        self, jobs: list[QueuedJob], spec: BundleSpec, context: RequestContext, fields: Sequence[str], **listeners: Any
    ) -> list[Reply]:
        """Queue jobs and wait for their replies. fields: names of what each was made of. Raises Problem for one that failed, and what the
        Dispatcher raises."""
        context.awaited, context.unserved_since = spec, time.monotonic()
        try:
            replies = await self._dispatcher.submitter.submit(jobs, reservation=context.reservation, **listeners)
        finally:
            context.awaited = None
        for field, reply in zip(fields, replies, strict=True):
            if reply.failure is not None:
                raise error_mapping.failure_to_problem(reply.failure, spec.name, field)
        return replies

    async def _prepare_texts(self, resolved: ResolvedRequest) -> list[PreparedItem]:
        task = resolved.task
        if not isinstance(task, RecallsTexts) or not (texts := task.texts(resolved.plan)):
            return []
        prepare = partial(task.prepare_texts, resolved.plan, resolved.spec)
        jobs = prepare() if len(texts) <= MAX_INLINE_TEXTS else await self._executor.run(resolved.context.client, prepare)
        return [list(map(from_numpy, jobs))]

    def _make_jobs(
        self, items: Sequence[PreparedItem], resolved: ResolvedRequest, deadline_ms: int, *, gateway: str, follow: bool
    ) -> list[QueuedJob]:
        """Make the jobs of one request. gateway: that they are answered to; empty: they are answered to a record."""
        task, spec, plan = resolved.task, resolved.spec, resolved.plan
        request, context = os.urandom(16).hex(), resolved.context
        trace = {"request_id": context.request_id}
        if context.trace is not None:
            trace |= {"trace_id": context.trace.context.trace_id, "traceparent": str(context.trace.context)}
        extra_options: dict[str, Any] = {}
        echoed, unread = _echoed_arrays(resolved)
        if echoed:  # results of records are presented by any gateway
            extra_options["returned"] = [] if gateway else list(echoed)
        if unread and not gateway:
            extra_options["unread"] = sorted(unread)
        flat = [(arrays, {name: array.shape for name, array in arrays.items()}) for item in items for arrays in item]
        batching, takes_long = base.batching(task), isinstance(task, TakesSteps)
        work = [math.ceil(self._work_ms(resolved, arrays) * batching.weight(spec, shapes)) for arrays, shapes in flat]
        counters = self._metrics.bundle(spec)
        counters.queued_jobs.inc(len(flat))
        counters.queued_bytes.inc(sum(len(array.data) for arrays, _ in flat for array in arrays.values()))
        priorities = [_priority_and_delay(resolved, work_before_ms) for work_before_ms in accumulate(work[:-1], initial=0)]
        return [
            QueuedJob(
                id=f"{request}-{index}",
                bundle=spec.id,
                digest=spec.digest(),
                bucket=batching.bucket(plan, spec, shapes),
                arrays={name: array for name, array in arrays.items() if not gateway or name not in unread},
                options=batching.arguments(plan, shapes) | extra_options,
                priority=priority,
                deadline_ms=deadline_ms,
                gateway=gateway,
                progress=follow,
                previews=follow and isinstance(task, Previews),
                trace=trace,
                owner=owner_id(context.client),
                work_ms=work_ms,
                takes_long=takes_long,
                low=resolved.priority == "low",
                behind_ms=behind_ms,
            )
            for index, ((arrays, shapes), work_ms, (priority, behind_ms)) in enumerate(zip(flat, work, priorities, strict=True))
        ]

    def _work_ms(self, resolved: ResolvedRequest, arrays: Mapping[str, Array] | None) -> int:
        """Return the work of one usual job. arrays: None: return the least that an item may take, which is not prepared yet."""
        task = resolved.task
        takes_long = isinstance(task, TakesSteps)
        steps = task.steps(resolved.plan, None if arrays is None else to_numpy(arrays)) if isinstance(task, TakesSteps) else None
        return self._dispatcher.fleet.latest.work_ms(resolved.spec.id, steps, takes_long=takes_long)

    def _count(self, outputs: Sequence[Outputs], spec: BundleSpec, timing: Timing) -> None:
        counters = self._metrics.bundle(spec)
        counters.items.inc(len(outputs))
        counters.preprocess.observe(timing.prepare_ms / 1000)
        counters.queue_wait.observe(timing.queue_ms / 1000)
        tokens = [one["tokens"].tolist() for one in outputs if "tokens" in one]
        if tokens:
            total_in, total_out = (sum(column) for column in zip(*tokens, strict=True))
            counters.tokens_in.inc(total_in)
            counters.tokens_out.inc(total_out)
            self._metrics.history_counts.tokens(total_in, total_out)


def build_timing(replies: Sequence[Reply], *, prepare_s: float, round_trip_s: float, total_s: float) -> Timing:
    """Return the timing of the slowest item. It holds only durations: no clock of a worker is compared with one of a gateway."""
    slowest = max((reply.timing for reply in replies if reply.timing is not None), key=lambda timing: timing.worker_ms)
    return Timing(
        prepare_ms=to_ms(prepare_s),
        queue_ms=max(0.0, round(round_trip_s * 1000 - slowest.worker_ms, 3)),
        batch_wait_ms=round(slowest.batch_wait_ms, 3),
        inference_ms=round(slowest.inference_ms, 3),
        total_ms=to_ms(total_s),
        batch_size=slowest.batch_size,
    )


def to_ms(seconds: float) -> float:
    return round(seconds * 1000, 3)


def _priority_and_delay(resolved: ResolvedRequest, work_before_ms: int) -> tuple[Priority, int]:
    """Return the priority of a job with so much work of its request before it, and by how many milliseconds it is behind that.

    Steps take turns anyway."""
    if resolved.priority == "high" or isinstance(resolved.task, TakesSteps) or work_before_ms < FULL_PRIORITY_WORK_MS:
        return resolved.priority, 0
    return "low", BEHIND * (work_before_ms - FULL_PRIORITY_WORK_MS)


async def _reserve_large(jobs: Sequence[QueuedJob], context: RequestContext) -> None:
    """Reserve the bytes of messages that are written to Redis before the queue counts them."""
    sizes = [sum(len(array.data) for array in job.arrays.values()) for job in jobs]
    nbytes = sum(size for size in sizes if size > INLINE_BYTES)
    if nbytes > context.reservation.nbytes:
        await context.reservation.resize(context.reservation.items, nbytes)


def _prepare(item: Item, plan: TaskPlan, decoder: images.ImageDecoder, *, first: bool = False) -> PreparedItem | MediaError | InvalidOption:
    """Prepare an item, or the job that comes before its own if `first`.

    Errors are returned, so that one bad item does not hide which one comes first; without their frames, which hold the item."""
    try:
        if first:
            assert isinstance(plan.task, TwoStage)
            return [from_numpy(plan.task.prepare_first_stage(item, plan.plan, plan.spec, decoder))]
        jobs = plan.task.prepare(item, plan.plan, plan.spec, decoder)
    except (MediaError, InvalidOption) as error:
        return strip_tracebacks(error)
    return list(map(from_numpy, jobs))


def _progress_total(arrays: Sequence[Mapping[str, Array]], resolved: TaskPlan) -> tuple[int, str]:
    task = resolved.task
    return task.progress_total(list(map(to_numpy, arrays))) if isinstance(task, Counts) else (len(arrays), "images")


def _echoed_arrays(resolved: TaskPlan) -> tuple[tuple[str, ...], frozenset[str]]:
    """Return the names of arrays that presenting needs again, and those of them that no model reads."""
    task = resolved.task
    return (task.echoed_arrays, frozenset(task.unread_arrays)) if isinstance(task, EchoesArrays) else ((), frozenset())


def _is_small(item: Item, resolved: TaskPlan) -> bool:
    """Return whether preparing takes less than handing it to a thread: texts, or one small image, of a task without steps."""
    if isinstance(resolved.task, TakesSteps) or len(item) > 1:
        return False
    ((name, content),) = item.items()
    kind = next(part.kind for part in resolved.task.parts if part.name == name)
    return kind == "text" or (kind == "image" and image_headers.is_small(content))


def _raise_refusal(result: PreparedItem | MediaError | InvalidOption, part: str, index: int, count: int) -> PreparedItem:
    """Return a prepared item. Raises Problem that names the part, or the one of the error, and which of `count` items it belongs to."""
    if isinstance(result, MediaError):
        result.part = item_field(result.part or part, index, count)
    if isinstance(result, (InvalidOption, MediaError)):
        raise error_mapping.refusal_to_problem(result)
    return result
