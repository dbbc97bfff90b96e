"""The task `classify`: pure functions of a request and a bundle's spec."""

from __future__ import annotations

import numpy as np
import pytest

from models.bundle import BundleSpec, Preprocess, Rung, Weights
from server.tasks.classify import Classify, InvalidOption, Plan


def spec(**changes: object) -> BundleSpec:
    fields = {
        "name": "birds",
        "version": "1",
        "task": "classify",
        "architecture": "vit",
        "config": {"depth": 4},
        "preprocess": Preprocess(image_size=8, short_side=8, mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
        "labels": ["crow", "owl", "wren"],
        "license": "CC0-1.0",
        "ladder": [Rung(name="falling", schedule={"r": 2, "inflection": -1.0}), Rung(name="listed", schedule=[3])],
        "weights": Weights(sha256="0" * 64, bytes=1),
    }
    return BundleSpec(**fields | changes)


@pytest.mark.parametrize(
    ("merge", "plan"),
    [
        (None, Plan(None, (0, 0, 0, 0))),
        ("off", Plan(None, (0, 0, 0, 0))),
        ("3", Plan(None, (3, 3, 3, 3))),
        ("falling", Plan("falling", (4, 2, 1, 0))),
        ("listed", Plan("listed", (3, 0, 0, 0))),
    ],
)
def test_a_plan_says_r_of_every_block(merge: str | None, plan: Plan) -> None:
    assert Classify.plan(merge, spec()) == plan


def test_the_default_rung_is_used_unless_the_request_says_otherwise() -> None:
    bundle = spec(default_rung="listed")
    assert Classify.plan(None, bundle) == Plan("listed", (3, 0, 0, 0))
    assert Classify.plan("off", bundle) == Plan(None, (0, 0, 0, 0))


@pytest.mark.parametrize("merge", ["-1", "2.5", "", "fast", "65537", "1e3", "٣"])
def test_another_merge_is_refused_with_the_rungs(merge: str) -> None:
    with pytest.raises(InvalidOption, match="falling, listed") as refusal:
        Classify.plan(merge, spec())
    assert refusal.value.field == "merge"


def test_models_that_pool_their_tokens_merge_none() -> None:
    pooling = spec(architecture="rev_mvit", ladder=[])
    assert Classify.plan(None, pooling) == Classify.plan("0", pooling) == Plan(None, (0, 0, 0, 0))
    with pytest.raises(InvalidOption, match="birds@1 do not merge; use `off`"):
        Classify.plan("3", pooling)
    with pytest.raises(ValueError, match="ladder: tokens of architecture rev_mvit do not merge"):
        spec(architecture="rev_mvit")


def test_a_bucket_holds_what_may_run_together() -> None:
    bundle = spec()
    assert Classify.bucket(Classify.plan("3", bundle), bundle) == Classify.bucket(Plan("named", (3, 3, 3, 3)), bundle)
    assert Classify.bucket(Classify.plan("3", bundle), bundle) != Classify.bucket(Classify.plan("off", bundle), bundle)


def test_labels_come_best_first_with_softmax_scores() -> None:
    outputs = {"logits": np.log(np.array([1, 6, 3], np.float32)), "tokens": np.array([17, 9], np.int32)}
    result = Classify.present(outputs, Plan("listed", (3, 0, 0, 0)), spec(), top_k=2)
    assert [(prediction.label, prediction.index) for prediction in result.predictions] == [("owl", 1), ("wren", 2)]
    assert [prediction.score for prediction in result.predictions] == pytest.approx([0.6, 0.3])
    assert (result.merging.rung, result.merging.tokens_in, result.merging.tokens_out) == ("listed", 17, 9)


def test_equal_scores_keep_the_order_of_the_classes_and_large_logits_do_not_overflow() -> None:
    outputs = {"logits": np.array([1e4, 1e4, 1e4], np.float32), "tokens": np.array([1, 1], np.int32)}
    predictions = Classify.present(outputs, Plan(None, (0,)), spec(), top_k=3).predictions
    assert [prediction.index for prediction in predictions] == [0, 1, 2]
    assert [prediction.score for prediction in predictions] == pytest.approx([1 / 3] * 3)


@pytest.mark.parametrize("top_k", [0, 4, -1])
def test_top_k_is_bounded_by_the_classes(top_k: int) -> None:
    with pytest.raises(InvalidOption, match="from 1 to 3"):
        Classify.check_top_k(top_k, spec())
