"""CiT: the loss, and rounds of curation around it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.systems.image_text.cit import CiT
from tests.training.objectives.cases import CIT_CONFIG, COUNT, NumberedCaptions, assert_same_gradients, curator, describe, gradients, make
from training.curation import Curator
from training.errors import DataError
from training.objectives.cit import CiTObjective, CiTSettings
from training.recipe_settings import OptimiserSettings


def alike(caption: int) -> float:
    """Return a caption's cosine to the label that it is most like: 0, or the middle between 3 and 5."""
    directions = describe(torch.tensor([[caption], [0], [3], [5]]))
    middle = directions[2] + directions[3]
    return max(float(directions[0] @ directions[1]), float(directions[0] @ middle / middle.norm()))


LIKE_A_LABEL = {caption for caption in range(COUNT) if alike(caption) > 0.8}


def test_round_keeps_similar_captions_in_reading_order() -> None:
    captions, ours = NumberedCaptions(), curator()
    chosen = ours.choose(0, captions, 9, describe).tolist()
    read = captions.read_ids
    assert chosen == [caption for caption in read if caption in LIKE_A_LABEL][:9]
    assert len(read) % 7 == 0 and sum(caption in LIKE_A_LABEL for caption in read[:-7]) < 9  # it stops after the batch that was enough
    assert ours.ratio == sum(caption in LIKE_A_LABEL for caption in read) / len(read)


def test_rounds_read_on_and_each_pass_has_another_order() -> None:
    captions, ours = NumberedCaptions(), curator()
    first, second = ours.choose(0, captions, 3, describe), ours.choose(1, captions, 3, describe)
    assert len(set(captions.read_ids)) == len(captions.read_ids)  # not yet once through
    assert not set(first.tolist()) & set(second.tolist())
    for number in range(2, 12):
        ours.choose(number, captions, 3, describe)
    passes = [captions.read_ids[start : start + 49] for start in (0, 49)]
    assert all(len(set(order)) == 49 for order in passes) and passes[0] != passes[1]


def test_the_first_rounds_may_keep_everything() -> None:
    captions = NumberedCaptions()
    assert curator(warm_up=1).choose(0, captions, 7, describe).tolist() == captions.read_ids


def test_round_ends_after_one_pass_if_few_captions_match() -> None:
    captions = NumberedCaptions()
    chosen = curator(threshold=0.999).choose(0, captions, 100, describe)
    assert len(captions.read_ids) == 49 and len(chosen) < 10


def test_resumed_run_continues_its_round_and_reading_order() -> None:
    def run(stop: int | None) -> list[list[int]]:
        ours: Curator = curator()
        rounds = []
        for number in range(5):
            rounds.append(ours.choose(number, NumberedCaptions(), 4, describe).tolist())
            if number == stop:
                state = ours.state()
                ours = curator()
                ours.restore(state)
                assert ours.choose(number, NumberedCaptions(), 4, never).tolist() == rounds[-1]
        return rounds

    def never(words: Tensor) -> Tensor:
        raise AssertionError("a round that was chosen is not chosen again")

    assert run(stop=None) == run(stop=0) == run(stop=3)


@pytest.fixture
def objective() -> CiTObjective:
    torch.manual_seed(0)
    settings = CiTSettings.model_validate(
        {"curation": {"labels": ["1", ["2", "3"]], "steps": 2, "threshold": -1, "pool": 8, "min_ratio": None}}
    )
    return CiTObjective(CiT(CIT_CONFIG), settings)


class FewWords(NumberedCaptions):
    def read(self, ids: Tensor) -> Tensor:
        return torch.stack([1 + ids % 39, torch.zeros_like(ids)], dim=1)

    def tokenise(self, texts: Sequence[str]) -> Tensor:
        return torch.tensor([[int(text), 0] for text in texts])


