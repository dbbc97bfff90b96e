"""Bundles of finished runs, with their provenance and quality."""

from __future__ import annotations

import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from models import bundle
from models.bundle import Bundle
from models.bundle_files import sha256_of
from training import bundle_spec
from training.evaluation import loss_plot
from training.evaluation.cards import card
from training.evaluation.report import Measurement
from training.evaluation.trained_classifier import load_trained
from training.phase_runner import RunContext
from training.recipe import Recipe
from training.shipped_files import locate

_LIBRARIES = ("torch", "numpy", "pillow")


def release(recipe: Recipe, recipe_file: Path, context: RunContext, bundles: Path) -> Bundle:
    """Measure the network of `release.phase` and write `bundles/NAME/VERSION/` with a model card and a report, replacing what is there.

    Raises TrainingError.
    """
    settings = recipe.release
    assert settings is not None
    evaluated = load_trained(recipe, context)
    network = evaluated.network
    found = settings.quality.measure(evaluated) if settings.quality else Measurement()
    fields = {
        "provenance": _provenance(recipe, recipe_file, found),
        "quality": found.quality | ({"remarks": recipe.remarks} if recipe.remarks else {}),
        "ladder": found.ladder,
        "default_rung": found.default_rung if settings.merge else None,
    }
    described = bundle_spec.build_release_spec(recipe, network.config, evaluated.labels, fields)
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / bundle.WEIGHTS_FILE
        half = settings.dtype == "float16"
        tensors = network.state_dict().items()
        save_file({name: (value.half() if half and value.is_floating_point() else value).contiguous() for name, value in tensors}, weights)
        files: dict[str, Path] = {}
        if texts := bundle_spec.build_text_spec(recipe, described, weights):
            described = described.model_copy(update={"text": texts[0]})
            files[bundle.TOKENIZER_FILE] = Path(folder) / bundle.TOKENIZER_FILE
            files[bundle.TOKENIZER_FILE].write_bytes(texts[1])
        written = bundle.write(bundles, described, weights, files=files, overwrite=True)
    loss_plot.write(written.path, context.runs, [phase.name for phase in recipe.phases])
    readme = settings.quality.card(written.spec) if settings.quality else card.render(written.spec)
    (written.path / "README.md").write_text(readme, encoding="utf-8")
    return written


def _provenance(recipe: Recipe, recipe_file: Path, measured: Measurement) -> dict[str, Any]:
    return {
        "made_by": f"opsin train {recipe_file.as_posix()}",
        "revision": _revision(),
        "recipe": recipe.model_dump(mode="json", exclude={"data"}),
        "recipe_sha256": sha256_of(locate(recipe_file)),
        "data": measured.data or {"kind": recipe.data.model_dump()["kind"]},
        "versions": {library: version(library) for library in _LIBRARIES},
    }


def _revision() -> str:
    """Return the commit of the checkout, with `-dirty` if relevant files were changed; for an installed wheel its version."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():  # git would find a repository around the environment
        return f"opsin {version('opsin')}"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "training", "starters", "models", "kernels")
    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}-dirty" if commit and changed else commit or "not a git checkout"
