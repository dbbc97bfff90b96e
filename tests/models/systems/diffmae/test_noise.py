"""The counter-based generator: against the published answers of Philox-4x32-10, and what it is there for."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from models.systems.diffmae.sampling import counter_normal, philox


@pytest.mark.parametrize(
    ("counter", "key", "answer"),
    [
        ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
        ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
        (
            [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
            [0xA4093822, 0x299F31D0],
            [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
        ),
    ],
)
def test_known_answers(counter: list[int], key: list[int], answer: list[int]) -> None:
    """The known-answer vectors that come with Random123, the authors' library."""
    a, b, c, d = map(torch.tensor, counter)
    k0, k1 = map(torch.tensor, key)
    assert [int(word) for word in philox((a, b, c, d), (k0, k1))] == answer


def draw_values(seeds: list[int], step: int, places: Tensor, values: int = 10) -> Tensor:
    return counter_normal(torch.tensor(seeds), torch.full((len(seeds),), step), places.expand(len(seeds), -1), values)


def test_a_sample_draws_the_same_in_any_batch() -> None:
    places = torch.tensor([3, 4, 9])
    alone = draw_values([7], 5, places)
    assert torch.equal(draw_values([1, 7, -2], 5, places)[1:2], alone)
    assert torch.equal(draw_values([7], 5, torch.tensor([9, 0, 3]))[:, [2, 0]], alone[:, [0, 2]])


def test_fewer_values_are_the_first_ones() -> None:
    places = torch.arange(4)
    assert torch.equal(draw_values([7], 0, places, values=5), draw_values([7], 0, places, values=768)[..., :5])


def test_every_seed_step_and_place_has_its_own() -> None:
    draws = [draw_values([seed], step, torch.arange(3)) for seed in (-1, 0, 1, 2**40) for step in (-1, 0, 1)]
    values = torch.cat(draws).flatten()
    assert len(values.unique()) == len(values)


def test_it_is_normal() -> None:
    """Moments of 200 000 values, each within five of its standard errors."""
    values = draw_values([3], 0, torch.arange(250), values=800).double()
    count = values.numel()
    for power, moment, spread in [(1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)]:
        assert abs(float((values**power).mean()) - moment) < 5 * (spread / count) ** 0.5
    neighbours = torch.corrcoef(torch.stack([values[..., :-1].flatten(), values[..., 1:].flatten()]))[0, 1]
    assert abs(float(neighbours)) < 5 / count**0.5
