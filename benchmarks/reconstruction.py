"""Reconstruction with MCC: `python -m benchmarks.reconstruction BUNDLE`. Ratios of one run.

a. Adaptive and dense queries, at the bundle's spacing and at half of it, without HTTP and queue: queries, seconds, the IoU
   of occupied cells, the largest part that was missed (26-connected), and queries ÷ (coarse lattice + occupied cells and their neighbours).
b. A scene that is kept, after it was asked at the bundle's spacing: the same again (as for another format), twice and half the
   spacing, and the same from scratch: seconds. All go to the worker that answered first, which has the answers in its cache.
c. Scenes/s of the service with 8 clients, and with one.
d. The query step of a dense level as a share of the rate at which this machine multiplies large matrices.
e. `--large`: ViT-B at its published size with random weights: seconds of encoding and of a step of one scene. Its scenes are not surfaces.

Scenes are views of held-out objects that a recipe renders (`--renders RECIPE`), folders as training reads them (`--scenes`: image.png;
points.npy, or depth.npy with camera.json; mask.png), or else balls and boxes that are made here. Scenes of an untrained network are not
surfaces: give a trained bundle.
"""

from __future__ import annotations

import argparse
import io
import json
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage

from benchmarks import machine
from benchmarks.service import running
from benchmarks.steps import spread
from models.bundle import Bundle, read
from models.bundle_schema import QuerySpace
from models.loading import LoadedStepwiseModel, StepOutputs, load
from models.registry import read_config
from models.systems.mcc.lattice import Lattice
from models.systems.mcc.model import MCC, MCCConfig
from models.systems.mcc.steps import ReconstructionSteps, query_macs
from server.media.depth import PinholeCamera, focal_length
from server.media.images import ImageDecoder
from server.tasks.base import Arrays
from server.tasks.reconstruct.schema import ReconstructOptions, ReconstructPlan
from server.tasks.reconstruct.task import ReconstructTask

CLIENTS = 8
SIDE = 2048
"""Side of the large matrices."""
HEIGHT, WIDTH, FOV = 240, 320, 60.0
"""Size and horizontal field of view, in pixels and degrees, of the scenes that are made here."""
EVERYWHERE = np.ones((3, 3, 3), bool)
TASK = ReconstructTask()
Files = dict[str, bytes]


@dataclass
class QueryComparison:
    """One scene at one spacing."""

    scene: str
    spacing: float
    adaptive_queries: int
    dense_queries: int
    bound: float
    """Queries of the coarse lattice, and occupied cells with their neighbours."""
    adaptive_seconds: float
    dense_seconds: float
    occupied: int
    iou: float
    largest_missed: int
    """Cells."""


@dataclass
class Again:
    """One scene that is kept, asked at another spacing."""

    scene: str
    spacing: float
    kept_seconds: float
    scratch_seconds: float


@dataclass
class PeakShare:
    """Floating point operations in a second, two of a multiply-accumulate."""

    rate: float
    peak: float


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconstruction", description=__doc__)
    parser.add_argument("bundle", type=Path, help="folder NAME/VERSION of a bundle")
    parser.add_argument("--scenes", type=Path, help="folder of scenes")
    parser.add_argument("--renders", type=Path, metavar="RECIPE", help="recipe whose held-out objects are the scenes")
    parser.add_argument("--cache", type=Path, default=Path(".cache/data"), help="of what --renders downloads and renders")
    parser.add_argument("--most", type=int, default=8, help="number of scenes; 0 leaves out a. and b.")
    parser.add_argument("--halves", type=int, default=3, help="number of scenes that are also asked at half the spacing")
    parser.add_argument("--seconds", type=float, default=20.0, help="of c., for each number of clients; 0 leaves it out")
    parser.add_argument("--large", action="store_true", help="also e.")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    machine.show()
    bundle = read(options.bundle)
    scenes = dict(scenes_of(options))
    steps = load(bundle).steps
    assert steps is not None
    spacing = (bundle.spec.space or QuerySpace()).spacing
    compared, again = [], []
    for number, (name, files) in enumerate(list(scenes.items())[: options.most]):
        halved = [spacing / 2] if number < options.halves else []
        compared += compare(steps, bundle, name, files, [spacing, *halved])
        again += kept_against_scratch(steps, bundle, name, files, [spacing, 2 * spacing, *halved])
    show(compared, again)
    rates = scenes_per_second(options.bundle, list(scenes.values())[:CLIENTS], options.seconds) if options.seconds else {}
    if rates:
        print(f"c. scenes/s  {CLIENTS} clients {rates[CLIENTS]:.2f}, one {rates[1]:.2f}: {rates[CLIENTS] / rates[1]:.2f} times")
    share = share_of_peak(steps, bundle, next(iter(scenes.values())))
    print(f"d. query step {share.rate / 1e9:.1f} GFLOP/s, large matrices {share.peak / 1e9:.1f}: {share.rate / share.peak:.0%}")
    large = published_size() if options.large else {}
    if large:
        print("e. ViT-B     " + ", ".join(f"{name} {value:.3g}" for name, value in large.items()))
    if options.json:
        figures = {
            "scenes": [asdict(one) for one in compared],
            "again": [asdict(one) for one in again],
            "scenes_per_second": rates,
            "query_step": asdict(share),
            "vit_b": large,
        }
        machine.write_result(parser.prog, {"figures": figures}, options.json)


