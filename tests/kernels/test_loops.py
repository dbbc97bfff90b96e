"""Merging in loops that numba compiles: the same answers as the reference, and the reference where loops cannot run."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from kernels import ops, reference
from kernels.numba_loader import load_compiled_loops
from kernels.ops import Matching
from models.merge_schedule import MergeSchedule
from models.systems.vit.model import ViT, ViTConfig

DTYPES = (torch.float32, torch.bfloat16)
LOOPS = {dtype: load_compiled_loops(dtype, None) for dtype in DTYPES}
seeds = st.integers(0, 2**31 - 1)


def pick(generator: torch.Generator, low: int, high: int) -> int:
    return int(torch.randint(low, high + 1, (), generator=generator))


class Problem:
    """Keys as they lie in a model, between queries and values, and the tokens that merge by them."""

    def __init__(self, seed: int, dtype: torch.dtype, tokens_up_to: int = 60) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.protected = pick(generator, 0, 2)
        self.batch, self.heads = pick(generator, 1, 3), pick(generator, 1, 4)
        self.tokens = pick(generator, 2 + self.protected, tokens_up_to)
        cap = ops.effective_r(self.tokens, self.tokens, self.protected)
        self.r = cap if pick(generator, 0, 3) == 0 else pick(generator, 1, cap)
        self.dtype, self.generator = dtype, generator

    def signs(self) -> Tensor:
        """Draw (B, H, T, D) of one head's 1 and -1 for all: with 1, 4 or 16 channels cosines are exact, and few channels make many ties."""
        channels = (1, 4, 16)[pick(self.generator, 0, 2)]
        one = torch.randint(0, 2, (self.batch, 1, self.tokens, channels), generator=self.generator) * 2 - 1
        return one.to(self.dtype).expand(-1, self.heads, -1, -1)

    def keys(self) -> Tensor:
        qkv = torch.randn(self.batch, self.tokens, 3 * self.heads * 16, generator=self.generator).to(self.dtype)
        return qkv.unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)[1]

    def content(self) -> Tensor:
        return torch.randn(self.batch, self.tokens, pick(self.generator, 1, 70), generator=self.generator).to(self.dtype)

    def matching(self) -> Matching:
        return reference.bipartite_match(self.keys().sum(dim=1), self.r, self.protected)


def assert_same(found: Matching, expected: Matching) -> None:
    for part in ("unmerged", "src", "dst"):
        assert torch.equal(getattr(found, part), getattr(expected, part)), part


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds)
def test_exact_cosines_give_the_same_indices_ties_included(dtype: torch.dtype, seed: int) -> None:
    problem = Problem(seed, dtype)
    keys = problem.signs()
    with ops.compiled_loops(LOOPS[dtype]):
        found = ops.bipartite_match(keys, problem.r, protected=problem.protected)
    assert_same(found, reference.bipartite_match(keys.sum(dim=1), problem.r, problem.protected))


@pytest.mark.parametrize("dtype", DTYPES)
@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds)
def test_rounded_cosines_give_partners_that_are_as_similar(dtype: torch.dtype, seed: int) -> None:
    problem = Problem(seed, dtype)
    keys = problem.keys()
    found = LOOPS[dtype].bipartite_match(keys, problem.r, problem.protected)
    metric = keys.sum(dim=1)
    expected = reference.bipartite_match(metric, problem.r, problem.protected)
    directions = torch.nn.functional.normalize(metric.double(), dim=-1)
    similar = []
    for matching in (found, expected):
        into = matching.unmerged.gather(1, matching.dst)
        rows = [directions.gather(1, index.unsqueeze(-1).expand(-1, -1, 16)) for index in (matching.src, into)]
        similar.append((rows[0] * rows[1]).sum(-1))
    torch.testing.assert_close(*similar, atol=2e-6 if dtype is torch.float32 else 2e-2, rtol=0.0)
    everywhere = torch.cat([found.unmerged, found.src], dim=1).sort(dim=1).values
    assert torch.equal(everywhere, torch.arange(problem.tokens).expand(problem.batch, -1))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds, sized=st.booleans(), branched=st.booleans())
