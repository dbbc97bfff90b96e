"""Sound, with a clip or without, on `POST /v1/classify`: windows, what a video brings by itself, and what is refused."""

from __future__ import annotations

import base64
import io
from typing import Any

import av
import httpx2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from models.media.fbank import FbankConfig
from models.systems.mavil.preprocessing import spectrogram
from tests.clips.test_route import COUNT, FPS, TOLERANCE, scores_of
from tests.support.audio import tones, wav, write_file
from tests.support.bundles.clips import MEAN, STD, frames, hearing, mavil, video
from tests.support.gateway_process import Gateway, refusal
from tests.support.job_api import accepted_id, comes_to, parse, result
from tests.support.videos import clip, every, sound_alone

RATE, HOP, WINDOW = 16_000, 160, 400
SECONDS = 4.0
NOISE = np.random.default_rng(0).normal(0, 0.1, round(SECONDS * RATE)).astype(np.float32)
BELL = wav(NOISE, RATE)
"""Float samples at the rate of the networks: nothing is lost."""
FILM = video(COUNT, FPS)


def ask(gateway: Gateway, files: dict[str, bytes], headers: dict[str, str] | None = None, **options: Any) -> httpx2.Response:
    sent = {name: (name, data) for name, data in files.items()}
    return gateway.http.post("/v1/classify", files=sent, data=options, headers=headers, timeout=120)


def classify(gateway: Gateway, files: dict[str, bytes], **options: Any) -> Any:
    return ask(gateway, files, **options).raise_for_status().json()


def windows(samples: NDArray[np.float32], length: int) -> list[torch.Tensor]:
    """Cut samples into consecutive windows of `length` frames. Drop the rest if it is short."""
    step = length * HOP
    count = len(samples) // step + (len(samples) % step >= 0.1 * step)
    return [torch.from_numpy(samples[at * step : at * step + (length - 1) * HOP + WINDOW]) for at in range(min(12, count))]


def clip_at(images: NDArray[np.uint8], start: float, count: int, side: int) -> torch.Tensor:
    """Sample two frames a second from `start`, squeeze each into a square, and repeat a short video: (3, T, S, S)."""
    numbers = int(start * FPS) + np.floor(np.arange(count) * FPS / 2).astype(int)
    numbers = numbers[np.arange(count) % max(1, int((numbers < len(images)).sum()))]
    pixels = torch.from_numpy(images[numbers]).permute(0, 3, 1, 2).float()
    squeezed = F.interpolate(pixels, size=(side, side), mode="bilinear", align_corners=False) / 255
    return ((squeezed - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)).transpose(0, 1)


def sound_scores(samples: NDArray[np.float32]) -> NDArray[np.float64]:
    model = mavil("apart")
    length, bins = model.config.audio_frames, model.config.mel_bins
    banks = torch.stack([spectrogram(window, length, config=bank(bins)) for window in windows(samples, length)])
    with torch.inference_mode():
        return np.asarray(model.forward_audio(banks).logits.double().sigmoid().mean(dim=0))


def bank(bins: int) -> FbankConfig:
    return FbankConfig(mel_bins=bins)


def test_sound_is_classified_by_all_of_its_windows(gateway: Gateway) -> None:
    answer = classify(gateway, {"audio": BELL}, top_k=7)
    (result,) = answer["results"]
    np.testing.assert_allclose(scores_of(answer), sound_scores(NOISE), atol=TOLERANCE)
    assert answer["model"] == "apart" and result["sound"] == {"seconds": 4.0, "windows": 9, "sample_rate": RATE} and "clip" not in result


def test_a_sound_may_end_at_any_time_after_its_start(gateway: Gateway) -> None:
    answer = classify(gateway, {"audio": BELL}, top_k=7, end_s=1e308)
    assert answer["results"] == classify(gateway, {"audio": BELL}, top_k=7)["results"]
    both = classify(gateway, {"video": FILM, "audio": BELL}, end_s=1e308)
    assert both["results"] == classify(gateway, {"video": FILM, "audio": BELL})["results"]


def test_interval_and_number_of_windows_can_be_chosen(gateway: Gateway) -> None:
    answer = classify(gateway, {"audio": BELL}, top_k=7, start_s=1, end_s=3.5, windows=2)
    length = mavil("apart").config.audio_frames * HOP
    np.testing.assert_allclose(scores_of(answer), sound_scores(NOISE[RATE:][: 2 * length + WINDOW - HOP]), atol=TOLERANCE)
    assert answer["results"][0]["sound"] == {"seconds": 2 * length / RATE, "windows": 2, "sample_rate": RATE}, (
        "what is left over is not heard"
    )


