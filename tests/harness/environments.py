"""Python environments of their own for tests, which borrow the libraries of this one: nothing is downloaded."""

from __future__ import annotations

import sys
import venv
from pathlib import Path


def environment(folder: Path, *paths: Path, with_pip: bool = False) -> Path:
    """Make one, and return its `bin`. It imports what is installed into it, then from `paths`, then the libraries of this Python."""
    venv.create(folder, with_pip=with_pip)
    packages = folder / "lib" / f"python{sys.version_info.major}.{sys.version_info.minor}" / "site-packages"
    borrowed = [path for path in sys.path if path.endswith(("site-packages", "dist-packages"))]
    (packages / "borrowed.pth").write_text("\n".join([*map(str, paths), *borrowed]) + "\n")
    return folder / "bin"