def scenes_of(options: argparse.Namespace) -> Iterator[tuple[str, Files]]:
    if options.renders:
        return rendered_scenes(options.renders, options.cache)
    return read_scenes(options.scenes) if options.scenes else made_scenes()


def compare(steps: LoadedStepwiseModel, bundle: Bundle, name: str, files: Files, spacings: Sequence[float]) -> Iterator[QueryComparison]:
    for spacing in spacings:
        (adaptive, quick), (dense, slow) = (run_scene(steps, bundle, files, spacing, mode) for mode in ("adaptive", "dense"))
        lattice = Lattice(bundle.spec.space or QuerySpace(), spacing)
        found, everything = (occupied_cells(outputs, lattice) for outputs in (adaptive, dense))
        around = int(ndimage.binary_dilation(everything, EVERYWHERE).sum())
        parts, count = ndimage.label(everything & ~found, EVERYWHERE)
        coarse = lattice.count / lattice.coarse_stride() ** 3 * (2 if lattice.coarse_stride() == 4 else 1)
        yield QueryComparison(
            scene=name,
            spacing=spacing,
            adaptive_queries=int(adaptive["queries"][0]),
            dense_queries=int(dense["queries"][0]),
            bound=coarse + around,
            adaptive_seconds=quick,
            dense_seconds=slow,
            occupied=int(everything.sum()),
            iou=float((found & everything).sum() / max(1, (found | everything).sum())),
            largest_missed=int(np.bincount(parts.ravel())[1:].max()) if count else 0,
        )


def run_scene(
    steps: LoadedStepwiseModel,
    bundle: Bundle,
    files: Files,
    spacing: float,
    mode: str,
    latent: dict[str, NDArray[Any]] | None = None,
    scene: str = "",
) -> tuple[dict[str, NDArray[Any]], float]:
    """Return the outputs and the seconds they took. scene: name under which the worker caches them; empty: not cached."""
    arrays, plan = prepare(bundle, files, spacing, mode, latent)
    started_at = time.perf_counter()
    [state] = steps.start([arrays], [TASK.arguments(plan, {}) | {"scene": scene}])
    while True:
        outcome = steps.step([state], [False])[0]
        if isinstance(outcome, StepOutputs):
            return dict(outcome.outputs), time.perf_counter() - started_at
        state = outcome.state


def prepare(
    bundle: Bundle, files: Files, spacing: float, mode: str, latent: dict[str, NDArray[Any]] | None = None
) -> tuple[Arrays, ReconstructPlan]:
    camera: Any = {"fov": FOV} if "depth" in files else {}
    plan = TASK.plan(ReconstructOptions(spacing=spacing, mode=mode, **camera), bundle.spec)  # type: ignore[arg-type]
    decoder = ImageDecoder(50_000_000)
    return TASK.prepare(files, plan, bundle.spec, decoder)[0] if latent is None else TASK.prepare_followup(
        latent, plan, decoder.limits
    ), plan


def occupied_cells(outputs: dict[str, NDArray[Any]], lattice: Lattice, threshold: float = 0.1) -> NDArray[np.bool_]:
    grid = np.zeros(lattice.index_count, bool)
    grid[outputs["cells"][outputs["occupancy"] > threshold]] = True
    return grid.reshape(lattice.shape)


