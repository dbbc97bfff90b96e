"""Packages of npm and Debian, made here."""

from __future__ import annotations

import subprocess
import tarfile
from pathlib import Path

from models.bundle_files import sha256_of


def npm(folder: Path, name: str, files: dict[str, Path]) -> dict[str, str]:
    """Write a package with these files to `folder`. Return its name for recipes."""
    archive = folder / f"{name}-1.0.0.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        for path, file in files.items():
            tar.add(file, f"package/{path}")
    return {"name": name, "version": "1.0.0", "sha256": sha256_of(archive)}


def deb(folder: Path, name: str, tree: Path) -> dict[str, str]:
    control = tree / "DEBIAN/control"
    control.parent.mkdir()
    control.write_text(f"Package: {name}\nVersion: 1.0-1\nArchitecture: all\nMaintainer: Nobody <n@example.org>\nDescription: pictures\n")
    file = folder / f"{name}_1.0-1_all.deb"
    subprocess.run(["dpkg-deb", "--root-owner-group", "--build", tree, file], check=True, capture_output=True)
    return {"name": name, "version": "1.0-1", "sha256": sha256_of(file)}
