"""What is kept of a person's picture: the surroundings, decoded in memory or compressed in a pack's shard."""

import mmap
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import cv2
import numpy as np

from model.crop import PADDING, Region, cut
from training.config import ConfigError

CONTEXT = 1.5  # what is kept around the padded box, so that rotated and shrunk crops still see the picture


class KeptCrop(Protocol):
    """A person's surroundings: `pixels` (h, w, 3) uint8 RGB and the (2, 3) affine picture -> `pixels`."""

    @property
    def pixels(self) -> np.ndarray: ...
    @property
    def affine(self) -> np.ndarray: ...


@dataclass(frozen=True)
class DecodedCrop:
    """A `KeptCrop` in memory."""

    pixels: np.ndarray
    affine: np.ndarray


@dataclass(frozen=True)
class PackedCrop:
    """A `KeptCrop` that is decoded whenever its pixels are asked for; small, so loader processes can be sent it.

    Attributes:
        shard: tar file that holds the JPEG, uncompressed, in `length` bytes from `offset` on.
        size: the largest crop (height, width) that it was packed for.
    """

    shard: Path
    offset: int
    length: int
    affine: np.ndarray
    size: tuple[int, int]

    @property
    def pixels(self) -> np.ndarray:
        """(h, w, 3) uint8 RGB.

        Raises:
            ConfigError: the shard is gone or damaged.
        """
        data = np.frombuffer(_map(self.shard), np.uint8, self.length, self.offset)
        pixels = cv2.imdecode(data, cv2.IMREAD_COLOR_RGB)
        if pixels is None:
            raise ConfigError(f"{self.shard} is damaged: no picture at byte {self.offset}; pack the set again")
        return np.asarray(pixels)


@lru_cache(maxsize=1024)
def _map(shard: Path) -> mmap.mmap:
    """The file in memory, mapped once per process; the system keeps of it what there is room for."""
    try:
        with shard.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except (OSError, ValueError) as error:
        raise ConfigError(f"{shard} cannot be read: {error}; pack the set again") from None


def keep(picture: np.ndarray, box: np.ndarray, size: tuple[int, int]) -> DecodedCrop:
    """What crops of at most `size` (height, width) can need of `picture` for the person in `box`.

    Stored at the picture's own resolution unless `size` needs less.
    """
    region = Region.around(box, size, PADDING * CONTEXT)
    low = np.clip(np.floor(region.center - region.extent / 2), 0, None)
    high = np.minimum(np.ceil(region.center + region.extent / 2), [picture.shape[1] - 1, picture.shape[0] - 1])
    low = np.minimum(low, high - 1).clip(0)
    shrink = max(1.0, region.extent[1] / (size[0] * CONTEXT))
    width, height = np.maximum(2, np.round((high - low) / shrink)).astype(int) + 1
    scale = np.array([width - 1, height - 1]) / np.maximum(high - low, 1)
    affine = np.concatenate([np.diag(scale), (-low * scale)[:, None]], 1)
    return DecodedCrop(cut(picture, affine, (int(height), int(width))), affine)
