from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from numpy.typing import NDArray

from models.bundle import write
from models.bundle_schema import QuerySpace
from models.systems.pipeline_bundles import write_photo_pipeline
from tests.docs.code_blocks import ROOT, Desk
from tests.support.audio import tones, wav, write_file
from tests.support.bundles.actions import write_watcher
from tests.support.bundles.analytic_mcc import write_shell
from tests.support.bundles.clips import write_mavil, write_recorded
from tests.support.bundles.image_text import write_tiny_pair
from tests.support.bundles.onnx import write_teller
from tests.support.bundles.vit import write_tiny_diffmae
from tests.support.fake_worker import picture
from tests.support.images import CAPTURE, HEIGHT, WIDTH, depth, npy, png, points
from tests.support.live_service import running
from tests.support.videos import clip, every

SPACE = QuerySpace(spacing=0.2, reach=0.2, margin=4)


@pytest.fixture(scope="package")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    """A service that answers every task, and a folder with the files that the documentation names."""
    bundles = tmp_path_factory.mktemp("bundles")
    for starter in ("flags", "photos"):
        shutil.copytree(ROOT / "bundles" / starter, bundles / starter)
    write_tiny_diffmae(bundles)
    write_shell(bundles, space=SPACE)
    write_photo_pipeline(bundles, "shapes", "1", write_shell(bundles, "member", space=SPACE), write_teller(bundles))
    write_watcher(bundles)
    write_tiny_pair(bundles)
    write_tiny_pair(bundles, "maws", architecture="maws_clip")
    write_clips_and_sound(bundles)
    folder = tmp_path_factory.mktemp("desk")
    fill(folder)
    (folder / "bundles").symlink_to(bundles)
    secrets = tmp_path_factory.mktemp("secrets") / "webhooks"
    secrets.write_text(f"whsec_{'A' * 32}\n")
    called_back = {"webhook_hosts": ["hooks.example"], "webhook_secret_file": secrets}
    with running(bundles, max_queries=200_000, default_models={"classify-video": "mvit"}, **called_back) as service:
        yield Desk(folder, service.url, environment_of(service.url, tmp_path_factory.mktemp("bin")))


def write_clips_and_sound(bundles: Path) -> None:
    """Write the files under the names that the documentation gives them."""
    with TemporaryDirectory() as made:
        recorded = {
            "mvit": write_recorded(Path(made), "mvit2"),
            "mavil": write_mavil(Path(made), "both"),
            "sounds": write_mavil(Path(made), "apart"),
        }
        for name, bundle in recorded.items():
            write(bundles, bundle.spec.model_copy(update={"name": name}), bundle.path / bundle.spec.weights_file)


def environment_of(url: str, shims: Path) -> dict[str, str]:
    """Variables under which `opsin` is this checkout's, and `curl` is ours, whether or not the machine has one."""
    for name, command in {
        "opsin": f"{sys.executable} -m opsin",
        "curl": f"{sys.executable} {Path(__file__).with_name('curl.py')}",
    }.items():
        (shims / name).write_text(f'#!/bin/sh\nexec {command} "$@"\n')
        (shims / name).chmod(0o755)
    return os.environ | {"PATH": f"{shims}{os.pathsep}{os.environ['PATH']}", "OPSIN_URL": url, "PYTHONPATH": str(ROOT)}


def fill(folder: Path) -> None:
    for name in ("cat.jpg", "photo.jpg", "photos/1.jpg", "photos/2.jpg"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(picture(3, size=(240, 180), kind="JPEG"))
    for name in ("dog.png", "drawing.png"):
        (folder / name).write_bytes(picture(5))
    (folder / "mask.png").write_bytes(png(box(180, 240)))
    (folder / "object.png").write_bytes(png(box(HEIGHT, WIDTH)))
    for part, name in {"image": "rgb.png", "depth": "depth.png"}.items():
        (folder / name).write_bytes(CAPTURE[part])
    (folder / "depth.npy").write_bytes(npy(depth()))
    (folder / "points.npy").write_bytes(npy(points()))
    (folder / "holes.jsonl").write_text('{"image": "photo.jpg", "mask": "box:90,60,40,40", "preset": "draft"}\n')
    (folder / "labels.txt").write_text("cat\ndog\nred car\n")
    (folder / "clip.mp4").write_bytes(clip(every(20, 10.0), size=(96, 128)))
    (folder / "sound.wav").write_bytes(wav(tones(2.0, 16_000, 440.0, 660.0).astype(np.float32), 16_000))
    (folder / "bell.flac").write_bytes(write_file(np.stack([tones(3.0, 44_100, 523.0, 1046.0)] * 2), 44_100, "flac", "flac"))
    (folder / "docs").symlink_to(ROOT / "docs")


def box(height: int, width: int) -> NDArray[np.uint8]:
    """Draw a mask of the middle."""
    mask = np.zeros((height, width), np.uint8)
    mask[height // 4 : -height // 4, width // 4 : -width // 4] = 255
    return mask
