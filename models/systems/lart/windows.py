"""LART over a whole track, longer than the network sees at once: overlapping windows, of which only the middles are kept."""

from __future__ import annotations

from dataclasses import fields, replace

import torch
from torch import Tensor

from models.people.heads import HeadOutputs
from models.people.track_batch import TrackBatch
from models.systems.lart.model import LART


def predict_track(model: LART, track: TrackBatch, *, step: int = 32, margin: int = 32, windows_at_once: int = 64) -> HeadOutputs:
    """One track of L frames (1, L, P, ·) → what the heads tell of each frame, (1, L, P, ·).

    Each window answers for `step` frames and sees up to `margin` more on both sides; positions start anew in each. Windows are batched:
    the time is that of L / step windows, the memory that of `windows_at_once`. The rows of a track that were not detected are filled in.
    """
    frames, length = model.config.frames, track.pose.shape[1]
    if 2 * margin + step >= frames:
        raise ValueError(f"windows of {step} frames with {margin} on both sides do not fit into {frames} frames")
    first = torch.arange(0, length, step, device=track.pose.device)  # the frame that each window starts to answer at
    answers = [_answers(model, track, some, step, margin) for some in first.split(windows_at_once)]  # type: ignore[no-untyped-call]
    reading: HeadOutputs = model.heads(torch.cat(answers)[:length].unsqueeze(0))
    return reading


def _answers(model: LART, track: TrackBatch, first: Tensor, step: int, margin: int) -> Tensor:
    """Tokens of `step` frames from each of `first` on, (windows · step, P, C); those beyond the track's end mean nothing."""
    length = track.pose.shape[1]
    start, end = (first - margin).clamp(min=0), (first + step + margin).clamp(max=length)
    rows = start.unsqueeze(1) + torch.arange(model.config.frames, device=first.device)  # (windows, T)
    tokens = model.tokens(_windows(track, rows.clamp(max=length - 1), rows < end.unsqueeze(1)))  # (windows, T, P, C)
    kept = (first - start).unsqueeze(1) + torch.arange(step, device=first.device)  # (windows, step), inside each window
    return tokens.gather(1, kept[:, :, None, None].expand(-1, -1, *tokens.shape[2:])).flatten(0, 1)


def _windows(track: TrackBatch, rows: Tensor, inside: Tensor) -> TrackBatch:
    """Frames of one track as windows (windows, T, P, ·); those outside count as not detected."""
    given = {field.name: getattr(track, field.name) for field in fields(track)}
    taken = replace(track, **{name: values[0, rows] for name, values in given.items() if values is not None})
    return replace(taken, detected=taken.detected * inside[:, :, None, None])
