"""Classifiers of timm and transformers that come as ONNX files: `python -m benchmarks.onnx_classifiers [NETWORK …]`.

Each network is exported, imported by the command line and served. Its answers over HTTP are compared with those of the original network in
its own library, prepared by that library too. Then what the service does in the default layout is divided by P, the best plain loop of
decoding and ONNX Runtime on the same file in one process. Loop, service, loop, service, … take turns.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks import machine, onnx_exports, reference, service
from benchmarks.load import LoadReport
from benchmarks.serving import CLIENTS, FULL, QUICK, ServingDurations, best, burst, finalists, json_of, spread

NETWORKS = (*onnx_exports.TIMM, onnx_exports.TRANSFORMERS)
COMPARED = 10
"""Images whose logits are compared."""
MAX_DIFFERENCE = 1e-3
"""Largest difference of a logit."""


@dataclass(frozen=True)
class Network:
    name: str
    graph: Path
    bundles: Path
    """A folder of this bundle alone."""
    logits: NDArray[np.float32]
    """The original's, for each picture: (pictures, classes)."""
    scores: Path
    """Path of their softmax, a .npy."""

    @property
    def bundle(self) -> Path:
        return self.bundles / self.name / "1"


def prepare(name: str, folder: Path, pictures: Sequence[Image.Image]) -> Network:
    """Export the network and import the file, as a user would. Raises subprocess.CalledProcessError if the command refuses it."""
    made = onnx_exports.original(name, pictures[:COMPARED])
    graph, bundles, scores = onnx_exports.export(made, folder / "exported"), folder / "bundles" / name, folder / f"{name}.npy"
    command = [sys.executable, "-m", "opsin", "import", graph, "-o", bundles / name, "--license", "CC0-1.0"]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    logits = made.logits(pictures)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    np.save(scores, exponentials / exponentials.sum(axis=1, keepdims=True))
    return Network(name, graph, bundles, logits, scores)


def largest_difference(url: str, network: Network, pictures: Sequence[bytes]) -> float:
    """Return the largest difference between served logits and the original's, up to a number that all logits of an image share."""
    found = []
    for picture in pictures[:COMPARED]:
        query = {"model": network.name, "top_k": network.logits.shape[1]}
        answer = httpx2.post(f"{url}/v1/classify", params=query, content=picture, timeout=60).raise_for_status().json()
        [result] = answer["results"]
        scores = {prediction["index"]: prediction["score"] for prediction in result["predictions"]}
        found.append(np.log([scores[index] for index in range(len(scores))]))
    return float(np.abs(_centre(np.array(found)) - _centre(network.logits[:COMPARED])).max())


def _centre(logits: NDArray[Any]) -> NDArray[np.float64]:
    centred: NDArray[np.float64] = logits - logits.mean(axis=1, keepdims=True, dtype=np.float64)
    return centred


def measure(network: Network, pictures: Path, plan: ServingDurations, console: Console) -> dict[str, Any]:
    """Measure served images/s ÷ P, and the difference between answers and the original's."""
    sweep = _bound(network, pictures, plan.sweep)
    chosen = finalists(sweep)
    files = [path.read_bytes() for path in sorted(pictures.glob("*.jpg"))]
    rounds, differences = [], []
    before = best(_bound(network, pictures, plan.bound, chosen))
    console.print(f"{network.name}: P {before['images_per_second']:.1f} images/s by {before['layout']}", highlight=False)
    for number in range(plan.rounds):
        with service.running(network.bundles) as url:
            differences.append(largest_difference(url, network, files))
            bursts = [_load(url, network, pictures, plan, clients) for clients in CLIENTS]
        after = best(_bound(network, pictures, plan.bound, chosen))
        fastest = max(bursts, key=lambda report: report.per_second)
        readings = [before["images_per_second"], after["images_per_second"]]
        rounds.append({"ratio": fastest.per_second / statistics.mean(readings), "bound": readings, "best": fastest, "bursts": bursts})
        console.print(
            f"  round {number + 1}: {fastest.per_second:.1f}/s with {fastest.clients} clients, mean batch {fastest.batch_size:.1f}; "
            f"P {readings[0]:.1f} and {readings[1]:.1f}; ratio {rounds[-1]['ratio']:.3f}; load {os.getloadavg()[0]:.1f}",
            highlight=False,
        )
        before = after
    ratios = spread([entry["ratio"] for entry in rounds])
    return {"name": network.name, "difference": max(differences), "layout": before["layout"], "rounds": rounds} | ratios


def _bound(network: Network, pictures: Path, seconds: float, layouts: Sequence[Any] | None = None) -> list[dict[str, Any]]:
    command: list[object] = ["--graph", network.graph, "--bundle", network.bundle, "--pictures", pictures, "--seconds", seconds]
    command += [] if layouts is None else ["--layouts", json.dumps(layouts)]
    speeds: list[dict[str, Any]] = json_of("benchmarks.onnx_bounds", command)
    return speeds


def _load(url: str, network: Network, pictures: Path, plan: ServingDurations, clients: int) -> LoadReport:
    load_options = ["--clients", clients, "--warm", plan.warm, "--seconds", plan.load, "--expected", network.scores]
    return burst(url, network.name, pictures, load_options)


def table(measured: Sequence[dict[str, Any]]) -> Table:
    view = Table(title=f"ONNX classifiers: served in the default layout ÷ P; logits against the original's on {COMPARED} images")
    for column in ("network", "difference", "served/s", "P/s", "served ÷ P", "min", "max"):
        view.add_column(column, justify="left" if column == "network" else "right")
    for entry in measured:
        typical = min(entry["rounds"], key=lambda one: abs(one["ratio"] - entry["median"]))
        speeds = [f"{typical['best'].per_second:.1f}", f"{statistics.mean(typical['bound']):.1f}"]
        view.add_row(entry["name"], f"{entry['difference']:.1e}", *speeds, *(f"{entry[name]:.3f}" for name in ("median", "min", "max")))
    return view


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.onnx_classifiers", description=__doc__.splitlines()[0])
    parser.add_argument("networks", nargs="*", metavar="NETWORK", default=NETWORKS, help=f"of {', '.join(NETWORKS)} (default: all)")
    parser.add_argument("--quick", action="store_true", help="two short rounds: a first look, not a result")
    parser.add_argument("--rounds", type=int, help=f"interleaved rounds (default: {FULL.rounds}, with --quick {QUICK.rounds})")
    parser.add_argument("--json", type=Path, help="also write the figures here")
    options = parser.parse_args()
    if unknown := set(options.networks) - set(NETWORKS):
        parser.error(f"{', '.join(sorted(unknown))}: unknown; the networks are {', '.join(NETWORKS)}")
    plan = QUICK if options.quick else FULL
    plan = replace(plan, rounds=options.rounds or plan.rounds)
    console = machine.show()
    with tempfile.TemporaryDirectory(prefix="opsin-bench-") as name:
        folder = Path(name)
        reference.write_pictures(folder / "pictures")
        pictures = [Image.open(path).convert("RGB") for path in sorted((folder / "pictures").glob("*.jpg"))]
        measured = [measure(prepare(name, folder, pictures), folder / "pictures", plan, console) for name in options.networks]
    console.print(table(measured))
    if options.json:
        machine.write_result(parser.prog, {"plan": asdict(plan), "networks": measured}, options.json)
    wrong = [entry["name"] for entry in measured if not entry["difference"] <= MAX_DIFFERENCE]
    if wrong:
        print(f"logits differ by more than {MAX_DIFFERENCE:g}: {', '.join(wrong)}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
