"""LART over a track of any length: overlapping windows, of which only the middles are used."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from models.people.heads import HeadOutputs
from models.people.track_batch import TrackBatch
from models.systems.lart.model import LART


def predict_track(model: LART, track: TrackBatch, *, step: int = 32, margin: int = 32, windows_at_once: int = 64) -> HeadOutputs:
    """Predict for each frame of one track: (1, L, P, ·) → outputs of the heads (1, L, P, ·). Raises ValueError if windows are too long.

    Each window yields `step` frames and has up to `margin` more on both sides; positions start at 0 in each. Windows are batched:
    the time is that of L / step windows, the memory that of `windows_at_once`. The rows of a track that were not detected are filled in.
    """
    frames, length = model.config.frames, track.pose.shape[1]
    if 2 * margin + step >= frames:
        raise ValueError(f"windows of {step} frames with {margin} on both sides do not fit into {frames} frames")
    first = torch.arange(0, length, step, device=track.pose.device)  # the first frame that each window yields
    tokens = [_encode_middles(model, track, batch, step, margin) for batch in first.split(windows_at_once)]  # type: ignore[no-untyped-call]
    outputs: HeadOutputs = model.heads(torch.cat(tokens)[:length].unsqueeze(0))
    return outputs


def _encode_middles(model: LART, track: TrackBatch, first: Tensor, step: int, margin: int) -> Tensor:
    """Encode `step` frames from each of `first` on, (windows · step, P, C); those beyond the track's end mean nothing."""
    length = track.pose.shape[1]
    start, end = (first - margin).clamp(min=0), (first + step + margin).clamp(max=length)
    rows = start.unsqueeze(1) + torch.arange(model.config.frames, device=first.device)  # (windows, T)
    tokens = model.tokens(_windows(track, rows.clamp(max=length - 1), rows < end.unsqueeze(1)))  # (windows, T, P, C)
    middle = (first - start).unsqueeze(1) + torch.arange(step, device=first.device)  # (windows, step), inside each window
    return tokens.gather(1, middle[:, :, None, None].expand(-1, -1, *tokens.shape[2:])).flatten(0, 1)


def _windows(track: TrackBatch, rows: Tensor, inside: Tensor) -> TrackBatch:
    """Cut one track into windows (windows, T, P, ·); frames outside count as not detected."""
    arrays = {field.name: getattr(track, field.name) for field in fields(track)}
    windows = replace(track, **{name: values[0, rows] for name, values in arrays.items() if values is not None})
    return replace(windows, detected=windows.detected * inside[:, :, None, None])
