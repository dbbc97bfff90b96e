"""Measures clips and sound: `python -m benchmarks.clips`. Networks have published sizes and random weights.

Figures are ratios within one run, of measurements that take turns:

- **merging**, **sound**: speed with merging ÷ without, as a share of the ratio of the blocks' operations: clips of 1,569 tokens, and
  spectrograms of 513. One thread, float32.
- **fbank**: seconds that become a spectrogram ÷ of the pass over it, 10.24 s of sound and ViT-B, one thread.
- **served**: views/s of the service with 8 clients ÷ of its network in a loop over batches that lie ready, at the best size: as the worker
  runs it, its layers packed, and in plain PyTorch. One thread.
- **overlap**: seconds of one request ÷ of the longer one of decoding alone and computing alone. One thread computes, another CPU is free.
- **reversible**: training memory (without gradients) and inference throughput of Rev-MViT compared with the MViT of its size, at the
  published depth and three times as deep.
"""

from __future__ import annotations

import argparse
import io
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import av
import httpx2
import numpy as np
import torch

from benchmarks import machine, reference, service
from benchmarks.merging import Trunk, block_macs
from benchmarks.reversible import compare_with_plain, cpu_seconds, ready
from benchmarks.rounds import FigureRounds, RoundsFigure, show
from kernels.malloc import keep_freed_memory
from models.bundle import Bundle, BundleSpec
from models.bundle_schema import Clip, FileDigest, Preprocess
from models.loading import load
from models.media.fbank import FbankConfig
from models.merge_schedule import MergeSchedule
from models.systems.clips.steps import ClipState
from models.systems.mae_st.model import VideoMAE, VideoMAEConfig
from models.systems.mavil.model import MAViL, MAViLConfig
from models.systems.mavil.preprocessing import spectrograms
from models.systems.mvit.model import PUBLISHED, MViTConfig
from models.systems.mvit.reversible import PUBLISHED as REVERSIBLE
from models.systems.mvit.reversible import RevMViTConfig

Size = Literal["published", "tiny"]
FPS = 30
CLIENTS, VIEWS = 8, 5
STAGGER_S = 1.0
"""Time in seconds between the starts of two clients."""
OVERLAPPED = 10
"""Views of the one request."""
BATCHES = (1, 2, 4, 8)
CLASSES = 400
REQUEST_SECONDS = 600.0


@dataclass(frozen=True)
class Sizes:
    """The networks that are measured, and videos for them."""

    clips: Mapping[str, tuple[VideoMAEConfig, tuple[int, ...]]]
    """Name → config, and the tokens merged in each block in turn."""
    sound: MAViLConfig
    sound_r: tuple[int, ...]
    served: VideoMAEConfig
    plain: MViTConfig
    reversible: RevMViTConfig
    seconds: float
    """Length of a video."""
    frame: tuple[int, int]
    """Height and width in pixels."""


_LITTLE = VideoMAEConfig(frames=4, image_size=32, patch_size=8, width=32, depth=2, heads=2, classes=CLASSES)
_SHALLOW: dict[str, Any] = {"image_size": 32, "frames": 4, "width": 8, "classes": CLASSES, "kv_stride": (1, 4, 4)}
SIZES: Mapping[Size, Sizes] = {
    "published": Sizes(
        clips={
            "MAE-ST ViT-L": (VideoMAEConfig(), (65,)),
            "MAE-ST ViT-B": (VideoMAEConfig(width=768, depth=12, heads=12), (65, 130)),
        },
        sound=MAViLConfig(fusion_depth=0),
        sound_r=(20, 40),
        served=VideoMAEConfig(frames=8, image_size=112, width=384, depth=12, heads=6),
        plain=PUBLISHED["mvitv1_b_16x4"],
        reversible=REVERSIBLE["rev_mvit_b_16x4"],
        seconds=10.0,
        frame=(256, 340),
    ),
    "tiny": Sizes(
        clips={"tiny": (_LITTLE, (4,))},
        sound=MAViLConfig(audio_frames=64, mel_bins=32, audio_patch_size=8, width=32, depth=2, heads=2, fusion_depth=0, image_size=32),
        sound_r=(4,),
        served=_LITTLE,
        plain=replace(PUBLISHED["mvitv1_b_16x4"], **_SHALLOW),
        reversible=replace(REVERSIBLE["rev_mvit_b_16x4"], **_SHALLOW),
        seconds=1.0,
        frame=(48, 64),
    ),
}


