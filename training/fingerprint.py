"""Identity of a run: a resumed run of another fingerprint is refused with what changed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from training.errors import TrainingError
from training.shipped_files import moved_to

Fingerprint = Mapping[str, Any]
"""Dotted field → JSON scalar or list of them."""

FREE = frozenset({"checkpoint_every", "log_every", "workers", "max_steps", "max_minutes", "micro_batch", "sharding", "compile"})
"""Settings of the loop that a run may change on its way: they decide how it runs, not what it computes."""


def flatten(content: Mapping[str, Any]) -> dict[str, Any]:
    """Flatten nested mappings: {"a": {"b": 1}} → {"a.b": 1}."""
    return dict(_flat("", content))


def _flat(path: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from _flat(f"{path}.{name}" if path else str(name), inner)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for number, inner in enumerate(value):
            yield from _flat(f"{path}.{number}", inner)
    else:
        yield path, json.loads(json.dumps(value, default=str))


def sha256_of_weights(weights: Mapping[str, Tensor]) -> str:
    """Return the digest of names and values of all tensors, in the order of names."""
    digest = hashlib.sha256()
    for name in sorted(name for name, value in weights.items() if isinstance(value, Tensor)):
        digest.update(name.encode())
        digest.update(weights[name].detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def require_same(folder: Path, before: Fingerprint, now: Fingerprint) -> None:
    """Raise TrainingError that names the differences. Empty lists are like missing ones, which earlier versions did not write."""
    changed = [name for name in sorted(before.keys() | now.keys()) if _normalise(before.get(name)) != _normalise(now.get(name))]
    if not changed:
        return
    changes = "; ".join(f"{name} was {_short(before.get(name))} and is {_short(now.get(name))}" for name in changed[:5])
    rest = f"; and {len(changed) - 5} more" if len(changed) > 5 else ""
    raise TrainingError(
        f"{folder}: this run was started otherwise: {changes}{rest}. Take the change back, delete the folder, or choose another --runs"
    )


def _normalise(value: Any) -> Any:
    if isinstance(value, str) and (now := moved_to(Path(value))) is not None:
        return now.as_posix()  # runs of earlier versions name files as they were called then
    return None if value == [] else value


def _short(value: Any) -> str:
    text = "not given" if value is None else str(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
