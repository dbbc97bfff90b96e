"""Curation: which captions are kept, against the decision written out, and at its borders. The recorded cases are in tests/golden/cit."""

from __future__ import annotations

import torch
from torch import Tensor

from training.curation import Curation, choose, curate, label_features, label_similarity


def written_out(stream: list[tuple[list[int], list[float]]], curation: Curation) -> tuple[list[int], int]:
    """Section 3 of the paper, caption by caption: what is collected before the cut, and how many were seen."""
    collected: list[int] = []
    seen = 0
    for ids, cosines in stream:
        seen += len(ids)
        retained = [i for i, cosine in enumerate(cosines) if cosine > curation.threshold]
        if curation.min_ratio is not None and len(retained) / len(ids) < curation.min_ratio:
            ranked = sorted(range(len(ids)), key=lambda i: -cosines[i])
            retained = sorted(ranked[: int(curation.min_ratio * len(ids))])
        for i in retained:
            if not curation.unique or ids[i] not in collected:
                collected.append(ids[i])
        if len(collected) >= curation.target:
            break
    return collected, seen


def test_equals_the_decision_written_out() -> None:
    generator = torch.Generator().manual_seed(0)
    for trial in range(40):
        curation = Curation(
            target=5 + trial,
            threshold=0.5 + trial % 5 / 10,
            min_ratio=None if trial % 3 == 0 else trial % 4 / 10,
            unique=trial % 2 == 0,
        )
        stream = [(torch.randint(60, (12,), generator=generator), torch.rand(12, generator=generator)) for _ in range(20)]
        curated = curate(iter(stream), curation)
        collected, seen = written_out([(ids.tolist(), cosine.tolist()) for ids, cosine in stream], curation)
        assert list(curated.collected) == collected
        assert list(curated.ids) == collected[: curation.target]
        assert (curated.seen, curated.ratio) == (seen, len(collected) / seen)


def test_a_caption_at_the_threshold_is_not_kept() -> None:
    assert choose(torch.tensor([0.5, 0.50001, 0.4]), Curation(1, threshold=0.5, min_ratio=None)).mask.tolist() == [False, True, False]


def test_a_share_at_the_minimum_is_enough() -> None:
    cosine = torch.tensor([0.9, 0.1, 0.2, 0.3])
    assert not choose(cosine, Curation(1, threshold=0.5, min_ratio=0.25)).fell_back
    assert choose(cosine, Curation(1, threshold=0.5, min_ratio=0.26)).fell_back


def test_fallback_replaces_kept_captions_and_may_keep_none() -> None:
    cosine = torch.tensor([0.1, 0.9, 0.2, 0.3, 0.4])
    assert choose(cosine, Curation(1, threshold=0.5, min_ratio=0.5)).mask.tolist() == [False, True, False, False, True]
    nothing = choose(cosine, Curation(1, threshold=0.95, min_ratio=0.1))
    assert nothing.fell_back and not nothing.mask.any()


def test_the_first_steps_keep_everything() -> None:
    curated = curate([(torch.arange(4), torch.zeros(4))], Curation(3, threshold=0.5), keep_all=True)
    assert (curated.collected, curated.ids) == ((0, 1, 2, 3), (0, 1, 2))


def test_a_stream_that_ends_gives_what_it_has() -> None:
    curated = curate([(torch.tensor([5, 6]), torch.tensor([0.9, 0.1]))], Curation(10, threshold=0.5))
    assert curated.ids == (5,)
    assert curate([], Curation(10)).ratio == 0.0


def test_a_label_is_the_mean_of_its_texts_whatever_their_length() -> None:
    texts = torch.tensor([[3.0, 0.0], [0.0, 0.2], [0.0, -7.0]])
    labels = label_features(texts, torch.tensor([[0, 1], [2, -1]]))
    torch.testing.assert_close(labels, torch.tensor([[0.5**0.5, 0.5**0.5], [0.0, -1.0]]))
    alike = label_similarity(torch.tensor([[1.0, 1.0], [0.0, -2.0]]), labels)
    torch.testing.assert_close(alike.cosine, torch.ones(2))
    assert alike.label.tolist() == [0, 1]


def test_captions_are_judged_by_direction_only() -> None:
    captions, labels = torch.randn(6, 8), torch.nn.functional.normalize(torch.randn(3, 8))
    lengths: Tensor = torch.linspace(0.1, 9, 6).unsqueeze(1)
    torch.testing.assert_close(label_similarity(captions * lengths, labels).cosine, label_similarity(captions, labels).cosine)
