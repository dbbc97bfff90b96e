"""From trained models to a bundle that says where it comes from and how good it is."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import tempfile
from dataclasses import dataclass
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
from training import baselines, evaluate, model_card
from training.data import pictures
from training.data.corpus import Corpus, Labelled
from training.data.pictures import Pixels
from training.evaluate import Measured, Right
from training.phases import vit_config
from training.recipe import Recipe


@dataclass(frozen=True)
class Comparison:
    """A baseline's test accuracy, and by how much the model beats it."""

    name: str
    accuracy: Measured
    gain: Measured


@dataclass(frozen=True)
class MeasuredRung:
    name: str
    schedule: MergeSchedule
    tokens_out: int
    throughput: float
    val: Measured
    test: Measured
    drop: Measured
    """Test accuracy with merging off minus with this rung."""


@dataclass(frozen=True)
class Report:
    """Everything that was measured."""

    val: Measured
    test: Measured
    comparisons: tuple[Comparison, ...]
    ladder: tuple[MeasuredRung, ...]
    default: MeasuredRung | None
    """The most accurate on the validation split among the rungs that are fast enough."""


def rounded(model: ViT) -> ViT:
    """The model with its weights as a bundle stores them, float16: what is measured is what is shipped."""
    return model.half().float().eval()


def measure(recipe: Recipe, corpus: Corpus, model: ViT, scratch: ViT) -> Report:
    split = corpus.assignment
    train, val, test = (_pixels(recipe, corpus, part) for part in (split.train, split.val, split.test))
    val_labels, test_labels = np.array(split.val.targets), np.array(split.test.targets)

    def right(judged: ViT, pixels: Pixels, labels: baselines.Labels, schedule: MergeSchedule) -> Right:
        predicted = evaluate.logits(judged, pixels, recipe.preprocess, schedule).argmax(axis=1)
        return np.asarray(predicted == labels)

    off = MergeSchedule.off()
    unmerged = right(model, test, test_labels, off)
    pixel_labels = baselines.logistic_regression(train, np.array(split.train.targets), val, val_labels, test)
    rivals = {
        "majority class": np.equal(baselines.majority(split.train.targets, len(test)), test_labels),
        "logistic regression on pixels": np.equal(pixel_labels, test_labels),
        "same ViT without pre-training": right(scratch, test, test_labels, off),
    }
    schedules = {step.name: MergeSchedule.parse(step.schedule) for step in recipe.ladder.rungs}
    speed = evaluate.relative_throughput(model, schedules, batch_size=recipe.ladder.batch_size, rounds=recipe.ladder.rounds)
    ladder = []
    for name, schedule in schedules.items():
        merged = right(model, test, test_labels, schedule)
        ladder.append(
            MeasuredRung(
                name,
                schedule,
                tokens_out=schedule.token_counts(model.config.patches + 1, model.config.depth, protected=1)[-1],
                throughput=speed[name],
                val=evaluate.accuracy(right(model, val, val_labels, schedule)),
                test=evaluate.accuracy(merged),
                drop=evaluate.difference(unmerged, merged),
            )
        )
    fast = [rung for rung in ladder if rung.throughput >= recipe.ladder.min_throughput]
    return Report(
        val=evaluate.accuracy(right(model, val, val_labels, off)),
        test=evaluate.accuracy(unmerged),
        comparisons=tuple(Comparison(name, evaluate.accuracy(r), evaluate.difference(unmerged, r)) for name, r in rivals.items()),
        ladder=tuple(ladder),
        default=max(fast, key=lambda rung: (rung.val.value, rung.throughput), default=None),
    )


def write(recipe: Recipe, recipe_file: Path, corpus: Corpus, model: ViT, report: Report, bundles: Path) -> Bundle:
    """Write `bundles/NAME/VERSION/` with a model card, replacing what is there."""
    spec = BundleSpec(
        name=recipe.name,
        version=recipe.version,
        task="classify",
        architecture="vit",
        config={**dataclasses.asdict(vit_config(recipe)), "drop_path": 0.0},
        preprocess=recipe.preprocess,
        labels=[category.label for category in recipe.data.categories],
        license=recipe.license,
        description=recipe.description,
        provenance=_provenance(recipe, recipe_file, corpus),
        quality=_quality(recipe, report) | {"examples": _examples(recipe, model)},
        ladder=[
            Rung(name=r.name, schedule=r.schedule.to_json(), accuracy=round(r.test.value, 5), throughput=round(r.throughput, 3))
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


def _pixels(recipe: Recipe, corpus: Corpus, part: Labelled) -> Pixels:
    return pictures.load_for_evaluation(corpus.root, part.paths, recipe.preprocess)


def _quality(recipe: Recipe, report: Report) -> dict[str, Any]:
    return {
        "test_accuracy": report.test.to_json(),
        "val_accuracy": report.val.to_json(),
        "baselines": [{"name": c.name, "accuracy": c.accuracy.to_json(), "gain": c.gain.to_json()} for c in report.comparisons],
        "ladder": [
            {
                "rung": r.name,
                "tokens_out": r.tokens_out,
                "throughput": round(r.throughput, 3),
                "val_accuracy": r.val.to_json(),
                "test_accuracy": r.test.to_json(),
                "drop": r.drop.to_json(),
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


def _examples(recipe: Recipe, model: ViT) -> dict[str, dict[str, Any]]:
    """File name → predicted label and its score, merging off."""
    files = sorted(recipe.examples.glob("*.png")) if recipe.examples else []
    labels = [category.label for category in recipe.data.categories]
    recorded = {}
    for file in files:
        pixels = pictures.to_model_size(pictures.open_on_white(file), recipe.preprocess)[np.newaxis]
        logits = torch.from_numpy(evaluate.logits(model, pixels, recipe.preprocess, MergeSchedule.off()))[0]
        best = int(logits.argmax())
        recorded[file.name] = {"label": labels[best], "score": round(float(logits.softmax(dim=0)[best]), 4)}
    return recorded


def _provenance(recipe: Recipe, recipe_file: Path, corpus: Corpus) -> dict[str, Any]:
    split = corpus.assignment
    return {
        "made_by": f"python -m training {recipe_file.as_posix()}",
        "revision": _revision(),
        "recipe": recipe.model_dump(mode="json"),
        "recipe_sha256": bundle.sha256_of(recipe_file),
        "data": {
            "packages": [package.model_dump() for package in (recipe.data.pictures, recipe.data.titles)],
            "license": recipe.data.license,
            "pictures": {
                "pretrain": len(split.pretrain),
                "train": len(split.train.paths),
                "val": len(split.val.paths),
                "test": len(split.test.paths),
            },
        },
        "versions": {package: version(package) for package in ("torch", "timm", "accelerate", "scikit-learn", "pillow")},
    }


def _revision() -> str:
    """The commit of the checkout, with `-dirty` if what makes a bundle was changed since; or that there is no checkout."""
    root = Path(__file__).parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "training", "models", "kernels")
    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}-dirty" if commit and changed else commit or "not a git checkout"
