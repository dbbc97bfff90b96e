"""LART over a whole track, longer than the network sees at once: overlapping windows, of which only the middles are kept."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields, replace

import torch
from torch import Tensor

from models.lart import LART, Reading, Tracks


def read_track(model: LART, track: Tracks, *, step: int = 32, margin: int = 32, windows_at_once: int = 64) -> Reading:
    """One track of L frames (1, L, P, ·) → what the heads tell of each frame, (1, L, P, ·).

    Each window answers for `step` frames and sees up to `margin` more on both sides; positions start anew in each. Windows are batched:
    the time is that of L / step windows, the memory that of `windows_at_once`. The rows of a track that were not detected are filled in.
    """
    frames, length = model.config.frames, track.pose.shape[1]
    if 2 * margin + step >= frames:
        raise ValueError(f"windows of {step} frames with {margin} on both sides do not fit into {frames} frames")
    first = torch.arange(0, length, step, device=track.pose.device)  # the frames that each window answers for
    start, end = (first - margin).clamp(min=0), (first + step + margin).clamp(max=length)
    rows = start.unsqueeze(1) + torch.arange(frames, device=first.device)  # (windows, T)
    inside = rows < end.unsqueeze(1)
    windows = _take(track, rows.clamp(max=length - 1), inside)
    tokens = torch.cat([model.tokens(_rows(windows, begin, windows_at_once)) for begin in range(0, len(first), windows_at_once)])
    kept = (first - start).unsqueeze(1) + torch.arange(step, device=first.device)  # (windows, step), inside each window
    answers = tokens.gather(1, kept[:, :, None, None].expand(-1, -1, *tokens.shape[2:])).flatten(0, 1)[:length]  # (L, P, C)
    reading: Reading = model.heads(answers.unsqueeze(0))
    return reading


def _take(track: Tracks, rows: Tensor, inside: Tensor) -> Tracks:
    """Frames of one track as windows (windows, T, P, ·); those outside count as not detected."""
    taken = _each(track, lambda values: values[0, rows])
    return replace(taken, detected=taken.detected * inside[:, :, None, None])


def _rows(windows: Tracks, begin: int, count: int) -> Tracks:
    return _each(windows, lambda values: values[begin : begin + count])


def _each(tracks: Tracks, change: Callable[[Tensor], Tensor]) -> Tracks:
    given = {field.name: getattr(tracks, field.name) for field in fields(tracks)}
    return replace(tracks, **{name: change(values) for name, values in given.items() if values is not None})
