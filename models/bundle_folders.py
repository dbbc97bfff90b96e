"""Bundle folders `NAME/VERSION/` below a root, and folders that look like bundles but lie at another level or have no `bundle.json`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from models.bundle import SPEC_FILE, Bundle, BundleError, read

MODEL_FILES = (".onnx", ".safetensors")


def discover(root: Path) -> Iterator[Path]:
    """Bundle folders `NAME/VERSION/` below root, in name order."""
    if root.is_dir():
        yield from sorted(spec.parent for spec in root.glob(f"*/*/{SPEC_FILE}") if not spec.parent.name.startswith("."))


def read_discovered(path: Path) -> Bundle:
    """Read a folder that `discover` found. Raises BundleError, also for a copy of a bundle that lies in the folder of its name: the copy
    must not hide it."""
    bundle = read(path)
    spec = bundle.spec
    place = path.parents[1] / spec.name / spec.version
    if path != place and (place / SPEC_FILE).exists():
        raise BundleError(f"{path / SPEC_FILE}: {spec.id} is at {place}; to serve a copy, too, change `name` or `version` in it")
    return bundle


def find_misplaced(root: Path) -> list[str]:
    """One sentence for each folder below root that holds a bundle.json or a model where `discover` finds no bundle, in name order."""
    return [f"{folder.relative_to(root)}: {why}" for name in _folders(root) for folder, why in _problems(name)]


def _problems(name: Path) -> Iterator[tuple[Path, str]]:
    """name: a folder NAME of root."""
    versions = list(_folders(name))
    if (name / SPEC_FILE).is_file():
        yield name, f"{SPEC_FILE} lies one level too high; NAME/VERSION/ is needed"
    elif _holds_model(name) and not any((version / SPEC_FILE).exists() for version in versions):
        yield name, f"has no {SPEC_FILE}; opsin import makes one"
    for version in versions:
        if not (version / SPEC_FILE).exists() and _holds_model(version):
            yield version, f"has no {SPEC_FILE}; opsin import makes one"


def _folders(of: Path) -> Iterator[Path]:
    """Hidden ones hold bundles that are not complete yet."""
    try:
        yield from sorted(path for path in of.iterdir() if path.is_dir() and not path.name.startswith("."))
    except OSError:  # gone, or not ours to read
        return


def _holds_model(folder: Path) -> bool:
    try:
        return any(path.suffix in MODEL_FILES for path in folder.iterdir())
    except OSError:
        return False
