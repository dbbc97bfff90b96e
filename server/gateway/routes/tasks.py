"""`POST /v1/<route>` for every task of the table, as plain ASGI: only `RequestMiddleware` stands in front of them.

A request is answered in one of three ways: at once, as a stream of events, or later.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from server.gateway.app_state import Gateway
from server.gateway.inference.admission import Visit
from server.gateway.inference.body import Submission, item_field, read_submission
from server.gateway.inference.error_mapping import of_refusal
from server.gateway.inference.progress_stream import Follower
from server.gateway.inference.rendering import ANSWERS
from server.gateway.inference.runner import Asked
from server.gateway.inference.task_interface import CommonOptions, TaskInterface
from server.gateway.inference.text_cache import RECORDED_BYTES
from server.gateway.inference.webhook_headers import read_webhook
from server.gateway.jobs import service
from server.gateway.routes import jobs as job_routes
from server.http.problems import Kind, Problem
from server.http.requests import CLIENT_CLOSED_REQUEST, RESPOND_ASYNC, DisconnectWatcher, Head
from server.http.sse import EventStream
from server.media.part_hints import suggest_recording_part
from server.tasks import registry
from server.tasks.base import JSON, Task
from server.tasks.capabilities import KeepsScenes, TakesSteps, accepted_parts, media_types, offered_media_types, plan_of
from server.tasks.options import InvalidOption, RequestOptions


@dataclass(frozen=True)
class Sent:
    """A request that has been read."""

    query: Mapping[str, Sequence[object]]
    submission: Submission
    common: CommonOptions
    own: RequestOptions


class TaskRoute:
    """The ASGI application behind the path of one task, or of several that share it."""

    def __init__(self, *tasks: Task[Any, Any]) -> None:
        self.task = tasks[0]
        self.takes_long = isinstance(self.task, TakesSteps)
        self.interface = TaskInterface.of(*tasks)
        self.response = ANSWERS[self.task.name]
        self._asked_in_url = lru_cache(maxsize=256)(lambda query: self.interface.read_options(self.interface.read_query(query), {}))
        """Query → options: clients repeat their queries."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request, head, here = Request(scope, receive, send), Head.of(scope), scope["app"].state.gateway
        try:
            if head.prefers_async:
                response = await self._accept(request, here)
            elif head.wants_events(media_types(self.task)):
                await self._stream(request, here, send)
                return
            else:
                response = await self._answer(request, here)
        except Problem as problem:
            response = problem.to_response(scope["state"]["request_id"])
        except ClientDisconnect:
            response = Response(status_code=CLIENT_CLOSED_REQUEST)
        await response(scope, receive, send)

    async def _answer(self, request: Request, here: Gateway) -> Response:
        """At once."""
        async with here.admission.admit(request.scope, "rest", takes_long=self.takes_long) as visit:
            visit.head.negotiate(self._offered_in_url(visit.head))
            sent = await self._read(request, here, visit)
            media_type = visit.head.negotiate(offered_media_types(self.task, sent.own))
            with DisconnectWatcher(here.ticks, request.receive, visit.limit):
                return await self._run(sent, here, visit, media_type)

    async def _stream(self, request: Request, here: Gateway, send: Send) -> None:
        """As events. Raises Problem only while nothing has been sent."""
        async with aclosing(here.event_stream(send)) as stream:
            try:
                await self._answer_as_events(request, here, stream)
            except (Problem, ClientDisconnect):
                if not stream.started:
                    raise
            except Exception:
                await stream.fail(Problem(Kind.INTERNAL, "something went wrong here"), request.state.request_id)
                raise

    async def _answer_as_events(self, request: Request, here: Gateway, stream: EventStream) -> None:
        async with here.admission.admit(request.scope, "rest", takes_long=self.takes_long) as visit:
            visit.last_words = lambda problem: stream.fail(problem, visit.request_id)
            sent = await self._read(request, here, visit)
            with DisconnectWatcher(here.ticks, request.receive, visit.limit):
                response = await self._run(sent, here, visit, JSON, stream)
            stream.put("done", bytes(response.body))
            await stream.end()

    async def _accept(self, request: Request, here: Gateway) -> Response:
        """Later."""
        async with here.admission.admit(request.scope, "rest", takes_long=self.takes_long, asynchronous=True) as visit:
            key, webhook = visit.head.idempotency_key(), read_webhook(visit.head, here.webhook_hosts)
            sent = await self._read(request, here, visit)
            with DisconnectWatcher(here.ticks, request.receive, visit.limit):
                asked = await here.text_cache.recall(await _understand(sent, here, visit), visit.client, RECORDED_BYTES)
                nbytes = sent.submission.nbytes
                asks = sent.submission.fingerprint(visit.head.path, sent.query)
                record = await here.inference.submit(sent.submission.take_items(), asked, visit, asks, key, webhook)
            here.metrics.payload_in.observe(nbytes)
            return job_routes.respond(record, 202, {"Location": service.url(record.id), "Preference-Applied": RESPOND_ASYNC})

    def _offered_in_url(self, head: Head) -> tuple[str, ...]:
        """As far as the URL tells. What is wrong with it is said when the body has been read, too."""
        try:
            _, own = self._asked_in_url(head.query)
        except Problem:
            return media_types(self.task)
        return offered_media_types(self.task, own)

    async def _read(self, request: Request, here: Gateway, visit: Visit) -> Sent:
        query = self.interface.read_query(visit.head.query)
        if query.get("priority") == ["low"]:
            await visit.lower()
        submission = await read_submission(
            visit.head, request.receive, self.interface, here.settings, visit.reservation, here.large_bodies, visit.client
        )
        if submission.fields:
            asked = self.interface.read_options(query, submission.fields)
        else:
            asked = self._asked_in_url(visit.head.query)
        if asked[0].priority == "low" and "priority" not in query:
            await visit.lower()
        if isinstance(submission.task, TakesSteps) and not self.takes_long:
            await visit.lengthen()
        return Sent(query, submission, *asked)

    async def _run(self, sent: Sent, here: Gateway, visit: Visit, media_type: str, stream: EventStream | None = None) -> Response:
        """The answer. The stream, if there is one, is told how far it has come."""
        asked = await here.text_cache.recall(await _understand(sent, here, visit), visit.client)
        nbytes = sent.submission.nbytes
        follower = None if stream is None else Follower(stream, asked)
        answer = await here.inference.run(sent.submission.take_items(), asked, visit, follower)
        await here.text_cache.learn(asked, answer.outputs, visit.client)
        await visit.give_way()
        began = time.perf_counter()
        response = await here.presenting.respond(
            asked, answer.outputs, answer.timing, media_type, client=visit.client, key_name=visit.key.name, request_id=visit.request_id
        )
        here.count_answer(asked.spec, began, len(response.body), nbytes)
        return response


