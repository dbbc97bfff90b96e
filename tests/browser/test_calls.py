"""The calls under a result, run as they are, return the same result."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from playwright.sync_api import Locator, Page

from server import playground
from tests.browser.tabs import download, open_3d, open_classify, open_inpaint, run
from tests.docs import curl

pytestmark = pytest.mark.browser


def calls(panel: Locator) -> dict[str, str]:
    panel.get_by_text("The same call").click()
    return {name: panel.get_by_role("region", name=f"The same call: {name}").text_content() or "" for name in ("curl", "Python", "Command")}


def shell(command: str, folder: Path) -> str:
    """Run a command in a folder, with `opsin` and, if curl is not installed, a small `curl`."""
    commands = {"opsin": f"{sys.executable} -m opsin"}
    if shutil.which("curl") is None:
        commands["curl"] = f"{sys.executable} {curl.__file__}"
    functions = "".join(f'{name}() {{ {call} "$@"; }}\n' for name, call in commands.items())
    done = subprocess.run(["bash", "-c", functions + command], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def python(code: str, folder: Path) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def put_samples(folder: Path, *names: str) -> None:
    for name in names:
        shutil.copy(playground.SAMPLES / name, folder)


def grey_levels(file: Path) -> NDArray[np.int64]:
    with Image.open(file) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def test_of_classify(page: Page, tmp_path: Path) -> None:
    panel = open_classify(page)
    run(panel)
    displayed = panel.locator(".bars .label").all_text_contents()
    put_samples(tmp_path, "brazil.png")
    called = calls(panel)
    answer = json.loads(shell(called["curl"], tmp_path))
    assert [prediction["label"] for prediction in answer["results"][0]["predictions"]] == displayed
    assert answer["results"][0]["merging"]["trace"]["layers"]
    assert python(called["Python"], tmp_path).startswith(displayed[0])
    assert displayed[0] in shell(called["Command"], tmp_path)


def test_of_inpaint(page: Page, tmp_path: Path) -> None:
    panel = open_inpaint(page)
    run(panel)
    displayed = grey_levels(download(panel, "Download PNG", tmp_path))
    put_samples(tmp_path, "ladybug.png")
    download(panel, "Download mask", tmp_path)
    for language, call in calls(panel).items():
        (tmp_path / "filled.png").unlink()
        (python if language == "Python" else shell)(call, tmp_path)
        assert np.abs(grey_levels(tmp_path / "filled.png") - displayed).max() <= 2, language


def test_of_3d(page: Page, tmp_path: Path) -> None:
    panel = open_3d(page)
    run(panel)
    displayed = download(panel, "Download GLB", tmp_path).read_bytes()
    put_samples(tmp_path, "mug.png", "mug-depth.png")
    for language, call in calls(panel).items():
        (tmp_path / "scene.glb").unlink()
        (python if language == "Python" else shell)(call, tmp_path)
        assert len((tmp_path / "scene.glb").read_bytes()) == pytest.approx(len(displayed), rel=0.01), language
