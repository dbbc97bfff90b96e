from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from training.data.packages import DataError, DebianPackage, obtain


def test_an_archive_in_the_cache_is_checked_and_unpacked(tiny_recipe: dict[str, Any], cache: Path) -> None:
    unpacked = obtain(DebianPackage(**tiny_recipe["data"]["pictures"]), cache)
    assert len(list(unpacked.rglob("*.png"))) == 72


def test_an_archive_with_another_checksum_is_refused(tiny_recipe: dict[str, Any], cache: Path) -> None:
    package = DebianPackage(**{**tiny_recipe["data"]["pictures"], "sha256": "0" * 64})
    with pytest.raises(DataError, match=f"{package.file_name}: its SHA-256 is .*, the recipe wants 0000"):
        obtain(package, cache)


@pytest.mark.parametrize("path", ["", None], ids=["no apt-get", "apt-get that fails"])
def test_missing_data_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, path: str | None) -> None:
    if path is None:
        tool = tmp_path / "apt-get"
        tool.write_text("#!/bin/sh\necho 'E: Could not resolve deb.debian.org' >&2\nexit 100\n")
        tool.chmod(0o755)
    monkeypatch.setenv("PATH", path if path is not None else f"{tmp_path}:/bin")
    package = DebianPackage(name="openclipart-png", version="1:0.18+dfsg-19", sha256="0" * 64)
    with pytest.raises(DataError) as missing:
        obtain(package, tmp_path / "cache")
    said = str(missing.value)
    assert "openclipart-png 1:0.18+dfsg-19 is missing" in said
    assert "`apt-get download openclipart-png=1:0.18+dfsg-19`" in said
    assert f"put openclipart-png_1%3a0.18+dfsg-19_all.deb into {tmp_path / 'cache'}" in said
