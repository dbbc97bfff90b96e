"""A release: what its tag must be, and the way from the tag to the packages. `make release` does the rest for real."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

import opsin

ROOT = Path(__file__).parents[2]
JOBS: dict[str, Any] = yaml.safe_load((ROOT / ".github/workflows/release.yml").read_text())["jobs"]
SECTION = re.compile(r"^## \[(Unreleased|\d+\.\d+\.\d+)\](?: - (\d{4}-\d\d-\d\d))?$", re.MULTILINE)


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """The part of a checkout that determines its version, with a build from before."""
    for name in (".ci/release", "opsin/__init__.py", "CHANGELOG.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / "dist").mkdir()
    (tmp_path / "dist" / "kept").touch()
    return tmp_path


def release(checkout: Path, tag: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHON": sys.executable}
    return subprocess.run([checkout / ".ci/release", tag], env=environment, capture_output=True, text=True, check=False)


def test_tag_other_than_version_is_refused_before_building(checkout: Path) -> None:
    ended = release(checkout, "v99.0.0")
    message = f"release: the tag v99.0.0 is not v{opsin.__version__}, the version in opsin/__init__.py\n"
    assert (ended.returncode, ended.stderr) == (1, message)
    assert (checkout / "dist" / "kept").exists()


def test_version_without_notes_is_refused_before_building(checkout: Path) -> None:
    (checkout / "CHANGELOG.md").write_text("# Changelog\n\n## [Unreleased]\n\n- something\n")
    ended = release(checkout, f"v{opsin.__version__}")
    assert ended.returncode == 1
    assert ended.stderr.startswith(f"release: CHANGELOG.md has no section [{opsin.__version__}]")
    assert (checkout / "dist" / "kept").exists()


def test_the_changelog_has_the_form_that_releases_read() -> None:
    found = SECTION.findall((ROOT / "CHANGELOG.md").read_text())
    headings = re.findall(r"^## ", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert len(found) == len(headings) and found[0] == ("Unreleased", "")
    versions = [tuple(map(int, version.split("."))) for version, _ in found[1:]]
    assert versions == sorted(versions, reverse=True) and all(day for _, day in found[1:])


def test_nothing_is_published_before_the_tests_have_passed() -> None:
    def before(job: str) -> set[str]:
        needs = JOBS[job].get("needs", [])
        named = [needs] if isinstance(needs, str) else needs
        return set(named).union(*map(before, named))

    tested = [step.get("run") for step in JOBS["test"]["steps"]]
    assert tested.index("sudo make chromium") < tested.index(".ci/run")
    assert any(command and "-m slow tests/e2e/test_installed.py" in command for command in tested[tested.index(".ci/run") :])
    assert all("test" in before(job) for job in JOBS if job != "test")
    assert before("announce") == {"test", "build", "publish", "images"}


def test_images_of_a_release_are_those_of_the_dockerfile() -> None:
    [command] = [step["run"] for step in JOBS["images"]["steps"] if "buildx build" in step.get("run", "")]
    targets = re.search(r"for target in ([\w ]+);", command)
    stages = re.findall(r"^FROM \S+ AS (\S+)", (ROOT / "Dockerfile").read_text(), re.MULTILINE)
    assert targets and set(targets[1].split()) == {"gateway", "worker"} <= set(stages)


def test_images_of_a_release_say_what_they_are() -> None:
    [command] = [step["run"] for step in JOBS["images"]["steps"] if "buildx build" in step.get("run", "")]
    released = set(re.findall(r'--label "org\.opencontainers\.image\.(\w+)=', command))
    for stage in re.split(r"^FROM ", (ROOT / "Dockerfile").read_text(), flags=re.MULTILINE):
        if stage.startswith(("base AS gateway\n", "base AS worker\n")):
            labels = {*released, *re.findall(r'org\.opencontainers\.image\.(\w+)="\w', stage)}
            assert labels == {"title", "description", "licenses", "version", "revision", "source"}


def test_makefile_releases_tag_of_workflow_with_venv_python(tmp_path: Path) -> None:
    [step] = [step for step in JOBS["build"]["steps"] if "run" in step]
    assert (step["run"], step["env"]) == ("make release", {"RELEASE_TAG": "${{ github.ref_name }}"})
    (tmp_path / ".ci").mkdir()
    for name in ("Makefile", "pyproject.toml", ".ci/venv"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    (tmp_path / ".venv" / "bin" / "python").symlink_to("/bin/true")
    (tmp_path / ".venv" / ".release").touch()
    (tmp_path / ".ci" / "release").write_text('#!/bin/sh\necho "$PYTHON $1"\n')
    (tmp_path / ".ci" / "release").chmod(0o755)
    hostile = "v1$(touch made);touch made"
    environment = {**os.environ, "RELEASE_TAG": hostile, "PYTHON": "/usr/bin/python3"}
    command = ["make", "--no-print-directory", "PYTHON=/usr/bin/python3", "release"]  # below another make it would print its folder last
    ended = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines()[-1] == f".venv/bin/python {hostile}"
    assert not (tmp_path / "made").exists()
