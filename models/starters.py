"""The starter bundles, where the package of data that holds them is installed. A checkout has them in its folder `bundles`."""

from importlib import metadata
from pathlib import Path


def installed_starters() -> Path | None:
    """Their folder, of `NAME/VERSION/`; None where they are not installed."""
    try:
        return Path(str(metadata.distribution("opsin-starters").locate_file("opsin_starters")))
    except metadata.PackageNotFoundError:
        return None


def shipped_starters() -> Path | None:
    """Folder of the starters: installed, or of this checkout; None where there is neither, as in an image."""
    checkout = Path(__file__).parents[1] / "bundles"
    return installed_starters() or (checkout if checkout.is_dir() else None)