@dataclass(frozen=True)
class ClipBenchmark:
    """Things that all parts of a run share."""

    sizes: Sizes
    rounds: int
    seconds: float
    """Length of a load."""
    log: Callable[[str], None]


@dataclass(frozen=True)
class Blocks:
    """Sizes of the half of a MAViL that hears, for `benchmarks.merging.block_macs`."""

    patches: int
    width: int
    depth: int
    mlp_ratio: float
    special_tokens: int = 1


def merging(ground: ClipBenchmark) -> list[RoundsFigure]:
    figures = []
    for name, (config, schedules) in ground.sizes.clips.items():
        model, clips = ready(VideoMAE(config)), torch.randn(1, *config.clip_shape)
        figures += _measure_merging(ground, name, config, schedules, partial(model, clips))
    return figures


def sound(ground: ClipBenchmark) -> list[RoundsFigure]:
    config = ground.sizes.sound
    audio, bank = ready(MAViL(config)), torch.randn(1, 1, config.audio_frames, config.mel_bins)
    blocks = Blocks(config.audio_patches, config.width, config.depth, config.mlp_ratio)
    return _measure_merging(ground, "MAViL, sound", blocks, ground.sizes.sound_r, partial(audio.forward_audio, bank))


def _measure_merging(
    ground: ClipBenchmark, name: str, counted: Trunk, schedules: Sequence[int], call: Callable[..., object]
) -> list[RoundsFigure]:
    """Time one pass without merging and one of each schedule, round-robin."""
    ways = {r: MergeSchedule.constant(r) for r in (0, *schedules)}
    ideals = {r: block_macs(counted, ways[0]) / block_macs(counted, merge) for r, merge in ways.items()}
    rounds = {r: FigureRounds() for r in schedules}
    for number in range(ground.rounds + 1):
        turns = list(ways) if number % 2 else list(reversed(ways))
        took = {r: cpu_seconds(partial(call, merge=ways[r])) for r in turns}
        for r, found in rounds.items() if number else ():  # the first round pays for what happens only once
            found.note(took[0] / took[r] / ideals[r], times=took[0] / took[r], ideal=ideals[r], off_s=took[0], on_s=took[r])
            ground.log(f"merging: {name}, r = {r}, round {number}: {took[0] / took[r]:.3f} of {ideals[r]:.3f}")
    return [found.figure(f"merging: {name}, r = {r}", "≥ 0.95") for r, found in rounds.items()]


def fbank(ground: ClipBenchmark) -> list[RoundsFigure]:
    config = ground.sizes.sound
    model, rounds, bank = ready(MAViL(config)), FigureRounds(), FbankConfig(mel_bins=config.mel_bins)
    sound = 0.1 * torch.randn((config.audio_frames - 1) * bank.hop + bank.window)
    audio = spectrograms([sound], config.audio_frames, config=bank)
    for number in range(ground.rounds + 1):
        bank_s = cpu_seconds(lambda: spectrograms([sound], config.audio_frames, config=bank))
        pass_s = cpu_seconds(lambda: model.forward_audio(audio))
        if number:
            rounds.note(bank_s / pass_s, fbank_s=bank_s, pass_s=pass_s)
    ground.log(f"fbank: {statistics.median(rounds.values):.4f}")
    return [rounds.figure("fbank: spectrogram ÷ pass over it", "≤ 0.03")]


