"""Cost of a clip to a running service: `python -m benchmarks.actions_service CLIP`. Needs `bundles/actions` and a bundle that classifies.

a. Latency of a classification while a clip is watched, and of one alone, in turns: median and 95th percentile.
b. Memory of the worker and of the process that reads videos for it, at most, while clips of 10 s and of nearly 120 s are watched. The
   longer one is the same packets again and again. `--long-side` shrinks what the pose network sees, so that two minutes pass quickly.
c. Frames a second of as many clips at once as there are CPUs, against the pose network's best alone: over numbers of threads and of
   sessions side by side.
"""

from __future__ import annotations

import argparse
import io
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from shutil import copytree

import av
import psutil
import torch

from benchmarks import machine, process_stats
from benchmarks.service import running
from models.bundle import Bundle, member_reference, read, write
from models.bundle_schema import Role
from models.loading import load
from models.media.video import ClipLimits, Frames
from models.systems.onnx.pose_detector import PoseGraph
from opsin import Client

BUNDLES = Path("bundles")
PICTURE = Path("docs/pictures/flags/nepal.png")
LENGTHS_S = (10.0, 115.0)
TIMEOUT_S = 3600.0
PAUSE_S = 0.02
ALONE_S = 1.5
"""How much of the clip the network alone sees."""
SETTLED_S = 2.0
"""After a cancelled clip, until the worker has dropped it."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("clip", type=Path)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--requests", type=int, default=60, help="classifications of a round, alone and with a clip")
    parser.add_argument("--lengths", type=float, nargs="*", default=LENGTHS_S, help="seconds of the clips whose memory is compared")
    parser.add_argument("--long-side", type=int, help="pixels that the pose network sees while memory is measured")
    parser.add_argument("--at-once", type=float, default=4.0, help="seconds of each of the clips that are watched at once; 0: none")
    options = parser.parse_args()
    print("\n".join(machine.describe().lines()))
    clip = options.clip.read_bytes()
    best = _best_alone(clip) if options.at_once else 0.0
    with running(BUNDLES) as url, Client(url, timeout=TIMEOUT_S) as client:
        if options.rounds:
            _latency(client, repeat_clip(clip, LENGTHS_S[-1]), options.rounds, options.requests)
        if options.at_once:
            _throughput(client, repeat_clip(clip, options.at_once), options.at_once, best)
    with _seen_at(options.long_side) as bundles, running(bundles) as url, Client(url, timeout=TIMEOUT_S) as client:
        for seconds in options.lengths:
            _memory(client, repeat_clip(clip, seconds), seconds)


def repeat_clip(clip: bytes, seconds: float) -> bytes:
    """Repeat the video of a clip up to a number of seconds, without decoding it."""
    file = io.BytesIO()
    with av.open(io.BytesIO(clip)) as source, av.open(file, "w", format="mp4") as made:
        video = source.streams.video[0]
        stream = made.add_stream_from_template(video)
        packets = [(packet, packet.pts or 0, packet.dts or 0) for packet in source.demux(video) if packet.size]
        assert video.time_base is not None
        start, tick = min(pts for _, pts, _ in packets), float(video.time_base)
        length = max(pts for _, pts, _ in packets) - start + packets[1][2] - packets[0][2]
        for shift in range(0, round(seconds / tick), length):
            for packet, pts, dts in packets:
                if (pts - start + shift) * tick < seconds:
                    packet.pts, packet.dts, packet.stream, packet.time_base = pts + shift, dts + shift, stream, video.time_base
                    made.mux(packet)
    return file.getvalue()


def _latency(client: Client, clip: bytes, rounds: int, requests: int) -> None:
    alone: list[float] = []
    with_clip: list[float] = []
    for _ in range(rounds):
        alone += _classify(client, requests)
        job = client.actions(clip, wait=False, timeout=TIMEOUT_S)
        while (job.status().details["progress"] or {"done": 0})["done"] < 2:
            time.sleep(PAUSE_S)
        with_clip += _classify(client, requests)
        running_still = job.status().state == "running"
        job.cancel()
        if not running_still:
            raise SystemExit("the clip was over before the classifications were: ask for fewer --requests")
        time.sleep(SETTLED_S)
    for name, taken in (("alone", alone), ("with a clip", with_clip)):
        median, slow = 1000 * statistics.median(taken), 1000 * statistics.quantiles(taken, n=20)[-1]
        print(f"a. a classification {name}: median {median:.1f} ms, p95 {slow:.1f} ms")


def _classify(client: Client, count: int) -> list[float]:
    taken = []
    for _ in range(count):
        started_at = time.perf_counter()
        client.classify(PICTURE)
        taken.append(time.perf_counter() - started_at)
        time.sleep(PAUSE_S)
    return taken


@contextmanager
def _seen_at(long_side: int | None) -> Iterator[Path]:
    """Bundles whose pose network sees frames at this size."""
    if long_side is None:
        yield BUNDLES
        return
    with tempfile.TemporaryDirectory() as folder:
        root, pipeline = Path(folder), _pipeline()
        members = pipeline.members()
        pose = members["pose"]
        spec = pose.spec.model_copy(update={"config": {**pose.spec.config, "long_side": long_side}})
        copytree(members["actions"].path, root / members["actions"].spec.name / members["actions"].spec.version)
        changed: Mapping[Role, Bundle] = {**members, "pose": write(root, spec, pose.weights_path)}
        made = {role: member_reference(bundle) for role, bundle in changed.items()}
        write(root, pipeline.spec.model_copy(update={"members": made}), pipeline.weights_path)
        yield root


def _pipeline() -> Bundle:
    return read(max((BUNDLES / "actions").iterdir()))


def _best_alone(clip: bytes) -> float:
    """Frames a second of the pose network alone, on frames in memory, at the best number of threads and sessions."""
    pipeline, cpus = _pipeline(), len(os.sched_getaffinity(0))
    assert pipeline.spec.clip is not None
    best = 0.0
    for threads, sessions in {(cpus, 1), (1, cpus), (1, 1)}:
        torch.set_num_threads(threads)
        graphs = [load(pipeline.members()["pose"]).model for _ in range(sessions)]
        assert isinstance(graphs[0], PoseGraph)
        frames = Frames(clip, pipeline.spec.clip.rate, ClipLimits(), end=ALONE_S, long_side=graphs[0].config.long_side)
        pixels = [torch.from_numpy(frame.pixels)[None] for frame in frames.take(sys.maxsize)]

        def look(graph: torch.nn.Module, pixels: list[torch.Tensor] = pixels) -> None:
            for one in pixels:
                graph(one)

        with ThreadPoolExecutor(sessions) as pool:
            list(pool.map(lambda graph, first=pixels[0]: graph(first), graphs))
            started_at = time.perf_counter()
            list(pool.map(look, graphs))
        speed = sessions * len(pixels) / (time.perf_counter() - started_at)
        print(f"c. the pose network alone, {sessions} session(s) of {threads} thread(s): {speed:.2f} frames/s")
        best = max(best, speed)
    return best


def _throughput(client: Client, clip: bytes, seconds: float, best: float) -> None:
    clips, rate = len(os.sched_getaffinity(0)), _pipeline().spec.clip
    assert rate is not None
    started_at = time.perf_counter()
    with ThreadPoolExecutor(clips) as pool:
        list(pool.map(lambda _: client.actions(clip, timeout=TIMEOUT_S), range(clips)))
    speed = clips * round(seconds * rate.rate) / (time.perf_counter() - started_at)
    print(f"c. {clips} clips of {seconds:g} s at once over HTTP: {speed:.2f} frames/s, {speed / best:.2f} of the best alone")


def _memory(client: Client, clip: bytes, seconds: float) -> None:
    with process_stats.largest(_worker_bytes, every=0.1) as largest:
        started_at = time.perf_counter()
        found = client.actions(clip, timeout=TIMEOUT_S)
        spent = time.perf_counter() - started_at
    assert found.video is not None
    worker, reader = (largest.get(name, 0) / 2**20 for name in ("worker", "reader"))
    print(
        f"b. a clip of {found.video['duration_s']:.0f} s: worker at most {worker:.0f} MiB, reader of videos {reader:.0f} MiB; "
        f"{len(found.people)} people, {spent / seconds:.2f} seconds for a second"
    )


def _worker_bytes() -> dict[str, float]:
    """Resident memory of the worker, and of the largest process that reads videos for it."""
    try:
        if (worker := process_stats.worker()) is None:
            return {}
        readers = [child.memory_info().rss for child in worker.children()]
        return {"worker": worker.memory_info().rss, "reader": max(readers, default=0)}
    except psutil.Error:
        return {}


if __name__ == "__main__":
    main()
