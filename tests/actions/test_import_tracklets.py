"""A tracker's results become tracks that the service takes."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from models.people.tracklets import read_results, tracklets_from_results, tracks_to_arrays, write_tracks
from opsin.cli.bundles.import_tracklets import import_tracklets
from opsin.cli.shared.errors import CommandError, UsageError
from server.media import person_tracks

RESULTS = next((Path(__file__).parents[1] / "golden").rglob("phalp_demo.pkl"))


@pytest.mark.parametrize(("joints", "values"), [(False, 229), (True, 364)])
def test_what_was_observed_is_there_and_nothing_else(tmp_path: Path, joints: bool, values: int) -> None:
    import_tracklets(RESULTS, tmp_path / "tracks.npz", fps=24.0, joints=joints)
    read = person_tracks.read((tmp_path / "tracks.npz").read_bytes(), seconds=120)
    found = tracklets_from_results(read_results(RESULTS))
    assert len(read["person"]) == sum(int(track.detected.sum()) for track in found.values())
    assert read["token"].shape[1] == values and read["pose"].shape[1] == 0
    for number, track in found.items():
        rows, detected = read["person"] == number, track.detected == 1
        assert np.allclose(read["time"][rows] * 24, track.frames[detected])
        assert np.allclose(read["box"][rows][:, :4], track.boxes[detected])
        assert np.allclose(read["token"][rows][:, :229], track.pose[detected], atol=1e-6)


def test_results_without_people_make_an_empty_file(tmp_path: Path) -> None:
    write_tracks(tmp_path / "none.npz", tracks_to_arrays({}, 30.0))
    assert len(person_tracks.read((tmp_path / "none.npz").read_bytes(), seconds=120)["person"]) == 0


@pytest.mark.parametrize(
    ("output", "fps", "sentence"),
    [
        ("tracks.npz", float("nan"), "--fps: nan; it must be a positive number"),
        ("tracks.npz", float("inf"), "--fps: inf; it must be a positive number"),
        ("gone/tracks.npz", 30.0, "cannot be written (there is no folder "),
    ],
)
def test_invalid_tracks_are_named_before_reading(tmp_path: Path, output: str, fps: float, sentence: str) -> None:
    with pytest.raises(UsageError, match=re.escape(sentence)):
        import_tracklets(RESULTS, tmp_path / output, fps=fps, joints=False)
    assert not list(tmp_path.iterdir())


def test_a_file_that_would_run_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "trap.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(CommandError):
        import_tracklets(tmp_path / "trap.pkl", tmp_path / "out.npz", fps=30.0, joints=False)
