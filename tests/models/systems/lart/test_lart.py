"""LART's network beyond its recorded cases (tests/golden/lart): attention against the published rule spelt out, windows one by one."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.checkpoints import CheckpointError, detect, families, fit, import_checkpoint, read_checkpoint
from models.people.heads import TrackFeatureDims
from models.people.track_batch import KeyMask, MaskedAttention, TokenMask, TrackBatch, normalise_pose, pose_statistics
from models.registry import read_config
from models.systems.lart.model import LART, LART_HIERA, LART_MVIT, LART_POSE, LARTConfig, position_table, predict_track
from tests.golden.__main__ import run
from tests.golden.case import GOLDEN, read_case
from tests.golden.checks import RECORDED, full_sizes, loads_strictly, relative_deviation, round_trips
from tests.golden.replays.lart import build
from training.objectives.lart import GroundTruth, action_loss, kinetics_loss, regression_loss

CASES = GOLDEN / "lart"
NETWORKS = ("multi_person", "pose_appearance", "pose_only", "sliding_window", "train_masking")

SMALL = LARTConfig(
    frames=12,
    pose=TrackFeatureDims(229, 24, 16),
    joints=None,
    appearance=TrackFeatureDims(6, 8, 8),
    depth=2,
    heads=2,
    head_dim=8,
    hidden=32,
    kinetics_classes=5,
    times=14,
    people=4,
    regressor_hidden=20,
    dropout=0.0,
    drop_path=0.0,
)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def small(config: LARTConfig = SMALL) -> LART:
    torch.manual_seed(0)
    return LART(config).eval()


def people(batch: int = 2, times: int = 10, count: int = 3, seed: int = 0) -> TrackBatch:
    generator = torch.Generator().manual_seed(seed)
    detected = (torch.rand(batch, times, count, 1, generator=generator) < 0.7).float()
    return TrackBatch(
        torch.randn(batch, times, count, 229, generator=generator),
        detected,
        appearance=torch.randn(batch, times, count, 6, generator=generator),
    )


@pytest.mark.parametrize("case", [*NETWORKS, "ava_eval", "phalp_to_tracklet", "tracklet_loader_1p", "tracklet_loader_multi"])
def test_recorded_cases(case: str) -> None:
    assert run(CASES / case)


@pytest.mark.parametrize("name", full_sizes("lart"))
def test_published_sizes_load_strictly(name: str) -> None:
    loads_strictly(full_sizes("lart")[name], "lart")


@pytest.mark.parametrize(
    ("config", "name", "millions"), [(LART_HIERA, "LART-Hiera", 51.8), (LART_MVIT, "LART-MViT", 51.3), (LART_POSE, "LART-pose", 12.8)]
)
def test_named_sizes_are_the_published_ones(config: LARTConfig, name: str, millions: float) -> None:
    [published] = [weights for title, weights in full_sizes("lart").items() if title.startswith(name)]
    assert fit(published, families()["lart"], {}).config() == config
    with torch.device("meta"):
        count = sum(parameter.numel() for parameter in LART(config).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.05)


@pytest.mark.parametrize("case", NETWORKS)
def test_import_and_export_are_bit_exact(case: str) -> None:
    recorded = read_case(CASES / case)
    published = read_checkpoint(recorded.checkpoint)
    exported = round_trips(published, "lart", {"heads": recorded.config["transformer"]["heads"]})
    assert exported.keys() == {key for key in published if not key.startswith("smpl.")}


def test_the_family_is_found_from_the_keys() -> None:
    for published in full_sizes("lart").values():
        assert detect(published) == ["lart"]


def test_a_file_whose_shapes_do_not_give_the_heads_needs_them() -> None:
    arguments: dict[str, Any] = {"family": None, "labels": None, "name": "lart", "version": "1", "license": "unknown"}
    file = CASES / "pose_appearance" / "checkpoint.pth"
    with pytest.raises(CheckpointError, match="its shapes do not determine the number of heads: set it, as in --set heads=4"):
        import_checkpoint(file, overrides={}, **arguments)
    with pytest.raises(CheckpointError, match="24 channels, which 5 heads cannot share"):
        import_checkpoint(file, overrides={"heads": "5"}, **{**arguments, "family": "lart"})
    for heads in ("many", "0", "-2"):
        with pytest.raises(CheckpointError, match=f"heads: '?{heads}'? is not a number of heads"):
            import_checkpoint(file, overrides={"heads": heads}, **arguments)
    with pytest.raises(CheckpointError, match="frames: 17 where the position table has 16"):
        import_checkpoint(file, overrides={"heads": "2", "frames": "17"}, **arguments)


def test_file_with_combined_heads_requires_their_count(tmp_path: Path) -> None:
    """The weights could be those of one head if there were no projection. A file without a projection has one head."""
    arguments: dict[str, Any] = {"family": None, "overrides": {}, "labels": None, "name": "lart", "version": "1", "license": "unknown"}
    with pytest.raises(
        CheckpointError,
        match=r"its keys are those of lart, but the number of heads cannot be inferred from its shapes: set it, as in --set heads=4",
    ):
        import_checkpoint(CASES / "pose_only" / "checkpoint.pth", **arguments)
    file = tmp_path / "single.pth"
    torch.save({"model": families()["lart"].export(small(replace(SMALL, heads=1, head_dim=24)).state_dict())}, file)
    spec, _ = import_checkpoint(file, **arguments)
    assert (spec.config["heads"], spec.config["head_dim"], spec.config["frames"]) == (1, 24, SMALL.times)


@pytest.mark.parametrize(("actions", "last"), [(60, "watch (person)"), (80, "class 79")])
def test_imported_model_of_evaluated_classes_knows_their_names(tmp_path: Path, actions: int, last: str) -> None:
    weights = small(replace(SMALL, actions=actions)).state_dict()
    file = tmp_path / "model.pth"
    torch.save({"model": families()["lart"].export(weights)}, file)
    spec, _ = import_checkpoint(file, family="lart", labels=None, overrides={"heads": "2"}, name="lart", version="1", license="unknown")
    assert len(spec.labels) == actions and spec.labels[-1] == last


def test_names_of_compiled_training_or_without_prefix_load() -> None:
    published = read_checkpoint(CASES / "pose_only" / "checkpoint.pth")
    expected = fit(published, families()["lart"], {"heads": 4})
    for spelling in (
        {key.replace("encoder.", "encoder._orig_mod.", 1): value for key, value in published.items()},
        {f"_orig_mod.{key}": value for key, value in published.items()},
        {key.removeprefix("encoder."): value for key, value in published.items()},
    ):
        found = fit(spelling, families()["lart"], {"heads": 4})
        assert found.perfect, found.mismatch_message()
        assert all(torch.equal(found.weights[name], value) for name, value in expected.weights.items())


def test_where_the_two_position_tables_differ_the_buffer_counts() -> None:
    published = dict(read_checkpoint(CASES / "pose_only" / "checkpoint.pth"))
    published["encoder.pe"] = published["encoder.pe"] + 1
    assert torch.equal(fit(published, families()["lart"], {"heads": 4}).weights["pos_embed"], published["encoder.pe"])


def test_a_lightning_file_with_omegaconf_settings_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """omegaconf need not be there: its classes become inert."""
    names = {"omegaconf.dictconfig": "DictConfig", "omegaconf.base": "ContainerMetadata", "omegaconf.nodes": "AnyNode"}
    classes = {}
    file = tmp_path / "model.ckpt"
    with monkeypatch.context() as with_omegaconf:
        with_omegaconf.setitem(sys.modules, "omegaconf", ModuleType("omegaconf"))
        for module_name, name in names.items():
            module = ModuleType(module_name)
            classes[name] = type(name, (), {"__module__": module_name})
            setattr(module, name, classes[name])
            with_omegaconf.setitem(sys.modules, module_name, module)
        settings = classes["DictConfig"]()
        settings.__dict__ = {"_metadata": classes["ContainerMetadata"](), "_content": {"lr": classes["AnyNode"]()}}
        torch.save({"state_dict": {"w": torch.ones(2)}, "hyper_parameters": {"cfg": settings}}, file)
    assert torch.equal(read_checkpoint(file)["w"], torch.ones(2))


@pytest.mark.parametrize("case", ["multi_person", "pose_appearance", "pose_only"])
def test_bfloat16_deviates_by_less_than_five_percent(case: str) -> None:
    recorded = read_case(CASES / case)
    values = {name: value.bfloat16() for name, value in recorded.inputs.items()}
    tracks = TrackBatch(
        values["pose_shape"], values["has_detection"], values.get("joints_3D"), values.get("apperance_emb"), values["mask_detection"]
    )
    with torch.no_grad():
        answer = build(recorded).bfloat16()(tracks)
    reading = answer.reading
    for got, name in ((reading.actions, "action_logits"), (reading.location, "location"), (reading.person.betas, "betas")):
        assert relative_deviation(got, recorded.outputs[name]) < 0.05, name


def attention_as_published(layer: MaskedAttention, x: Tensor, valid: Tensor, masked: Tensor) -> Tensor:
    """Scores set to -1000: first where a query or a key is not valid, then in the columns of masked keys."""
    q, k, v = layer.project(x)
    scores = q @ k.mT * q.shape[-1] ** -0.5
    pair = (valid.unsqueeze(2) & valid.unsqueeze(1)).unsqueeze(1)
    scores = torch.where(pair, scores, -1000.0)
    scores = torch.where(masked[:, None, None, :], -1000.0, scores)
    return layer.join_heads(scores.softmax(dim=-1) @ v)


@pytest.mark.parametrize("heads", [1, 3])
def test_hidden_tokens_are_treated_as_published(heads: int) -> None:
    """Also where nothing is left to see, and where one head as wide as the tokens has no output projection."""
    torch.manual_seed(0)
    layer = MaskedAttention(12, heads, 12 // heads if heads == 1 else 5, dropout=0.0).eval()
    assert ("proj.weight" in dict(layer.named_parameters())) is (heads != 1)
    x = torch.randn(4, 9, 12)
    valid, masked = torch.rand(4, 9) < 0.7, torch.rand(4, 9) < 0.4
    masked[1] = True
    valid[2] = False
    got = layer(x, KeyMask.from_masked(masked, valid))
    assert torch.allclose(got, attention_as_published(layer, x, valid, masked), atol=1e-6)
    everyone = torch.ones_like(valid)
    assert torch.allclose(layer(x, KeyMask.from_masked(masked)), attention_as_published(layer, x, everyone, masked), atol=1e-6)


def test_a_single_wide_head_is_read_from_a_checkpoint() -> None:
    model = small(replace(SMALL, heads=1, head_dim=24))
    exported = families()["lart"].export(model.state_dict())
    assert not any("to_out" in key for key in exported)
    found = fit(exported, families()["lart"], {})
    assert found.perfect and found.config().heads == 1, found.mismatch_message()


def test_undetected_people_have_no_influence_and_inputs_are_kept() -> None:
    model, tracks = small(), people()
    noise = torch.randn_like(tracks.pose) * (1 - tracks.detected)
    before = [tracks.pose.clone(), tracks.detected.clone()]
    with torch.no_grad():
        plain, noisy = model(tracks), model(replace(tracks, pose=tracks.pose + noise))
    assert torch.equal(plain.reading.actions, noisy.reading.actions)
    assert torch.equal(tracks.pose, before[0]) and torch.equal(tracks.detected, before[1])


def test_clips_of_a_batch_do_not_see_each_other() -> None:
    model, tracks = small(), people(batch=3)
    alone = TrackBatch(tracks.pose[1:2], tracks.detected[1:2], appearance=tracks.appearance[1:2])  # type: ignore[index]
    with torch.no_grad():
        assert torch.allclose(model(tracks).reading.actions[1:2], model(alone).reading.actions, atol=1e-6)


def test_people_of_a_clip_see_each_other() -> None:
    model, tracks = small(), people()
    changed = tracks.pose.clone()
    changed[:, :, 2] += 1
    with torch.no_grad():
        plain, other = model(tracks), model(replace(tracks, pose=changed))
    assert not torch.allclose(plain.reading.actions[:, :, 0], other.reading.actions[:, :, 0])


def test_training_hides_detected_tokens_of_lowest_noise() -> None:
    tracks, noise = people(), torch.rand(2, 10, 3, 1, generator=torch.Generator().manual_seed(1))
    hidden = TokenMask.from_noise(tracks, 0.4, noise)
    detected = tracks.detected.flatten(1) != 0
    counts = hidden.masked.flatten(1).sum(dim=1).tolist()
    assert counts == [int(int(number) * 0.4) for number in detected.sum(dim=1)]
    assert not (hidden.masked.flatten(1) & ~detected).any()
    for clip in range(2):
        drawn = noise[clip][hidden.masked[clip]].max()
        assert (noise[clip][(tracks.detected[clip] != 0) & ~hidden.masked[clip]] > drawn).all()


def test_position_table_encodes_person_first_then_time() -> None:
    table = position_table(16, times=5, people=3)
    assert table.shape == (16, 5, 3)
    assert torch.equal(table[:8, 0], table[:8, 4]) and torch.equal(table[8:, :, 0], table[8:, :, 2])
    angle = 2 * 10000.0 ** (-2 * 1 / 8)
    assert table[2, 0, 2] == pytest.approx(torch.tensor(angle).sin().item())
    assert table[3, 0, 2] == pytest.approx(torch.tensor(angle).cos().item())


def test_values_without_statistics_stay() -> None:
    pose, mean_std = torch.randn(4, 229), torch.stack([torch.full((226,), 0.5), torch.full((226,), 2.0)]).unsqueeze(1)
    assert torch.allclose(normalise_pose(pose, mean_std)[:, :226], (pose[:, :226] - 0.5) / 2)
    assert torch.equal(normalise_pose(pose, mean_std)[:, 226:], pose[:, 226:])


@pytest.mark.parametrize("length", [1, 3, 11, 12, 26])
def test_windows_in_a_batch_are_the_windows_one_by_one(length: int) -> None:
    model, step, margin = small(), 3, 4
    generator = torch.Generator().manual_seed(length)
    track = TrackBatch(
        torch.randn(1, length, 1, 229, generator=generator),
        (torch.rand(1, length, 1, 1, generator=generator) < 0.8).float(),
        appearance=torch.randn(1, length, 1, 6, generator=generator),
    )
    assert track.appearance is not None
    rows = []
    for first in range(0, length, step):
        start, end = max(first - margin, 0), min(first + step + margin, length)
        pose, detected, appearance = torch.zeros(1, 12, 1, 229), torch.zeros(1, 12, 1, 1), torch.zeros(1, 12, 1, 6)
        pose[:, : end - start], detected[:, : end - start] = track.pose[:, start:end], track.detected[:, start:end]
        appearance[:, : end - start] = track.appearance[:, start:end]
        with torch.no_grad():
            tokens = model.tokens(TrackBatch(pose, detected, appearance=appearance))
        rows.append(tokens[0, first - start : first - start + min(step, length - first)])
    with torch.no_grad():
        expected = model.heads(torch.cat(rows).unsqueeze(0))
        got = predict_track(model, track, step=step, margin=margin, windows_at_once=2)
    assert torch.allclose(got.actions, expected.actions, atol=1e-5)
    assert got.pose.shape == (1, length, 1, 229)


def test_windows_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="do not fit into 12 frames"):
        predict_track(small(), people(batch=1, count=1), step=4, margin=4)


def test_action_loss_counts_only_detected_and_labelled_tokens() -> None:
    logits = torch.randn(1, 4, 1, 6, requires_grad=True)
    targets = torch.rand(1, 4, 1, 80)
    detected, has_gt = torch.tensor([1.0, 1, 0, 1]).view(1, 4, 1, 1), torch.tensor([2.0, 1, 2, 0]).view(1, 4, 1, 1)
    for selected, rows in ((GroundTruth.ALL, [0, 1]), (GroundTruth.LABELS, [0]), (GroundTruth.PSEUDO, [1])):
        loss = action_loss(logits, targets, detected, has_gt, selected)
        chosen, expected = logits[0, rows, 0], targets[0, rows, 0, :6]
        by_hand = -(expected * chosen.sigmoid().log() + (1 - expected) * (1 - chosen.sigmoid()).log()).mean()
        assert torch.allclose(loss, 10 * by_hand, rtol=1e-5)
    [gradient] = torch.autograd.grad(action_loss(logits, targets, detected, has_gt), logits)
    assert (gradient[0, 2:] == 0).all() and (gradient[0, :2] != 0).all()
    assert action_loss(logits, targets, torch.zeros_like(detected), has_gt) == 0


def test_regression_loss_is_sum_over_tokens_by_count_plus_one() -> None:
    predicted, target = torch.randn(2, 3, 1, 5), torch.randn(2, 3, 1, 5)
    chosen = torch.tensor([1, 0, 1, 1, 0, 0]).view(2, 3, 1, 1) != 0
    error = (predicted - target)[chosen.squeeze(-1)]
    assert torch.allclose(regression_loss(predicted, target, chosen, 1), error.abs().sum() / 4)
    assert torch.allclose(regression_loss(predicted, target, chosen, 2), error.square().sum() / 4)


def test_kinetics_loss_is_mean_negative_log_over_people() -> None:
    logits, labels = torch.randn(2, 3, 5), torch.tensor([[0, 4, 2], [1, 1, 3]])
    chosen = logits.softmax(dim=-1).gather(2, labels.unsqueeze(2))
    assert torch.allclose(kinetics_loss(logits, labels), -chosen.log().mean())


def test_gradients_reach_all_parameters_of_published_network() -> None:
    model, tracks = small().train(), people()
    answer = model(tracks, TokenMask.from_noise(tracks, 0.4, torch.rand_like(tracks.detected)))
    (answer.reading.actions.sum() + answer.reading.pose.sum() + answer.kinetics.sum()).backward()
    untouched = {name.split(".")[0] for name, parameter in model.named_parameters() if parameter.grad is None}
    assert untouched == {"conv_en", "conv_de"}


def test_training_hides_configured_share_of_detected_tokens() -> None:
    model, inputs = small(replace(SMALL, mask_ratio=0.5)).train(), people()
    torch.manual_seed(3)
    got = model(inputs).reading.actions
    torch.manual_seed(3)
    noise = torch.rand(inputs.detected.shape)
    assert torch.equal(got, model(inputs, TokenMask.from_noise(inputs, 0.5, noise)).reading.actions)
    assert not torch.equal(got, model(inputs, TokenMask.from_missing(inputs)).reading.actions)
    everyone = small(replace(SMALL, mask_ratio=0.0)).train()
    assert torch.equal(everyone(inputs).reading.actions, everyone(inputs).reading.actions)
    assert torch.equal(model.eval()(inputs).reading.actions, model(inputs, TokenMask.from_missing(inputs)).reading.actions)


def test_the_statistics_of_poses_are_in_the_bundle(tmp_path: Path) -> None:
    mean_std = np.stack([np.linspace(-1, 1, 226), np.linspace(0.5, 2, 226)])[:, None]
    np.save(tmp_path / "mean_std.npy", mean_std)
    _, _, settings = RECORDED["lart"]
    arguments = {"family": None, "labels": None, "name": "lart", "version": "1", "license": "CC0-1.0"}
    file = GOLDEN / "lart/pose_appearance/checkpoint.pth"
    spec, _ = import_checkpoint(file, overrides={**settings, "mean_std": str(tmp_path / "mean_std.npy")}, **arguments)
    assert np.array_equal(spec.config["mean_std"], mean_std.squeeze(1))
    config = read_config(LARTConfig, json.loads(spec.to_bytes())["config"])
    pose = torch.randn(3, 229, dtype=torch.float64)
    assert torch.equal(normalise_pose(pose, pose_statistics(config.mean_std)), normalise_pose(pose, torch.from_numpy(mean_std)))
    assert "notes" not in spec.provenance

    without, _ = import_checkpoint(file, overrides=settings, **arguments)
    assert without.config["mean_std"] is None
    assert without.provenance["notes"] == ["mean_std is in no file that was read: --set mean_std=mean_std.npy puts it into the bundle"]
    with pytest.raises(ValueError, match="mean_std: this model was imported without"):
        pose_statistics(None)
    for content, sentence in ((b"no array", "cannot be read as a NumPy array"), (None, "cannot be read as a NumPy array")):
        other = tmp_path / "other.npy"
        other.unlink(missing_ok=True)
        if content is not None:
            other.write_bytes(content)
        with pytest.raises(CheckpointError, match=sentence):
            import_checkpoint(file, overrides={**settings, "mean_std": str(other)}, **arguments)
    np.save(tmp_path / "long.npy", np.ones((2, 1, 300)))
    with pytest.raises(CheckpointError, match="mean_std: 300 means and 300 standard deviations where a pose has 229 values"):
        import_checkpoint(file, overrides={**settings, "mean_std": str(tmp_path / "long.npy")}, **arguments)
