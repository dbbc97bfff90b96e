"""A user's mesh: an .npz or .safetensors of arrays whose names and shapes are checked, and nothing that would have to be unpickled."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from models.people.smpl import EXTRA_JOINTS, SMPLParameters, read_body, rotations_from_6d
from tests.support.bundles.actions import mesh, write_mesh

Arrays = dict[str, np.ndarray]


def save(folder: Path, change: Callable[[Arrays], object]) -> Path:
    arrays: Arrays = {name: value.numpy().copy() for name, value in mesh().items()}
    change(arrays)
    np.savez(folder / "body.npz", **arrays)  # type: ignore[arg-type]
    return folder / "body.npz"


@pytest.mark.parametrize("name", ["body.npz", "body.safetensors"])
def test_both_forms_hold_the_same_body(tmp_path: Path, name: str) -> None:
    body = read_body(write_mesh(tmp_path / name))
    for array, values in mesh().items():
        if array != "faces_tensor":
            assert torch.equal(body.get_buffer(array), values), array


def test_numbers_of_other_widths_and_orders_are_taken(tmp_path: Path) -> None:
    """Meshes are often kept in double precision, and their integers unsigned."""

    def widen(arrays: Arrays) -> None:
        for name in arrays:
            arrays[name] = arrays[name].astype(">f8" if arrays[name].dtype.kind == "f" else np.int32)
        arrays["joint_map"] = arrays["joint_map"].astype(np.uint32)

    person = SMPLParameters(
        rotations_from_6d(torch.randn(1, 24, 6, generator=torch.Generator().manual_seed(0))), torch.zeros(1, 10), torch.zeros(1, 3)
    )
    wide, plain = read_body(save(tmp_path, widen)), read_body(write_mesh(tmp_path / "plain.safetensors"))
    assert torch.equal(wide(person).keypoints, plain(person).keypoints)


WRONG: dict[str, tuple[Callable[[Arrays], object], str]] = {
    "missing": (lambda arrays: [arrays.pop(name) for name in ("posedirs", "parents")], "lacks posedirs, parents"),
    "shape": (
        lambda arrays: arrays.update(shapedirs=arrays["shapedirs"][:, :, :4]),
        r"shapedirs: shape \(40, 3, 4\) where \(40, 3, 10\) is needed for a mesh of 40 vertices",
    ),
    "no vertices": (lambda arrays: arrays.update(v_template=np.zeros(3, np.float32)), r"v_template: shape \(3,\) where \(V, 3\)"),
    "not finite": (lambda arrays: arrays["lbs_weights"].fill(np.nan), "lbs_weights: holds infinite values or NaN"),
    "not floating": (lambda arrays: arrays.update(posedirs=arrays["posedirs"].astype(np.int64)), "posedirs: torch.int64 where floating"),
    "not integers": (lambda arrays: arrays.update(parents=arrays["parents"].astype(np.float32)), "parents: .* where integers are needed"),
    "texts": (lambda arrays: arrays.update(parents=np.array(["a"] * 24)), "parents: <U1 where numbers are needed"),
    "cyclic": (lambda arrays: arrays["parents"].put(3, 5), "parents: joint 3 has parent 5 where one of 0 to 2 is needed"),
    "a joint too many": (lambda arrays: arrays["joint_map"].put(0, 45), "joint_map: 0 to 45 where numbers of 0 to 44 are needed"),
    "a vertex too many": (lambda arrays: arrays[EXTRA_JOINTS].put(0, 40), "0 to 40 where numbers of 0 to 39 are needed"),
    "objects": (lambda arrays: arrays.update(v_template=np.array([{"code": 1}], object)), r"cannot be read as \.npz of arrays"),
}


@pytest.mark.parametrize("name", WRONG)
def test_the_error_says_what_is_wrong_with_a_mesh(tmp_path: Path, name: str) -> None:
    change, sentence = WRONG[name]
    file = save(tmp_path, change)
    with pytest.raises(ValueError, match=sentence) as error:
        read_body(file)
    assert str(error.value).startswith(f"{file}: ")


class Code:
    """Runs when a plain pickle is read."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[Callable[[Path], None], tuple[Path]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["body.pkl", "body.npz", "body.safetensors"])
def test_nothing_is_unpickled(tmp_path: Path, name: str) -> None:
    mark = tmp_path / "mark"
    (tmp_path / name).write_bytes(pickle.dumps(Code(mark)))
    with pytest.raises(ValueError, match=name):
        read_body(tmp_path / name)
    assert not mark.exists()
