"""What a user gets who installs the wheel and nothing else."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from tests.bundles import TINY
from tests.pictures import picture
from tests.service import Service

ROOT = Path(__file__).parents[2]
PACKAGES = ("opsin", "server", "models", "kernels", "training")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a venv that holds the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]  # one of its own takes seconds to install
    subprocess.run([*pip, "install", "--quiet", wheel], check=True)
    return folder / "bin"


def run(installed: Path, tmp_path: Path, *command: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a program of the venv outside the checkout."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("OPSIN_", "PYTHON"))}
    program, *arguments = command
    return subprocess.run(
        [installed / program, *arguments],
        cwd=tmp_path,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_the_wheel_holds_opsin_alone(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
        typed = "opsin/py.typed" in archive.namelist()
    assert {top for top in tops if not top.endswith(".dist-info")} == {"opsin"}
    assert typed


@pytest.mark.parametrize("package", PACKAGES)
def test_in_the_checkout_every_package_is_ours(package: str) -> None:
    """PyPI has a `kernels` and more such names: an installed stranger must not win."""
    code = f"import {package}; print({package}.__file__)"
    found = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True).stdout.strip()
    assert Path(found) == ROOT / package / "__init__.py"
    assert importlib.import_module(package).__file__ == found


def test_the_installed_client_classifies_without_torch(installed: Path, service: Service, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(picture(seed=1))
    code = """
import importlib.util, os, numpy
from opsin import Client
assert not any(importlib.util.find_spec(name) for name in ("torch", "server", "models", "kernels", "training", "PIL"))
with Client(os.environ["OPSIN_URL"]) as client:
    file, array = client.classify("picture.png"), client.classify(numpy.zeros((40, 60, 3), numpy.uint8))
    print(len(file.predictions), file.merging.tokens_in, file.model, array.model)
"""
    ended = run(installed, tmp_path, "python", "-c", code, OPSIN_URL=service.url)
    assert (ended.stderr, ended.stdout.split()) == ("", ["5", str(TINY.patches + TINY.special_tokens), "tiny", "tiny"])


def test_the_installed_command_classifies(installed: Path, service: Service, tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_bytes(picture(seed=1))
    best = service.classify(picture(seed=1)).json()["results"][0]["predictions"][0]["label"]
    ended = run(installed, tmp_path, "opsin", "classify", "picture.png", "--url", service.url)
    assert (ended.returncode, ended.stderr) == (0, "")
    assert f"picture.png  {best} " in ended.stdout


@pytest.mark.parametrize(
    "command",
    [
        ["serve"],
        ["gateway", "--redis", "redis://127.0.0.1:6379"],
        ["worker", "--redis", "redis://127.0.0.1:6379"],
        ["demo"],
        ["import", "picture.png", "-o", "bundles/x"],
        ["bundles", "list"],
        ["bench", "merging"],
    ],
)
def test_what_needs_the_service_names_both_ways_to_it(installed: Path, tmp_path: Path, command: list[str]) -> None:
    ended = run(installed, tmp_path, "opsin", *command)
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr.startswith(f"opsin: `opsin {command[0]}` needs the service, and this installation holds the client alone.")
    assert all(way in ended.stderr for way in ("checkout", "make serve", "image", "docker compose up"))
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["serve"], ["gateway", "--redis", "redis://127.0.0.1:6379"], ["import", "x.pth", "-o", "bundles/x"]])
def test_a_checkout_without_its_libraries_says_how_to_get_them(installed: Path, tmp_path: Path, command: list[str]) -> None:
    ended = run(installed, tmp_path, "python", "-m", "opsin", *command, PYTHONPATH=str(ROOT))
    assert ended.returncode == 2
    assert "is missing: run `make serve` once, or `pip install -e '.[server]'`" in ended.stderr
    assert ended.stderr.count("\n") == 1
