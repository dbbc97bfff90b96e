"""`GET /v1/scenes/{id}`: query a reconstructed scene with other options, without encoding it again."""

from __future__ import annotations

import time
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.error_mapping import refusal_to_problem
from server.gateway.inference.stages import ResolvedRequest
from server.gateway.openapi import responses
from server.gateway.routes.tasks import ENDPOINTS
from server.http.problems import Problem, ProblemKind
from server.queue.gateway.scene_store import Scene
from server.queue.messages import to_numpy
from server.quote import quote
from server.tasks.base import KeepsScenes, Task, offered_media_types
from server.tasks.options import InvalidOption
from server.tasks.registry import TASKS

router = APIRouter(prefix="/v1/scenes", tags=["inference"])
MAX_QUOTED_ID_CHARS = 64


@router.get("/{scene_id}", summary="Ask a reconstructed scene again", openapi_extra=responses.SCENE)
async def scene(request: Request, scene_id: str) -> Response:
    gateway = gateway_state(request)
    async with gateway.admission.enter(request.scope, request.receive, is_long_running=True) as context:
        answered = await gateway.runner.submit(await gateway.runner.prepare(await _resolve_query(scene_id, context, gateway)))
        started_at = time.perf_counter()
        response = await gateway.renderer.present(answered)
        gateway.metrics.count_answer(answered.spec, started_at, len(response.body))
        return response


async def _resolve_query(scene_id: str, context: RequestContext, gateway: GatewayState) -> ResolvedRequest:
    """Find the scene and make the arrays of the query. Raises Problem."""
    scene, task = await _find(gateway, scene_id, context.key.name)
    assert isinstance(task, KeepsScenes)
    interface = ENDPOINTS[f"/v1/{task.name}"].interface
    common, options = interface.options_in_url(context.head.query)
    media_type = context.head.negotiate(offered_media_types(task, options))
    if common.priority == "low":
        await gateway.admission.mark_low_priority(context)
    spec = await gateway.dispatcher.fleet.spec(scene.digest)
    if spec is None:
        raise _unknown_scene(scene_id)
    context.set_bundle(spec)
    if common.model not in (None, spec.id, spec.name):
        raise Problem(ProblemKind.INVALID_OPTION, f"{quote(common.model)}: the scene was encoded by {spec.id}", "model")
    try:
        plan = task.plan_followup(options, spec, scene_id)
        arrays = task.prepare_followup(to_numpy(scene.arrays), plan, gateway.limits)
    except InvalidOption as error:
        raise refusal_to_problem(error) from error
    await context.reservation.resize(1, sum(array.nbytes for array in arrays.values()))
    priority = context.check_priority(common.priority)
    context.watch(gateway.timers)
    return ResolvedRequest(task, spec, plan, context, part="scene", priority=priority, scene=arrays, media_type=media_type)


async def _find(gateway: GatewayState, scene_id: str, key_name: str) -> tuple[Scene, Task[Any, Any]]:
    """Return the scene and its task. Raises Problem (404), also for scenes of other keys."""
    scene = await gateway.dispatcher.scenes.read(scene_id)
    task = None if scene is None else TASKS.get(scene.task)
    if scene is None or not isinstance(task, KeepsScenes) or scene.key_name != key_name:
        raise _unknown_scene(scene_id)
    return scene, task


def _unknown_scene(scene_id: str) -> Problem:
    return Problem(ProblemKind.NOT_FOUND, f"there is no scene {scene_id[:MAX_QUOTED_ID_CHARS]!r}, or it has expired (OPSIN_SCENE_TTL)")
