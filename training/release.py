"""From trained models to a bundle that says where it comes from and how good it is."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from models import bundle
from models.bundle import Bundle, BundleSpec, Rung, Weights
from models.merge_schedule import MergeSchedule
from models.vit.model import ViT
from training import evaluate, model_card
from training.data import pictures
from training.data.flags import Corpus
from training.measure import Comparison, Report
from training.phases import vit_config
from training.recipe import Recipe


def rounded(model: ViT) -> ViT:
    """The model with its weights as a bundle stores them, float16: what is measured is what is shipped."""
    return model.half().float().eval()


def calibrated(model: ViT, temperature: float) -> ViT:
    """The model with its head's weights divided by `temperature`: its confidence changes, its predictions do not."""
    with torch.no_grad():
        for parameter in model.head.parameters():
            parameter.div_(temperature)
    return model


def write(recipe: Recipe, recipe_file: Path, corpus: Corpus, model: ViT, temperature: float, report: Report, bundles: Path) -> Bundle:
    """Write `bundles/NAME/VERSION/` with a model card, replacing what is there."""
    spec = BundleSpec(
        name=recipe.name,
        version=recipe.version,
        task="classify",
        architecture="vit",
        config={**dataclasses.asdict(vit_config(recipe)), "drop_path": 0.0},
        preprocess=recipe.preprocess,
        labels=list(recipe.data.labels.values()),
        license=recipe.license,
        description=recipe.description,
        provenance=_provenance(recipe, recipe_file, corpus),
        quality=_quality(recipe, report, temperature) | {"examples": _examples(recipe, model)},
        ladder=[
            Rung(name=r.name, schedule=r.schedule.to_json(), accuracy=round(r.clean.value, 5), throughput=round(r.throughput, 3))
            for r in report.ladder
        ],
        default_rung=report.default.name if report.default else None,
        weights=Weights(sha256="0" * 64, bytes=0),
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / bundle.WEIGHTS_FILE
        save_file({name: value.half().contiguous() for name, value in model.state_dict().items()}, weights)
        written = bundle.write(bundles, spec, weights, overwrite=True)
    (written.path / "README.md").write_text(model_card.render(written.spec), encoding="utf-8")
    return written


def _quality(recipe: Recipe, report: Report, temperature: float) -> dict[str, Any]:
    return {
        "test_accuracy": report.clean.to_json(),
        "distorted_accuracy": report.distorted.to_json(),
        "val_accuracy": report.val.to_json(),
        "temperature": round(temperature, 4),
        "sources": [
            {
                "name": source.name,
                "top1": source.top1.to_json(),
                "top5": source.top5.to_json(),
                "calibration_error": round(source.calibration_error, 5),
                "baselines": {name: _comparison(rival) for name, rival in source.rivals.items()},
            }
            for source in report.sources
        ],
        "look_alikes": [dataclasses.asdict(row) for row in report.look_alikes],
        "without_pretraining": {
            "epochs": recipe.comparison_epochs,
            **{kind: _comparison(rival) for kind, rival in report.pretraining.items()},
        },
        "ladder": [
            {
                "rung": r.name,
                "tokens_out": r.tokens_out,
                "throughput": round(r.throughput, 3),
                "val_accuracy": r.val.to_json(),
                "test_accuracy": r.clean.to_json(),
                "drop": r.clean_drop.to_json(),
                "distorted_accuracy": r.distorted.to_json(),
                "distorted_drop": r.distorted_drop.to_json(),
            }
            for r in report.ladder
        ],
        "throughput": {
            "what": "forward passes relative to merging off, median of interleaved pairs",
            "batch_size": recipe.ladder.batch_size,
            "threads": 1,
            "dtype": "float32",
            "machine": f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}",
        },
        "default_rung_chosen": f"best validation accuracy among rungs of at least {recipe.ladder.min_throughput}x throughput",
    }


def _comparison(rival: Comparison) -> dict[str, dict[str, float]]:
    return {"accuracy": rival.accuracy.to_json(), "gain": rival.gain.to_json()}


def _examples(recipe: Recipe, model: ViT) -> dict[str, dict[str, Any]]:
    """File name → predicted label and its score, merging off."""
    files = sorted(recipe.examples.glob("*.png")) if recipe.examples else []
    labels = list(recipe.data.labels.values())
    recorded = {}
    for file in files:
        pixels = pictures.to_model_size(pictures.open_on_white(file), recipe.preprocess)[np.newaxis]
        logits = torch.from_numpy(evaluate.logits(model, pixels, recipe.preprocess, MergeSchedule.off()))[0]
        best = int(logits.argmax())
        recorded[file.name] = {"label": labels[best], "score": round(float(logits.softmax(dim=0)[best]), 4)}
    return recorded


def _provenance(recipe: Recipe, recipe_file: Path, corpus: Corpus) -> dict[str, Any]:
    data = recipe.data
    packages = {package.name: package for package in (*(a.package for a in data.artworks), *(e.package for e in data.emoji))}
    return {
        "made_by": f"python -m training {recipe_file.as_posix()}",
        "revision": _revision(),
        "recipe": recipe.model_dump(mode="json", exclude={"data"}),
        "recipe_sha256": bundle.sha256_of(recipe_file),
        "data": {
            "packages": [package.model_dump() for package in (*packages.values(), data.clip_art.package)],
            "drawings": {"train": len(corpus.train), "val": len(corpus.val)},
            "test_pictures": {gallery.name: len(gallery.paths) for gallery in (*corpus.galleries, corpus.unfiltered)},
        },
        "versions": {package: version(package) for package in ("torch", "accelerate", "scikit-learn", "pillow", "resvg-py")},
    }


def _revision() -> str:
    """The commit of the checkout, with `-dirty` if what makes a bundle was changed since; or that there is no checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "training", "models", "kernels")
    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}-dirty" if commit and changed else commit or "not a git checkout"
