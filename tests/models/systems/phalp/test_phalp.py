"""PHALP beyond its recorded cases (tests/golden/phalp): against scikit-learn, formulas pair by pair, and what tracks must do."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

from models.checkpoints import families, fit, import_checkpoint, read_checkpoint
from models.people.track_batch import normalise_pose
from models.registry import read_config
from models.systems.lart.model import LARTConfig
from models.systems.phalp.association_cost import (
    EQ_010,
    EQ_019,
    POINT_XY,
    XYZ_SPREAD,
    TrackFeatures,
    appearance_distances,
    association_costs,
    forecast,
    normalise_texture,
    predict_location,
    texture_distances,
    update_texture,
)
from models.systems.phalp.pose_predictor import PosePredictor, PosePredictorConfig, predict_pose
from models.systems.phalp.tracker import Observation, Tracker, TrackerConfig, TrackState
from tests.golden.__main__ import run
from tests.golden.case import GOLDEN, read_case
from tests.golden.checks import relative_deviation, round_trips
from tests.golden.compare import compare_intermediates
from tests.golden.replays.phalp import build, replay

CASES = GOLDEN / "phalp"
FILMS = ("association_al", "association_apl_predictor")

BLIND = TrackerConfig(predict_pose=False, confirmed_after=3, longest_gap=4)
"""A config without a pose predictor."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("case", [*FILMS, "camera_location", "pose_predictor", "texture_update"])
def test_recorded_cases(case: str) -> None:
    assert run(CASES / case)


@pytest.mark.parametrize("case", [*FILMS, "texture_update"])
def test_recorded_costs_and_textures(case: str) -> None:
    """Intermediates, to the case's tolerance: the reference's costs carry rounding of its own."""
    recorded = read_case(CASES / case)
    with torch.no_grad():
        deviations = compare_intermediates(recorded, replay(recorded))
    assert len(deviations) == len(recorded.intermediates)
    assert [deviation.name for deviation in deviations if deviation.problem] == []


def test_clip_is_replayed_from_places_and_poses_alone() -> None:
    """Fields that a config leaves out have the published values: tracks are confirmed after five detections, or at once if annotated."""
    recorded = read_case(CASES / FILMS[0])
    film = {f"f{time:02d}.{name}": value for time in range(2) for name, value in film_of(time, [0.2, 0.8]).items()}
    film["f00.annotations"] = torch.tensor([0.0, 1.0])
    outputs = replay(replace(recorded, config={"frames": 4, "predict": "L"}, inputs=film)).outputs
    assert [outputs[f"f{time:02d}.tracks"][:, :2].tolist() for time in range(4)] == [[[1, 1], [2, 2]]] * 2 + [[[2, 2]]] * 2
    film |= {"f00.ground_truth": torch.tensor([7.0, 8.0]), "f01.ground_truth": torch.tensor([8.0, 7.0])}
    by_identity = replay(replace(recorded, config={"frames": 2, "predict": "L", "use_gt": True}, inputs=film)).outputs
    assert by_identity["f01.ids"].tolist() == [2, 1]


def film_of(time: int, places: list[float]) -> dict[str, torch.Tensor]:
    people = [observe(time, place) for place in places]
    return {
        "pose": torch.from_numpy(np.stack([person.pose for person in people])),
        "loca": torch.from_numpy(np.stack([person.location for person in people])),
    }


@pytest.mark.parametrize(("case", "heads"), [("pose_predictor", 3), ("association_apl_predictor", 2)])
def test_import_and_export_of_the_pose_predictor_are_bit_exact(case: str, heads: int) -> None:
    published = read_checkpoint(CASES / case / "checkpoint.pth")
    exported = round_trips(published, "phalp_pose", {"heads": heads})
    left = {key.split(".")[1] for key in published.keys() - exported.keys()}
    assert left == {"pos_embedding", "pe", "transformer"}  # what the published code never uses


def test_bfloat16_deviates_by_less_than_five_percent() -> None:
    recorded = read_case(CASES / "pose_predictor")
    model = build(recorded, recorded.config).bfloat16()
    inputs = recorded.inputs
    with torch.no_grad():
        got = predict_pose(model, inputs["time"], inputs["pose"], inputs["gap"], inputs["mean_std"])
    assert relative_deviation(got, recorded.outputs["pred"]) < 0.05