def kept_against_scratch(steps: LoadedStepwiseModel, bundle: Bundle, name: str, files: Files, spacings: Sequence[float]) -> Iterator[Again]:
    outputs, _ = run_scene(steps, bundle, files, (bundle.spec.space or QuerySpace()).spacing, "adaptive", scene=name)
    latent = {name: outputs[name] for name in TASK.kept_arrays}
    for spacing in spacings:
        _, again = run_scene(steps, bundle, files, spacing, "adaptive", latent, scene=name)
        _, scratch = run_scene(steps, bundle, files, spacing, "adaptive")
        yield Again(name, spacing, again, scratch)


def scenes_per_second(bundle: Path, scenes: Sequence[Files], seconds: float) -> dict[int, float]:
    """Scenes/s by number of clients."""
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as folder:
        root = Path(folder, "bundles")
        target = root / bundle.resolve().parent.name
        target.mkdir(parents=True)
        (target / bundle.resolve().name).symlink_to(bundle.resolve())
        with running(root, cache=Path(folder, "cache")) as url:
            return {clients: _rate(url, scenes, seconds, clients) for clients in (1, CLIENTS)}


def _rate(url: str, scenes: Sequence[Files], seconds: float, clients: int) -> float:
    ends = time.monotonic() + seconds

    def ask_until_the_end(number: int) -> int:
        done = 0
        with httpx2.Client(base_url=url, timeout=600) as http:
            while time.monotonic() < ends:
                files = scenes[(number + done) % len(scenes)]
                camera = {"fov": FOV} if "depth" in files else {}
                http.post("/v1/reconstruct", files=files, data={**camera, "format": "npz", "surface": "network"}).raise_for_status()
                done += 1
        return done

    started_at = time.monotonic()
    with ThreadPoolExecutor(clients) as pool:
        done = sum(pool.map(ask_until_the_end, range(clients)))
    return done / (time.monotonic() - started_at)


def share_of_peak(steps: LoadedStepwiseModel, bundle: Bundle, files: Files) -> PeakShare:
    """Return the best of some rounds of each, round-robin, on PyTorch's current threads."""
    arrays, plan = prepare(bundle, files, (bundle.spec.space or QuerySpace()).spacing, "dense")
    [state] = steps.start([arrays], [TASK.arguments(plan, {}) | {"scene": ""}])
    config = read_config(MCCConfig, bundle.spec.config)
    work = 2 * steps.cost(state) * query_macs(config)
    square = torch.rand(SIDE, SIDE)
    rates, peaks = [], []
    for _ in range(5):
        started_at = time.perf_counter()
        steps.step([state], [False])
        rates.append(work / (time.perf_counter() - started_at))
        started_at = time.perf_counter()
        torch.mm(square, square)
        peaks.append(2 * SIDE**3 / (time.perf_counter() - started_at))
    return PeakShare(max(rates), max(peaks))


def published_size() -> dict[str, float]:
    torch.manual_seed(0)
    config = MCCConfig()
    steps = LoadedStepwiseModel(ReconstructionSteps(MCC(config).eval().requires_grad_(False), torch.device("cpu")), torch.device("cpu"))
    across = np.linspace(-1.5, 1.5, config.seen_size, dtype=np.float32)
    x, y = np.meshgrid(across, across)
    job = {
        "pixels": np.zeros((config.image_size, config.image_size, 3), np.uint8),
        "seen": np.stack([x, y, 0.3 * x], axis=-1),
        "asks": np.array([10**8, 60**3]),
    }
    started_at = time.perf_counter()
    [state] = steps.start([job], [{"spacing": 0.1}])
    started = time.perf_counter()
    queries = steps.cost(state)
    steps.step([state], [False])
    ended = time.perf_counter()
    return {
        "encoding s": started - started_at,
        "step s": ended - started,
        "queries of a step": queries,
        "queries/s": queries / (ended - started),
    }