async def _understand(sent: Sent, here: Gateway, visit: Visit) -> Asked:
    """Resolve the request, then fetch the parts that are named by URL: nothing is fetched for one that is refused. Raises Problem."""
    asked = await resolve(sent, here, visit)
    if sent.submission.urls:
        assert here.fetcher is not None, "`read_submission` has refused it"
        await here.fetcher.fill(sent.submission, visit.reservation, visit.client)
    return asked


async def resolve(sent: Sent, here: Gateway, visit: Visit) -> Asked:
    """The bundle and what it is to do. Raises Problem for parts that it does not take or lacks, and for options beyond it."""
    submission = sent.submission
    meant = submission.task
    spec = await here.directory.find(sent.common.model, registry.default_name(meant, submission.parts))
    visit.resolved(spec)
    task = next((task for task in submission.interface.tasks if registry.serves(task, spec)), meant)
    taken = {part.name: part for part in accepted_parts(task, spec)}
    for name in submission.parts:
        if name not in taken:
            hint = f"; a bare body is its `{name}`: send a form, as with curl -F {next(iter(taken))}=@FILE" if submission.bare else ""
            raise Problem(Kind.INVALID_OPTION, f"{spec.id} takes {', '.join(taken)}, and no {name}{hint}", name)
    for part in taken.values():
        if part.required and part.name not in submission.parts:
            raise Problem(Kind.INVALID_OPTION, f"missing: {spec.id} needs `{part.name}`; send it, too", part.name)
    try:
        plan = plan_of(task, sent.own, spec)
    except InvalidOption as error:
        _check_images(submission)  # the option may suit what was really sent
        raise of_refusal(error) from error
    if isinstance(task, KeepsScenes):
        plan = task.with_partition(plan, here.dispatcher.link.digits)
    return Asked(task, spec, plan, submission.repeated or next(iter(submission.parts)), visit.priority(sent.common.priority))


def _check_images(submission: Submission) -> None:
    """Raises Problem (415) for a video or a sound that was sent as an image."""
    sent = submission.parts.get("image", [])
    for index, content in enumerate(sent):
        if mistaken := suggest_recording_part(content):
            raise Problem(Kind.NOT_AN_IMAGE, mistaken, item_field("image", index, len(sent)))


ENDPOINTS = {f"/v1/{name}": TaskRoute(*tasks) for name, tasks in registry.ROUTES.items()}
ROUTES = [Route(path, endpoint, methods=["POST"], include_in_schema=False) for path, endpoint in ENDPOINTS.items()]
