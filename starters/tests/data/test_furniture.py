"""Libraries of Sweet Home 3D: what their catalogue names is rendered, by category."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import pytest
import trimesh
from pydantic import ValidationError

from models.bundle_schema import Preprocess
from starters.data.renders.furniture import Library, pieces
from starters.data.renders.scenes import Renders, creators
from tests.training.archives import deb
from training.data.source import SamplePreparation
from training.errors import DataError

CATALOGUE = """# a comment
id=Tests
name#1=Ball
category#1=Toys
model#1=/models/ball.obj
creator#1=Ann\\u00e9
name#2 = Crate
category#2=Office
model#2=/models/crate.obj
creator#2=Bob
name#3=Bill 10\\u20ac
category#3=Toys
model#3=/models/ball.obj
name#4=No model
category#4=Toys
name#5=Boy
category#5=Characters
model#5=/models/ball.obj
"""


@pytest.fixture
def data(tmp_path: Path) -> dict[str, Any]:
    tree = tmp_path / "tree"
    folder = tree / "usr/share/furniture"
    folder.mkdir(parents=True)
    with zipfile.ZipFile(folder / "Tests.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", CATALOGUE)
        create: Any = trimesh.creation
        for name, mesh in (("ball", create.icosphere(subdivisions=2)), ("crate", create.box(extents=(1, 2, 1)))):
            archive.writestr(f"models/{name}.obj", trimesh.exchange.obj.export_obj(mesh, include_texture=False))
    library = {"file": "usr/share/furniture/Tests.sh3f", "license": "CC0-1.0", "views": 2, "parts": {"Office": "val"}}
    library["without"] = ["Characters", "Bill *"]
    package = {"debian": deb(tmp_path, "tests-furniture", tree), "license": "CC0-1.0", "libraries": [library]}
    return {"kind": "renders", "seen_size": 16, "surface_points": 16, "sensor": False, "packages": [package]}


def test_every_wanted_category_is_in_one_split(data: dict[str, Any], tmp_path: Path) -> None:
    preparation = SamplePreparation(Preprocess(image_size=32, short_side=32, mean=(0.5,) * 3, std=(0.5,) * 3), cache=tmp_path)
    trained = Renders.model_validate(data).open(preparation)
    assert {name.rpartition("/")[2]: category for name, category in trained.categories.items()} == {"ball.obj": "Toys"}
    [package] = data["packages"]
    library = package["libraries"][0] | {"held_out_views": 1}
    fewer = Renders.model_validate(data | {"packages": [package | {"libraries": [library]}], "part": "val"})
    assert (len(trained), len(fewer.open(preparation))) == (2, 1)
    held_out = Renders.model_validate(data | {"part": "val"}).open(preparation)
    assert list(held_out.categories.values()) == ["Office"] and len(held_out) == 2
    assert creators(trained.settings, tmp_path) == {"CC0-1.0": ["Anné", "Bob"]}
    first, again = (trained.sample(0, draw) for draw in (0, 1))
    assert first["valid"].any() and (first["points"] == again["points"]).all()  # no sensor adds anything


def test_a_library_that_cannot_be_read_or_has_nothing_is_refused(data: dict[str, Any], tmp_path: Path) -> None:
    (tmp_path / "broken.sh3f").write_bytes(b"no archive")
    with pytest.raises(DataError, match=r"broken.sh3f: is not a library of Sweet Home 3D"):
        pieces(Library(file="broken.sh3f", license="?", views=1), tmp_path)
    with zipfile.ZipFile(tmp_path / "empty.sh3f", "w") as archive:
        archive.writestr("PluginFurnitureCatalog.properties", "id=Nothing")
    with pytest.raises(DataError, match="has no object besides those"):
        pieces(Library(file="empty.sh3f", license="?", views=1), tmp_path)
    package = data["packages"][0]
    objects = [{"category": "Office", "part": "test", "views": 1, "files": ["*"]}]
    with pytest.raises(ValidationError, match="category Office belongs to one of train, val and test alone"):
        Renders.model_validate(data | {"packages": [package | {"objects": objects}]})
