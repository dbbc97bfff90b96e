"""The installed service in a hostile folder: foreign packages and files have the names of Opsin's, and fail if they are imported."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest

import opsin
from tests.support.processes import environment
from tests.support.serve_process import Service, serve
from tests.training import tiny_recipe
from tests.training.test_own_folder import SMALL

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "server" / "playground" / "samples"
STRANGER = "raise RuntimeError('a stranger was imported')\n"


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The distributions that `python -m build` makes of both projects."""
    folder = tmp_path_factory.mktemp("dist")
    for project in (ROOT, ROOT / "bundles"):
        subprocess.run([sys.executable, "-m", "build", "--no-isolation", "--outdir", folder, project], check=True, capture_output=True)
    return folder


@pytest.fixture(scope="module")
def programs(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` of an environment with both wheels, and with a stranger's `kernels`."""
    programs = environment(tmp_path_factory.mktemp("installed"), with_pip=True)
    install = [programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", *built.glob("*.whl")]
    subprocess.run(install, check=True, env={**os.environ, "PIP_NO_INDEX": "1"})
    [opsin] = programs.parent.glob("lib/*/site-packages/opsin")
    (opsin.with_name("kernels")).mkdir()
    (opsin.with_name("kernels") / "__init__.py").write_text(STRANGER)
    return programs


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder that holds nothing but a stranger's `server.py` and `models/`."""
    folder = tmp_path_factory.mktemp("hostile")
    (folder / "models").mkdir()
    for file in (folder / "server.py", folder / "models" / "__init__.py"):
        file.write_text(STRANGER)
    return folder


@pytest.fixture(scope="module")
def service(programs: Path, folder: Path) -> Iterator[Service]:
    """Started by `python -m`, which would import from the working folder first."""
    command = ["env", "--chdir", str(folder), str(programs / "python"), "-m", "opsin", "serve"]
    (folder / "empty").mkdir()
    with serve(folder / "empty", command=command, starters="true") as running:
        yield running


def run(programs: Path, folder: Path, *arguments: str | Path) -> str:
    """Run `opsin` to its end; what it prints."""
    command = [programs / "opsin", *arguments]
    environment = os.environ | {"OPSIN_STARTERS": "true", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=280, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_starters_answer_where_there_is_no_bundle(service: Service) -> None:
    models = service.get("/v1/models").json()["models"]
    assert {model["name"] for model in models} >= {
        "photos",
        "flags",
        "inpaint",
        "shapes",
        "reconstruct",
        "actions",
        "words",
        "clips",
        "sounds",
    }
    nepal = service.classify((SAMPLES / "nepal.png").read_bytes(), model="flags").json()
    assert nepal["results"][0]["predictions"][0]["label"] == "Nepal"


def test_commands_say_where_the_starters_are(programs: Path, folder: Path) -> None:
    environment = os.environ | {"OPSIN_STARTERS": "true"}
    ended = subprocess.run(
        [programs / "opsin", "bundles", "list"], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    starters = ended.stderr.strip().partition("; the starters are in ")[2]
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "photos" in run(programs, folder, "bundles", "list", "--bundles", starters)


def test_a_video_is_decoded_and_watched(service: Service) -> None:
    answer = httpx2.post(f"{service.url}/v1/actions", content=(SAMPLES / "figures.mp4").read_bytes(), timeout=250)
    assert answer.raise_for_status().json()["people"]


def test_a_mesh_is_made(service: Service) -> None:
    files = {part: (SAMPLES / name).read_bytes() for part, name in (("image", "mug.png"), ("depth", "mug-depth.png"))}
    for sent, metric in ((files, "true"), ({"image": files["image"]}, "false")):
        headers = {"Accept": "model/gltf-binary"}
        answer = httpx2.post(f"{service.url}/v1/reconstruct", files=sent, data={"fov": "60"}, headers=headers, timeout=250)
        assert answer.raise_for_status().content.startswith(b"glTF") and answer.headers.get("X-Metric", "true") == metric


def test_a_checkpoint_is_imported(programs: Path, folder: Path) -> None:
    checkpoint = ROOT / "tests/golden/mae/pretrain_pixel/checkpoint.pth"
    printed = run(programs, folder, "import", checkpoint, "--set", "heads=6", "--set", "decoder_heads=3", "-o", "imported/mae")
    assert "task          autoencode" in printed
    assert (folder / "imported/mae/1/bundle.json").is_file()


def test_a_recipe_of_the_wheel_trains_on_own_images(programs: Path, folder: Path) -> None:
    tiny_recipe.draw(folder / "photos/train", 24)
    tiny_recipe.draw(folder / "photos/val", 6, seed=1)
    images = ("name=mine", "data.path=photos/train", "release.quality.data.path=photos/val")
    changes = (*images, *SMALL["folder-finetune"])  # which starts from the starter of flags
    run(programs, folder, "train", "training/recipes/folder-finetune.yaml", *changes, "--no-tensorboard", "--bundles", "trained")
    provenance = json.loads((folder / "trained/mine/1.0.0/bundle.json").read_text())["provenance"]
    assert provenance["made_by"] == "opsin train training/recipes/folder-finetune.yaml"
    assert provenance["revision"] == f"opsin {opsin.__version__}"


def test_the_demo_shows_the_starters(programs: Path, folder: Path) -> None:
    printed = run(programs, folder, "demo", "--seconds", "0.1")
    assert "Labels, by flags@1.0.0" in printed and "`opsin serve` runs the service" in printed
    assert {file.name for file in (folder / "opsin-demo").iterdir()} >= {"daisy-filled.png", "motorcycle.glb"}


def test_programs_of_the_user_import_the_strangers(programs: Path, folder: Path) -> None:
    for name in ("kernels", "server", "models"):
        command = [programs / "python", "-c", f"import opsin.cli; from opsin import Client; import {name}"]
        ended = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        assert ended.stderr.endswith("a stranger was imported\n")


def test_source_distribution_builds_wheel_of_the_checkout(built: Path, tmp_path: Path) -> None:
    """`build` makes the wheel of the source distribution."""
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", tmp_path, ROOT], check=True, capture_output=True
    )
    [direct] = tmp_path.glob("*.whl")
    assert hashlib.sha256((built / direct.name).read_bytes()).digest() == hashlib.sha256(direct.read_bytes()).digest()
