"""`GET /v1/models`: the bundles that workers have announced."""

from __future__ import annotations

from typing import Any, Literal

import msgspec
from fastapi import APIRouter, Request
from starlette.responses import Response

from models.bundle import BundleSpec
from models.bundle_schema import Comparison, Rung
from server.gateway import app_state
from server.gateway.app_state import Gateway
from server.gateway.catalog import model_directory
from server.gateway.openapi import responses
from server.http.problems import Problem, ProblemKind
from server.queue.gateway.fleet import Fleet
from server.quote import quote
from server.tasks.capabilities import accepted_parts
from server.tasks.registry import REQUEST_KINDS, TASKS, main_task, route_of, serves

router = APIRouter(tags=["models"])


class RungSummary(msgspec.Struct, frozen=True):
    """One step of a bundle's ladder; `accuracy` and `throughput` (relative to merging off) are null where nothing was measured.

    `metric` says what `accuracy` is, null without one: `top-1`, `mean-average-precision`, `agreement` with the labels of merging off,
    `text-recall` or `image-recall`. `schedule_sight` is there for a half that sees and merges by a schedule of its own."""

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
    """Largest difference; null where some logits were no numbers."""
    same_labels: int
    """Images whose best label is that of the original code."""


class ComparisonSummary(msgspec.Struct, frozen=True):
    """Result of `opsin compare` on so many images."""

    images: int
    results: list[ComparedFormat]


class PartSummary(msgspec.Struct, frozen=True):
    """A part that requests bring; the limits are those of the service. Those that mean nothing for a part are null."""

    name: str
    kind: str
    required: bool
    max_count: int
    max_bytes: int
    max_pixels: int | None
    """Pixels of an image, or of a video's frame."""
    max_seconds: float | None = None
    max_frames: int | None = None


class ModelSummary(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle. `state`: ready, loading, unloading, unavailable or unloaded; `reason` says why it is not ready, where it is known.

    Of a folder whose bundle.json cannot be read, only `name`, `version`, `state` and `reason` say something. `summary` is the bundle's
    description. It, `trained_on` and `note` are empty where the bundle does not say."""

    name: str
    version: str
    digest: str
    """SHA-256 of its content: two bundles of one name and version differ in it, and so may their vectors."""
    task: str
    route: str | None
    """`POST /v1/<route>` answers with it: that of its task, but for networks that label whole clips. Null where no route does."""
    state: str
    reason: str
    default: bool
    """Requests of its task that name no model get this one."""
    inputs: list[PartSummary]
    """Empty where the task is not served."""
    members: dict[str, str]
    """The bundles that a pipeline is made of, `name@version` by their role."""
    labels: int
    summary: str
    trained_on: str
    note: str
    merges: bool
    """Whether its tokens can be merged: whether `merge` and `trace` mean something."""
    default_rung: str | None
    ladder: list[RungSummary]
    format: str | None
    """Number format in which ready workers run usual batches: float32, bfloat16, float16 or int8; several with commas, if workers differ,
    between them; null while no worker is ready."""
    max_difference: float | None
    """Largest difference between answers in that format and in float32, in warm-up: of logits for classifiers. Null while unknown."""
    comparison: ComparisonSummary | None
    """Differences from the original code, as `bundle.json` has them; null where `opsin compare` was not run."""


class OpenAIModel(msgspec.Struct, frozen=True):
    """A bundle as OpenAI's clients list it; `id` is `name@version`. When it was made is not known: `created` is 0."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "opsin"


class ModelList(msgspec.Struct, frozen=True, kw_only=True):
    """All bundles, once as this service tells of them, and once, as `object` and `data`, as OpenAI's clients expect it."""

    models: list[ModelSummary]
    folders: list[str]
    """Where living workers look for bundles."""
    object: Literal["list"] = "list"
    data: list[OpenAIModel]


class ServingWorker(msgspec.Struct, frozen=True):
    """A ready worker that serves the bundle. Both figures are measured, and 0 while unknown."""

    id: str
    device: str
    items_per_second: float
    batch_budget: int
    backends: dict[str, str]
    """Backends that run batches of that size, by rung and `off`: eager, fused, onnx or int8. Empty where only PyTorch can."""
    format: str
    max_difference: float | None
    """As the model's, of this worker."""


class ModelDetails(ModelSummary, frozen=True, kw_only=True):
    """A bundle with its whole spec but for the weights, and with the fields of `OpenAIModel`."""

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
_LIST = ModelList(models=[_FLAGS], folders=["/srv/bundles"], data=[OpenAIModel("flags@1.0.0")])
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
    here = app_state.of(request)
    fleet = await here.directory.fleet()
    specs = sorted(fleet.specs.values(), key=lambda spec: spec.id)
    folders = sorted({worker.folder for worker in fleet.workers if worker.folder})
    summaries = [ModelSummary(**_summary(here, fleet, spec)) for spec in specs]
    summaries += [ModelSummary(**_unreadable(id_, reason)) for id_, reason in sorted(model_directory.unreadable(fleet).items())]
    return _json(ModelList(models=summaries, folders=folders, data=[OpenAIModel(spec.id) for spec in specs]))


@router.get("/v1/models/{name}", summary="One bundle, by `name` or `name@version`", openapi_extra=MODEL)
async def model(request: Request, name: str) -> Response:
    here = app_state.of(request)
    fleet = await here.directory.fleet()
    spec = model_directory.newest(
        fleet, model_directory.matching_name(fleet.specs.values(), name)
    )  # also of what is unloaded: here one sees that it is
    if spec is None:
        return _json(_details_of_unreadable(fleet, name))
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
    return _json(ModelDetails(id=spec.id, **_summary(here, fleet, spec), workers=workers, spec=content))


def _details_of_unreadable(fleet: Fleet, wanted: str) -> ModelDetails:
    """Raises Problem (404) for a name that is none."""
    refused = model_directory.named_unreadable(fleet, wanted)
    if refused is None:
        known = model_directory.format_bundles(fleet, fleet.specs.values()) or "none"
        raise Problem(ProblemKind.UNKNOWN_MODEL, f"{quote(wanted)} is not known; known: {known}")
    id_, reason = refused
    return ModelDetails(id=id_, **_unreadable(id_, reason), workers=[], spec={})


def _summary(here: Gateway, fleet: Fleet, spec: BundleSpec) -> dict[str, Any]:
    state, reason = model_directory.state_of(fleet, spec)
    task = main_task(spec)
    defaults = [here.directory.default(fleet, name) for name, default in REQUEST_KINDS.items() if default.task is task]
    return {
        "name": spec.name,
        "version": spec.version,
        "digest": spec.digest(),
        "task": spec.task,
        "route": None if task is None else route_of(task),
        "state": state,
        "reason": reason,
        "default": any(default is not None and default.id == spec.id for default in defaults),
        "inputs": _inputs(here, spec),
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


def _inputs(here: Gateway, spec: BundleSpec) -> list[PartSummary]:
    limits = here.settings
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
        if part.kind != "text" or spec.text is not None  # without a tokenizer they are refused with a hint
    ]


def _json(content: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(content), media_type="application/json")
