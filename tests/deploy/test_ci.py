"""CI runs targets of the Makefile, with versions that pyproject.toml allows; hooks run what `make lint` runs."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).parents[2]
MAKEFILE = (ROOT / "Makefile").read_text()
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOWS = ("nightly", "release", "starters", "tests")
CONSTRAINTS = [line for line in (ROOT / ".ci" / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
UNPINNED = {"triton"}
"""Builds of torch for GPUs name their own."""


def jobs(workflow: str) -> dict[str, Any]:
    content: dict[str, Any] = yaml.safe_load((ROOT / ".github" / "workflows" / f"{workflow}.yml").read_text())
    return content["jobs"]


def requirements(extra: str) -> Iterator[Requirement]:
    """Yield the packages that an extra names, including those of extras within it."""
    for requirement in map(Requirement, PROJECT["optional-dependencies"][extra]):
        if requirement.name != "opsin":
            yield requirement
        for inner in requirement.extras if requirement.name == "opsin" else ():
            yield from requirements(inner)


@pytest.mark.parametrize("workflow", WORKFLOWS)
def test_it_makes_what_the_makefile_has(workflow: str) -> None:
    commands = [shlex.split(step.get("run", ""), comments=True) for job in jobs(workflow).values() for step in job["steps"]]
    made = [words for words in commands if "make" in words]
    assert made
    targets = [word for words in made for word in words[words.index("make") + 1 :]]
    rules = re.findall(r"^([\w$()./-]+):(?!=)", MAKEFILE.replace("$(VENV)", ".venv"), re.MULTILINE)
    assert [target for target in targets if target not in rules] == []


def test_changes_are_tested_with_oldest_supported_python() -> None:
    tested = jobs("tests")["test"]["strategy"]["matrix"]["python"]
    assert f">={min(tested, key=Version)}" == PROJECT["requires-python"]


def test_changes_are_tested_as_ci_run_tests_them() -> None:
    make_targets = re.findall(r"^ *make (lint|test\S*)$", (ROOT / ".ci" / "run").read_text(), re.MULTILINE)
    run = [step.get("run", "") for workflow in ("tests", "starters") for job in jobs(workflow).values() for step in job["steps"]]
    assert len(make_targets) == 4 and {f"make {target}" for target in make_targets} <= set(run)


def test_constraints_are_versions_that_any_index_may_have() -> None:
    assert [line for line in CONSTRAINTS if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []


def test_constraints_name_what_ci_installs_in_allowed_versions() -> None:
    pinned = {canonicalize_name(name): version for name, version in (line.split("==") for line in CONSTRAINTS)}
    required = [*map(Requirement, PROJECT["dependencies"]), *requirements("browser")]
    versions = [(one, pinned.get(canonicalize_name(one.name))) for one in required if one.name not in UNPINNED]
    wrong = [str(one) for one, version in versions if version is None or version not in one.specifier]
    assert wrong == [], "`make constraints` writes them again"


def test_hooks_run_what_lint_runs() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert [repo["repo"] for repo in hooks] == ["local"]
    lint = MAKEFILE.split("\nlint:")[1].split("\n\n")[0].replace("$(BIN)", ".venv/bin")
    for hook in hooks[0]["hooks"]:
        command = hook["entry"].removesuffix(" --force-exclude")
        assert re.search(rf"^\t{re.escape(command)}\b", lint, re.MULTILINE), command


@pytest.mark.parametrize("extra", ["fast", "hub", "train", "export"])
def test_extras_leave_the_choice_of_onnx_runtime(extra: str) -> None:
    """The two packages overwrite each other's files."""
    builds = {"server": {"onnxruntime"}, "gpu": {"onnxruntime-gpu"}}
    for base, expected in builds.items():
        names = {requirement.name for name in (base, extra) for requirement in requirements(name)}
        assert {name for name in names if name.startswith("onnxruntime")} == expected
        assert "torch" in names


def test_torch_and_onnx_runtime_for_gpus_fit_each_other() -> None:
    pins = {requirement.name: requirement for requirement in requirements("gpu")}
    assert (str(pins["torch"].specifier), str(pins["onnxruntime-gpu"].specifier)) == (">=2.11", ">=1.27")
    assert pins["onnxruntime-gpu"].extras == {"cuda", "cudnn"}
