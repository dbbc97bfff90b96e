"""How a worker loads inpainting bundles."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from models.bundle import BundleError
from models.bundle_schema import Clip
from models.systems.diffmae.inpaint_state import SAMPLE_COST
from server.worker.backends.learned_cache import LearnedCache
from server.worker.backends.loading import Loader, ReadyBundle
from server.worker.device_layout import Layout
from server.worker.stepwise import Stepwise
from tests.support.bundles.vit import write_tiny_diffmae


def ready(bundle: object, dtype: str = "auto") -> ReadyBundle:
    layout = Layout(device=torch.device("cpu"), slots=1, threads=1, largest_batch=2)
    return Loader(layout, dtype, LearnedCache(None)).load(bundle)  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", ["auto", "bfloat16"])
def test_they_are_served_in_float32(tmp_path: Path, dtype: str) -> None:
    loaded = ready(write_tiny_diffmae(tmp_path), dtype)
    assert loaded.loaded_format == "float32"
    assert isinstance(loaded.executor, Stepwise) and loaded.executor.unit == "steps"
    assert (loaded.executor.typical_job.cost, loaded.executor.typical_job.total) == (4 + SAMPLE_COST, 100), (
        "a quarter of 16 patches is missing, in 100 steps"
    )


def test_models_of_normalised_patches_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match="normalise_patches: such a model cannot fill holes"):
        ready(write_tiny_diffmae(tmp_path, normalise_patches=True))


def test_models_of_clips_run_in_the_worker(tmp_path: Path) -> None:
    clip = write_tiny_diffmae(tmp_path, clip=Clip(frames=4, stride=1), frames=4, patch_frames=2)
    executor = ready(clip).executor
    assert isinstance(executor, Stepwise) and executor.typical_job.cost == 8 + SAMPLE_COST
