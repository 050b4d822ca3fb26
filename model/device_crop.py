"""Crops cut where the network runs: the picture goes to the GPU once, and everybody in it is cut there together.

The same bilinear sampling and area averaging as `model.crop.cut`, from the same `View`s. The mean over any rectangle,
parts of pixels included, comes from four places of a summed-area table (Crow, "Summed-Area Tables for Texture Mapping",
SIGGRAPH 1984), so one sequence of kernels serves people of every size. The table is float64, for sums over a large
picture have more digits than float32: 24 bytes per pixel of the part of the picture that has people.

Tested on PyTorch's CPU device against `model.crop.cut`; not yet run on a GPU (`benchmarks/gpu_check.py` does that).
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model.crop import Region, View, invert

TOGETHER = 16  # people cut in one go: bounds what lies between, about 20 MB each at 256x192


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A copy of the array, which may be a view or read-only, on `device`; to a GPU from pinned memory, so that this
    thread does not wait for the transfer."""
    kind = torch.from_numpy(np.empty(0, array.dtype)).dtype
    tensor = torch.empty(array.shape, dtype=kind, pin_memory=device.type == "cuda")
    np.copyto(tensor.numpy(), array)
    return tensor.to(device, non_blocking=True)


def cut_crops_on(
    device: torch.device, picture: np.ndarray, boxes: np.ndarray, size: tuple[int, int], padding: float
) -> tuple[Tensor, np.ndarray]:
    """`model.inference.cut_crops` on `device`: crops (N, height, width, 3) uint8 there, affines (N, 2, 3) float64 here.

    Args:
        picture: (H, W, 3) uint8 RGB.
        boxes: (N, 4) xyxy, picture pixels.
        size: crop (height, width).
    """
    affines = np.array([Region.around(box, size, padding).affine(size) for box in boxes]).reshape(-1, 2, 3)
    return cut_on(device, picture, affines, size), np.array([invert(affine) for affine in affines]).reshape(-1, 2, 3)


@torch.inference_mode()
def cut_on(device: torch.device, picture: np.ndarray, affines: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Crops (N, height, width, 3) uint8 on `device`, as `model.crop.cut` cuts them.

    Args:
        picture: (H, W, 3) uint8.
        affines: (N, 2, 3) float64, picture -> crop.
        size: crop (height, width).
    """
    if not len(affines):
        return torch.empty(0, *size, 3, dtype=torch.uint8, device=device)
    views = [View.of(picture.shape, affine, size) for affine in affines]
    low = np.min([view.low for view in views], 0)  # nothing outside of what somebody sees is uploaded
    high = np.max([view.high for view in views], 0)
    part = upload(picture[low[1] : high[1], low[0] : high[0]], device)
    table = _sum_areas(part)
    pieces = [views[i : i + TOGETHER] for i in range(0, len(views), TOGETHER)]
    return torch.cat([_cut(table, piece, low, size) for piece in pieces])


def _sum_areas(picture: Tensor) -> Tensor:
    """(3, H + 1, W + 1) float64: sums of (H, W, 3) uint8 over everything above and to the left of a pixel's corner."""
    height, width, channels = picture.shape
    table = torch.zeros(channels, height + 1, width + 1, dtype=torch.float64, device=picture.device)
    table[:, 1:, 1:] = picture.permute(2, 0, 1)
    return table.cumsum_(1).cumsum_(2)


def _cut(table: Tensor, views: list[View], origin: np.ndarray, size: tuple[int, int]) -> Tensor:
    """Crops (N, height, width, 3) uint8 of a picture whose first pixel is `origin` (x, y) of the views' picture."""
    columns, rows = (max(2, int(side)) for side in np.max([view.size for view in views], 0))
    numbers = np.array(
        [
            [*(view.low - origin), *view.size, *view.ratio, *_to_unit(invert(view.affine), size, (rows, columns)).flat]
            for view in views
        ]
    )
    place = upload(numbers, table.device)  # (N, 12)
    low, count, ratio = place[:, :2], place[:, 2:4], place[:, 4:6]
    averaged = _average(table, low, count, ratio, (rows, columns))
    grid = F.affine_grid(place[:, 6:].view(-1, 2, 3).float(), [len(views), 3, *size], align_corners=True)
    crops = F.grid_sample(averaged.float(), grid, "bilinear", "zeros", align_corners=True)
    return crops.round_().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _average(table: Tensor, low: Tensor, count: Tensor, ratio: Tensor, size: tuple[int, int]) -> Tensor:
    """Views, averaged: (N, 3, rows, columns) float64 whole numbers, as a picture has them; 0 beyond a view's own size.

    Args:
        table: see `_sum_areas`.
        low, count, ratio: (N, 2) float64, (x, y) of a view's corner, its size, and picture pixels per averaged one.
        size: (rows, columns), no less than the largest `count`.
    """
    rows, columns = size
    height, width = table.shape[1:]
    steps_x = torch.arange(columns + 1, device=table.device).minimum(count[:, :1])
    steps_y = torch.arange(rows + 1, device=table.device).minimum(count[:, 1:])
    x = (low[:, :1] + steps_x * ratio[:, :1]) * (2 / (width - 1)) - 1  # (N, columns + 1), the table spans -1 ... 1
    y = (low[:, 1:] + steps_y * ratio[:, 1:]) * (2 / (height - 1)) - 1  # (N, rows + 1)
    shape = (len(x), rows + 1, columns + 1)
    grid = torch.stack([x[:, None, :].expand(shape), y[:, :, None].expand(shape)], -1)
    sums = F.grid_sample(table[None], grid.flatten(0, 1)[None], "bilinear", "border", align_corners=True)
    areas = sums.view(3, *shape).diff(dim=2).diff(dim=3)  # [3, N, rows, columns]
    return (areas / ratio.prod(1)[:, None, None]).round_().transpose(0, 1)


def _to_unit(affine: np.ndarray, target: tuple[int, int], source: tuple[int, int]) -> np.ndarray:
    """A pixel affine (2, 3), target -> source, between frames whose outer pixel centres are -1 and 1."""
    half = (np.array(target[::-1]) - 1) / 2
    linear, offset = affine[:, :2] * half, affine[:, :2] @ half + affine[:, 2]
    scale = 2 / (np.array(source[::-1]) - 1)
    return np.concatenate([linear * scale[:, None], (offset * scale - 1)[:, None]], 1)
