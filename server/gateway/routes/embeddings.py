"""`POST /v1/embeddings`: task `embed` for clients of OpenAI, Jina and infinity. Images and texts may come in one request."""

from __future__ import annotations

import time
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import msgspec
import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.inference.admission import RequestContext
from server.gateway.inference.body import refuse_encoding
from server.gateway.inference.error_mapping import respond_or_refuse
from server.gateway.inference.preparation import resolve_request
from server.gateway.inference.stages import ParsedRequest, ResolvedRequest
from server.gateway.openai import INTERFACE, EmbeddingRequest, read_embedding_request, to_response
from server.gateway.openapi import responses
from server.http.problems import Problem, ProblemKind
from server.http.requests import read_body
from server.tasks.base import JSON, Outputs
from server.tasks.embedding import vector_jobs
from server.tasks.embedding.embed import encode_vectors

PATH = "/v1/embeddings"
ELEMENT = {
    "anyOf": [
        {"type": "string"},
        {"type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]},
        {"type": "object", "properties": {"image": {"type": "string"}}, "required": ["image"]},
    ]
}
BODY = {
    "type": "object",
    "properties": {
        "input": {
            "description": "Texts, or images in base64 or as data URIs; both kinds may come together.",
            "anyOf": [*ELEMENT["anyOf"], {"type": "array", "items": ELEMENT, "minItems": 1}],
        },
        "model": {"type": "string", "description": "`name` or `name@version`. Default: the service's default model for embed."},
        "encoding_format": {"type": "string", "enum": ["float", "base64"], "default": "float"},
        "dimensions": {"type": "integer", "minimum": 0, "description": "The bundle's own; 0 means the same."},
        "modality": {"type": "string", "enum": ["text", "image"], "default": "text", "description": "Meaning of strings in `input`."},
    },
    "required": ["input"],
}
BYTES_PER_NUMBER = 20
"""Approximate size of a number in JSON."""
REFUSALS = (
    (ProblemKind.INVALID_BODY, "URLs are not fetched: send the image's bytes in base64, or as a data URI", "input[3]"),
    (ProblemKind.NOT_ACCEPTABLE, "'text/html': the answer is offered as application/json", "Accept"),
    (ProblemKind.TOO_LARGE, "3000 characters: at most 2048 are taken", "input[3]"),
    (ProblemKind.NOT_AN_IMAGE, "not an image in a supported format (JPEG, PNG, WebP, GIF, BMP, TIFF)", "input[3]"),
    (ProblemKind.CORRUPT_IMAGE, "JPEG file is truncated or corrupt (image file is truncated (211 bytes not processed))", "input[3]"),
    (ProblemKind.INVALID_OPTION, "256: vectors of words@1.0.0 have 512 numbers, and cannot be cut", "dimensions"),
    (ProblemKind.WORKER_CRASHED, "three workers died on this input", "input[3]"),
    (ProblemKind.MODEL_ERROR, "the model failed on this input", "input[3]"),
    *(
        (kind, detail, field)
        for kind, detail, field in responses.REFUSALS
        if field in (None, "model") and kind not in (ProblemKind.INVALID_BODY, ProblemKind.RESULTS_FULL)
    ),
)


class Embedding(msgspec.Struct, frozen=True):
    """The vector of one element of `input`, as numbers or as base64 of little-endian float32."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class Usage(msgspec.Struct, frozen=True):
    """Number of tokens that the networks read, twice: word pieces of texts with special ones, patches and class token of images."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(msgspec.Struct, frozen=True):
    """The vectors, of unit length, in the order of `input`.

    `model`: `name@version` of the bundle. `truncated`: number of texts that were too long for it and lost their end."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: Usage
    truncated: int


async def embeddings(request: Request) -> Response:
    return await respond_or_refuse(request, _answer(request, gateway_state(request)), to_response)


ROUTES = [Route(PATH, embeddings, methods=["POST"], include_in_schema=False)]


def operation() -> dict[str, Any]:
    """Return the OpenAPI operation of this route."""
    example = EmbeddingList("list", [Embedding("embedding", 0, [0.5, -0.5, 0.5, 0.5])], "words@1.0.0", Usage(4, 4), 0)
    return {
        "tags": ["inference"],
        "summary": "Turn images or texts into vectors, as OpenAI's clients ask",
        "operationId": "embeddings",
        "description": "Task `embed` for clients of OpenAI, Jina and infinity; `docs/openai.md` has more. Unknown fields are ignored.",
        "requestBody": {"required": True, "content": {JSON: {"schema": BODY, "example": {"model": "words", "input": ["a dog", "a cat"]}}}},
        "responses": {
            **responses.answer("EmbeddingList", "The vectors", msgspec.to_builtins(example)),
            **responses.openai_errors(*REFUSALS),
        },
    }


async def _answer(request: Request, gateway: GatewayState) -> Response:
    async with gateway.admission.enter(request.scope, request.receive) as context:
        context.head.negotiate((JSON,))
        refuse_encoding(context.head)
        body = await _read(context, gateway)
        context.watch(gateway.timers)
        try:
            return await _run(body, context, gateway)
        except Problem as problem:
            raise Problem(problem.kind, problem.detail, body.field(problem.field), problem.retry_after) from problem


async def _read(context: RequestContext, gateway: GatewayState) -> EmbeddingRequest:
    content = await read_body(context.receive, gateway.settings.max_body_bytes, context.reservation)
    context.payload_bytes = len(content)
    parse = partial(read_embedding_request, content, gateway.settings.max_images)
    return await gateway.body_executor.run(context.client, len(content), parse)


async def _run(body: EmbeddingRequest, context: RequestContext, gateway: GatewayState) -> Response:
    """Answer all of the images and texts, or none. Raises Problem with the task's names of fields."""
    answered = await gateway.runner.submit(await gateway.runner.prepare(await _resolve(body, context, gateway)))
    started_at = time.perf_counter()
    vectors, truncated = _vectors(answered.outputs, body)
    tokens = vector_jobs.tokens_read(answered.outputs)
    write = partial(_encode, vectors, body.options.encoding, answered.spec.id, truncated, Usage(tokens, tokens))
    content = await gateway.body_executor.run(context.client, BYTES_PER_NUMBER * vectors.size, write)
    response = Response(content, media_type=JSON)
    if context.trace is not None:
        context.trace.record_stage("present", started_at)
    gateway.metrics.count_answer(answered.spec, started_at, len(response.body), context.payload_bytes)
    return response


async def _resolve(body: EmbeddingRequest, context: RequestContext, gateway: GatewayState) -> ResolvedRequest:
    """Resolve the request. Only the result holds the parts afterwards: they may be large, and are not needed while their jobs wait."""
    resolved = await resolve_request(ParsedRequest(context, INTERFACE, body.common, body.options, body.take_parts()), gateway)
    await context.reservation.resize(len(resolved.items), context.reservation.nbytes)
    return resolved


def _vectors(outputs: Sequence[Outputs], body: EmbeddingRequest) -> tuple[NDArray[np.float32], int]:
    """Return the vectors (n, dim) in the order of `input`, and how many texts lost their end."""
    images = [one["embedding"] for one in outputs if "places" not in one]
    read = vector_jobs.vectors(outputs)
    by_index = dict(zip(body.indices["image"], images, strict=True))
    by_index |= {index: read[place][0] for place, index in enumerate(body.indices["text"])}
    return np.stack([by_index[index] for index in range(len(by_index))]), sum(truncated for _, truncated in read.values())


def _encode(vectors: NDArray[np.float32], encoding: str, model: str, truncated: int, usage: Usage) -> bytes:
    """Encode the vectors one at a time: all at once would block every other thread."""
    rows: list[Any] = [msgspec.Raw(msgspec.json.encode(encode_vectors(vector[None], encoding)[0])) for vector in vectors]
    data = [Embedding("embedding", index, row) for index, row in enumerate(rows)]
    return msgspec.json.encode(EmbeddingList("list", data, model, usage, truncated))
