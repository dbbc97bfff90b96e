"""`GET /v1/models`: the bundles that workers have announced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from models.bundle import BundleSpec
from models.bundle_schema import Comparison, Rung
from server.gateway import model_directory
from server.gateway.app_state import GatewayState, gateway_state
from server.gateway.openapi import responses
from server.http.problems import Problem, ProblemKind
from server.queue.gateway.fleet import Fleet
from server.quote import quote
from server.tasks.base import accepted_parts
from server.tasks.registry import REQUEST_KINDS, TASKS, main_task, route_name, serves

router = APIRouter(tags=["models"])


class RungSummary(msgspec.Struct, frozen=True):
    """One step of a bundle's ladder; `accuracy` and `throughput` (relative to merging off) are null if nothing was measured.

    `metric` of `accuracy`, or null: `top-1`, `mean-average-precision`, `agreement` with the labels of merging off,
    `text-recall` or `image-recall`. `schedule_sight` is present if the visual half of a pair has a schedule of its own."""

    name: str
    schedule: int | list[int] | dict[str, float]
    accuracy: float | None
    throughput: float | None
    metric: str | None
    schedule_sight: int | list[int] | dict[str, float] | msgspec.UnsetType = msgspec.UNSET


class ComparedFormat(msgspec.Struct, frozen=True):
    """Logits in one number format and with one merging, a rung or `off`, against those of the original code."""

    format: str
    merging: str
    max_difference: float | None
    """Largest difference; null if some logits were NaN."""
    same_labels: int
    """Number of images with the same best label as in the original code."""


class ComparisonSummary(msgspec.Struct, frozen=True):
    """Result of `opsin compare` on a number of images."""

    images: int
    results: list[ComparedFormat]


class PartSummary(msgspec.Struct, frozen=True):
    """A part of requests, with the service's limits; those that do not apply to it are null."""

    name: str
    kind: str
    required: bool
    max_count: int
    max_bytes: int
    max_pixels: int | None
    """Maximum number of pixels of an image or of a video's frame."""
    max_seconds: float | None = None
    max_frames: int | None = None


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle. `state`: ready, loading, unloading, unavailable or unloaded; `reason` says why it is not ready, if that is known.

    If bundle.json cannot be read, only `name`, `version`, `state` and `reason` have values. `summary` is the bundle's description; it,
    `trained_on` and `note` are empty if bundle.json lacks them."""

    name: str
    version: str
    digest: str
    """SHA-256 of its content, which distinguishes two bundles of one name and version: their vectors may differ."""
    task: str
    route: str | None
    """Name of the path `POST /v1/<route>` that serves it: its task, except for networks that label whole clips. Null if none does."""
    state: str
    reason: str
    default: bool
    """Whether requests of its task that name no model get this one."""
    inputs: list[PartSummary]
    """Parts of requests; empty if the task is not served."""
    members: dict[str, str]
    """Bundles of a pipeline: role → `name@version`."""
    labels: int
    summary: str
    trained_on: str
    note: str
    merges: bool
    """Whether its tokens can be merged, so that `merge` and `trace` have an effect."""
    default_rung: str | None
    ladder: list[RungSummary]
    format: str | None
    """Number format of usual batches on ready workers: float32, bfloat16, float16 or int8; separated by commas if workers differ; null
    while no worker is ready."""
    max_difference: float | None
    """Largest difference from float32 that the warm-up found in that format: of logits for classifiers. Null while unknown."""
    comparison: ComparisonSummary | None
    """Differences from the original code, as in `bundle.json`; null if `opsin compare` was not run."""


class OpenAIModel(msgspec.Struct, frozen=True):
    """A bundle as OpenAI's clients list it. `id`: `name@version`. `created`: always 0, because the time is unknown."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "opsin"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All bundles, and the same list as `object` and `data` for OpenAI's clients."""

    models: list[ModelSummary]
    cell: int
    """Number of the cell that answers; others may serve other bundles."""
    folders: list[str]
    """Folders in which living workers look for bundles."""
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ServingWorker(msgspec.Struct, frozen=True):
    """A ready worker that serves the bundle. Both figures are measured; 0 while unknown."""

    id: str
    device: str
    items_per_second: float
    batch_budget: int
    backends: dict[str, str]
    """Backends that run batches of that size, by rung and `off`: eager, fused, onnx or int8. Empty if only PyTorch can."""
    format: str
    max_difference: float | None
    """Value of the model's field on this worker."""