def test_merged_tokens_and_sizes_equal_reference_in_float32(seed: int, sized: bool, branched: bool) -> None:
    problem = Problem(seed, torch.float32)
    matching, x = problem.matching(), problem.content()
    residual = torch.randn(x.shape, generator=problem.generator) if branched else None
    size = torch.randint(1, 9, (*x.shape[:2], 1), generator=problem.generator).float() if sized else None
    with ops.compiled_loops(LOOPS[torch.float32]):
        found = ops.merge(x, size, matching, residual)
    expected = reference.merge(x if residual is None else x + residual, size, matching)
    assert torch.equal(found[0], expected[0]) and torch.equal(found[1], expected[1])


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=seeds)
def test_bfloat16_tokens_round_once_and_untouched_ones_are_kept(seed: int) -> None:
    problem = Problem(seed, torch.bfloat16)
    matching, x = problem.matching(), problem.content()
    residual = torch.randn(x.shape, generator=problem.generator).bfloat16()
    size = torch.randint(1, 9, (*x.shape[:2], 1), generator=problem.generator).float()
    found, found_size = LOOPS[torch.bfloat16].merge(x, size, matching, residual)
    exact, exact_size = reference.merge((x + residual).double(), size, matching)
    torch.testing.assert_close(found.double(), exact, rtol=2**-8, atol=2**-10)
    assert torch.equal(found_size, exact_size)
    for sample, into in enumerate(matching.dst.tolist()):
        untouched = [row for row in range(found.shape[1]) if row not in into]
        assert torch.equal(found[sample, untouched], (x + residual)[sample, matching.unmerged[sample, untouched]])


@pytest.mark.parametrize("broken", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize(("row", "first"), [(4, 4), (7, 2)])
def test_row_without_direction_merges_first_as_source_and_target(broken: float, row: int, first: int) -> None:
    problem = Problem(3, torch.float32)
    keys = problem.keys()
    keys[0, :, row] = broken
    with ops.compiled_loops(LOOPS[torch.float32]):
        found = ops.bipartite_match(keys, 2, protected=1)
    assert_same(found, reference.bipartite_match(keys.sum(dim=1), 2, 1))
    assert found.src[0, 0] == first
    assert row == 4 or found.unmerged[0, found.dst[0]].tolist() == [7, 7]


def test_transposed_metric_is_read_by_its_strides() -> None:
    metric = torch.randn(2, 16, 31, generator=torch.Generator().manual_seed(0)).mT
    with ops.compiled_loops(LOOPS[torch.float32]):
        assert_same(ops.bipartite_match(metric, 9, protected=1), reference.bipartite_match(metric, 9, 1))


CONFIG = ViTConfig(image_size=32, patch_size=4, width=48, depth=3, heads=3, classes=5)
MERGE = MergeSchedule.constant(9)


@pytest.fixture
def model() -> ViT:
    torch.manual_seed(0)
    return ViT(CONFIG).eval()


@pytest.fixture
def images() -> Tensor:
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))


class CallCounter:
    """The loops, and how often they were called."""

    def __init__(self) -> None:
        self.calls = 0

    def bipartite_match(self, *inputs: object) -> Matching:
        self.calls += 1
        return LOOPS[torch.float32].bipartite_match(*inputs)

    def merge(self, *inputs: object) -> tuple[Tensor, Tensor]:
        self.calls += 1
        return LOOPS[torch.float32].merge(*inputs)


