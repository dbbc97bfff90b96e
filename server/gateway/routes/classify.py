"""`POST /v1/classify`."""

from __future__ import annotations

import time

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from server.gateway import body, gateway, openapi, options
from server.gateway.admission import cancelled_when_client_leaves
from server.gateway.inference import Timing
from server.gateway.problems import Kind, Problem
from server.tasks.classify import Classification, Classify, InvalidOption

router = APIRouter()
encoder = msgspec.json.Encoder()


class ClassifyResponse(msgspec.Struct, frozen=True):
    """`results` are in the order of the images; `timing` is that of the slowest one."""

    id: str
    model: str
    version: str
    results: list[Classification]
    timing: Timing


@router.post("/v1/classify", tags=["inference"], summary="Classify images", openapi_extra=openapi.CLASSIFY)
async def classify(request: Request) -> Response:
    here = gateway.of(request)
    metrics = here.metrics
    async with here.admission.admit(request, "rest") as visit:
        query = options.read_query(request)
        submission = await body.read_submission(request, here.settings, visit.reservation)
        asked = options.parse(query, submission.fields)
        received = sum(map(len, submission.images))
        async with cancelled_when_client_leaves(request):
            spec = await here.directory.find(asked.model, Classify.name)
            visit.resolved(spec)
            try:
                plan = Classify.plan(asked.merge, spec)
                top_k = min(options.DEFAULT_TOP_K, len(spec.labels)) if asked.top_k is None else asked.top_k
                Classify.check_top_k(top_k, spec)
            except InvalidOption as error:
                raise Problem(Kind.INVALID_OPTION, str(error), error.field) from error
            answer = await here.inference.run(submission.images, spec, plan, asked.priority, visit)
        began = time.perf_counter()
        results = [Classify.present(outputs, plan, spec, top_k) for outputs in answer.outputs]
        content = encoder.encode(ClassifyResponse(visit.request_id, spec.name, spec.version, results, answer.timing))
        metrics.postprocess.labels(spec.name).observe(time.perf_counter() - began)
        metrics.payload.labels("in").observe(received)
        metrics.payload.labels("out").observe(len(content))
        return Response(content, media_type="application/json")
