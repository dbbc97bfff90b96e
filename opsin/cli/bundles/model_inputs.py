"""Image files at the input size of a bundle's model, for commands that run the model themselves."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opsin.cli.services import settings_of
from opsin.cli.shared.errors import UsageError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.bundle import BundleSpec


def load_at_model_size(paths: Iterable[Path], spec: BundleSpec, option: str) -> list[NDArray[Any]]:
    """Read images as uint8 (S, S, 3), prepared as the service does. Raises UsageError naming `option` and the file."""
    from server.media.images import ImageDecoder, ImageError, to_model_size

    limit, pixels = settings_of(None).max_pixels, []
    for path in paths:
        try:
            with ImageDecoder(limit).decode(path.read_bytes()) as picture:
                pixels.append(to_model_size(picture, spec.image_preprocess, limit))
        except (ImageError, OSError) as error:
            raise UsageError(f"{option}: {path}: {error}") from error
    return pixels
