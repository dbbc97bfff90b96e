"""Bundles of pipelines, which name other bundles as their members."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_file

from models.bundle import Bundle, BundleError, BundleSpec, member_reference, write
from models.bundle_files import file_digest
from models.bundle_schema import Clip, ExternalFile, ExternalRole, FileDigest, Role
from models.loading import load
from models.systems.mcc.photo_pipeline import pipeline_config

STEP_ROWS = 8
"""Number of rows of a step at `fast`: so few that a short request does not wait long for them."""
DEFAULT_RATE = 30.0
"""Frames per second of LART's published networks."""
STEP = MARGIN = 32
"""Rows of a published window that are scored, and context rows on either side (`models.systems.lart.model`)."""
PLACEHOLDER_DIGEST = FileDigest(sha256="0" * 64, bytes=0)


def write_action_pipeline(
    root: Path,
    name: str,
    version: str,
    members: Mapping[Role, Bundle],
    *,
    rate: float | None = None,
    step: int | None = None,
    body: Path | None = None,
    overwrite: bool = False,
) -> Bundle:
    """Write a pipeline of actions next to its members, which are in `root`.

    rate: frames per second that LART was trained on; None: as its bundle says, else 30. step: rows that each window scores; None: the
    published 32, or a third of LART's frames if that is less. Margins are the rest of a window, at most 32 rows on either side. body: the
    user's mesh (`models.people.smpl`), which is not copied: the pipeline records its path and SHA-256. Raises BundleError for members
    and a mesh that do not fit each other.
    """
    lart = members["actions"].spec
    frames = int(lart.config.get("frames", 125))
    step = min(STEP, max(1, frames // 3)) if step is None else step
    margin = min(MARGIN, (frames - 1 - step) // 2)
    spec = BundleSpec(
        name=name,
        version=version,
        task="actions",
        architecture="actions",
        config={"step": step, "margin": max(0, margin)},
        clip=Clip(frames=STEP_ROWS, stride=1, rate=rate if rate is not None else DEFAULT_RATE if lart.clip is None else lart.clip.rate),
        labels=lart.labels,
        license="; ".join(sorted({bundle.spec.license for bundle in members.values()})),
        description=f"Who does what when in a video: {', '.join(bundle.spec.id for bundle in members.values())}",
        members={role: member_reference(bundle) for role, bundle in members.items()},
        external=_external(body),
        weights=PLACEHOLDER_DIGEST,
    )
    return _write_and_load(root, spec, overwrite=overwrite)


def write_photo_pipeline(root: Path, name: str, version: str, shape: Bundle, depth: Bundle) -> Bundle:
    """Write a pipeline that reconstructs shapes from photographs without depth next to its members, which are in `root`.

    shape: an MCC of objects; depth: a depth network for images. Raises BundleError for members that do not fit each other.
    """
    try:
        config = pipeline_config(shape.spec, depth.spec)
    except ValueError as error:
        raise BundleError(str(error)) from error
    spec = BundleSpec(
        name=name,
        version=version,
        task="reconstruct",
        architecture="mcc_photograph",
        config=config,
        preprocess=shape.spec.preprocess,
        space=shape.spec.space,
        license="; ".join(sorted({shape.spec.license, depth.spec.license})),
        trained_on="; ".join(text for text in (shape.spec.trained_on, depth.spec.trained_on) if text),
        note=" ".join(text for text in (shape.spec.note, depth.spec.note) if text),
        description=f"Reconstructs an object from one image, with depth or without: {shape.spec.id}, {depth.spec.id}",
        members={"shape": member_reference(shape), "depth": member_reference(depth)},
        weights=PLACEHOLDER_DIGEST,
    )
    return _write_and_load(root, spec)


def _write_and_load(root: Path, spec: BundleSpec, *, overwrite: bool = False) -> Bundle:
    """Write the pipeline and load it once as a check. Raises BundleError."""
    with tempfile.TemporaryDirectory() as folder:
        empty = Path(folder, "model.safetensors")
        save_file({}, empty)
        bundle = write(root, spec, empty, overwrite=overwrite)
    try:
        load(bundle)
    except BundleError:
        shutil.rmtree(bundle.path)
        with suppress(OSError):  # other versions lie there
            bundle.path.parent.rmdir()
        raise
    return bundle


def _external(body: Path | None) -> dict[ExternalRole, ExternalFile]:
    if body is None:
        return {}
    try:
        digest = file_digest(body)
    except OSError as error:
        raise BundleError(f"{body}: cannot be read ({error.strerror})") from error
    return {"body": ExternalFile(path=str(body.resolve()), sha256=digest.sha256, bytes=digest.bytes)}
