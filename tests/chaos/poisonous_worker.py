"""A worker that can be killed by its input. Run as a script: `python -m tests.chaos.poisonous_worker`.

Its architecture exists in this process only: a picture whose first pixel is white kills it, as a fault in a native library would; one whose
first pixel is blue makes it hang. Every other picture is answered with its own mean.
"""

from __future__ import annotations

import os
import signal
import threading

import torch
from torch import Tensor, nn

from models import registry
from models.null.model import NullConfig
from models.registry import Architecture, Purpose, System
from server.settings import load
from server.worker.main import run_worker

POISON = (255, 255, 255)
HANGS = (0, 0, 255)


FragileConfig = NullConfig


class Fragile(nn.Module):
    def __init__(self, config: NullConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, pixels: Tensor) -> Tensor:
        """uint8 (B, H, W, 3) → logits (B, classes)."""
        first = [tuple(corner.tolist()) for corner in pixels[:, 0, 0]]
        if POISON in first:
            os.kill(os.getpid(), signal.SIGKILL)
        if HANGS in first:
            threading.Event().wait()
        return pixels.float().mean(dim=(1, 2, 3))[:, None].expand(-1, self.config.classes)


def classify(model: nn.Module, arrays: dict[str, Tensor], _options: object, _preprocess: object) -> dict[str, Tensor]:
    logits = model(arrays["pixels"])
    return {"logits": logits, "tokens": torch.ones(len(logits), 2, dtype=torch.int32)}


SYSTEM = System(
    architectures=(
        Architecture(
            name="fragile",
            model="tests.chaos.poisonous_worker:Fragile",
            purpose=Purpose(lambda config: "classify"),
            forwards={"classify": "tests.chaos.poisonous_worker:classify"},
        ),
    ),
)

if __name__ == "__main__":
    registry.SYSTEMS = (*registry.SYSTEMS, "tests.chaos.poisonous_worker")
    raise SystemExit(run_worker(load()))
