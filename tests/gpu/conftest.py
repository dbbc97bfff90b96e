from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def exact_convolutions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compute convolutions in float32 as workers do, without TF32."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
