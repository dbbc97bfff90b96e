"""Folders of bundles: `NAME/VERSION/` below a root, folders that are almost bundles, and the starter bundles."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from models.bundle import SPEC_FILE, Bundle, BundleError, read

MODEL_FILES = (".onnx", ".safetensors")


def discover(root: Path) -> Iterator[Path]:
    """Yield the bundle folders `NAME/VERSION/` below root, in name order."""
    if root.is_dir():
        yield from sorted(spec.parent for spec in root.glob(f"*/*/{SPEC_FILE}") if not spec.parent.name.startswith("."))


def read_discovered(path: Path) -> Bundle:
    """Read a folder that `discover` found. Raises BundleError, also for a copy of a bundle that is at its own place: it would hide it."""
    bundle = read(path)
    spec = bundle.spec
    own_folder = path.parents[1] / spec.name / spec.version
    if path != own_folder and (own_folder / SPEC_FILE).exists():
        raise BundleError(f"{path / SPEC_FILE}: {spec.id} is at {own_folder}; to serve a copy, too, change `name` or `version` in it")
    return bundle


def find_misplaced(root: Path) -> list[str]:
    """Return one sentence for each folder below root that has a bundle.json or a model where `discover` finds no bundle, in name order."""
    return [f"{folder.relative_to(root)}: {problem}" for name in _folders(root) for folder, problem in _problems(name)]


def _problems(name: Path) -> Iterator[tuple[Path, str]]:
    """Yield the misplaced folders in a folder NAME of root, each with the problem."""
    versions = list(_folders(name))
    if (name / SPEC_FILE).is_file():
        yield name, f"{SPEC_FILE} lies one level too high; NAME/VERSION/ is needed"
    elif _holds_model(name) and not any((version / SPEC_FILE).exists() for version in versions):
        yield name, f"has no {SPEC_FILE}; opsin import makes one"
    for version in versions:
        if not (version / SPEC_FILE).exists() and _holds_model(version):
            yield version, f"has no {SPEC_FILE}; opsin import makes one"


def _folders(parent: Path) -> Iterator[Path]:
    """Yield folders in name order, without hidden ones, which are unfinished bundles."""
    try:
        yield from sorted(path for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # gone, or not ours to read
        return


def _holds_model(folder: Path) -> bool:
    try:
        return any(path.suffix in MODEL_FILES for path in folder.iterdir())
    except OSError:
        return False


def installed_starters() -> Path | None:
    """Return the folder of the starter bundles, with folders `NAME/VERSION/`; None if their package is not installed."""
    try:
        return Path(str(metadata.distribution("opsin-starters").locate_file("opsin_starters")))
    except metadata.PackageNotFoundError:
        return None


def shipped_starters() -> Path | None:
    """Return the folder of the starters, installed or of this checkout; None if there is neither, as in an image."""
    checkout = Path(__file__).parents[1] / "bundles"
    return installed_starters() or (checkout if checkout.is_dir() else None)
