from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from models.spec import Space
from tests import service
from tests.actions.bundles import write_watcher
from tests.bundles import write_tiny_diffmae
from tests.docs.desk import Desk
from tests.docs.snippets import ROOT
from tests.gateway.service import picture
from tests.pairs import write_tiny_pair
from tests.reconstruct.service import CAPTURE, HEIGHT, WIDTH, depth, npy, png, points
from tests.reconstruct.shell import write_shell
from tests.video.clips import clip, every

SPACE = Space(spacing=0.2, reach=0.2, margin=4)


@pytest.fixture(scope="package")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A service that answers every task, and a folder with the files that the documentation names."""
    bundles = tmp_path_factory.mktemp("bundles")
    for starter in ("flags", "photos"):
        shutil.copytree(ROOT / "bundles" / starter, bundles / starter)
    write_tiny_diffmae(bundles)
    write_shell(bundles, space=SPACE)
    write_watcher(bundles)
    write_tiny_pair(bundles)
    folder = tmp_path_factory.mktemp("desk")
    fill(folder)
    (folder / "bundles").symlink_to(bundles)
    with service.serve(bundles, max_queries=200_000) as running:
        yield Desk(folder, running.url, environment_of(running.url, tmp_path_factory.mktemp("bin")))


def environment_of(url: str, shims: Path) -> dict[str, str]:
    """Variables under which `opsin` is this checkout's, and `curl` is ours, whether or not the machine has one."""
    for name, command in {
        "opsin": f"{sys.executable} -m opsin",
        "curl": f"{sys.executable} {Path(__file__).with_name('shell_curl.py')}",
    }.items():
        (shims / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (shims / name).chmod(0o755)
    return os.environ | {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "OPSIN_URL": url, "PYTHONPATH": str(ROOT)}


def fill(folder: Path) -> None:
    for name in ("cat.jpg", "photo.jpg", "photos/1.jpg", "photos/2.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture(3, size=(240, 180), kind="JPEG"))
    (folder / "dog.png").write_bytes(picture(5))
    (folder / "mask.png").write_bytes(png(box(180, 240)))
    (folder / "object.png").write_bytes(png(box(HEIGHT, WIDTH)))
    for part, name in {"image": "rgb.png", "depth": "depth.png"}.items():
        (folder / name).write_bytes(CAPTURE[part])
    (folder / "depth.npy").write_bytes(npy(depth()))
    (folder / "points.npy").write_bytes(npy(points()))
    (folder / "labels.txt").write_text("cat\ndog\nred car\n")
    (folder / "clip.mp4").write_bytes(clip(every(20, 10.0), size=(96, 128)))
    (folder / "docs").symlink_to(ROOT / "docs")


def box(height: int, width: int) -> NDArray[np.uint8]:
    """A mask of what lies in the middle."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return mask
