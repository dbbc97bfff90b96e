"""PyTorch sees the kernels as operators: schema, fake kernels, gradients; and the public functions reach them."""

from __future__ import annotations

import pytest
import torch
from torch.library import opcheck

from kernels import ops, reference
from kernels import triton as kernels
from models.merge_schedule import MergeSchedule
from models.systems.vit.model import ViT, ViTConfig

GENERATOR = torch.Generator().manual_seed(0)
X = torch.randn(2, 9, 5, generator=GENERATOR)
SIZE = torch.ones(2, 9, 1)
MATCHING = reference.bipartite_match(X.clone(), 3, 1)
INDICES = (MATCHING.unmerged, MATCHING.src, MATCHING.dst)


def test_matching_is_an_operator() -> None:
    opcheck(kernels.bipartite_match, (X, 3, 1))


@pytest.mark.parametrize("traced", [False, True])
def test_merging_is_an_operator_with_a_gradient(traced: bool) -> None:
    opcheck(kernels.merge, (X.clone().requires_grad_(), SIZE, None, *INDICES, traced))


def test_attention_is_an_operator_with_gradients() -> None:
    q, k, v = (torch.randn(2, 2, 9, 4, generator=GENERATOR).requires_grad_() for _ in range(3))
    opcheck(kernels.size_biased_attention, (q, k, v, SIZE))


@pytest.fixture
def on_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every tensor counts as one of a GPU: the only thing that a CPU cannot show is the question for the device."""
    monkeypatch.setattr(ops, "_kernels", lambda x: kernels)


CONFIG = ViTConfig(image_size=32, patch_size=8, width=16, depth=3, heads=2, classes=5)


def test_a_model_that_merges_gives_the_same_with_kernels(on_gpu: None, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, images = ViT(CONFIG).eval(), torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        fast = model(images, merge=MergeSchedule.constant(4), trace=True)
        monkeypatch.setattr(ops, "_kernels", lambda x: None)
        plain = model(images, merge=MergeSchedule.constant(4), trace=True)
    torch.testing.assert_close(fast.logits, plain.logits, rtol=0.0, atol=1e-5)
    assert torch.equal(fast.source, plain.source)


def test_kernels_that_work_are_taken_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert ops._work_on(kernels, torch.device("cpu"))

    def no_compiler(*arguments: object) -> torch.Tensor:
        raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.\nAnd so on.")

    monkeypatch.setattr("kernels.triton.merging.merge_backward", no_compiler)
    ops._work_on.cache_clear()
    with pytest.warns(RuntimeWarning, match="merging runs as plain PyTorch: Failed to find C compiler. Please specify via CC [^\n]*$"):
        assert not ops._work_on(kernels, torch.device("cpu"))
    ops._work_on.cache_clear()


def test_export_sees_the_operators(on_gpu: None) -> None:
    class Merging(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = ViT(CONFIG)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.model(images, merge=MergeSchedule.constant(4)).logits

    exported = torch.export.export(Merging().eval(), (torch.randn(2, 3, 32, 32),)).graph_module
    graphs = [module.graph for module in exported.modules() if isinstance(module, torch.fx.GraphModule)]
    called = [str(node.target) for graph in graphs for node in graph.nodes if "opsin" in str(node.target)]
    assert called.count("opsin.bipartite_match.default") == called.count("opsin.merge.default") == 3
    assert called.count("opsin.size_biased_attention.default") == 2  # the first block has no sizes yet