def test_forecasts_are_scikit_learns_ridge_regressions() -> None:
    random = np.random.default_rng(0)
    times, values = np.cumsum(random.integers(1, 4, size=(5, 7)), axis=1).astype(float), random.normal(size=(5, 7))
    at = times[:, -1] + 3
    got = forecast(times, values, at, penalty=1.2)
    for row in range(5):
        model = Ridge(alpha=1.2).fit(times[row, :, None], values[row])
        assert got.value[row] == pytest.approx(model.predict([[at[row]]])[0])
        residuals = values[row] - model.predict(times[row, :, None])
        error = np.sqrt((residuals**2).sum() / 5)
        spread = ((times[row] - times[row].mean()) ** 2).sum()
        half = 2.5705818 * error * np.sqrt(1 + 1 / 7 + (at[row] - times[row].mean()) ** 2 / spread)
        assert got.interval[row] == pytest.approx(half)


def test_a_track_seen_at_one_time_only_has_no_interval() -> None:
    times, locations = np.full((1, 7), 4.0), np.abs(np.random.default_rng(0).normal(size=(1, 7, 99)))
    assert np.isnan(predict_location(times, locations, np.array([1]))[:, XYZ_SPREAD]).all()


def test_repeated_times_divide_the_interval() -> None:
    locations = np.abs(np.random.default_rng(0).normal(size=(1, 7, 99))) + 1
    times = np.array([[1.0, 1, 1, 1, 2, 3, 5]])
    interval = forecast(times, locations[:, :, 88], np.array([6.0]), 1.2).interval
    assert predict_location(times, locations, np.array([0]))[0, 93] == pytest.approx(interval[0] / 4)


@pytest.mark.parametrize(("distance", "shot"), [(EQ_019, False), (EQ_019, True), (EQ_010, False), (EQ_010, True)])
def test_costs_follow_the_formula_pair_by_pair(distance: Any, shot: bool) -> None:
    random = np.random.default_rng(0)

    def features(count: int) -> TrackFeatures:
        location = np.abs(random.normal(size=(count, 99))) + 0.1
        return TrackFeatures(random.normal(size=(count, 6)) * 300, random.normal(size=(count, 229)) * 0.05, location)

    tracks, detections = features(3), features(4)
    looks = appearance_distances(tracks.appearance, detections.appearance)
    got = association_costs(tracks, detections, distance, looks, shot=shot)
    b = (
        (4.0536, 1.3070, 0.3792, 4.1658)
        if distance is EQ_019
        else (7.8303 if shot else 3.8303, 1.5207, *((1e100,) * 2 if shot else (0.4930, 4.5831)))
    )
    for row in range(3):
        for column in range(4):
            track, seen = tracks.location[row], detections.location[column]
            look = (((tracks.appearance[row] - detections.appearance[column]) / 1000) ** 2).sum()
            pose = min(((tracks.pose[row] - detections.pose[column])[:226] ** 2).sum(), 1.5 if distance is EQ_019 else 1.2)
            place = np.hypot(*(track[POINT_XY] - seen[POINT_XY]))
            ratio = track[92] / seen[92]
            near = -np.log(min(ratio, 1 / ratio))
            expected = (1 + b[0] * look) * (1 + b[1] * pose)
            expected *= np.exp(place / (0.1 + np.tanh(np.hypot(track[93], track[94]))) / b[2])
            expected *= np.exp(near / (0.1 + np.tanh(abs(np.log(1 / track[95])))) / b[3])
            assert got[row, column] == pytest.approx(expected)


def observe(time: int, place: float, **changes: Any) -> Observation:
    """Return a detection of a person who stands still at `place` and resembles no one else."""
    location = np.zeros(99)
    location[POINT_XY], location[90:93], location[93:96] = (place, 0.5), (place, 0.0, 20.0), (place, 0.5, 20.0)
    look = np.zeros(4)
    look[int(place * 10) % 4] = 1000.0
    record = {"bbox": [100 * place, 0, 10, 20], "conf": 0.9, "smpl": None}
    observation = Observation(time, look, np.zeros(229), location, 0.9, record=record)
    return replace(observation, **changes)


def test_track_is_tentative_until_confirmed_then_outlives_gaps() -> None:
    film = Tracker(BLIND)
    for time in range(3):
        assert film.update([observe(time, 0.2)]).track_numbers == (1,)
        assert film.tracks[0].state is (TrackState.CONFIRMED if time == 2 else TrackState.TENTATIVE)
    for _ in range(4):
        film.update([])
    assert [track.missed for track in film.tracks] == [4]
    assert film.update([observe(7, 0.2)]).track_numbers == (1,)
    for _ in range(5):
        film.update([])
    assert film.tracks == []
    assert film.update([observe(20, 0.2)]).track_numbers == (2,)


