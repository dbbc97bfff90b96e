"""Claims of papers, checked small: `python -m benchmarks.claims`.

A row compares networks that recipes trained on the same data for as long, on the same held-out samples. Nothing is trained
here: a row whose runs are missing names the commands that make them.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Table

from benchmarks import machine
from models.merge_schedule import MergeSchedule
from training import phases, recipe
from training.data.registry import open_source
from training.errors import TrainingError
from training.evaluation import held_out, metrics
from training.evaluation.metrics import Measured, Right
from training.options import Options
from training.phases import Workshop
from training.starters.images.clip_art import ClipArt

RESULTS = Path(__file__).parent / "results"
RECIPES = Path(__file__).parent.parent / "training" / "recipes"
INPAINT_ENCODER = RECIPES / "inpaint-encoder.yaml"


@dataclass(frozen=True)
class Row:
    """One network, and how it stands to those before it in its claim."""

    name: str
    accuracy: Measured
    gains: dict[str, Measured]
    """Another network → accuracy of this one minus the other's, paired."""


@dataclass(frozen=True)
class Claim:
    name: str
    paper: str
    says: str
    check: Callable[[Path, Path], list[Row]]
    """(runs, cache) → what was measured. Raises TrainingError."""


def pretrained_encoders(runs: Path, cache: Path) -> list[Row]:
    """Top-1 accuracy on held-out drawings of a classifier fine-tuned from each encoder."""
    plan = recipe.read(INPAINT_ENCODER)
    assert isinstance(plan.data, ClipArt)
    source = open_source(plan.data.model_copy(update={"part": "test"}), phases.preparation(plan, None, cache))
    shop = Workshop(runs / f"{plan.name}-{plan.version}", cache, torch.device("cpu"))
    right: dict[str, Right] = {}
    for phase in plan.phases:
        network = phases.trained_network(plan, phase.name, source.labels, shop)
        logits, labels = held_out.logits_of(network, source, MergeSchedule.off())
        right[phase.name] = np.asarray(logits.argmax(axis=1) == labels)
    return compared(right)


def compared(right: dict[str, Right]) -> list[Row]:
    """Name → whether each sample was right; each name is compared with those after it."""
    gains: dict[str, dict[str, Measured]] = {name: {} for name in right}
    for name, other in combinations(right, 2):
        gains[name][other] = metrics.difference(right[name], right[other])
    return [Row(name, metrics.accuracy(values), gains[name]) for name, values in right.items()]


CLAIMS: Sequence[Claim] = (
    Claim(
        "encoder",
        "DiffMAE, arXiv 2304.03283, table 1",
        "fine-tuned, an encoder that was pre-trained by denoising is as good as a masked autoencoder's, and better than random weights",
        pretrained_encoders,
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=Path, default=Options.runs, help="where the phases were trained (default: %(default)s)")
    parser.add_argument("--cache", type=Path, default=Options.cache, help="downloaded and decoded data (default: %(default)s)")
    options = parser.parse_args()
    console, described = Console(), machine.describe()
    for line in described.lines():
        console.print(line)
    measured: dict[str, Any] = {}
    for claim in CLAIMS:
        console.print(f"\n[bold]{claim.name}[/bold]: {claim.paper}: {claim.says}")
        try:
            rows = claim.check(options.runs, options.cache)
        except TrainingError as error:
            console.print(f"not measured: {error}. The first lines of {INPAINT_ENCODER.name} say how it is trained.")
            continue
        console.print(table(rows))
        measured[claim.name] = [asdict(row) for row in rows]
    RESULTS.mkdir(exist_ok=True)
    stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    (RESULTS / f"claims-{stamp}.json").write_text(json.dumps({"machine": described.to_json(), "claims": measured}, indent=2) + "\n")


def table(rows: Sequence[Row]) -> Table:
    shown = Table("", "top-1 accuracy", "n", "gain (points)", box=None)
    for row in rows:
        gains = ", ".join(f"{_points(gain, '+')} over {other}" for other, gain in row.gains.items())
        shown.add_row(row.name, f"{_points(row.accuracy)} %", str(row.accuracy.n), gains)
    return shown


def _points(measured: Measured, sign: str = "") -> str:
    return f"{100 * measured.value:{sign}.1f} ± {100 * measured.standard_error:.1f}"


if __name__ == "__main__":
    main()