def made_scenes() -> Iterator[tuple[str, Files]]:
    """Fronts of balls and of boxes before a camera, coloured at random."""
    rng = np.random.default_rng(0)
    focal = focal_length(FOV, WIDTH)
    x, y = np.meshgrid((np.arange(WIDTH) + 0.5 - WIDTH / 2) / focal, (np.arange(HEIGHT) + 0.5 - HEIGHT / 2) / focal)
    for number in range(8):
        away, radius = rng.uniform(1, 2), rng.uniform(0.2, 0.4)
        square = x**2 + y**2 + 1
        inside = away**2 - square * (away**2 - radius**2)
        ball = np.where(inside > 0, (away - np.sqrt(np.maximum(inside, 0))) / square, 0)
        box = np.where(np.maximum(np.abs(x), np.abs(y)) * away < radius, away, 0)
        for kind, depth in (("ball", ball), ("box", box)):
            colour = rng.integers(0, 256, 3) * np.ones((HEIGHT, WIDTH, 1))
            yield f"{kind} {number}", {"image": _png(colour.astype(np.uint8)), "depth": _npy(depth.astype(np.float32))}


def rendered_scenes(path: Path, cache: Path) -> Iterator[tuple[str, Files]]:
    """Yield views of a recipe's held-out objects, round-robin: the first view of each object before any second one."""
    from starters.data.renders.scenes import RenderedScenes, Renders
    from training import phase_runner, recipe
    from training.data.rgbd_scenes import unproject

    plan = recipe.read(path)
    if not isinstance(plan.data, Renders):
        raise SystemExit(f"{path}: data is not of kind renders")
    source = plan.data.model_copy(update={"part": "test"}).open(phase_runner.preparation(plan, None, cache))
    assert isinstance(source, RenderedScenes)
    views = [view for shard in source.rendered for view in shard.views]
    turns = Counter[str]()
    order = []
    for number, name in enumerate(source.objects):
        order.append((turns[name], number))
        turns[name] += 1
    for turn, number in sorted(order):
        view = views[number]
        side = len(view["depth"])
        depth = torch.from_numpy(np.array(view["depth"]))
        focal = float(view["focal"]) * side
        points = unproject(depth, (focal, focal), (float(view["centre"][0]) * side, float(view["centre"][1]) * side))
        yield f"{source.objects[number]} {turn}", {"image": _png(np.array(view["image"])), "points": _npy(points.numpy())}


def read_scenes(folder: Path) -> Iterator[tuple[str, Files]]:
    for scene in sorted(path for path in folder.iterdir() if (path / "image.png").is_file()):
        image = (scene / "image.png").read_bytes()
        if (scene / "points.npy").is_file():
            points = np.load(scene / "points.npy", allow_pickle=False).astype(np.float32)
        else:
            camera = json.loads((scene / "camera.json").read_text(encoding="utf-8"))
            depth = np.load(scene / "depth.npy", allow_pickle=False).astype(np.float32)
            points = PinholeCamera(*camera["focal"], *camera["centre"]).unproject(np.where(depth > 0, depth, np.float32(np.nan)))
        mask = {"mask": (scene / "mask.png").read_bytes()} if (scene / "mask.png").is_file() else {}
        yield scene.name, {"image": image, "points": _npy(points), **mask}


def _png(pixels: NDArray[np.uint8]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


def _npy(array: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    return file.getvalue()


def show(compared: Sequence[QueryComparison], again: Sequence[Again]) -> None:
    for spacing in sorted({one.spacing for one in compared}, reverse=True):
        of = [one for one in compared if one.spacing == spacing]
        fewer = [one.dense_queries / one.adaptive_queries for one in of]
        faster = [one.dense_seconds / one.adaptive_seconds for one in of]
        print(f"a. spacing {spacing:g}: {len(of)} scenes, {spread([float(one.occupied) for one in of], 0)} occupied cells")
        print(f"   queries, dense ÷ adaptive       {spread(fewer, 2)}")
        shares = [seconds / queries for seconds, queries in zip(faster, fewer, strict=True)]
        print(f"   seconds, dense ÷ adaptive       {spread(faster, 2)}; ÷ that of queries {spread(shares, 2)}")
        print(f"   queries ÷ (coarse + around)     {spread([one.adaptive_queries / one.bound for one in of])}")
        print(f"   IoU {spread([one.iou for one in of], 4)}; largest missed part {max(one.largest_missed for one in of)} cells")
    for spacing in sorted({one.spacing for one in again}, reverse=True):
        times = [one.scratch_seconds / one.kept_seconds for one in again if one.spacing == spacing]
        print(f"b. spacing {spacing:g}: seconds, from scratch ÷ of a kept scene  {spread(times, 2)}")


if __name__ == "__main__":
    main()
