"""The table of published sizes, and what a forward pass costs."""

from __future__ import annotations

import pytest

from models.flops import forward_cost
from models.registry import architectures, sizes

GRAPHS = {"onnx", "onnx_inpaint", "onnx_depth", "movenet"}
SMALLEST = {
    architecture: min((size for size in sizes().values() if size.architecture == architecture), key=lambda size: size.name)
    for architecture in {size.architecture for size in sizes().values()}
}


def test_all_architectures_of_publications_have_sizes() -> None:
    without_weights = {"actions", "mcc_photograph", "null", *GRAPHS}
    assert architectures().keys() - SMALLEST.keys() == {*without_weights, "phalp_pose", "lite_depth"}
    assert {name for name, architecture in architectures().items() if architecture.dummy_forward is None} == without_weights


@pytest.mark.slow
@pytest.mark.parametrize("architecture", sorted(SMALLEST))
def test_a_forward_pass_of_every_architecture_is_counted(architecture: str) -> None:
    found = forward_cost(architecture, SMALLEST[architecture].config)
    assert found.parameters > 1e6
    assert found.flops > 2 * found.tokens * 1e4


@pytest.mark.parametrize(
    ("name", "millions", "gigaflops", "tokens"),
    [
        ("vit_base_patch16", 86.57, 35.1, 197),  # 17.56 G multiply-adds, as counted by hand below
        ("vit_large_patch16", 304.33, 123.1, 197),
        ("video_vit_large_patch16", 304.4, None, 1569),
        ("mvitv1_b_16x4", 36.6, 141, 25089),  # 70.5 G in the paper, a multiply-add as one
        ("rev_mvit_b", 39.7, 17.4, 3136),  # 8.7 G in the paper
        ("hmr2_vit_huge_patch16", 670, None, 192),
        ("lart_hiera", 51.8, None, 125),
    ],
)
def test_sizes_cost_what_their_papers_say(name: str, millions: float, gigaflops: float | None, tokens: int) -> None:
    found = forward_cost(sizes()[name].architecture, sizes()[name].config)
    assert found.parameters / 1e6 == pytest.approx(millions, rel=0.005)
    assert gigaflops is None or found.flops / 1e9 == pytest.approx(gigaflops, rel=0.01)
    assert found.tokens == tokens


def test_the_count_of_a_vit_is_that_of_its_matrix_products() -> None:
    tokens, width, depth = 197, 768, 12
    embed, head = 196 * width * 768, width * 1000
    block = tokens * 12 * width * width + 2 * tokens * tokens * width
    assert forward_cost("vit", sizes()["vit_base_patch16"].config).flops == 2 * (embed + depth * block + head)
