"""Data, objectives and evaluations of packages that are not ours."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from models import bundle
from tests.docs.code_blocks import ROOT, read_blocks
from tests.training import tiny_recipe
from training import cli, recipe, shipped_files
from training.errors import RecipeError

PAGE = "docs/training.md"
[MODULE] = [block.code for block in read_blocks(PAGE) if block.language == "python" and "class Stripes" in block.code]
[RECIPE] = re.findall(r"^```yaml\n(name: stripes\n.*?)^```$", (ROOT / PAGE).read_text(), re.DOTALL | re.MULTILINE)


def train(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """`opsin train` in a folder of a stranger, which PYTHONPATH names."""
    opsin = Path(sys.executable).with_name("opsin")
    environment = {**os.environ, "PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run([opsin, "train", *arguments], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The module and the recipe of the documentation, outside the checkout."""
    (tmp_path / "stripes.py").write_text(MODULE)
    (tmp_path / "stripes.yaml").write_text(RECIPE)
    return tmp_path


def test_kinds_of_another_package_make_a_bundle(folder: Path) -> None:
    ended = train(folder, "stripes.yaml", "--no-tensorboard")
    assert ended.returncode == 0, ended.stderr
    spec = bundle.read(folder / "bundles/stripes/1").spec
    assert spec.labels == ["lying", "standing"]
    assert spec.quality["accuracy"] > 0.9
    assert spec.provenance["data"] == {"kind": "stripes"}
    assert spec.provenance["recipe"]["phases"][0]["objective"] == {"kind": "squares"}
    run = json.loads((folder / "runs/stripes-1/only/run.json").read_text())
    assert (run["data.kind"], run["data.count"]) == ("stripes", 256)


@pytest.fixture
def module_folder(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same folder, from which this process imports."""
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.delitem(sys.modules, "stripes", raising=False)
    yield folder
    sys.modules.pop("stripes", None)


@pytest.mark.usefixtures("module_folder")
def test_kinds_of_another_package_are_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["stripes.yaml", "--dry-run"]) == 0
    assert "phase only: SquaredError on 256 images" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (None, "module stripes cannot be imported: pip install the package that has it, or add its folder to PYTHONPATH"),
        ("import nowhere.parts", "module stripes imports nowhere, which is not installed: pip install it into this environment"),
        ("1 +", "module stripes cannot be imported (SyntaxError: invalid syntax (stripes.py, line 1))"),
        ("raise RuntimeError('no\\nlicence')", "module stripes cannot be imported (RuntimeError: no licence)"),
        ("", "stripes:Stripes: module stripes has no Stripes"),
        ("Stripes = 3", "stripes:Stripes: is not derived from training.data.source.DataSettings"),
        ("class Stripes: pass", "stripes:Stripes: is not derived from training.data.source.DataSettings"),
    ],
)
def test_what_cannot_be_imported_is_one_sentence(
    module_folder: Path, capsys: pytest.CaptureFixture[str], module: str | None, message: str
) -> None:
    if module is None:
        (module_folder / "stripes.py").unlink()
    else:
        (module_folder / "stripes.py").write_text(module)
    assert cli.main(["stripes.yaml", "--dry-run"]) == 2
    assert capsys.readouterr().err == f"stripes.yaml, line 4: data.kind: {message}\n"


def refusal(folder: Path, text: str, *changes: str) -> str:
    (folder / "wrong.yaml").write_text(text)
    with pytest.raises(RecipeError) as error:
        recipe.read(folder / "wrong.yaml", changes)
    return str(error.value).removeprefix(str(folder / "wrong.yaml"))


def test_line_of_a_kind_is_that_of_a_merged_field(tmp_path: Path) -> None:
    content = tiny_recipe.recipe(tmp_path)
    data, rest = content.pop("data"), yaml.safe_dump(content)
    text = f"{rest}own: &own\n  path: {data['path']}\n  kind: nowhere:Data\ndata: {{<<: *own, labelled: true}}\n"
    line = text.splitlines().index("  kind: nowhere:Data") + 1
    assert refusal(tmp_path, text).startswith(f", line {line}: data.kind: module nowhere cannot be imported: ")


def test_line_of_a_kind_of_an_objective_in_a_list(tmp_path: Path) -> None:
    content = tiny_recipe.recipe(tmp_path)
    content["phases"][1]["objective"] = {"kind": "nowhere:Objective"}
    text = yaml.safe_dump(content)
    line = next(number for number, row in enumerate(text.splitlines(), 1) if "nowhere" in row)
    assert refusal(tmp_path, text).startswith(f", line {line}: phases.1.objective.kind: module nowhere cannot be imported: ")


def test_kind_of_an_override_has_no_line(tmp_path: Path) -> None:
    message = refusal(tmp_path, yaml.safe_dump(tiny_recipe.recipe(tmp_path)), "data.kind=nowhere:Data")
    assert message.startswith(": data.kind: module nowhere cannot be imported: ")


@pytest.mark.parametrize("kind", ["nowhere:", ":Data", "a b:Data", "../a:Data", 3, None, ["folder"]])
def test_kind_that_names_nothing_is_refused(tmp_path: Path, kind: object) -> None:
    content = tiny_recipe.recipe(tmp_path)
    content["data"]["kind"] = kind
    message = refusal(tmp_path, yaml.safe_dump(content))
    assert (
        "known are folder, webdataset, pairs, videos, sound, rgbd, tracklets, and classes of other packages as package.module:NAME"
        in message
    )


class WithoutStarters(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None) -> None:
        if fullname == "starters":
            raise ModuleNotFoundError("No module named 'starters'", name="starters")


def test_kind_of_a_starter_needs_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel has no `starters`."""
    for name in [name for name in sys.modules if name.partition(".")[0] == "starters"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(sys, "meta_path", [WithoutStarters(), *sys.meta_path])
    content = tiny_recipe.recipe(tmp_path)
    content["data"] = {"kind": "flags"}
    message = refusal(tmp_path, yaml.safe_dump(content))
    assert (
        "it belongs to the starters' recipes, which are only in Opsin's repository; clone it and pip install -e '.[train]' there" in message
    )


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("starters.data.images.flag:Flags", "module starters.data.images.flag does not exist: starters.data.images has no module flag"),
        ("training.date.folder:Folder", "module training.date does not exist: training has no module date"),
    ],
)
def test_misspelt_module_is_named(tmp_path: Path, kind: str, reason: str) -> None:
    content = tiny_recipe.recipe(tmp_path)
    content["data"] = {"kind": kind}
    assert refusal(tmp_path, yaml.safe_dump(content)).endswith(f"data.kind: {reason}")


def test_earlier_name_of_a_recipe_says_where_it_went(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["training/recipes/flags.yaml", "--phase", "none"]) == 2
    output = capsys.readouterr().err.splitlines()
    assert output == [
        "training/recipes/flags.yaml is starters/recipes/flags.yaml now",
        "--phase: unknown phase none; the phases are pretrain, finetune",
    ]


def test_earlier_name_in_a_wheel_says_where_it_went(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipped_files, "_ROOT", tmp_path)
    with pytest.raises(
        RecipeError, match=r"cannot be read \(No such file .*\); it is starters/recipes/flags.yaml in Opsin's repository now"
    ):
        recipe.read(Path("training/recipes/flags.yaml"))