def test_epoch_has_samples_for_its_steps_and_survives_state_dict(objective: CiTObjective) -> None:
    chosen = objective.train().subset(FewWords(), 0, 5)
    assert len(chosen) == len(chosen.unique()) == 10
    repeated = objective.subset(FewWords(12), 1, 6)
    assert len(repeated) == 12 and len(repeated.unique()) == 8
    assert objective.training and objective.model.text.training
    chosen = objective.subset(FewWords(), 2, 5)
    torch.manual_seed(7)
    other = CiTObjective(CiT(CIT_CONFIG), objective.settings)
    other.load_state_dict(objective.state_dict())
    assert torch.equal(other.subset(FewWords(), 2, 5), chosen)
    assert torch.equal(other.subset(FewWords(), 3, 5), objective.subset(FewWords(), 3, 5))


def test_captions_are_judged_by_the_text_tower_as_it_is(objective: CiTObjective) -> None:
    words = FewWords().read(torch.arange(4))
    before = objective.eval().describe(words)
    torch.testing.assert_close(before, objective.model.encode_text_features(words, words != 0))
    alone = objective.model.encode_text_features(words[:, :1])  # padding is not looked at
    torch.testing.assert_close(before, alone, rtol=1e-5, atol=1e-6)


def test_too_few_captions_like_a_label_are_refused() -> None:
    settings = CiTSettings.model_validate({"curation": {"labels": ["1"], "threshold": 1.1, "pool": 8, "min_ratio": None}})
    with pytest.raises(DataError, match=r"curation.threshold: only 0 of 50 captions are above 1.1, and a step takes 5"):
        CiTObjective(CiT(CIT_CONFIG), settings).subset(FewWords(), 0, 5)


def test_without_curation_every_caption_is_learnt_from() -> None:
    objective = CiTObjective(CiT(CIT_CONFIG), CiTSettings())
    assert objective.epoch_steps is None
    objective.load_state_dict(objective.state_dict())


def test_labels_may_stand_in_a_file(tmp_path: Path) -> None:
    file = tmp_path / "labels.txt"
    file.write_text("tench\n\n gold\u2028fish \n")
    settings = CiTSettings.model_validate({"curation": {"labels": str(file)}})
    assert settings.curation is not None
    assert settings.curation.label_texts() == [("tench",), ("gold\u2028fish",)]
    missing = CiTSettings.model_validate({"curation": {"labels": "nowhere.txt"}})
    with pytest.raises(ValueError, match=r"curation.labels: nowhere.txt cannot be read"):
        CiTObjective(CiT(CIT_CONFIG), missing)


def test_images_find_their_texts_and_the_vision_tower_stays() -> None:
    objective, batch = make("cit")
    assert isinstance(objective, CiTObjective)
    model = objective.model
    images = torch.nn.functional.normalize(model.encode_images(batch["pixels"]), dim=1)
    texts = torch.nn.functional.normalize(model.encode_texts(batch["words"], batch["words"] != 0), dim=1)
    scores = model.logit_scale.exp() * images @ texts.T
    expected = torch.stack([row.exp().sum().log() - row[place] for place, row in enumerate(scores)]).mean()
    loss = objective(batch)["loss"]
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5)
    found = gradients(loss, objective)
    assert_same_gradients(found, gradients(expected, objective))
    assert not any(name.startswith("model.vision.") for name in found)
    assert not objective.train().model.vision.training


def test_projections_decay_by_a_rate_of_their_own() -> None:
    groups = CiTObjective(CiT(CIT_CONFIG), CiTSettings()).parameter_groups(OptimiserSettings(lr=1, weight_decay=0.2))
    decay = {name: group["weight_decay"] for group in groups for name in group["names"]}
    assert decay["vision_projection.weight"] == decay["text_projection.weight"] == 1.0
    assert decay["logit_scale"] == decay["pooler.weight"] == 0.2
    assert decay["pooler.bias"] == decay["text.embed_norm.weight"] == 0.0
