"""three.js as it is shipped is what the script makes of the published package."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from server import playground

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.mark.skipif(shutil.which("npm") is None, reason="needs Node.js and npm")
def test_three_is_what_the_script_builds(tmp_path: Path) -> None:
    script = playground.STATIC.parent / "vendor" / "build.sh"
    subprocess.run([script, tmp_path], check=True, timeout=300)
    for name in ("three.js", "three.LICENSE.txt"):
        assert (tmp_path / name).read_bytes() == (playground.STATIC / "vendor" / name).read_bytes()
