"""MAViL window by window: recorded scores, windows of sound, strangers in one batch, and merging in each half."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from models.bundle import BundleSpec
from models.bundle_schema import Clip, Preprocess, Sound
from models.layers.stepwise import InProgress, InvalidInput, StepCompletion
from models.media.audio import count_windows
from models.media.fbank import FbankConfig
from models.merge_schedule import MergeSchedule
from models.systems.mavil.model import MAViL, MAViLConfig
from models.systems.mavil.preprocessing import spectrogram, spectrograms
from models.systems.mavil.steps import MAViLSteps, MergeSchedules, Modality, WindowScores, mavil_steps
from models.systems.mavil.system import AUDIOSET, LogMelStats
from models.systems.mavil.window_sources import SpectrogramWindows, WindowInput, WindowSourceFactory
from tests.golden.case import Case, read_case
from tests.golden.replays.mavil import load_finetuned
from tests.support.videos import clip, every

GOLDEN = Path(__file__).parents[3] / "golden" / "mavil"
SOUND = Sound(frames=64, mel_bins=32, mean=AUDIOSET.mean, std=AUDIOSET.std)
"""Windows of 0.64 s."""
STRIDE = 64 * 160
WITHOUT_FUSION = MAViLConfig(
    audio_frames=64,
    mel_bins=32,
    frames=4,
    image_size=16,
    patch_size=8,
    width=32,
    depth=2,
    heads=4,
    fusion_depth=0,
    classes=5,
)
NO_MERGING = MergeSchedules(MergeSchedule.off(), MergeSchedule.off())


@dataclass(frozen=True)
class RecordedWindow:
    """Windows whose spectrogram and clip were recorded: one job has one window."""

    inputs: WindowInput
    total: int = 1
    nbytes: int = 0

    seconds: None = None

    def stats(self) -> dict[str, Tensor]:
        return {}

    def is_ready(self, window: int) -> bool:
        return True

    def take(self, window: int, until: float) -> WindowInput:
        return self.inputs

    def close(self) -> None:
        """Nothing is open."""


def replay(case: Case, use: Modality, sounds: Tensor | None, clips: Tensor | None) -> Tensor:
    """Return the scores of each recorded input, all of them in one step."""
    model = load_finetuned(case).eval()
    listener = SpectrogramWindows(SOUND)
    steps = MAViLSteps(model, torch.stack, WindowSourceFactory(listener, Clip(frames=4, stride=1, rate=2), None))
    count = len(sounds if sounds is not None else clips if clips is not None else [])
    start = torch.zeros(model.config.classes, dtype=torch.float64)
    states = [
        WindowScores(
            RecordedWindow(WindowInput(None if sounds is None else sounds[row], None if clips is None else clips[row])),
            use,
            NO_MERGING,
            start,
        )
        for row in range(count)
    ]
    with torch.inference_mode():
        outcomes = steps.step(states, [False] * count)
    assert all(isinstance(outcome, StepCompletion) for outcome in outcomes)
    return torch.stack([outcome.outputs["scores"] for outcome in outcomes if isinstance(outcome, StepCompletion)])


def test_recorded_scores_of_sound_and_sight_together() -> None:
    case = read_case(GOLDEN / "finetune_av")
    scores = replay(case, "both", case.inputs["audio"], case.inputs["video"])
    torch.testing.assert_close(scores, case.outputs["probs_av"], atol=case.tolerance.atol, rtol=case.tolerance.rtol)


def test_recorded_scores_of_each_half() -> None:
    case = read_case(GOLDEN / "finetune_uni")
    audible = replay(case, "sound", case.inputs["audio"], None)
    seen = replay(case, "sight", None, case.inputs["video"])
    for scores, name in ((audible, "logits_audio"), (seen, "logits_video")):
        torch.testing.assert_close(scores, case.outputs[name].sigmoid(), atol=case.tolerance.atol, rtol=case.tolerance.rtol)


@pytest.mark.parametrize("name", ["fbank_pad", "fbank_cut"])
def test_a_window_is_the_recorded_spectrogram(name: str) -> None:
    case = read_case(GOLDEN / name)
    config = case.config
    sound = Sound(frames=config["target_length"], mel_bins=config["num_mel_bins"], mean=config["mean"], std=config["std"])
    listener = SpectrogramWindows(sound)
    audible = listener([listener.slice_window(case.inputs["waveform"], 0)])
    torch.testing.assert_close(audible[0, 0], case.outputs["normalized"], atol=case.tolerance.atol, rtol=case.tolerance.rtol)


def spec(**changes: Any) -> BundleSpec:
    inputs: dict[str, Any] = {
        "name": "bell",
        "version": "1",
        "task": "audio-visual",
        "architecture": "mavil",
        "config": {},
        "clip": {"frames": 4, "stride": 1, "rate": 2},
        "sound": SOUND.model_dump(),
        "labels": [f"label {index}" for index in range(5)],
        "license": "none",
        "weights": {"sha256": "0" * 64, "bytes": 0},
    }
    return BundleSpec.model_validate(inputs | changes)


def network(config: MAViLConfig = WITHOUT_FUSION) -> MAViL:
    torch.manual_seed(0)
    model = MAViL(config).eval()
    for head in model.head.values():
        torch.nn.init.normal_(head.weight, std=0.3)  # or every score were 0.5
    return model


def noise(samples: int, seed: int = 0) -> Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(seed))


def run(steps: MAViLSteps, jobs: Sequence[dict[str, Tensor]], **requested: Any) -> list[dict[str, Tensor]]:
    """Return the outputs of jobs that take their steps together."""
    found: dict[int, dict[str, Tensor]] = {}
    with torch.inference_mode():
        going = dict(enumerate(steps.start(jobs, [requested] * len(jobs))))
        while going:
            for job, outcome in zip(list(going), steps.step(list(going.values()), [True] * len(going)), strict=True):
                if isinstance(outcome, StepCompletion):
                    found[job] = dict(outcome.outputs)
                    del going[job]
                else:
                    assert isinstance(outcome, InProgress)
                    going[job] = outcome.state
    return [found[job] for job in sorted(found)]


def test_a_sound_has_the_mean_score_of_its_windows() -> None:
    model, sound = network(), noise(3 * STRIDE)
    steps = mavil_steps(model, spec(), torch.device("cpu"))
    (answer,) = run(steps, [{"sound": sound}])
    windows = [spectrogram(sound[k * STRIDE : k * STRIDE + STRIDE + 240], 64, AUDIOSET, FbankConfig(mel_bins=32)) for k in range(3)]
    with torch.inference_mode():
        expected = model.forward_audio(torch.stack(windows)).scores.mean(dim=0)
    torch.testing.assert_close(answer["scores"], expected, atol=1e-6, rtol=0)
    assert answer["scores"].dtype == torch.float32 and answer["tokens"].tolist() == [9, 9]


def test_a_softmax_of_each_window_is_averaged() -> None:
    model = network(replace(WITHOUT_FUSION, multi_label=False))
    (answer,) = run(mavil_steps(model, spec(), torch.device("cpu")), [{"sound": noise(2 * STRIDE)}])
    assert float(answer["scores"].sum()) == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "windows"),
    [
        (400, 1),
        (STRIDE - 1, 1),
        (STRIDE, 1),
        (STRIDE + STRIDE // 10 - 1, 1),
        (STRIDE + STRIDE // 10, 2),
        (2 * STRIDE, 2),
        (5 * STRIDE // 2, 3),
        (12 * STRIDE, 12),
        (20 * STRIDE, 12),
    ],
)
def test_consecutive_windows_cover_a_sound(samples: int, windows: int) -> None:
    """A rest of less than a tenth of a window is none; twelve are the most."""
    assert count_windows(samples, SOUND) == windows


def test_fewer_windows_may_be_requested_and_progress_counts_them() -> None:
    steps = mavil_steps(network(), spec(), torch.device("cpu"))
    state, shorter, longer = (
        steps.start([{"sound": noise(5 * STRIDE)}], [{"windows": requested, "timeline": True}])[0] for requested in (None, 2, 9)
    )
    assert (state.done, state.total, shorter.total, longer.total) == (0, 5, 2, 5)
    assert state.nbytes >= 4 * 5 * STRIDE
    (outcome,) = steps.step([shorter], [True])
    assert isinstance(outcome, InProgress) and outcome.state.done == 1
    assert outcome.preview is not None and outcome.preview["timeline"].shape == (1, 5)


def test_a_part_of_a_sound_is_what_lies_between_its_seconds() -> None:
    sound = noise(5 * STRIDE)
    steps = mavil_steps(network(), spec(), torch.device("cpu"))
    (part,) = run(steps, [{"sound": sound}], start_s=0.64, end_s=1.92)
    (cut,) = run(steps, [{"sound": sound[STRIDE : 3 * STRIDE]}])
    assert torch.equal(part["scores"], cut["scores"])
    late = len(sound) / 16_000 - 0.01
    for field, requested in (
        ("end_s", {"start_s": 1.0, "end_s": 1.01}),
        ("start_s", {"start_s": late, "end_s": 100.0}),
        ("start_s", {"start_s": late}),
    ):
        with pytest.raises(InvalidInput, match=f"{field}: 160 samples at 16000 Hz are too few: one analysis window has 400"):
            steps.start([{"sound": sound}], [requested])


def test_strangers_in_a_batch_change_nothing() -> None:
    sounds = [noise(count, seed) for seed, count in enumerate((400, STRIDE - 77, 3 * STRIDE, STRIDE + 5000))]
    steps = mavil_steps(network(), spec(), torch.device("cpu"))
    joint = run(steps, [{"sound": sound} for sound in sounds])
    for sound, answer in zip(sounds, joint, strict=True):
        (alone,) = run(steps, [{"sound": sound}])
        torch.testing.assert_close(answer["scores"], alone["scores"], atol=1e-6, rtol=0)


def test_spectrograms_of_a_batch_are_those_of_each() -> None:
    sounds = [noise(count, seed) for seed, count in enumerate((400, 559, 560, 9000, 30_000))]
    joint = spectrograms(sounds, 64)
    for sound, audible in zip(sounds, joint, strict=True):
        torch.testing.assert_close(audible, spectrogram(sound, 64), atol=1e-5, rtol=0)


def test_a_bundle_hears_as_loud_as_it_was_trained() -> None:
    model, sound, scores = network(), noise(STRIDE), []
    for loud in (AUDIOSET, LogMelStats(-6.6268077, 5.358466)):  # ESC-50
        steps = mavil_steps(model, spec(sound={**SOUND.model_dump(), "mean": loud.mean, "std": loud.std}), torch.device("cpu"))
        scores.append(run(steps, [{"sound": sound}])[0]["scores"])
    assert (scores[0] - scores[1]).abs().max() > 1e-3


def test_a_schedule_uses_up_the_audio_half() -> None:
    """A block merges at most half of the patches, and never the class token: 12 blocks of 43 leave 21 of 512."""
    config = MAViLConfig(width=16, heads=2, classes=3, fusion_depth=0)  # ten seconds of sound, 12 blocks
    steps = MAViLSteps(network(config), torch.stack, WindowSourceFactory(SpectrogramWindows(SOUND), Clip(frames=8, stride=1, rate=2), None))
    sounds, clips = torch.randn(1, 1, 1024, 128), torch.randn(1, 3, 8, 224, 224)
    merge = MergeSchedules.from_options({"merge": [43] * 12})
    states = [
        WindowScores(RecordedWindow(WindowInput(sound=sounds[0])), "sound", merge, torch.zeros(3, dtype=torch.float64)),
        WindowScores(RecordedWindow(WindowInput(clip=clips[0])), "sight", merge, torch.zeros(3, dtype=torch.float64)),
    ]
    with torch.inference_mode():
        audible, seen = steps.step(states, [False, False])
    assert isinstance(audible, StepCompletion) and isinstance(seen, StepCompletion)
    assert audible.outputs["tokens"].tolist() == [513, 22]
    assert seen.outputs["tokens"].tolist() == [785, 785 - 12 * 43]
    assert torch.isfinite(audible.outputs["scores"]).all()


def test_each_half_can_have_a_schedule_of_its_own() -> None:
    model = network(replace(WITHOUT_FUSION, fusion_depth=3))
    steps = MAViLSteps(model, torch.stack, WindowSourceFactory(SpectrogramWindows(SOUND), Clip(frames=4, stride=1, rate=2), None))
    inputs = WindowInput(sound=torch.randn(1, 64, 32), clip=torch.randn(3, 4, 16, 16))
    counts = []
    for requested in ({}, {"merge": [1, 1]}, {"merge": [2, 1], "merge_sight": [0, 1]}, {"merge": [], "merge_sight": [2, 0]}):
        state = WindowScores(RecordedWindow(inputs), "both", MergeSchedules.from_options(requested), torch.zeros(5, dtype=torch.float64))
        with torch.inference_mode():
            (outcome,) = steps.step([state], [False])
        assert isinstance(outcome, StepCompletion)
        counts.append(outcome.outputs["tokens"].tolist())
    assert counts == [[18, 18], [18, 14], [18, 14], [18, 16]]


def test_a_bundle_serves_what_it_was_trained_for() -> None:
    sound = {"sound": noise(STRIDE)}
    separate, fused = (
        mavil_steps(network(config), spec(), torch.device("cpu")) for config in (WITHOUT_FUSION, replace(WITHOUT_FUSION, fusion_depth=3))
    )
    with pytest.raises(InvalidInput, match="use: both: this bundle classifies sound and sight apart"):
        separate.start([sound], [{"use": "both"}])
    with pytest.raises(InvalidInput, match="use: sound: this bundle classifies sound and sight together"):
        fused.start([sound], [{"use": "sound"}])
    with pytest.raises(InvalidInput, match="video: this bundle needs a clip"):
        fused.start([sound], [{}])
    with pytest.raises(InvalidInput, match="audio: this bundle needs sound"):
        separate.start([{}], [{"use": "sound"}])
    with pytest.raises(ValueError, match="MAViL needs both"):
        mavil_steps(network(), spec(sound=None), torch.device("cpu"))


FRAMES = np.random.default_rng(0).integers(0, 256, (60, 24, 40, 3), np.uint8)
PIXELS = Preprocess(image_size=16, short_side=16, fit="squeeze", interpolation="bilinear", mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))


def video_job(count: int = 60, fps: float = 10.0) -> dict[str, Tensor]:
    """Draw a video without loss, all of whose frames differ."""
    file = clip(every(count, fps), container="matroska", codec="ffv1", pixels="bgr0", size=(24, 40), frames=list(FRAMES[:count]))
    info = torch.tensor([40.0, 24.0, fps, count, count / fps], dtype=torch.float64)
    return {"video": torch.frombuffer(bytearray(file), dtype=torch.uint8), "info": info}


def squeeze(numbers: Sequence[int]) -> Tensor:
    """Resize to (3, T, 16, 16) by the rule of the specification, section 4."""
    pixels = F.interpolate(torch.from_numpy(FRAMES[list(numbers)]).permute(0, 3, 1, 2) / 255, (16, 16), mode="bilinear")
    return ((pixels - torch.tensor(PIXELS.mean).view(3, 1, 1)) / torch.tensor(PIXELS.std).view(3, 1, 1)).transpose(0, 1)


@pytest.mark.parametrize(
    ("count", "requested", "clips"),
    [
        (60, {}, [[0, 5, 10, 15]]),
        (60, {"views": 3}, [[0, 5, 10, 15], [20, 25, 30, 35], [40, 45, 50, 55]]),
        (60, {"start_s": 1.0, "end_s": 3.5, "views": 2}, [[10, 15, 20, 25], [15, 20, 25, 30]]),
        (12, {}, [[0, 5, 10, 0]]),
        (60, {"start_s": 5.5}, [[55, 55, 55, 55]]),
    ],
)
def test_sight_alone_is_the_mean_of_its_clips(count: int, requested: dict[str, Any], clips: list[list[int]]) -> None:
    """The clips have two frames a second, from the start or spread over the video; a short video is repeated."""
    model = network()
    steps = mavil_steps(model, spec(preprocess=PIXELS), torch.device("cpu"))
    (answer,) = run(steps, [video_job(count)], **requested)
    with torch.inference_mode():
        expected = model.forward_video(torch.stack([squeeze(numbers) for numbers in clips])).scores.mean(dim=0)
    torch.testing.assert_close(answer["scores"], expected, atol=1e-5, rtol=0)


def test_audio_window_pairs_with_clip_of_same_start() -> None:
    """Windows begin every 0.64 s; the last clip begins two seconds before the end of the video."""
    model, sound = network(replace(WITHOUT_FUSION, fusion_depth=3)), noise(8 * STRIDE)
    steps = mavil_steps(model, spec(preprocess=PIXELS), torch.device("cpu"))
    (answer,) = run(steps, [{"sound": sound, **video_job(50)}])
    first = [0, 6, 12, 19, 25, 30, 30, 30]
    clips = torch.stack([squeeze([number + 5 * i for i in range(4)]) for number in first])
    windows = [spectrogram(sound[k * STRIDE : k * STRIDE + STRIDE + 240], 64, AUDIOSET, FbankConfig(mel_bins=32)) for k in range(8)]
    with torch.inference_mode():
        expected = model(torch.stack(windows), clips).scores.mean(dim=0)
    torch.testing.assert_close(answer["scores"], expected, atol=1e-5, rtol=0)


def test_frames_that_are_given_are_the_clip_of_every_window() -> None:
    model, sound = network(replace(WITHOUT_FUSION, fusion_depth=3)), noise(2 * STRIDE)
    steps = mavil_steps(model, spec(preprocess=PIXELS), torch.device("cpu"))
    (inputs,) = run(steps, [{"sound": sound, "frames": torch.from_numpy(FRAMES[[0, 5, 10, 15]])}], windows=1)
    (decoded,) = run(steps, [{"sound": sound, **video_job()}], windows=1)
    torch.testing.assert_close(inputs["scores"], decoded["scores"], atol=1e-6, rtol=0)


def test_a_video_that_cannot_be_read_is_refused_in_a_sentence() -> None:
    job = video_job()
    job["video"] = job["video"][:3000]
    steps = mavil_steps(network(), spec(preprocess=PIXELS), torch.device("cpu"))
    with pytest.raises(InvalidInput):
        run(steps, [job], views=3)
    with pytest.raises(InvalidInput, match="does not define how frames are prepared"):
        mavil_steps(network(), spec(), torch.device("cpu")).start([job], [{}])
