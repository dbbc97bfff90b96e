"""The task `classify`: pure functions of options, arrays and a bundle's spec."""

from __future__ import annotations

import msgspec
import numpy as np
import pytest

from models.bundle import BundleSpec
from models.bundle_schema import FileDigest, Preprocess, Rung
from server.tasks.base import JSON
from server.tasks.classify.images import ClassifyAnswer, ClassifyOptions, ClassifyPlan, ClassifyTask
from server.tasks.options import InvalidOption

TASK = ClassifyTask()
SHAPES = {"pixels": (32, 32, 3)}


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
        "weights": FileDigest(sha256="0" * 64, bytes=1),
    }
    return BundleSpec(**fields | changes)


def plan(bundle: BundleSpec, **options: object) -> ClassifyPlan:
    return TASK.plan(ClassifyOptions(**options), bundle)


def merging(bundle: BundleSpec, merge: str | int | None) -> tuple[str | None, tuple[int, ...]]:
    planned = plan(bundle, merge=merge)
    return planned.rung, planned.schedule


@pytest.mark.parametrize(
    ("merge", "rung", "schedule"),
    [
        (None, None, (0, 0, 0, 0)),
        ("off", None, (0, 0, 0, 0)),
        ("3", None, (3, 3, 3, 3)),
        (3, None, (3, 3, 3, 3)),
        ("falling", "falling", (4, 2, 1, 0)),
        ("listed", "listed", (3, 0, 0, 0)),
    ],
)
def test_a_plan_says_r_of_every_block(merge: str | int | None, rung: str | None, schedule: tuple[int, ...]) -> None:
    assert merging(spec(), merge) == (rung, schedule)


def test_default_rung_is_used_unless_requested_otherwise() -> None:
    bundle = spec(default_rung="listed")
    assert merging(bundle, None) == ("listed", (3, 0, 0, 0))
    assert merging(bundle, "off") == (None, (0, 0, 0, 0))


@pytest.mark.parametrize("merge", ["-1", "2.5", "", "fast", "65537", "1e3", "٣"])
def test_another_merge_is_refused_with_the_rungs(merge: str) -> None:
    with pytest.raises(InvalidOption, match="falling, listed") as refusal:
        plan(spec(), merge=merge)
    assert refusal.value.field == "merge"


def test_models_that_pool_their_tokens_merge_none() -> None:
    pooling = spec(architecture="rev_mvit", ladder=[])
    assert merging(pooling, None) == merging(pooling, "0") == (None, (0, 0, 0, 0))
    with pytest.raises(InvalidOption, match="birds@1 do not merge; use `off`"):
        plan(pooling, merge="3")
    with pytest.raises(ValueError, match="ladder: tokens of architecture rev_mvit do not merge"):
        spec(architecture="rev_mvit")


def test_a_bucket_holds_what_may_run_together() -> None:
    bundle = spec()
    three, named, off = plan(bundle, merge="3"), ClassifyPlan(1, "named", (3, 3, 3, 3)), plan(bundle, merge="off")
    assert TASK.bucket(three, bundle, SHAPES) == TASK.bucket(named, bundle, SHAPES) != TASK.bucket(off, bundle, SHAPES)
    assert TASK.bucket(three, bundle, SHAPES) != TASK.bucket(three, bundle, {"pixels": (64, 64, 3)})
    assert TASK.arguments(three, {}) == TASK.arguments(named, {}) == {"merge": [3, 3, 3, 3]}


def test_traced_jobs_have_batches_of_their_own() -> None:
    bundle = spec()
    traced, plain = plan(bundle, merge="3", trace=True), plan(bundle, merge="3")
    assert TASK.bucket(traced, bundle, SHAPES) != TASK.bucket(plain, bundle, SHAPES)
    assert TASK.arguments(traced, {}) == {"merge": [3, 3, 3, 3], "trace": True}
    with pytest.raises(InvalidOption, match="nothing to trace") as refusal:
        plan(spec(architecture="mvit", ladder=[]), trace=True)
    assert refusal.value.field == "trace"


def answer(planned: ClassifyPlan, logits: list[float], tokens: tuple[int, int] = (1, 1)) -> ClassifyAnswer:
    outputs = {"logits": np.array(logits, np.float32), "tokens": np.array(tokens, np.int32)}
    presented = TASK.present([outputs], planned, spec(), JSON)
    assert isinstance(presented, ClassifyAnswer)
    return presented


def test_labels_come_best_first_with_softmax_scores() -> None:
    (result,) = answer(ClassifyPlan(2, "listed", (3, 0, 0, 0)), np.log([1, 6, 3]).tolist(), (17, 9)).results
    assert [(prediction.label, prediction.index) for prediction in result.predictions] == [("owl", 1), ("wren", 2)]
    assert [prediction.score for prediction in result.predictions] == pytest.approx([0.6, 0.3])
    assert (result.merging.rung, result.merging.tokens_in, result.merging.tokens_out) == ("listed", 17, 9)


def test_equal_scores_keep_class_order_and_logits_stay_finite() -> None:
    (result,) = answer(ClassifyPlan(3, None, (0,)), [1e4, 1e4, 1e4]).results
    assert [prediction.index for prediction in result.predictions] == [0, 1, 2]
    assert [prediction.score for prediction in result.predictions] == pytest.approx([1 / 3] * 3)


def test_top_k_is_five_or_all_classes_and_at_most_these() -> None:
    assert plan(spec()).top_k == 3
    assert plan(spec(labels=list("abcdefgh"))).top_k == 5
    with pytest.raises(InvalidOption, match="from 1 to 3"):
        plan(spec(), top_k=4)


def test_another_process_presents_an_answer_from_what_was_stored() -> None:
    planned = plan(spec(), merge="falling", top_k=2)
    stored = msgspec.msgpack.decode(msgspec.msgpack.encode(planned), type=TASK.plan_type)
    assert answer(stored, [1.0, 2.0, 3.0]) == answer(planned, [1.0, 2.0, 3.0])


def test_models_without_tokens_report_no_merging() -> None:
    assert answer(plan(spec()), [0.0, 1.0, 2.0], tokens=(0, 0)).results[0].merging is None
