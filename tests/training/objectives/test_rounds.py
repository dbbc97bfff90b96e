"""Curation in the loop: each epoch trains on what the text tower chose as it began, also after an interruption."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from models.systems.image_text.cit import CiT
from models.systems.image_text.flip import FLIP
from tests.training.objectives.cases import CIT_CONFIG, FLIP_CONFIG
from tests.training.objectives.test_cit import FewWords
from training.data.source import Sample
from training.errors import DataError
from training.loop import RunOutcome, RunSetup, TrainingPlan, train
from training.objectives.cit import CiTObjective, CiTSettings
from training.objectives.protocols import ObjectiveContext
from training.objectives.proxy_nca import ProxiesSettings
from training.recipe_settings import LoopSettings, OptimiserSettings, ScheduleSettings

PAIRS = 60
CURATION = {"labels": ["1", ["2", "3"]], "steps": 3, "threshold": 0.0, "min_ratio": 0.5, "pool": 8, "seed": 1}
SETTINGS = CiTSettings.model_validate({"curation": CURATION})
THINGS = 3


class Pairs:
    """Image n belongs to caption n."""

    unit = "pairs"
    labels = ("",) * THINGS

    def __init__(self, captions: FewWords | None) -> None:
        self.captions = captions
        self.seen: list[int] = []

    def __len__(self) -> int:
        return PAIRS

    def identity(self) -> Mapping[str, Any]:
        return {}

    def sample(self, index: int, draw: int) -> Sample:
        self.seen.append(index)
        pixels = torch.randn(3, 16, 16, generator=torch.Generator().manual_seed(index))
        return {"pixels": pixels, "words": FewWords().read(torch.tensor([index]))[0], "label": torch.tensor(index % THINGS)}


def matching() -> nn.Module:
    return CiTObjective(CiT(CIT_CONFIG), SETTINGS)


def proxies() -> nn.Module:
    return ProxiesSettings.model_validate({"curation": CURATION}).build(
        FLIP(replace(FLIP_CONFIG, text_length=2)), ObjectiveContext(labels=Pairs.labels)
    )


def train_rounds(folder: Path, stops: Sequence[int | None], made: Callable[[], nn.Module]) -> tuple[dict[str, Tensor], list[list[int]]]:
    """Return weights after nine steps of four pairs, and the pairs of each round. stops: steps at which the run is stopped and
    restarted."""
    pairs = Pairs(FewWords(PAIRS))
    for stop in stops:
        torch.manual_seed(0)
        objective = made()
        loop = LoopSettings(epochs=9 / 15, batch_size=4, max_steps=stop, checkpoint_every=100)
        plan = TrainingPlan(OptimiserSettings(lr=0.01), ScheduleSettings(), loop, seed=5)
        report = train(objective, pairs, plan, RunSetup(folder, torch.device("cpu"), {}))
        assert report.ended is (RunOutcome.DONE if stop is None else RunOutcome.STOPPED)
    return dict(objective.get_submodule("model").state_dict()), [pairs.seen[start : start + 12] for start in range(0, len(pairs.seen), 12)]


@pytest.mark.parametrize("made", [matching, proxies])
def test_rounds_use_different_captions_and_resume(made: Callable[[], nn.Module], tmp_path: Path) -> None:
    weights, rounds = train_rounds(tmp_path / "whole", [None], made)
    assert [len(set(chosen)) for chosen in rounds] == [12, 12, 12]
    assert len({tuple(sorted(chosen)) for chosen in rounds}) == 3
    for name, stops in {"within a round": [2, None], "between rounds": [3, None], "often": [1, 4, 6, None]}.items():
        again, seen = train_rounds(tmp_path / name, stops, made)
        assert seen == rounds, name
        assert all(torch.equal(again[key], value) for key, value in weights.items()), name


def test_data_without_captions_is_refused(tmp_path: Path) -> None:
    plan = TrainingPlan(OptimiserSettings(lr=0.01), ScheduleSettings(), LoopSettings(epochs=1, batch_size=4), seed=5)
    objective = matching()
    with pytest.raises(DataError, match=r"data.kind: the objective chooses among captions, and pairs have none"):
        train(objective, Pairs(None), plan, RunSetup(tmp_path, torch.device("cpu"), {}))
