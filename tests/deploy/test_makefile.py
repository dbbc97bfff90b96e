"""`make` where Python is too old, and where `.venv` cannot be used: a sentence says what to do."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OLD = '#!/bin/sh\ncase "$2" in *print*) echo 3.9 ;; esac\nexit 1\n'
"""A Python that prints its version where it should, and is never new enough."""
NEEDS = "Opsin needs Python 3.11 or newer"
AGAIN = "rm -r .venv, then make again"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The part of one that `make` looks at before it installs anything."""
    folder = tmp_path / "checkout"
    for name in ("Makefile", "pyproject.toml", ".ci/venv", "opsin/__init__.py"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, folder / name)
    return folder


def program(file: Path, text: str) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(text)
    file.chmod(0o755)
    return file


def make(checkout: Path, *words: str, path: Path | None = None) -> tuple[int, str]:
    """Return the exit code, and the output without what make itself adds."""
    command = [str(shutil.which("make")), "--no-print-directory", *words]
    environment = {name: value for name, value in os.environ.items() if name not in ("MAKEFLAGS", "PYTHON")}
    environment |= {} if path is None else {"PATH": str(path)}
    ended = subprocess.run(command, cwd=checkout, env=environment, capture_output=True, text=True, timeout=120, check=False)
    return ended.returncode, "\n".join(line for line in ended.stderr.splitlines() if not line.startswith("make"))


@pytest.mark.parametrize("target", ["serve", "demo", "test", ".venv/.dev"])
def test_an_old_python_alone_is_refused_in_a_sentence(checkout: Path, tmp_path: Path, target: str) -> None:
    program(tmp_path / "bin" / "python3", OLD)
    status, error = make(checkout, target, path=tmp_path / "bin")
    assert (status, error.startswith(f"{NEEDS}: apt install python3 "), error.count("\n")) == (2, True, 0)
    assert not (checkout / ".venv").exists()


def test_an_old_python_that_is_named_is_refused(checkout: Path, tmp_path: Path) -> None:
    old = program(tmp_path / "bin" / "python", OLD)
    status, error = make(checkout, f"PYTHON={old}", "serve")
    assert (status, error.startswith(f"{NEEDS}, and {old} is Python 3.9: apt install "), error.count("\n")) == (2, True, 0)
    assert not (checkout / ".venv").exists()


def test_a_venv_of_an_old_python_is_refused(checkout: Path) -> None:
    program(checkout / ".venv" / "bin" / "python", OLD)
    (checkout / ".venv" / ".server").touch()
    assert make(checkout, "serve") == (2, f"{NEEDS}, and .venv has Python 3.9: {AGAIN}")


def test_a_venv_whose_python_is_gone_is_refused(checkout: Path) -> None:
    (checkout / ".venv" / "bin").mkdir(parents=True)
    (checkout / ".venv" / "bin" / "python").symlink_to("/gone/python3.11")
    assert make(checkout, "serve") == (2, f"{NEEDS}, and .venv has a Python that is gone: {AGAIN}")


def test_a_venv_that_came_with_a_moved_folder_is_refused(checkout: Path) -> None:
    venv.create(checkout / ".venv", symlinks=True)
    packages = Path(sysconfig.get_path("purelib", "venv", {"base": str(checkout / ".venv")}))
    (packages / "opsin.pth").write_text(str(checkout))  # an editable installation
    (checkout / ".venv" / ".server").touch()
    assert make(checkout, f"PYTHON={sys.executable}", "venv") == (0, "")
    moved = checkout.rename(checkout.with_name("moved"))
    assert make(moved, "serve") == (2, f".venv belongs to another folder or another Python: {AGAIN}")