@pytest.mark.parametrize(
    ("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("adts", "aac"), ("aiff", "pcm_s16be")]
)
def test_every_format_of_sound_is_classified(gateway: Gateway, container: str, codec: str) -> None:
    channels = np.stack([tones(2.0, 48_000, 440.0), tones(2.0, 48_000, 660.0)])
    (result,) = classify(gateway, {"audio": write_file(channels, 48_000, container, codec)})["results"]
    assert result["sound"]["seconds"] == pytest.approx(2.0, abs=0.1) and result["sound"]["windows"] == 5


def test_sight_alone_is_classified_by_a_bundle_of_both_kinds(gateway: Gateway) -> None:
    model = mavil("apart")
    config = model.config
    answer = classify(gateway, {"video": FILM}, model="apart", top_k=7)
    with torch.inference_mode():
        seen = model.forward_video(clip_at(frames(COUNT), 0.0, config.frames, config.image_size)[None]).logits.sigmoid()[0].numpy()
    np.testing.assert_allclose(scores_of(answer), seen, atol=TOLERANCE)
    assert answer["results"][0]["clip"] == {"frames": config.frames, "views": 1, "crops": 1, "duration_s": 4.0}


def test_a_bundle_that_only_hears_takes_sound_alone(gateway: Gateway) -> None:
    model = hearing()
    answer = classify(gateway, {"audio": BELL}, model="sound-alone", top_k=5)
    length, bins = model.config.audio_frames, model.config.mel_bins
    banks = torch.stack([spectrogram(window, length, config=bank(bins)) for window in windows(NOISE, length)])
    with torch.inference_mode():
        expected = model.forward_audio(banks).logits.double().softmax(dim=-1).mean(dim=0).numpy()
    np.testing.assert_allclose(scores_of(answer), expected, atol=TOLERANCE)
    assert answer["results"][0]["sound"]["windows"] == 7 and "clip" not in answer["results"][0]
    for files, options in (({"video": FILM}, {}), ({"audio": BELL}, {"views": 2}), ({"audio": BELL}, {"use": "sight"})):
        refusal = ask(gateway, files, model="sound-alone", **options)
        assert refusal.status_code == 422, refusal.text


def test_sound_and_sight_are_classified_together(gateway: Gateway) -> None:
    model = mavil("both")
    config = model.config
    answer = classify(gateway, {"video": FILM, "audio": BELL}, top_k=9)
    latest = SECONDS - config.frames / 2
    sounds = windows(NOISE, config.audio_frames)
    banks = torch.stack([spectrogram(one, config.audio_frames, config=bank(config.mel_bins)) for one in sounds])
    starts = [max(0.0, min(at * config.audio_frames * HOP / RATE, latest)) for at in range(len(banks))]
    seen = torch.stack([clip_at(frames(COUNT), start, config.frames, config.image_size) for start in starts])
    with torch.inference_mode():
        expected = model(banks, seen).logits.double().sigmoid().mean(dim=0).numpy()
    assert answer["model"] == "both"
    np.testing.assert_allclose(scores_of(answer), expected, atol=TOLERANCE)
    (result,) = answer["results"]
    assert result["clip"]["views"] == result["sound"]["windows"] == len(banks)


def test_each_modality_merges_by_its_own_option(gateway: Gateway) -> None:
    def merging(**options: Any) -> Any:
        return classify(gateway, {"video": FILM, "audio": BELL}, windows=1, **options)["results"][0]["merging"]

    off, both, sight_off = merging(), merging(merge=2), merging(merge=2, merge_sight="off")
    depth = len(off["schedule"])
    assert both["schedule"] == sight_off["schedule"] == [2] * depth and "schedule_sight" not in both
    assert sight_off["schedule_sight"] == [0] * depth
    counts = [one["tokens_out"] for one in (both, sight_off, off)]
    assert counts == sorted(set(counts)), "each half loses some"


def test_a_video_brings_its_own_sound(gateway: Gateway) -> None:
    film = clip(every(30, 10.0), sound=True)
    alone = classify(gateway, {"video": film}, model="both", top_k=9)
    both = classify(gateway, {"video": film, "audio": film}, top_k=9)
    assert alone["results"] == both["results"] and alone["results"][0]["sound"]["seconds"] == pytest.approx(3.0, abs=0.2)
    by_ear = classify(gateway, {"video": film}, model="apart", use="sound")
    assert "clip" not in by_ear["results"][0] and by_ear["results"] == classify(gateway, {"audio": film}, use="sound")["results"]


def test_windows_are_reported_as_they_finish_and_job_agrees(gateway: Gateway) -> None:
    plain = classify(gateway, {"audio": BELL})["results"]
    headers = {"Accept": "text/event-stream"}
    with gateway.http.stream("POST", "/v1/classify", files={"audio": BELL}, headers=headers, timeout=120) as response:
        events = list(parse(response.iter_lines()))
    progress = [event.data for event in events if event.name == "progress"]
    assert {(one["total"], one["unit"]) for one in progress} == {(9, "windows")} and progress[-1]["done"] == 9
    assert events[-1].data["results"] == plain
    job_id = accepted_id(ask(gateway, {"audio": BELL}, {"Prefer": "respond-async"}))
    assert comes_to(gateway, job_id, "done")["task"] == "classify"
    assert result(gateway, job_id).json()["results"] == plain


def test_the_open_inference_protocol_takes_sound_and_sight(gateway: Gateway) -> None:
    metadata = gateway.http.get("/v2/models/both").json()
    assert [one["name"] for one in metadata["inputs"]] == ["video", "audio"] and metadata["outputs"][0]["shape"] == [-1, 9]

    def infer(model: str, **files: bytes) -> NDArray[np.float64]:
        inputs = [
            {"name": name, "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(file).decode()]} for name, file in files.items()
        ]
        answer = gateway.http.post(f"/v2/models/{model}/infer", json={"inputs": inputs}, timeout=120).raise_for_status().json()
        return np.array(next(output["data"] for output in answer["outputs"] if output["name"] == "scores"))

    sound = [{"name": "audio", "datatype": "BYTES", "shape": [1], "data": [base64.b64encode(BELL).decode()]}]
    for option in ("timeline", "trace"):
        refusal = gateway.http.post("/v2/models/apart/infer", json={"inputs": sound, "parameters": {option: True}}, timeout=120)
        assert refusal.status_code == 400 and refusal.json()["error"].startswith(f"{option}: true: no output tensor has it")
    np.testing.assert_allclose(infer("apart", audio=BELL), sound_scores(NOISE), atol=TOLERANCE)
    expected = scores_of(classify(gateway, {"video": FILM, "audio": BELL}, top_k=9))
    np.testing.assert_allclose(infer("both", video=FILM, audio=BELL), expected, atol=TOLERANCE)


def test_the_damaged_one_of_several_sounds_is_named(gateway: Gateway) -> None:
    data = [base64.b64encode(sound).decode() for sound in (BELL, BELL, BELL[:60])]
    answer = gateway.http.post(
        "/v2/models/apart/infer", json={"inputs": [{"name": "audio", "datatype": "BYTES", "shape": [3], "data": data}]}
    )
    assert answer.status_code == 422 and "audio[2]" in answer.text, answer.text


def many_channels(count: int) -> bytes:
    return wav(np.zeros((4000, count), np.int16), RATE)


@pytest.mark.parametrize(
    ("status", "files", "options", "field", "detail"),
    [
        (415, {"audio": b"\x89PNG\r\n\x1a\n1234"}, {}, "audio", "this is an image (PNG): it is sent as `image`"),
        (422, {"audio": wav(np.zeros(0, np.int16), RATE)}, {}, "audio", "samples"),
        (422, {"audio": wav(np.zeros(399, np.int16), RATE)}, {}, "audio", "too few"),
        (422, {"audio": wav(np.full(4000, np.nan, np.float32), RATE)}, {}, "audio", "not a number"),
        (413, {"audio": many_channels(9)}, {}, "audio", "channels"),
        (413, {"audio": wav(np.zeros(4000, np.int16), 400_000)}, {}, "audio", "384"),
        (413, {"audio": wav(np.zeros(61 * RATE, np.int16), RATE)}, {}, "audio", "OPSIN_MAX_AUDIO_SECONDS"),
        (422, {"video": FILM}, {"model": "both"}, "audio", "missing: the video has no sound"),
        (422, {"audio": BELL}, {"model": "both"}, "video", "missing: both@1 needs `video`; send it, too"),
        (422, {"audio": BELL}, {"model": "mvit2"}, "audio", "mvit2@1 takes video, and no audio"),
        (422, {"audio": BELL, "video": FILM}, {"model": "apart"}, "use", "use sound or sight"),
        (422, {"audio": BELL, "video": FILM}, {"use": "sound"}, "use", "both@1 was trained for both"),
        (422, {"audio": BELL}, {"use": "both"}, "use", "apart@1 was trained for sound or sight"),
        (422, {"audio": BELL}, {"merge_sight": 2}, "merge_sight", "no video is seen"),
        (422, {"video": FILM, "audio": BELL}, {"merge_sight": "much"}, "merge_sight", "use `off`, an integer"),
        (422, {"audio": BELL}, {"use": "sight"}, "use", "there is no video"),
        (422, {"audio": BELL}, {"windows": 13}, "windows", "from 1 to 12"),
        (422, {"audio": BELL}, {"views": 2}, "views", "no video is seen"),
        (422, {"audio": BELL}, {"crops": 1}, "crops", "no video is seen"),
        (422, {"video": FILM}, {"model": "apart", "windows": 2}, "windows", "no sound is heard"),
        (422, {"video": FILM}, {"model": "apart", "merge_sight": 2}, "merge_sight", "no sound is heard; use merge"),
        (422, {"video": FILM}, {"model": "apart", "crops": 3}, "crops", "sees the whole of each frame"),
        (422, {"audio": BELL}, {"start_s": 4}, "start_s", "the sound has 4 seconds"),
        (422, {"audio": BELL}, {"start_s": 3.99}, "start_s", "10 ms are left, and one analysis window has 25 ms; begin earlier"),
        (422, {"audio": BELL}, {"end_s": 0.02}, "end_s", "20 ms are left"),
        (422, {"audio": BELL}, {"start_s": 1, "end_s": 1.01}, "end_s", "10 ms are left, and one analysis window has 25 ms; end later"),
        (
            422,
            {"audio": BELL},
            {"start_s": len(NOISE) / RATE - 0.01, "end_s": 100},
            "start_s",
            "10 ms are left, and one analysis window has 25 ms; begin earlier",
        ),
        (
            422,
            {"video": FILM, "audio": BELL},
            {"start_s": 1, "end_s": 1.01},
            "end_s",
            "10 ms are left, and one analysis window has 25 ms; end later",
        ),
        (422, {"audio": BELL, "image": BELL}, {}, "image", "cannot be combined with `audio`"),
    ],
)
def test_refusals_name_the_field_and_what_is_wrong(
    gateway: Gateway, status: int, files: dict[str, bytes], options: dict[str, Any], field: str, detail: str
) -> None:
    named, error = refusal(ask(gateway, files, **options), status)
    assert named == field and detail in error, error


def test_what_a_file_lacks_is_its_title(gateway: Gateway) -> None:
    silent = ask(gateway, {"video": FILM}, model="apart", use="sound").json()
    assert (silent["title"], silent["field"]) == ("The file has no sound", "audio"), silent
    assert ask(gateway, {"audio": FILM}).json()["title"] == "The file has no sound"
    assert ask(gateway, {"video": sound_alone()}, model="mvit2").json()["title"] == "The file has no video"


def test_rest_of_a_file_is_classified_and_its_seconds_reported(gateway: Gateway) -> None:
    (full,) = classify(gateway, {"audio": BELL})["results"]
    (half,) = classify(gateway, {"audio": BELL[: len(BELL) // 2]})["results"]
    assert (full["sound"]["seconds"], half["sound"]["seconds"]) == pytest.approx((4.0, 2.0), abs=0.01)
    (clip_left,) = classify(gateway, {"video": FILM[: len(FILM) // 2]}, model="mvit2")["results"]
    assert clip_left["clip"]["duration_s"] == pytest.approx(SECONDS / 2, abs=0.3)


def test_a_video_of_sound_alone_is_a_sound(gateway: Gateway) -> None:
    (result,) = classify(gateway, {"audio": sound_alone(2.0)})["results"]
    assert result["sound"]["seconds"] == pytest.approx(2.0, abs=0.1)
    with av.open(io.BytesIO(sound_alone(2.0))) as opened:
        assert not opened.streams.video
