"""Which device a worker takes, and how it shares it with the other workers of its service."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from kernels.devices import missing_gpu_reason
from server.settings import Settings
from server.worker.device_layout import choose_layout
from tests.fake_cuda.device import GIB, FakeCuda

OLD_DRIVER: dict[str, Any] = {
    "driver": "550.54.15",
    "start_error": "The NVIDIA driver on your system is too old (found version 12040).\nPlease update it.",
}


def test_workers_of_one_gpu_share_its_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(total_memory=80 * GIB).install(monkeypatch, tmp_path)
    alone, one_of_four = (choose_layout(Settings(workers=count)) for count in (1, 4))
    assert (alone.model_bytes, alone.state_bytes) == (40 * GIB, 20 * GIB)
    assert (one_of_four.model_bytes, one_of_four.state_bytes) == (10 * GIB, 5 * GIB)


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_float32_convolutions_of_a_worker_are_exact(device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda().install(monkeypatch, tmp_path)
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)
    choose_layout(Settings(device=device))
    assert not torch.backends.cudnn.allow_tf32


def test_cpu_cores_are_shared_by_the_slots_of_a_gpu(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Graphs that ONNX Runtime cannot run on the GPU use them."""
    FakeCuda().install(monkeypatch, tmp_path)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(16)))
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert [choose_layout(settings).threads for settings in (Settings(), Settings(workers=4), Settings(threads=6))] == [8, 2, 3]


def test_a_missing_gpu_is_refused_with_those_present(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(count=2).install(monkeypatch, tmp_path)
    with pytest.raises(ValueError, match="cuda:2 is set, but torch sees cuda:0, cuda:1; driver"):
        choose_layout(Settings(device="cuda:2"))


def test_an_old_driver_is_refused_with_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(**OLD_DRIVER).install(monkeypatch, tmp_path)
    refusal = (
        r"cuda cannot be used: The NVIDIA .* \(found version 12040\)\.; driver 550\.54 is too old for torch .* CUDA 13\.0.* 580: .*/cu126$"
    )
    with pytest.raises(ValueError, match=refusal):
        choose_layout(Settings(device="cuda"))


@pytest.mark.parametrize(
    ("fake", "reason"),
    [
        (FakeCuda(**OLD_DRIVER), "driver 550.54 is too old"),
        (FakeCuda(cuda=None), "is built without CUDA"),
        (FakeCuda(start_error="no"), "driver 580.65, torch"),
    ],
)
def test_the_reason_why_a_gpu_is_not_used_is_named(fake: FakeCuda, reason: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fake.install(monkeypatch, tmp_path)
    assert reason in missing_gpu_reason()


def test_machines_without_a_gpu_need_no_reason(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(count=0).install(monkeypatch, tmp_path)
    assert missing_gpu_reason() == ""


@pytest.mark.parametrize(("visible", "hidden_to"), [(None, "1"), ("3,GPU-5f1c,4", "GPU-5f1c")])
def test_other_gpus_are_hidden_from_a_worker(visible: str | None, hidden_to: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    FakeCuda(count=3).install(monkeypatch, tmp_path)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    layout = choose_layout(Settings(device="cuda:1"))
    assert os.environ["CUDA_VISIBLE_DEVICES"] == hidden_to
    assert (layout.device, layout.name) == (torch.device("cuda"), "cuda:1")


@pytest.mark.parametrize(("capability", "half", "refused"), [((7, 5), "float16", "bfloat16"), ((8, 0), "bfloat16", "float16")])
def test_a_gpu_computes_in_its_own_16_bit_format(
    capability: tuple[int, int], half: Any, refused: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    FakeCuda(capability=capability).install(monkeypatch, tmp_path)
    assert choose_layout(Settings(dtype=half)).half == choose_layout(Settings()).half == half
    with pytest.raises(ValueError, match=f"dtype: {refused} is set, but cuda computes in auto, float32 or {half}"):
        choose_layout(Settings(dtype=refused))
