"""RoIAlign of boxes in a feature map: the mean of samples around each point of a grid in the box, then the maximum over the grid."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class BoxPooling:
    """RoIAlign (Mask R-CNN, arXiv 1703.06870) with a number of samples that grows with the box, and the maximum over its bins."""

    bins: int = 7
    """Number of bins on each axis."""
    scale: float = 1 / 16
    """Cells of the feature map per pixel of the input."""
    aligned: bool = True
    """Whether pixel centres are at half coordinates; otherwise at whole ones, and no box is smaller than a cell of the map."""

    def __call__(self, features: Tensor, boxes: Tensor) -> Tensor:
        """Pool boxes (K, 5) of a map (B, C, H, W): index in the batch, x1, y1, x2, y2 in pixels of the input → (K, C)."""
        return roi_align(features, boxes, self.bins, self.scale, self.aligned).amax(dim=(2, 3))


def roi_align(features: Tensor, boxes: Tensor, bins: int, scale: float, aligned: bool) -> Tensor:
    """Compute RoIAlign as torchvision does with `sampling_ratio=0`: (B, C, H, W), (K, 5) → (K, C, bins, bins).

    A bin is the mean of bilinear samples at the centres of its equal cells. Rows and columns are weighted independently, so that a box is
    two matrix products.
    """
    height, width = features.shape[2:]
    boxes = boxes.float()
    rows = _axis_weights(boxes[:, 2], boxes[:, 4], height, bins, scale, aligned).to(features.dtype)  # (K, bins, H)
    columns = _axis_weights(boxes[:, 1], boxes[:, 3], width, bins, scale, aligned).to(features.dtype)
    maps = features[boxes[:, 0].long()]  # (K, C, H, W)
    return rows.unsqueeze(1) @ maps @ columns.unsqueeze(1).transpose(2, 3)


def _axis_weights(start: Tensor, end: Tensor, size: int, bins: int, scale: float, aligned: bool) -> Tensor:
    """Return the weight of each cell of one axis in each bin: starts (K,), ends (K,) → (K, bins, size)."""
    offset = 0.5 if aligned else 0.0
    start = start * scale - offset
    length = end * scale - offset - start  # in this order: a rounding error here is another number of samples
    if not aligned:
        length = length.clamp(min=1.0)
    samples = (length / bins).ceil().clamp(min=0)  # (K,), in each bin
    bin_start = start.unsqueeze(1) + torch.arange(bins, device=start.device) * (length / bins).unsqueeze(1)  # (K, bins)
    step = (length / bins / samples.clamp(min=1)).unsqueeze(1)
    # Steps are longer than half a cell if a bin has several samples: so few consecutive ones can be on the map.
    first = ((-1 - bin_start) / step.clamp(min=1e-6)).floor().clamp(min=0) - 1
    sample_index = first.unsqueeze(2) + torch.arange(2 * size + 6, device=start.device)  # (K, bins, 2 · size + 6)
    position = bin_start.unsqueeze(2) + (sample_index + 0.5) * step.unsqueeze(2)
    inside = (position >= -1.0) & (position <= size)  # beyond the map a sample is 0, but stays in the mean
    counted = inside & (sample_index >= 0) & (sample_index < samples.view(-1, 1, 1))
    position = position.clamp(0, size - 1)
    tent = (1 - (position.unsqueeze(3) - torch.arange(size, device=start.device)).abs()).clamp(min=0)  # (K, bins, 2 · size + 6, size)
    return (tent * counted.unsqueeze(3)).sum(dim=2) / samples.clamp(min=1).view(-1, 1, 1)
