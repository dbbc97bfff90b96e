"""From a finished run to a bundle that says where it comes from and how good it is."""

from __future__ import annotations

import subprocess
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from models import bundle
from models.bundle import Bundle, BundleSpec
from models.pairs.attaching import prepare
from models.pairs.tokenizer_model import TokenizerError
from models.registry import architectures
from models.sealing import sha256_of
from models.spec import LABELLED, Text, Weights
from training import phases
from training.data.words import WordSettings
from training.errors import DataError
from training.evaluation import kinds, loss_curves
from training.evaluation.cards import card
from training.evaluation.measurement import Measurement
from training.phases import Workshop
from training.recipe import Recipe
from training.shipped import located

_LIBRARIES = ("torch", "numpy", "pillow")


def release(recipe: Recipe, recipe_file: Path, shop: Workshop, bundles: Path) -> Bundle:
    """Measure the network of `release.phase` and write `bundles/NAME/VERSION/` with a model card and a report, replacing what is there.

    Raises TrainingError.
    """
    settings = recipe.release
    assert settings is not None
    phase = recipe.released_phase
    evaluation = kinds.evaluation(recipe, shop)
    network, labels = evaluation.network, evaluation.labels
    architecture = architectures()[recipe.model_of(phase).architecture]
    measured = kinds.measured(evaluation)
    config = phases.settings_of(network)
    spec = BundleSpec(
        name=recipe.name,
        version=recipe.version,
        task=settings.task,
        architecture=architecture.name,
        config=config | ({"drop_path": 0.0} if "drop_path" in config else {}),
        preprocess=phase.preprocess or recipe.preprocess,
        clip=recipe.clip,
        sound=recipe.sound,
        space=recipe.space,
        temperature=recipe.temperature,
        preset=recipe.preset,
        fill=recipe.fill,
        labels=list(labels) if settings.task in LABELLED else [],
        license=recipe.license,
        description=recipe.description,
        trained_on=recipe.trained_on,
        note=recipe.note,
        provenance=_provenance(recipe, recipe_file, measured),
        quality=measured.quality,
        ladder=measured.ladder,
        default_rung=measured.default_rung,
        weights=Weights(sha256="0" * 64, bytes=0),
    )
    with tempfile.TemporaryDirectory() as folder:
        weights = Path(folder) / bundle.WEIGHTS_FILE
        half = settings.dtype == "float16"
        tensors = network.state_dict().items()
        save_file({name: (value.half() if half and value.is_floating_point() else value).contiguous() for name, value in tensors}, weights)
        files: dict[str, Path] = {}
        words = getattr(phase.data or recipe.data, "words", None)
        if isinstance(words, WordSettings) and settings.task == "zero-shot":
            text, content = _texts(spec, weights, words, recipe.words)
            spec, files = spec.model_copy(update={"text": text}), {bundle.TOKENIZER_FILE: Path(folder) / bundle.TOKENIZER_FILE}
            files[bundle.TOKENIZER_FILE].write_bytes(content)
        written = bundle.write(bundles, spec, weights, files=files, overwrite=True)
    loss_curves.write(written.path, shop.runs, [phase.name for phase in recipe.phases])
    for name, drawing in measured.drawn.items():
        (written.path / name).write_text(drawing, encoding="utf-8")
    (written.path / "README.md").write_text(card.render(written.spec), encoding="utf-8")
    return written


def _texts(spec: BundleSpec, weights: Path, words: WordSettings, length: int) -> tuple[Text, bytes]:
    """How the bundle reads texts: with the tokenizer of its training. length: word pieces of a caption."""
    try:
        return prepare(spec, weights, words.tokenizer, most=length, special=words.special)
    except TokenizerError as error:
        raise DataError(f"data.words.tokenizer: {error}") from error


def _provenance(recipe: Recipe, recipe_file: Path, measured: Measurement) -> dict[str, Any]:
    return {
        "made_by": f"opsin train {recipe_file.as_posix()}",
        "revision": _revision(),
        "recipe": recipe.model_dump(mode="json", exclude={"data"}),
        "recipe_sha256": sha256_of(located(recipe_file)),
        "data": measured.data or {"kind": recipe.data.model_dump()["kind"]},
        "versions": {library: version(library) for library in _LIBRARIES},
    }


def _revision() -> str:
    """The commit of the checkout, with `-dirty` if what makes a bundle was changed since; of an installed wheel its version."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():  # git would tell of a repository that the environment lies in
        return f"opsin {version('opsin')}"

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True).stdout.strip()

    changed = git("status", "--porcelain", "--", "training", "models", "kernels")
    commit = git("rev-parse", "--short=12", "HEAD")
    return f"{commit}-dirty" if commit and changed else commit or "not a git checkout"
