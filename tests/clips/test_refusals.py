"""Refusals of clips name the part or option and say what is accepted."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import httpx2
import numpy as np
import pytest
from PIL import Image

from models.bundle import BundleSpec
from models.bundle_schema import Clip, Sound
from server.gateway.model_directory import ModelDirectory
from server.http.problems import Problem, ProblemKind
from server.queue.gateway.dispatcher import Dispatcher
from server.queue.gateway.fleet import Fleet
from server.queue.messages import ServedBundle, WorkerInfo
from server.settings import Settings
from tests.actions.test_attacks import damaged_in_the_middle, without_stamps
from tests.clips.test_route import ask
from tests.support.audio import wav
from tests.support.bundles.clips import video
from tests.support.fake_worker import make_spec
from tests.support.gateway_process import Gateway, refusal
from tests.support.videos import clip, every, sound_alone, with_hours

FILM = clip(every(12, 10.0))
Image.new("RGB", (8, 8)).save(PNG := io.BytesIO(), "PNG")
PICTURE = PNG.getvalue()
BELL = wav(np.zeros(4000, np.int16), 16_000)


def post(gateway: Gateway, files: dict[str, bytes], **options: Any) -> httpx2.Response:
    return gateway.http.post("/v1/classify", files={name: (name, data) for name, data in files.items()}, data=options, timeout=120)


@pytest.mark.parametrize(
    ("status", "files", "options", "field", "detail"),
    [
        (415, {"video": b"#EXTM3U\nfile:///etc/passwd\n"}, {}, "video", "a list that names other files"),
        (415, {"video": b"cats"}, {}, "video", "not a video in a container"),
        (415, {"video": PICTURE}, {}, "video", "this is an image (PNG): it is sent as `image`"),
        (415, {"video": BELL}, {}, "video", "this is a sound (WAV): it is sent as `audio`"),
        (422, {"video": FILM[:900]}, {}, "video", "truncated or damaged"),
        (422, {"video": sound_alone()}, {}, "video", "sound alone"),
        (413, {"video": with_hours(FILM, 10)}, {}, "video", "above the limit of 60 (OPSIN_MAX_VIDEO_SECONDS)"),
        (413, {"video": clip(every(2, 10.0), size=(128, 128))}, {}, "video", "OPSIN_MAX_VIDEO_PIXELS"),
        (400, {"video": b""}, {}, "video", "empty"),
        (422, {"video": FILM, "image": PICTURE}, {}, "image", "cannot be combined with `video`: send one of them"),
        (422, {"video": FILM, "tracks": b"x"}, {}, "tracks", "unknown; the parts are `image`, `video`, `audio`"),
        (422, {"video": FILM}, {"views": 0}, "views", "from 1 to 30"),
        (422, {"video": FILM}, {"views": 31}, "views", "from 1 to 30"),
        (422, {"video": FILM}, {"crops": 2}, "crops", "one of 1, 3"),
        (422, {"video": FILM}, {"start_s": 5}, "start_s", "the video has 1.2 seconds; begin before its end"),
        (422, {"video": FILM}, {"start_s": 1, "end_s": 0.5}, "end_s", "it must be after start_s"),
        (422, {"video": FILM}, {"model": "mvit2", "trace": "true"}, "trace", "nothing to trace"),
        (422, {"video": FILM}, {"windows": 2}, "windows", "hears no sound"),
        (422, {"video": FILM}, {"merge_sight": 2}, "merge_sight", "hears no sound"),
        (422, {"video": FILM}, {"use": "sound"}, "use", "hears no sound"),
        (422, {"video": FILM}, {"model": "mvit2", "merge": 3}, "merge", "do not merge"),
        (422, {"video": FILM}, {"top_k": 12}, "top_k", "from 1 to 11"),
        (422, {"image": PICTURE}, {"model": "mvit2"}, "image", "mvit2@1 takes video, and no image"),
        (
            404,
            {"image": PICTURE},
            {},
            None,
            "no bundle for classify that takes image is served; send what one of these takes: apart@1 (video or audio), ",
        ),
        (404, {"image": PICTURE}, {}, None, "both@1 (video), mae-st@1 (video)"),
        (404, {"video": FILM}, {"model": "cats"}, "model", "known for classify: apart@1, both@1, mae-st@1, mvit1@1, mvit2@1, rev-mvit@1"),
    ],
)
def test_refusals_name_the_field_and_what_is_wrong(
    gateway: Gateway, status: int, files: dict[str, bytes], options: dict[str, Any], field: str | None, detail: str
) -> None:
    named, error = refusal(post(gateway, files, **options), status)
    assert named == field and detail in error, error


def test_a_classifier_of_clips_does_not_detect_people(gateway: Gateway) -> None:
    answer = gateway.http.post("/v1/actions", files={"video": FILM}, data={"model": "mvit2"}, timeout=120)
    assert answer.status_code == 404 and "'mvit2' is for classify; known for actions: none" in answer.json()["detail"]


@pytest.mark.parametrize(
    "film",
    [
        without_stamps(),
        clip([0, 0.05, 0.1, 1.0, 1.02, 2.0], container="matroska"),
        clip(every(5, 10.0), rotation=90),
        clip(every(1, 10.0)),
        clip([0.0, 20.0, 40.0], container="matroska"),
    ],
    ids=["without time stamps", "variable rate", "turned", "one frame", "slow"],
)
def test_odd_videos_are_classified(gateway: Gateway, film: bytes) -> None:
    (result,) = ask(gateway, film, views=2).raise_for_status().json()["results"]
    assert sum(label["score"] for label in result["predictions"]) <= 1 + 1e-6 and result["clip"]["views"] == 2


def test_damaged_video_is_answered_or_refused_and_next_works(gateway: Gateway) -> None:
    broken = damaged_in_the_middle()
    assert post(gateway, {"video": broken}, views=2).status_code in (200, 413, 422)
    assert ask(gateway, video(12)).status_code == 200


def test_bare_body_is_an_image_and_refusal_names_the_form(gateway: Gateway) -> None:
    refusal = gateway.http.post("/v1/classify", params={"model": "mvit2"}, content=FILM, headers={"Content-Type": "video/mp4"})
    assert (refusal.status_code, refusal.json()["field"]) == (422, "image")
    assert refusal.json()["detail"].endswith("a bare body is its `image`: send a form, as with curl -F video=@FILE")


CLIP = {"clip": Clip(frames=8, stride=4)}
SOUND = Sound(frames=64, mel_bins=32, mean=-4.0, std=4.5)


def clips_spec(name: str) -> BundleSpec:
    return make_spec(name).model_copy(update={"task": "actions", "architecture": "mvit", "ladder": [], "config": {"depth": 4}, **CLIP})


def sound_spec(name: str, fusion_depth: int, **changes: Any) -> BundleSpec:
    fields = {"task": "audio-visual", "architecture": "mavil", "config": {"depth": 4, "fusion_depth": fusion_depth}, "sound": SOUND}
    return make_spec(name).model_copy(update={**fields, "ladder": [], **CLIP, **changes})


def fleet(*specs: BundleSpec, ready: Sequence[BundleSpec] = ()) -> Fleet:
    """Return a fleet that knows these bundles, with a worker that serves those that are ready."""
    served = [ServedBundle(name=spec.name, version=spec.version, task=spec.task, digest=spec.digest(), state="ready") for spec in ready]
    worker = WorkerInfo(id="w", host="here", pid=0, state="ready", device="cpu", bundles=served)
    return Fleet((worker,) if ready else (), {(spec.name, spec.version): spec for spec in specs})


def directory(**settings: Any) -> ModelDirectory:
    values = Settings(**settings)
    return ModelDirectory(Dispatcher("redis://127.0.0.1:1", values), values)


def test_default_of_clips_is_only_candidate_or_operators_choice() -> None:
    reds, first, second = make_spec(), clips_spec("first"), clips_spec("second")
    one, two = fleet(reds, first), fleet(reds, first, second)
    assert (directory().default(one, "classify"), directory().default(one, "classify-video")) == (reds, first)
    assert directory().default(two, "classify-video") is None and directory().default(two, "classify") == reds
    assert directory(default_models={"CLASSIFY_VIDEO": "second"}).default(two, "classify-video") == second
    assert directory().default(two, "actions") is None


def test_default_for_audio_and_video_fits_exactly_the_parts() -> None:
    first, both, split, ears = clips_spec("first"), sound_spec("both", 2), sound_spec("apart", 0), sound_spec("ears", 0, preprocess=None)
    every = fleet(first, both, ears)
    names = [directory().default(every, f"classify-{parts}") for parts in ("video", "audio", "audio-video")]
    assert names == [first, ears, both]
    assert directory().default(fleet(both), "classify-video") == both, "its own sound is in it"
    assert directory().default(fleet(both), "classify-audio") is None
    assert directory().default(fleet(split), "classify-audio") == directory().default(fleet(split), "classify-video") == split
    assert directory().default(fleet(first, split, both), "classify-video") == first, "it takes nothing else"
    assert directory().default(fleet(split, both), "classify-video") == split, "it needs no sound"
    assert directory().default(fleet(split, ears), "classify-audio") == ears
    assert directory(default_models={"CLASSIFY_AUDIO_VIDEO": "apart"}).default(fleet(split, both), "classify-audio-video") == split


def test_unserved_bundle_is_no_default_while_another_fits() -> None:
    first, split = clips_spec("first"), sound_spec("apart", 0)
    specs = first, split
    defaults = [directory().default(fleet(*specs, ready=ready), "classify-video") for ready in ((split,), (first,), ())]
    assert defaults == [split, first, first]
    assert directory().choose(fleet(*specs, ready=(split,)), "first", "classify-video") == first, "by its name it is waited for"


async def test_without_default_fitting_bundles_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    served = [clips_spec("first"), clips_spec("second"), sound_spec("ears", 0, preprocess=None)]
    member = make_spec("member").model_copy(update={"task": "pose"})
    models, ready = directory(worker_grace=0), fleet(*served, clips_spec("third"), member, ready=served)
    ready.workers[0].bundles.append(
        ServedBundle(name="member", version="1", task="pose", digest="", state="unavailable", reason="a member of a pipeline")
    )

    async def current_fleet() -> Fleet:
        return ready

    monkeypatch.setattr(models, "fleet", current_fleet)
    with pytest.raises(Problem) as several:
        await models.find(None, "classify-video")
    assert several.value.kind is ProblemKind.INVALID_OPTION and "first@1, second@1" in several.value.detail
    assert "OPSIN_DEFAULT_MODELS__CLASSIFY_VIDEO" in several.value.detail and "ears" not in several.value.detail
    assert "third" not in several.value.detail, "no worker serves it"
    with pytest.raises(Problem) as none:
        await models.find(None, "classify-audio-video")
    assert none.value.kind is ProblemKind.UNKNOWN_MODEL
    assert none.value.detail == "there is no default model for audio and video; no bundle that takes both is served"
    with pytest.raises(Problem) as member:
        await models.find("member", "classify-video")
    assert member.value.detail.startswith("'member' is unavailable: a member of a pipeline; known for classify: ears@1, first@1, ")
