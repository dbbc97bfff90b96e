"""The starter bundles, where the package of data that holds them is installed. A checkout has them in its folder `bundles`."""

from importlib import metadata
from pathlib import Path


def installed_starters() -> Path | None:
    """Their folder, of `NAME/VERSION/`; None where they are not installed."""
    try:
        return Path(str(metadata.distribution("opsin-starters").locate_file("opsin_starters")))
    except metadata.PackageNotFoundError:
        return None
