"""How fast a pipeline of actions watches a clip: `python -m benchmarks.actions BUNDLE CLIP`.

Prints the real-time factor by stage (seconds of work for a second of video), frames a second against two bars that are measured in turns
with it, and the largest state of a job against the length of its clip. The bars: a straightforward loop that decodes with PyAV in this
process and asks the same network frame by frame; and that network alone, on frames that lie in memory as the pipeline hands them over.

`OMP_NUM_THREADS=1` gives it what one slot of a worker has.
"""

from __future__ import annotations

import argparse
import io
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from numpy.typing import NDArray

from models.bundle import read
from models.loading import LoadedStepwiseModel, load
from models.media.video import ClipInfo, ClipLimits, Frames, probe
from models.systems.actions.detection_loop import CROPS_AT_ONCE, FRAMES_AT_ONCE
from models.systems.actions.detection_scale import SCALES, Detail
from models.systems.actions.job_stats import STAGES
from models.systems.actions.pipeline import ActionPipeline
from models.systems.actions.pose_estimator import DetectorInput

LIMITS = ClipLimits(seconds=3600, frames=200_000, pixels=2**31 - 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path, help="folder NAME/VERSION of a pipeline")
    parser.add_argument("clip", type=Path)
    parser.add_argument("--seconds", type=float, default=4.0, help="how much of the clip is watched")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--detail", choices=list(SCALES), help="how closely people are looked for [default: the bundle's]")
    options = parser.parse_args()
    model = load(read(options.bundle))
    if model.steps is None or not isinstance(model.model, ActionPipeline):
        parser.error(f"{options.bundle}: no pipeline of actions")
    data = options.clip.read_bytes()
    facts = probe(data, LIMITS)
    seconds = min(options.seconds, facts.duration_s)
    print(f"{options.clip.name}: {facts.width} × {facts.height}, {facts.fps:g} frames/s; {seconds:g} s at {model.model.rate:g} rows/s")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} thread(s), PyAV {av.__version__}")
    detail = options.detail or model.model.config.detail
    print(f"detail {detail}: {model.model.pose_estimator.long_side(detail) or 'whole'} pixels, {model.model.rows(detail)} rows a step")
    _speed(model.model, model.steps, data, facts, seconds, options.rounds, detail)
    for share in (0.5, 1.0):
        state = _watch(model.steps, data, facts, share * seconds, detail)[1]
        print(f"largest state of a job of {share * seconds:g} s: {state / 2**20:.1f} MiB")


def _speed(
    model: ActionPipeline, steps: LoadedStepwiseModel, data: bytes, facts: ClipInfo, seconds: float, rounds: int, detail: Detail
) -> None:
    """Interleaved, so that both see the same machine."""
    spent, ours, plain, alone = [], [], [], []
    views = _views(model, data, seconds, detail)
    for _ in range(rounds):
        started_at = time.perf_counter()
        outputs, _ = _watch(steps, data, facts, seconds, detail)
        ours.append(time.perf_counter() - started_at)
        spent.append(outputs["stages"])
        started_at = time.perf_counter()
        frames = _loop(model, data, seconds, detail)
        plain.append(time.perf_counter() - started_at)
        started_at = time.perf_counter()
        for first in range(0, len(views), FRAMES_AT_ONCE):
            _look(model, views[first : first + FRAMES_AT_ONCE])
        alone.append(time.perf_counter() - started_at)
    print("  ".join(f"{name} {value / seconds:.3f}" for name, value in zip(STAGES, np.median(spent, axis=0), strict=True)), end="  ")
    print(f"whole {np.median(ours) / seconds:.3f} seconds for a second of video")
    print(f"{len(views) / np.median(ours):.1f} frames/s")
    for name, others, looked in (("a straightforward loop", plain, frames), ("the network that sees people, alone", alone, len(views))):
        ratios = np.array(others) / looked * len(views) / np.array(ours)
        print(f"  {name} {looked / np.median(others):.1f}: {np.median(ratios):.2f} ({ratios.min():.2f}..{ratios.max():.2f}) times as fast")


def _views(model: ActionPipeline, data: bytes, seconds: float, detail: Detail) -> list[DetectorInput]:
    frames = Frames(data, model.rate, LIMITS, end=seconds, long_side=model.pose_estimator.long_side(detail))
    return [DetectorInput(frame.pixels, *frame.size, detail) for frame in frames.take(sys.maxsize)]


def _watch(steps: LoadedStepwiseModel, data: bytes, facts: ClipInfo, seconds: float, detail: Detail) -> tuple[dict[str, NDArray[Any]], int]:
    """Watch a clip and return the answer and the largest state in bytes."""
    info = np.array([facts.width, facts.height, facts.fps, facts.frames, facts.duration_s])
    [state] = steps.start([{"video": np.frombuffer(data, np.uint8).copy(), "info": info}], [{"end_s": seconds, "detail": detail}])
    largest = 0
    while True:
        [outcome] = steps.step([state], [False])
        if not hasattr(outcome, "state"):
            return dict(outcome.outputs), largest
        state = outcome.state
        largest = max(largest, state.nbytes)


def _loop(model: ActionPipeline, data: bytes, seconds: float, detail: Detail) -> int:
    """Run the obvious loop: decode and convert every frame, and detect people in those of the grid. Return their number."""
    looked = 0
    for frame, pixels in _decode(data):
        if frame > seconds:
            break
        if frame * model.rate >= looked - 1e-6:
            _look(model, [DetectorInput.from_frame(pixels, detail)])
            looked += 1
    return looked


def _look(model: ActionPipeline, views: Sequence[DetectorInput]) -> None:
    """Find people and ask the pose network of each."""
    for found in model.pose_estimator.find(views, [model.config.people] * len(views)):
        for crops in () if found.crops is None else found.crops.split(CROPS_AT_ONCE):
            if len(crops):
                model.pose_estimator.read(crops)


def _decode(data: bytes) -> Iterator[tuple[float, NDArray[np.uint8]]]:
    with av.open(io.BytesIO(data)) as container:
        start: float | None = None
        for frame in container.decode(video=0):
            start = frame.time if start is None else start
            yield frame.time - start, frame.to_ndarray(format="rgb24")


if __name__ == "__main__":
    main()