def test_a_model_answers_the_same_in_loops(model: ViT, images: Tensor) -> None:
    loops = CallCounter()
    with torch.inference_mode():
        expected = model(images, merge=MERGE)
        with ops.compiled_loops(loops):  # type: ignore[arg-type]
            found = model(images, merge=MERGE)
    torch.testing.assert_close(found.logits, expected.logits, rtol=1e-5, atol=1e-6)
    assert torch.equal(found.size, expected.size)
    assert loops.calls == 2 * CONFIG.depth


def test_gradients_are_the_references(model: ViT, images: Tensor) -> None:
    def gradient() -> Tensor:
        model.zero_grad()
        model(images, merge=MERGE).logits.square().sum().backward()
        assert model.patch_embed.proj.weight.grad is not None
        return model.patch_embed.proj.weight.grad.clone()

    expected = gradient()
    with ops.compiled_loops(LOOPS[torch.float32]):
        assert torch.equal(gradient(), expected)


def test_traces_are_the_references(model: ViT, images: Tensor) -> None:
    with torch.inference_mode():
        expected = model(images, merge=MERGE, trace=True)
        with ops.compiled_loops(LOOPS[torch.float32]):
            found = model(images, merge=MERGE, trace=True)
    assert found.source is not None and torch.equal(found.source, expected.source)


def test_a_compiler_sees_the_reference_in_one_graph(model: ViT, images: Tensor) -> None:
    torch._dynamo.reset()
    loops = CallCounter()
    with torch.inference_mode(), ops.compiled_loops(loops):  # type: ignore[arg-type]
        compiled = torch.compile(lambda: model(images, merge=MERGE).logits, backend="aot_eager", fullgraph=True)()
    assert loops.calls == 0
    with torch.inference_mode():
        assert torch.equal(compiled, model(images, merge=MERGE).logits)


OPEN = "import sys, pathlib, torch; from kernels import numba_loader as n; n.load_compiled_loops(torch.float32, pathlib.Path(sys.argv[1]))"


FULL = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100)); {OPEN}"
"""No file can have more than 100 bytes."""
READ_ONLY = f"import numba.core.caching as c; c._CacheLocator.ensure_cache_path = lambda self: open('/proc/none', 'x'); {OPEN}"


@pytest.mark.slow
@pytest.mark.parametrize("opening", [FULL, READ_ONLY])
def test_code_that_cannot_be_cached_is_compiled_again(tmp_path: Path, opening: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | {"OMP_NUM_THREADS": "1"}
    run = subprocess.run([sys.executable, "-c", opening, str(tmp_path)], env=environment, capture_output=True, text=True)
    assert (run.returncode, list(tmp_path.rglob("*.nbc"))) == (0, []), run.stderr[-2000:]


def overwritten(content: bytes) -> bytes:
    return b"\x19" * 700


def without_a_page(content: bytes) -> bytes:
    """Cut a page off as a power failure does. numba takes the file, and runs zeros where machine code was."""
    return content[:4096] + bytes(4096) + content[8192:] if len(content) > 3 * 4096 else content


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "damage"), [("nbi", overwritten), ("nbc", overwritten), ("nbc", without_a_page)])
def test_damaged_files_of_compiled_code_are_replaced(tmp_path: Path, kind: str, damage: Callable[[bytes], bytes]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "NUMBA_CACHE_DIR"} | {"OMP_NUM_THREADS": "1"}

    def open_files() -> list[Path]:
        run = subprocess.run([sys.executable, "-c", OPEN, str(tmp_path)], env=environment, capture_output=True, text=True)
        assert run.returncode == 0, run.stderr[-2000:]
        return sorted(tmp_path.rglob(f"*.{kind}"))

    retained = open_files()
    assert retained
    damaged = {file: damage(file.read_bytes()) for file in retained}
    for file, content in damaged.items():
        file.write_bytes(content)
    assert open_files() == retained
    assert any(file.read_bytes() != content for file, content in damaged.items())
    times = [file.stat().st_mtime_ns for file in retained]
    assert open_files() == retained
    assert [file.stat().st_mtime_ns for file in retained] == times  # what is whole is not made again