def measure_service(ground: ClipBenchmark) -> list[RoundsFigure]:
    """Measure views/s, each divided by the mean of the loop before and after it."""
    name, rounds, plain_rounds = f"served: {CLIENTS} clients ÷ a loop of batches", FigureRounds(), FigureRounds()
    model, plain, video = ready(VideoMAE(ground.sizes.served)), VideoMAE(ground.sizes.served).eval(), video_of(ground.sizes)
    before, plain_before = _loop_speed(model), _loop_speed(plain)
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as folder:
        write_bundle(Path(folder), ground.sizes.served)
        with service.running(Path(folder), threads=1) as url:
            _request(url, video, 1)
            for number in range(1, ground.rounds + 1):
                rate = _rate(url, video, ground.seconds)
                after, plain_after = _loop_speed(model), _loop_speed(plain)
                mean, plain_mean = (before + after) / 2, (plain_before + plain_after) / 2
                rounds.note(rate / mean, served_per_s=rate, loop_per_s=mean)
                plain_rounds.note(rate / plain_mean, served_per_s=rate, loop_per_s=plain_mean)
                found = f"{rate:.2f} views/s; the loop {before:.2f} before and {after:.2f} after, plain {plain_after:.2f}"
                ground.log(f"{name}, round {number}: {found}")
                before, plain_before = after, plain_after
    return [rounds.figure(name, "≥ 0.90"), plain_rounds.figure(f"{name} in plain PyTorch", "≥ 0.90")]


def _rate(url: str, video: bytes, seconds: float) -> float:
    """Views/s of clients that begin one after the other: of requests that reach beyond the seconds that count, their share counts."""
    first = time.perf_counter() + STAGGER_S * CLIENTS
    last = first + seconds

    def ask(client: int) -> float:
        time.sleep(STAGGER_S * client)
        views, started_at = 0.0, time.perf_counter()
        while started_at < last:
            _request(url, video, VIEWS)
            ended = time.perf_counter()
            views += VIEWS * max(0.0, min(ended, last) - max(started_at, first)) / (ended - started_at)
            started_at = ended
        return views

    with ThreadPoolExecutor(CLIENTS) as pool:
        return sum(pool.map(ask, range(CLIENTS))) / seconds


def _loop_speed(model: VideoMAE, seconds: float = 2.0) -> float:
    """Views/s at the best batch size."""
    best = 0.0
    for batch in BATCHES:
        clips, count, started_at = torch.randn(batch, *model.config.clip_shape), 0, time.perf_counter()
        with torch.inference_mode():
            while time.perf_counter() - started_at < seconds:
                model(clips)
                count += batch
        best = max(best, count / (time.perf_counter() - started_at))
    return best


def overlap(ground: ClipBenchmark) -> list[RoundsFigure]:
    name, rounds, video = "overlap: one request ÷ max(decode, compute)", FigureRounds(), video_of(ground.sizes)
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as folder:
        bundle = write_bundle(Path(folder), ground.sizes.served)
        steps = load(bundle, packed=True).steps
        assert steps is not None
        height, width = ground.sizes.frame
        info = [width, height, FPS, round(ground.sizes.seconds * FPS), ground.sizes.seconds]
        job = {"video": torch.frombuffer(bytearray(video), dtype=torch.uint8), "info": torch.tensor(info, dtype=torch.float64)}
        model = ready(VideoMAE(ground.sizes.served))

        def decode() -> None:
            (viewing,) = steps.steps.start([job], [{"views": OVERLAPPED, "crops": 1}])
            frames = cast(ClipState, viewing).frames
            for view in range(OVERLAPPED):
                frames.take(view, time.monotonic() + REQUEST_SECONDS)
            frames.close()

        def compute() -> None:
            clip = torch.randn(1, *model.config.clip_shape)
            with torch.inference_mode():
                for _ in range(OVERLAPPED):
                    model(clip)

        with service.running(Path(folder), threads=1) as url:
            for number in range(ground.rounds + 1):
                decode_s, compute_s, wall_s = (_seconds(part) for part in (decode, compute, lambda: _request(url, video, OVERLAPPED)))
                if number:
                    rounds.note(wall_s / max(decode_s, compute_s), wall_s=wall_s, decode_s=decode_s, compute_s=compute_s)
                    ground.log(f"{name}, round {number}: {wall_s:.3f} s; decoding {decode_s:.3f}, computing {compute_s:.3f}")
    return [rounds.figure(name, "≤ 1.1")]