class ModelDetails(ModelSummary, frozen=True, kw_only=True):
    """A bundle with its spec, except for the weights, and with the fields of `OpenAIModel`."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "opsin"

    workers: list[ServingWorker]
    spec: dict[str, Any]


_FLAGS = ModelSummary(
    name="flags",
    version="1.0.0",
    digest="c0ffee5e4f7f0d4b6f6f5b0b8a1f3a3f8f1f8ac9b0f8b5a1d8f7d7c0d3e2f1a0",
    task="classify",
    route="classify",
    state="ready",
    reason="",
    default=True,
    inputs=[PartSummary("image", "image", required=True, max_count=32, max_bytes=67108864, max_pixels=50000000)],
    members={},
    labels=238,
    summary="Drawn flags of 238 countries and territories, a ViT of 2.8 million parameters at 112 pixels",
    trained_on="1,138 drawings of flags by three designers",
    note=responses.EXAMPLE_NOTE,
    merges=True,
    default_rung="steps13",
    ladder=[RungSummary("steps13", [13, 13, 13, 10], accuracy=0.97, throughput=1.62, metric="top-1")],
    format="float32",
    max_difference=0.0,
    comparison=ComparisonSummary(50, [ComparedFormat("float32", "off", max_difference=1.3e-05, same_labels=50)]),
)
_LIST = ModelList(models=[_FLAGS], cell=0, folders=["/srv/bundles"], data=[OpenAIModel("flags@1.0.0")])
_DETAILS = ModelDetails(
    **msgspec.structs.asdict(_FLAGS),
    id="flags@1.0.0",
    workers=[ServingWorker("host-4711-a1b2", "cpu", 61.5, batch_budget=8, backends={"off": "onnx"}, format="float32", max_difference=0.0)],
    spec={"schema_version": 1, "name": "flags", "version": "1.0.0", "task": "classify", "architecture": "vit"},
)
_UNKNOWN = responses.problems((ProblemKind.UNKNOWN_MODEL, "'cats' is not known; known: flags@1.0.0", None))
MODELS = {"responses": {**responses.answer("ModelList", "Known bundles", _LIST), **responses.REDIS_UNAVAILABLE}}
MODEL = {"responses": {**responses.answer("ModelDetails", "One bundle", _DETAILS), **_UNKNOWN, **responses.REDIS_UNAVAILABLE}}


@router.get("/v1/models", summary="The bundles that the service knows", openapi_extra=MODELS)
async def models(request: Request) -> Response:
    gateway = gateway_state(request)
    return _json(list_models(gateway, await gateway.directory.fleet()))


def list_models(gateway: GatewayState, fleet: Fleet) -> ModelList:
    """Return the answer of `/v1/models`, whose work grows with the number of bundles, not with its square: a cell may know 1,000."""
    specs = sorted(fleet.specs.values(), key=lambda spec: spec.id)
    folders = sorted({worker.folder for worker in fleet.workers if worker.folder})
    defaults = gateway.directory.defaults(fleet)
    summaries = [ModelSummary(**_summary(gateway, fleet, spec, defaults)) for spec in specs]
    summaries += [ModelSummary(**_unreadable(id_, reason)) for id_, reason in sorted(model_directory.unreadable(fleet).items())]
    return ModelList(models=summaries, cell=gateway.settings.cell, folders=folders, data=[OpenAIModel(spec.id) for spec in specs])


@router.get("/v1/models/{name}", summary="One bundle, by `name` or `name@version`", openapi_extra=MODEL)
async def model(request: Request, name: str) -> Response:
    gateway = gateway_state(request)
    fleet = await gateway.directory.fleet()
    spec = model_directory.newest(fleet, model_directory.matching_name(fleet.specs.values(), name))  # unloaded ones are shown, too
    if spec is None:
        return _json(_unreadable_details(fleet, name))
    workers = [
        ServingWorker(
            worker.id,
            worker.device,
            bundle.items_per_second,
            bundle.batch_budget,
            bundle.backends,
            bundle.format,
            bundle.max_difference,
        )
        for worker, bundle in model_directory.serving(fleet, spec)
    ]
    content = spec.model_dump(mode="json", exclude={"weights"})
    return _json(
        ModelDetails(id=spec.id, **_summary(gateway, fleet, spec, gateway.directory.defaults(fleet)), workers=workers, spec=content)
    )


def _unreadable_details(fleet: Fleet, name: str) -> ModelDetails:
    """Return the details of a bundle whose bundle.json cannot be read. Raises Problem (404) if there is no such bundle."""
    refused = model_directory.named_unreadable(fleet, name)
    if refused is None:
        bundles = model_directory.format_bundles(fleet, fleet.specs.values()) or "none"
        raise Problem(ProblemKind.UNKNOWN_MODEL, f"{quote(name)} is not known; known: {bundles}")
    id_, reason = refused
    return ModelDetails(id=id_, **_unreadable(id_, reason), workers=[], spec={})


def _summary(gateway: GatewayState, fleet: Fleet, spec: BundleSpec, defaults: Mapping[str, BundleSpec | None]) -> dict[str, Any]:
    state, reason = model_directory.state_of(fleet, spec)
    task = main_task(spec)
    own_defaults = [defaults[name] for name, kind in REQUEST_KINDS.items() if kind.task is task]
    return {
        "name": spec.name,
        "version": spec.version,
        "digest": spec.digest(),
        "task": spec.task,
        "route": None if task is None else route_name(task),
        "state": state,
        "reason": reason,
        "default": any(default is not None and default.id == spec.id for default in own_defaults),
        "inputs": _inputs(gateway, spec),
        "members": {role: member.id for role, member in spec.members.items()},
        "labels": len(spec.labels),
        "summary": spec.description,
        "trained_on": spec.trained_on,
        "note": spec.note,
        "merges": spec.merges,
        "default_rung": spec.default_rung,
        "ladder": [_rung(rung) for rung in spec.ladder],
        **_format(fleet, spec),
        "comparison": _comparison(spec),
    }


def _unreadable(id_: str, reason: str) -> dict[str, Any]:
    name, _, version = id_.partition("@")
    texts = dict.fromkeys(("digest", "task", "summary", "trained_on", "note"), "")
    unknown = dict.fromkeys(("route", "default_rung", "format", "max_difference", "comparison"))
    empty = {"default": False, "inputs": [], "members": {}, "labels": 0, "merges": False, "ladder": []}
    return {"name": name, "version": version, "state": "unavailable", "reason": reason, **texts, **unknown, **empty}


def _rung(rung: Rung) -> RungSummary:
    sight = msgspec.UNSET if rung.schedule_sight is None else rung.schedule_sight
    return RungSummary(rung.name, rung.schedule, rung.accuracy, rung.throughput, rung.metric if rung.accuracy is not None else None, sight)


def _comparison(spec: BundleSpec) -> ComparisonSummary | None:
    if (found := Comparison.from_quality(spec.quality)) is None:
        return None
    return ComparisonSummary(found.images, [ComparedFormat(**result.model_dump()) for result in found.results])


def _format(fleet: Fleet, spec: BundleSpec) -> dict[str, Any]:
    serving = [bundle for _, bundle in model_directory.serving(fleet, spec) if bundle.format]
    differences = [bundle.max_difference for bundle in serving if bundle.max_difference is not None]
    return {
        "format": ", ".join(sorted({bundle.format for bundle in serving})) or None,
        "max_difference": max(differences) if serving and len(differences) == len(serving) else None,
    }


def _inputs(gateway: GatewayState, spec: BundleSpec) -> list[PartSummary]:
    limits = gateway.settings
    parts = {part.name: part for task in TASKS.values() if serves(task, spec) for part in accepted_parts(task, spec)}
    return [
        PartSummary(
            part.name,
            part.kind,
            part.required,
            limits.max_images if part.max_count is None else part.max_count,
            limits.max_body_bytes,
            {"image": limits.max_pixels, "video": limits.max_video_pixels}.get(part.kind),
            {"video": limits.max_video_seconds, "audio": limits.max_audio_seconds}.get(part.kind),
            limits.max_video_frames if part.kind == "video" else None,
        )
        for part in parts.values()
        if part.kind != "text" or spec.text is not None  # texts are refused without a tokenizer
    ]


def _json(content: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
