"""Files of SlowFast's training code, MViT and Rev-MViT alike, and minREV's: recorded cases, published sizes, tables of another size."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml
from torch import Tensor

from models.checkpoints import CheckpointError, detect, families, fit, import_checkpoint, read_checkpoint
from models.checkpoints.checkpoint_file import open_checkpoint
from tests.golden.case import GOLDEN, Tolerance, find_cases, published_keys, read_case
from tests.golden.checks import detected_at_full_size, relative_deviation
from tests.golden.compare import compare_intermediates
from tests.golden.replays import mvit as replay_mvit
from tests.golden.replays import rev as replay_rev

REPLAYS: dict[str, ModuleType] = {"mvit": replay_mvit, "rev": replay_rev}
CASES = [pytest.param(folder, id=folder.name) for folder in find_cases(*(GOLDEN / system for system in REPLAYS))]


@pytest.mark.parametrize("folder", CASES)
def test_intermediates_match_within_effect_of_norm_epsilon(folder: Path) -> None:
    """The tolerance of the recorded cases would let 1e-5 pass for 1e-6."""
    case = read_case(folder)
    with torch.no_grad():
        replayed = REPLAYS[case.system].replay(case)
    deviations = compare_intermediates(replace(case, tolerance=Tolerance(atol=1e-5, rtol=1e-6)), replayed)
    assert {deviation.name.removeprefix("mid.") for deviation in deviations} == set(case.intermediates)
    assert [deviation for deviation in deviations if deviation.problem] == []


@pytest.mark.parametrize("folder", CASES)
def test_bfloat16_answers_are_within_three_percent(folder: Path) -> None:
    """The tolerance is relative to the largest logit."""
    case = read_case(folder)
    model = fit(read_checkpoint(case.checkpoint), *REPLAYS[case.system].choose(case.config)).model()
    boxes = [case.inputs["boxes"]] if "boxes" in case.inputs else []
    with torch.inference_mode():
        exact = model(case.inputs["x"], *boxes).logits
        rounded = model.bfloat16()(case.inputs["x"].bfloat16(), *boxes).logits
    assert relative_deviation(rounded, exact) < 0.03


@pytest.mark.parametrize("folder", CASES)
def test_published_files_are_detected_by_config_and_round_trip(folder: Path) -> None:
    case, description = read_case(folder), open_checkpoint(folder / "checkpoint.pth").description
    published = read_checkpoint(case.checkpoint)
    family = REPLAYS[case.system].choose(case.config)[0]
    assert detect(published, description) == [family.name]
    settings = {**family.described(description), **({"heads": 4} if family.name == "minrev" else {})}
    found = fit(published, family, settings)
    assert found.perfect
    exported = family.export(found.model().state_dict())
    assert exported.keys() == published.keys()
    assert all(torch.equal(exported[name], published[name]) for name in published)


def full_sizes() -> list[Any]:
    reversible = published_keys("rev")
    others = published_keys("mvit")
    return [pytest.param(entry["params"], entry["num_params"], id=name) for name, entry in {**reversible, **others}.items()]


@pytest.mark.parametrize(("shapes", "parameters"), full_sizes())
def test_published_models_load_strictly_at_full_size(shapes: dict[str, list[int]], parameters: int) -> None:
    model = detected_at_full_size(shapes)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda configuration: 7, "a int where text is needed"),
        (lambda configuration: ": : [", "not YAML"),
        (lambda configuration: yaml.safe_dump({"DATA": {}}), "which has the sections DATA, MVIT and MODEL"),
        (lambda configuration: change_config(configuration, "EMBED_DIM", None), "lacks EMBED_DIM"),
        (lambda configuration: change_config(configuration, "REV", 4), "a value of the wrong kind"),
        (lambda configuration: change_config(configuration, "PATCH_STRIDE", [2, 0, 4]), "hold no patch of stride"),
        (lambda configuration: change_config(configuration, "DEPTH", "four"), "depth: Input should be a valid integer"),
    ],
)
def test_invalid_configuration_is_refused_with_a_sentence(change: Callable[[str], object], complaint: str, tmp_path: Path) -> None:
    content = torch.load(GOLDEN / "mvit" / "mvitv2_cls_tiny" / "checkpoint.pth", weights_only=True)
    torch.save({**content, "cfg": change(content["cfg"])}, tmp_path / "file.pth")
    with pytest.raises(CheckpointError, match=complaint):
        import_checkpoint(tmp_path / "file.pth", family="mvit", labels=None, overrides={}, name="test", version="1", license="CC0-1.0")


def change_config(configuration: str, key: str, value: object) -> str:
    """Change a key of the section MVIT. None: left out."""
    content = yaml.safe_load(configuration)
    content["MVIT"][key] = value
    if value is None:
        del content["MVIT"][key]
    return yaml.safe_dump(content)


@pytest.mark.parametrize(
    ("case", "key"), [("mvit/mvitv2_cls_tiny", "blocks.1.attn.rel_pos_h"), ("rev/rev_mvit_video_tiny", "pos_embed_spatial")]
)
def test_a_table_of_other_dimensions_is_named(case: str, key: str) -> None:
    file = GOLDEN / case / "checkpoint.pth"
    published, description = read_checkpoint(file), open_checkpoint(file).description
    (name,) = detect(published, description)
    found = fit({**published, key: published[key].unsqueeze(0)}, families()[name], families()[name].described(description))
    assert [text.partition(" ")[0] for text in found.misshapen] == [key]


def import_file(case: str, **settings: str) -> dict[str, Tensor]:
    """Weights by our names."""
    file = GOLDEN / case / "checkpoint.pth"
    _, weights = import_checkpoint(file, family=None, labels=None, overrides=settings, name="test", version="1", license="CC0-1.0")
    return weights


def test_tables_are_taken_to_another_size_as_slowfast_loads_them() -> None:
    """Places bicubically, times and relative positions linearly."""
    case = "rev/rev_mvit_video_tiny"
    before, after = import_file(case), import_file(case, image_size="64", frames="8")
    square = before["pos_embed.spatial"].unflatten(1, (8, 8)).permute(0, 3, 1, 2)
    larger = F.interpolate(square, size=(16, 16), mode="bicubic", align_corners=False)
    torch.testing.assert_close(after["pos_embed.spatial"], larger.flatten(2).transpose(1, 2))
    line = before["pos_embed.temporal"].transpose(1, 2)
    torch.testing.assert_close(after["pos_embed.temporal"], F.interpolate(line, size=4, mode="linear").transpose(1, 2))

    before, after = import_file("mvit/mvitv2_cls_tiny"), import_file("mvit/mvitv2_cls_tiny", image_size="64", frames="8")
    assert {name for name in before if not torch.equal(before[name], after[name])} == {name for name in before if ".rel_pos_" in name}
    table = before["blocks.1.attn.rel_pos_h"].T.unsqueeze(0)
    torch.testing.assert_close(after["blocks.1.attn.rel_pos_h"].T, F.interpolate(table, size=15, mode="linear")[0])
    assert len(after["blocks.1.attn.rel_pos_t"]) == 7


def test_a_joint_table_of_pictures_is_resized_too() -> None:
    assert import_file("rev/rev_mvit_image_tiny", image_size="96")["pos_embed.joint"].shape == (1, 576, 16)