def test_who_is_lost_for_long_is_expected_as_after_48_frames() -> None:
    gaps = []

    def predict_pose(times: torch.Tensor, poses: torch.Tensor, missed: torch.Tensor) -> torch.Tensor:
        gaps.append(int(missed[0]))
        return poses[:, -1]

    film = Tracker(TrackerConfig(confirmed_after=2, longest_gap=60), predict_pose=predict_pose)
    film.update([observe(0, 0.2)])
    film.update([observe(1, 0.3)])
    places = []
    for _ in range(60):
        film.update([])
        places.append(film.tracks[0].predicted.location[POINT_XY])
    assert gaps == [0, *range(1, 49), *[48] * 12]
    assert np.array_equal(places[47], places[59]) and not np.array_equal(places[46], places[47])


def test_missed_tentative_track_ends_and_annotated_one_does_not() -> None:
    film = Tracker(BLIND)
    film.update([observe(0, 0.2), observe(0, 0.8, annotated=True)])
    film.update([])
    assert [track.number for track in film.tracks] == [2]
    assert film.update([observe(2, 0.8)]).track_numbers == (2,)


def test_the_order_of_detections_changes_nothing() -> None:
    straight, crossed = Tracker(BLIND), Tracker(BLIND)
    for time in range(5):
        people = [observe(time, place) for place in (0.1, 0.4, 0.7)]
        first = straight.update(people).track_numbers
        turned = crossed.update(people if time == 0 else people[::-1]).track_numbers
        assert first == (turned if time == 0 else turned[::-1]) == (1, 2, 3)


def test_a_cut_moves_the_memory_of_a_place() -> None:
    film = Tracker(replace(BLIND, threshold=1e300))
    for time in range(3):
        film.update([observe(time, 0.2)])
    film.update([observe(3, 0.9)], shot=True)
    assert {observation.location[88] for observation in film.tracks[0].history} == {0.9}
    assert [observation.time for observation in film.tracks[0].history] == [0, 0, 0, 0, 1, 2, 3]
    assert film.tracks[0].predicted.location[88] == pytest.approx(0.9)


def test_given_identities_match_whatever_the_distance() -> None:
    film = Tracker(replace(BLIND, match_identities=True))
    film.update([observe(0, 0.1, identity=7), observe(0, 0.9, identity=8)])
    assert film.update([observe(1, 0.1, identity=8), observe(1, 0.9, identity=7), observe(1, 0.5)]).track_numbers == (2, 1, 3)


def test_what_a_tracker_compares_it_must_have() -> None:
    with pytest.raises(ValueError, match="pose predictor"):
        Tracker(TrackerConfig())
    with pytest.raises(ValueError, match="appearance network"):
        Tracker(replace(BLIND, compare_texture=True))
    film = Tracker(replace(BLIND, compare_texture=True), texture_distance=lambda tracks, detections: torch.zeros(1, 1))
    film.update([observe(0, 0.1)])
    with pytest.raises(ValueError, match="texture"):
        film.update([observe(1, 0.1)])


def test_textures_decide_if_compared_and_mix_along_a_track() -> None:
    def texture(colour: float) -> torch.Tensor:
        return torch.cat([torch.full((3, 4, 4), colour), torch.ones(1, 4, 4)])

    by_texture = partial(texture_distances, lambda textures: 1000 * textures.flatten(1))
    film = Tracker(replace(BLIND, compare_texture=True, threshold=1e9), texture_distance=by_texture)
    people = [observe(0, 0.5, texture=texture(colour)) for colour in (0.0, 1.0)]
    film.update(people)
    assert film.update([replace(person, time=1) for person in people[::-1]]).track_numbers == (2, 1)
    film.update([replace(people[0], time=2, texture=texture(0.1)), replace(people[1], time=2)])
    mixed = film.tracks[0].last.texture
    assert mixed is not None
    assert torch.allclose(mixed[:3], torch.tensor(0.1 * 0.1 * 0.9**2))


