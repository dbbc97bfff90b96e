"""A model that runs each batch in the same way, for executors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from server.worker.executors import Arrays, BatchRun


class Plain:
    def __init__(self, model: Any) -> None:
        """model: anything with `spec` and `forward`."""
        self.spec = model.spec
        self.forward = model.forward

    def run_batch(self, arrays: Arrays, options: Mapping[str, Any]) -> BatchRun:
        return BatchRun(self.forward(arrays, options))
