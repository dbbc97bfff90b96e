"""`GET /v1/scenes/{id}`: a scene that was reconstructed is asked again, in other ways, without being encoded again."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.gateway import app_state
from server.gateway.app_state import Gateway
from server.gateway.inference.error_mapping import of_refusal
from server.gateway.inference.runner import Asked
from server.gateway.openapi import responses
from server.gateway.routes.tasks import ENDPOINTS
from server.http.problems import Kind, Problem
from server.http.requests import DisconnectWatcher
from server.queue.gateway.scene_store import Scene
from server.quote import quote
from server.tasks.base import Task
from server.tasks.capabilities import KeepsScenes, offered_media_types
from server.tasks.options import InvalidOption
from server.tasks.registry import TASKS

router = APIRouter(prefix="/v1/scenes", tags=["inference"])
SHOWN_OF_ID = 64


@router.get("/{scene_id}", summary="Ask a reconstructed scene again", openapi_extra=responses.SCENE)
async def scene(request: Request, scene_id: str) -> Response:
    here = app_state.of(request)
    async with here.admission.admit(request.scope, "rest", takes_long=True) as visit:
        kept, task = await _find(here, scene_id, visit.key.name)
        assert isinstance(task, KeepsScenes)
        interface = ENDPOINTS[f"/v1/{task.name}"].interface
        common, own = interface.read_options(interface.read_query(visit.head.query), {})
        media_type = visit.head.negotiate(offered_media_types(task, own))
        if common.priority == "low":
            await visit.lower()
        spec = await here.dispatcher.fleet.spec(kept.digest)
        if spec is None:
            raise _gone(scene_id)
        visit.resolved(spec)
        if common.model not in (None, spec.id, spec.name):
            raise Problem(Kind.INVALID_OPTION, f"{quote(common.model)}: the scene was encoded by {spec.id}", "model")
        try:
            plan = task.plan_followup(own, spec, scene_id)
            arrays = task.prepare_followup({name: array.to_numpy() for name, array in kept.arrays.items()}, plan, here.limits)
        except InvalidOption as error:
            raise of_refusal(error) from error
        await visit.reservation.resize(1, sum(array.nbytes for array in arrays.values()))
        asked = Asked(task, spec, plan, "scene", visit.priority(common.priority))
        with DisconnectWatcher(here.ticks, request.receive, visit.limit):
            answer = await here.inference.run_again(arrays, asked, visit)
            began = time.perf_counter()
            response = await here.presenting.respond(
                asked,
                answer.outputs,
                answer.timing,
                media_type,
                client=visit.client,
                key_name=visit.key.name,
                request_id=visit.request_id,
            )
        here.count_answer(spec, began, len(response.body))
        return response


async def _find(here: Gateway, scene_id: str, key_name: str) -> tuple[Scene, Task[Any, Any]]:
    """Raises Problem (404), also for what belongs to others."""
    kept = await here.dispatcher.scenes.read(scene_id)
    task = None if kept is None else TASKS.get(kept.task)
    if kept is None or not isinstance(task, KeepsScenes) or kept.key_name != key_name:
        raise _gone(scene_id)
    return kept, task


def _gone(scene_id: str) -> Problem:
    return Problem(Kind.NOT_FOUND, f"there is no scene {scene_id[:SHOWN_OF_ID]!r}, or it has expired (OPSIN_SCENE_TTL)")
