"""Networks of names and shapes only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode


@contextmanager
def on_meta_device() -> Iterator[None]:
    """Build networks on the meta device inside the `with` block."""
    with torch.device("meta"), _SkipRandomInit():
        yield


class _SkipRandomInit(TorchFunctionMode):
    """Mode without normal random values: on the meta device, torch would import its compiler, a second of work, to draw none."""

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None) -> Any:
        keywords = kwargs or {}
        if func is nn.init.normal_:
            return (*args, *keywords.values())[0]
        return (torch.empty if func is torch.randn else func)(*args, **keywords)
