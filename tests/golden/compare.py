"""Comparison of what was recorded with what our code answers."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.golden.case import Case, Replay, Tolerance

RECORDED = Tolerance(atol=1e-12, rtol=1e-9)
"""Tolerance for numbers in descriptions, which were computed in double precision: a case's tolerance for activations would pass any
learning rate."""


@dataclass(frozen=True)
class Deviation:
    name: str
    absolute: float
    relative: float
    """Deviation relative to the recorded value, if that is not 0."""
    problem: str | None
    """None if it is within tolerance."""


def compare(case: Case, replayed: Replay) -> list[Deviation]:
    """Return one deviation for every recorded output and expectation: one that was not replayed is a problem, unless it is a text: a
    note."""
    tensors = [_tensor(f"out.{name}", replayed.outputs.get(name), value, case.tolerance_of(name)) for name, value in case.outputs.items()]
    expected = {name: value for name, value in case.recorded.items() if name in replayed.recorded or not isinstance(value, str)}
    recorded = [_json(name, replayed.recorded.get(name), value, _stricter(case.tolerance)) for name, value in expected.items()]
    return tensors + recorded


def compare_intermediates(case: Case, replayed: Replay) -> list[Deviation]:
    """Compare the intermediates that were replayed: they show where a deviation starts."""
    return [
        _tensor(f"mid.{name}", replayed.intermediates[name], value, case.tolerance)
        for name, value in case.intermediates.items()
        if name in replayed.intermediates
    ]


def _stricter(tolerance: Tolerance) -> Tolerance:
    return Tolerance(min(tolerance.atol, RECORDED.atol), min(tolerance.rtol, RECORDED.rtol))


def _tensor(name: str, got: Tensor | None, recorded: Tensor, tolerance: Tolerance) -> Deviation:
    if got is None:
        return Deviation(name, torch.inf, torch.inf, "was not replayed")
    if got.shape != recorded.shape and not (got.numel() == recorded.numel() == 1):
        return Deviation(name, torch.inf, torch.inf, f"has shape {tuple(got.shape)} for {tuple(recorded.shape)}")
    got, recorded = got.detach().double().reshape(recorded.shape), recorded.double()
    same = (got == recorded) | (got.isnan() & recorded.isnan())  # infinities too
    error = torch.where(same, 0.0, (got - recorded).abs())
    bad = ~(error <= tolerance.atol + tolerance.rtol * recorded.abs()) & ~same
    relative = torch.where(recorded == 0, 0.0, error / recorded.abs())
    problem = (
        f"{int(bad.sum())} of {bad.numel()} values are outside atol {tolerance.atol:g}, rtol {tolerance.rtol:g}" if bad.any() else None
    )
    return Deviation(name, _worst(error), _worst(relative), problem)


def _worst(values: Tensor) -> float:
    return float(values.nan_to_num(nan=torch.inf).max()) if values.numel() else 0.0


def _json(name: str, got: Any, recorded: Any, tolerance: Tolerance) -> Deviation:
    if got is None:
        return Deviation(name, torch.inf, torch.inf, "was not replayed")
    worst_absolute = worst_relative = 0.0
    for path, ours, theirs in _leaves("", got, recorded):
        if _is_number(ours) and _is_number(theirs):
            error = abs(ours - theirs)
            worst_absolute = max(worst_absolute, error)
            worst_relative = max(worst_relative, error / abs(theirs) if theirs else 0.0)
            if error <= tolerance.atol + tolerance.rtol * abs(theirs):
                continue
        elif ours == theirs:
            continue
        return Deviation(name, worst_absolute, worst_relative, f"{path or 'it'} is {ours!r} for {theirs!r}")
    return Deviation(name, worst_absolute, worst_relative, None)


def _leaves(path: str, got: Any, recorded: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(got, dict) and isinstance(recorded, dict):
        if got.keys() != recorded.keys():
            yield path, sorted(got), sorted(recorded)
            return
        for key, value in recorded.items():
            yield from _leaves(f"{path}.{key}".lstrip("."), got[key], value)
    elif isinstance(got, list | tuple) and isinstance(recorded, list) and len(got) == len(recorded):
        for index, (ours, theirs) in enumerate(zip(got, recorded, strict=True)):
            yield from _leaves(f"{path}[{index}]", ours, theirs)
    else:
        yield path, got, recorded


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