def _request(url: str, video: bytes, views: int) -> None:
    data = {"views": views, "crops": 1}
    httpx2.post(f"{url}/v1/classify", files={"video": video}, data=data, timeout=REQUEST_SECONDS).raise_for_status()


def reversible(ground: ClipBenchmark) -> list[RoundsFigure]:
    sizes, small = ground.sizes, SIZES["tiny"]
    return compare_with_plain(sizes.plain, sizes.reversible, (small.plain, small.reversible), ground.rounds, ground.log)


def write_bundle(root: Path, config: VideoMAEConfig) -> Bundle:
    torch.manual_seed(0)
    model, side = VideoMAE(config), config.image_size
    spec = BundleSpec(
        name="clips",
        version="1",
        task="actions",
        architecture="video_mae",
        config=asdict(config),
        preprocess=Preprocess(image_size=side, short_side=side * 8 // 7, interpolation="bilinear", mean=(0.45,) * 3, std=(0.225,) * 3),
        clip=Clip(frames=config.frames, stride=4),
        labels=[f"class {index}" for index in range(config.classes)],
        license="CC0-1.0",
        description="Random weights for benchmarks",
        weights=FileDigest(sha256="0" * 64, bytes=0),
    )
    return reference.write(root, spec, {name: tensor.contiguous() for name, tensor in model.state_dict().items()})


def video_of(sizes: Sizes) -> bytes:
    """Encode an MP4 (H.264) of a moving texture."""
    (height, width), count, file = sizes.frame, round(sizes.seconds * FPS), io.BytesIO()
    coarse = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (1, 3, height // 8, width // 8)).astype(np.float32))
    texture = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bicubic").clamp(0, 255)[0].permute(1, 2, 0)
    pixels = np.ascontiguousarray(texture.numpy().astype(np.uint8))
    with av.open(file, "w", format="mp4") as made:
        stream = made.add_stream("libx264", rate=FPS)
        stream.height, stream.width, stream.pix_fmt = height, width, "yuv420p"
        for number in range(count):
            frame = av.VideoFrame.from_ndarray(np.roll(pixels, (number, 2 * number), (0, 1)), format="rgb24")
            frame.pts, frame.time_base = number, Fraction(1, FPS)
            made.mux(stream.encode(frame))
        made.mux(stream.encode(None))
    return file.getvalue()


def _seconds(call: Callable[[], object]) -> float:
    started_at = time.perf_counter()
    call()
    return time.perf_counter() - started_at


PARTS: Mapping[str, Callable[[ClipBenchmark], list[RoundsFigure]]] = {
    "fbank": fbank,
    "merging": merging,
    "sound": sound,
    "served": measure_service,
    "overlap": overlap,
    "reversible": reversible,
}


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.clips", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], default=[], metavar="part", help=f"{', '.join(PARTS)} (default: all)")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=30.0, help="of counted load per measurement (default: %(default)s)")
    parser.add_argument("--size", choices=list(SIZES), default="published")
    parser.add_argument("--json", type=Path, help="write the figures here (default: a file in benchmarks/results/)")
    options = parser.parse_args(arguments)
    console = machine.show()
    torch.set_num_threads(1)
    keep_freed_memory()  # as the worker does
    ground = ClipBenchmark(SIZES[options.size], options.rounds, options.seconds, console.print)
    figures = [figure for part in options.parts or PARTS for figure in PARTS[part](ground)]
    show(figures, console)
    content = {"size": options.size, "rounds": options.rounds, "figures": [asdict(figure) for figure in figures]}
    machine.write_result(parser.prog, content, options.json)


if __name__ == "__main__":
    main()
