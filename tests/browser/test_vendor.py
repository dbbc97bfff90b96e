"""three.js and Swagger UI as they are shipped are what the script makes of the published packages."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server import playground

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm")
def test_files_of_others_are_what_the_script_builds(tmp_path: Path) -> None:
    vendor = playground.STATIC / "vendor"
    subprocess.run([playground.STATIC.parent / "vendor" / "build.sh", tmp_path], check=True, timeout=300)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == {file.name: file.read_bytes() for file in vendor.iterdir()}
