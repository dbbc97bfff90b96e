"""Contents of the wheels, and the behaviour of `opsin` without its extras."""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import venv
import zipfile
from collections.abc import Iterable
from email.message import Message
from email.parser import Parser
from pathlib import Path

import pytest
from hatchling.builders.wheel import WheelBuilder

from models.bundle_files import sha256_of
from tests.support.bundles.vit import TINY
from tests.support.images import picture
from tests.support.serve_process import Service

ROOT = Path(__file__).parents[2]
PACKAGES = ("opsin", "server", "models", "kernels", "training")
ENGINE = "opsin/engine.d"
DEMO_FOLDERS = ("docs/pictures/drawings", "docs/pictures/flags")
STARTERS = {"1.4.1": "ff0fc67d6bda2dcf26ba7a79dfce7a1bb0d81adb0be1e5fe042f401b018cda37"}
"""Version → SHA-256 of the names and digests of the files of `opsin-starters`."""
MAX_BYTES = 95_000_000
"""A larger wheel of data would be split."""


def list_tracked(*folders: str) -> set[str]:
    """Return the files of the repository in these folders."""
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard", *folders]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True)
    return {name for name in listed.stdout.decode().split("\0") if name and (ROOT / name).is_file()}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path_factory.mktemp("wheel")), versions=["standard"])))


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The `bin` folder of a venv that holds the wheel and what it requires."""
    folder = tmp_path_factory.mktemp("venv")
    venv.create(folder)
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin/python"]  # one of its own takes seconds to install
    subprocess.run([*pip, "install", "--quiet", "--no-compile", wheel], check=True)
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


def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as archive:
        [file] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return Parser().parsestr(archive.read(file).decode())


def requirements(wheel: Path) -> list[str]:
    return metadata(wheel).get_all("Requires-Dist", [])


def extras_with(lines: Iterable[str]) -> set[str]:
    """Return the extras that bring one of these requirements."""
    return {extra for line in lines for extra in re.findall(r"extra == '(\w+)'", line)}


def test_wheel_holds_client_and_engine_in_its_own_folder(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
    engine = list_tracked("server", "models", "kernels", "training", *DEMO_FOLDERS)
    assert files == list_tracked("opsin") | {f"{ENGINE}/{name}" for name in engine}
    assert not ENGINE.rpartition("/")[2].isidentifier()
    assert "opsin/py.typed" in files


def test_description_is_readme_with_links_to_the_web_only(wheel: Path) -> None:
    description = metadata(wheel).get_payload()
    assert isinstance(description, str) and '"$(echo dist/opsin-*.whl)[server]" && opsin serve' in description
    assert all(target.startswith("https://") for target in re.findall(r"\]\(([^)]*)\)", description))
    assert (ROOT / "README.md").read_text().startswith(description.partition("```")[0].rstrip())


def test_only_wheels_require_starters_wherever_they_bring_torch(wheel: Path, tmp_path: Path) -> None:
    required = requirements(wheel)
    starters = [line for line in required if line.startswith("opsin-starters")]
    of_checkouts = {"browser", "clients", "dev", "examples"}
    assert extras_with(starters) == extras_with(line for line in required if line.startswith("torch>")) - of_checkouts
    editable = Path(next(WheelBuilder(str(ROOT)).build(directory=str(tmp_path), versions=["editable"])))
    assert not any(line.startswith("opsin-starters") for line in requirements(editable))
    with zipfile.ZipFile(editable) as archive:
        [paths] = [name for name in archive.namelist() if ".dist-info/" not in name]
        assert archive.read(paths).decode().splitlines() == [str(ROOT)]


def test_starters_are_exactly_the_bundles_of_the_checkout() -> None:
    included = list(WheelBuilder(str(ROOT / "bundles")).recurse_included_files())
    starters = {name for name in list_tracked("bundles") if name.count("/") == 3}
    assert {file.distribution_path.replace("opsin_starters/", "bundles/", 1) for file in included} == starters
    assert sum(Path(file.path).stat().st_size for file in included) < MAX_BYTES


def test_another_content_of_the_starters_has_another_version() -> None:
    """An index keeps what it has of a version: who raises it writes the new digest here."""
    project = WheelBuilder(str(ROOT / "bundles"))
    digest = hashlib.sha256()
    for file in sorted(project.recurse_included_files(), key=lambda file: file.distribution_path):
        digest.update(f"{file.distribution_path} {sha256_of(Path(file.path))}\n".encode())
    assert {project.metadata.version: digest.hexdigest()} == STARTERS


def test_the_starters_bring_the_text_of_each_of_their_licences() -> None:
    project = WheelBuilder(str(ROOT / "bundles"))
    assert project.metadata.core.license_files == ["LICENSE", "movenet/1.0.0/LICENSE.human-models"]
    assert (ROOT / "bundles" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


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


STRANGER = "raise RuntimeError('a stranger was imported')\n"


def test_a_strangers_modules_are_not_imported_and_are_not_hidden(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "server.py").write_text(STRANGER)
    ours = run(installed, tmp_path, "python", "-m", "opsin.engine", "server.processes.os_process")
    assert (ours.returncode, ours.stderr) == (0, "")
    theirs = run(installed, tmp_path, "python", "-c", "import opsin.cli; from opsin import Client; import server")
    assert theirs.returncode == 1 and theirs.stderr.endswith("RuntimeError: a stranger was imported\n")


def test_a_strangers_module_that_is_imported_already_is_named(installed: Path, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    error = run(installed, tmp_path, "python", "-c", "import models; from opsin.engine import enter; enter()").stderr.splitlines()[-1]
    assert error.startswith(f"ImportError: `models` was imported from {tmp_path}/models before Opsin's: call ")


@pytest.mark.parametrize(
    ("named", "message"),
    [((), "name a module"), (("nosuch",), "there is no program nosuch;"), (("server.processes",), "there is no program server.processes;")],
)
def test_an_error_says_which_program_is_missing(installed: Path, tmp_path: Path, named: tuple[str, ...], message: str) -> None:
    ended = run(installed, tmp_path, "python", "-m", "opsin.engine", *named)
    assert (ended.returncode, ended.stderr.startswith(f"opsin.engine: {message}"), ended.stderr.count("\n")) == (2, True, 1)


@pytest.mark.parametrize(
    ("command", "extra"),
    [
        (["serve"], "server"),
        (["gateway", "--redis", "redis://127.0.0.1:6379"], "gateway"),
        (["worker", "--redis", "redis://127.0.0.1:6379"], "server"),
        (["demo"], "server"),
        (["import", "picture.png", "-o", "bundles/x"], "server"),
        (["bundles", "list"], "server"),
        (["train", "training/recipes/folder.yaml"], "train"),
    ],
)
def test_what_needs_more_libraries_names_the_extra(installed: Path, tmp_path: Path, command: list[str], extra: str) -> None:
    ended = run(installed, tmp_path, "opsin", *command)
    assert (ended.returncode, ended.stdout) == (2, "")
    hint = rf"`pip install --find-links FOLDER 'opsin\[{extra}\]'`, where FOLDER holds Opsin's wheels"
    assert re.fullmatch(rf"opsin: the Python package '\w+' is missing: {hint}\n", ended.stderr)


def test_benchmarks_need_a_checkout(installed: Path, tmp_path: Path) -> None:
    ended = run(installed, tmp_path, "opsin", "bench", "merging")
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert ended.stderr.startswith("opsin: `opsin bench` needs a checkout")


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        (["serve"], "run `make serve` once, or `pip install -e '.[server]'`"),
        (["gateway", "--redis", "redis://127.0.0.1:6379"], "`pip install -e '.[gateway]'`"),
        (["import", "x.pth", "-o", "bundles/x"], "run `make serve` once, or `pip install -e '.[server]'`"),
    ],
)
def test_a_checkout_without_its_libraries_says_how_to_get_them(installed: Path, tmp_path: Path, command: list[str], hint: str) -> None:
    ended = as_opsin(installed, tmp_path, f"import sys; sys.path.insert(0, {str(ROOT)!r})", command)
    assert ended.returncode == 2
    assert f"is missing: {hint}" in ended.stderr
    assert ended.stderr.count("\n") == 1


@pytest.mark.parametrize("command", [["serve"], ["demo"], ["worker"], ["gateway"]])
def test_elsewhere_than_on_linux_a_service_is_run_with_docker(installed: Path, tmp_path: Path, command: list[str]) -> None:
    imported = "import sys, sysconfig, opsin.cli; sysconfig.get_config_vars()"  # which look for files of the platform
    ended = as_opsin(installed, tmp_path, f"{imported}; sys.platform = 'darwin'", command)
    assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (2, "", 1)
    assert "runs on Linux" in ended.stderr and "docker compose up" in ended.stderr


def as_opsin(installed: Path, tmp_path: Path, before: str, command: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command in a Python that has run a line beforehand."""
    code = f"{before}; sys.argv = {['opsin', *command]!r}; from opsin.cli import main; main()"
    return run(installed, tmp_path, "python", "-c", code)