def test_texture_distances_see_the_common_region_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    tracks, detections = (normalise_texture(torch.randn(count, 4, 4, 4, generator=generator).round()) for count in (2, 3))
    got = texture_distances(lambda textures: textures.flatten(1), tracks, detections)
    for row in range(2):
        for column in range(3):
            common = (tracks[row, 3] > 0) & (detections[column, 3] > 0)
            error = (tracks[row, :3] - detections[column, :3])[:, common].square().sum() * 100 / 1000**2
            assert got[row, column] == pytest.approx(float(error), rel=1e-4)


def test_an_updated_texture_knows_what_either_did() -> None:
    old, new = torch.zeros(4, 1, 4), torch.ones(4, 1, 4)
    old[3] = torch.tensor([1.0, 1, -1, -1])
    new[3] = torch.tensor([1.0, -1, 1, -1])
    updated = update_texture(old, new, rate=0.1, confidence=0.5)
    assert updated[3, 0].tolist() == [1, 1, 1, -1]
    assert torch.allclose(updated[0, 0], torch.tensor([0.025, 0.0, 1.0, 0.0]))


SMALL = PosePredictorConfig(frames=15, pose=LARTConfig.pose, depth=1, heads=2, head_dim=8, hidden=16, actions=5, regressor_hidden=12)


def test_all_tracks_are_read_at_the_time_of_the_first() -> None:
    torch.manual_seed(0)
    model, mean_std = PosePredictor(SMALL).eval(), torch.stack([torch.zeros(226), torch.ones(226)]).unsqueeze(1)
    times = torch.tensor([[0, 0, 0, 0, 1, 2, 3], [5, 6, 7, 8, 9, 10, 11], [0, 4, 8, 12, 16, 20, 24]])
    poses, gaps = torch.randn(3, 7, 229), torch.tensor([0, 2, 1])
    with torch.no_grad():
        literal = predict_pose(model, times, poses, gaps, mean_std)
        alone = torch.cat([predict_pose(model, times[i : i + 1], poses[i : i + 1], gaps[i : i + 1], mean_std) for i in range(3)])
    assert torch.allclose(literal[0], alone[0], atol=1e-5)
    assert not torch.allclose(literal[1], alone[1], atol=1e-5)


def test_of_equal_times_the_last_pose_counts() -> None:
    torch.manual_seed(0)
    model, mean_std = PosePredictor(SMALL).eval(), torch.stack([torch.zeros(226), torch.ones(226)]).unsqueeze(1)
    times, poses = torch.tensor([[2, 2, 3, 4, 4, 5, 6]]), torch.randn(1, 7, 229)
    other = poses.clone()
    other[0, [0, 3]] = 5.0
    with torch.no_grad():
        same = [predict_pose(model, times, history, torch.tensor([0]), mean_std) for history in (poses, other)]
    assert torch.equal(*same)
    assert torch.equal(normalise_pose(poses, mean_std), poses)


def test_frames_must_fit_the_bottleneck() -> None:
    with pytest.raises(ValueError, match="not a multiple of conv_stride 5"):
        PosePredictorConfig(frames=12)


def test_the_pose_predictor_is_found_from_the_keys() -> None:
    published = read_checkpoint(CASES / "pose_predictor" / "checkpoint.pth")
    assert fit(published, families()["phalp_pose"], {"heads": 3}).perfect
    assert not fit(published, families()["phalp_pose"], {"heads": 3}).unexpected


def test_a_pose_predictor_uses_the_statistics_of_its_bundle(tmp_path: Path) -> None:
    mean_std = np.stack([np.linspace(-1, 1, 226), np.linspace(0.5, 2, 226)])[:, None]
    np.save(tmp_path / "mean_std.npy", mean_std)
    spec, weights = import_checkpoint(
        GOLDEN / "phalp/pose_predictor/checkpoint.pth",
        family=None,
        labels=None,
        overrides={"heads": "2", "mean_std": str(tmp_path / "mean_std.npy")},
        name="phalp",
        version="1",
        license="CC0-1.0",
    )
    model = PosePredictor(read_config(PosePredictorConfig, spec.config)).eval()
    model.load_state_dict(weights)
    times, gaps = torch.arange(4.0).expand(2, -1), torch.zeros(2, dtype=torch.int64)
    poses = torch.randn(2, 4, 229, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours = predict_pose(model, times, poses, gaps)
        assert torch.equal(ours, predict_pose(model, times, poses, gaps, torch.from_numpy(mean_std)))
        with pytest.raises(ValueError, match="mean_std: this model was imported without"):
            predict_pose(PosePredictor(replace(model.config, mean_std=None)).eval(), times, poses, gaps)
