"""What turns a float32 graph into an int8 one: ranges of activations and weights, and corrected biases.

The 8-bit steps follow from a range, so a package that has ranges beside its weights can be served in int8 without the
tool that found them and without the pictures they were found on. Places in the graph are named, not numbered:
`app.engines.int8` says how.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from model.errors import PackageError


@dataclass(frozen=True)
class Range:
    """Values from `low` to `high` in `levels` equal steps.

    Attributes:
        places: inputs of operations that read the values.
        levels: 255 or 256.
        low, high: float32, of a shape that broadcasts to the values: one number, or one per channel.
    """

    places: tuple[str, ...]
    levels: int
    low: np.ndarray
    high: np.ndarray


@dataclass(frozen=True)
class Ranges:
    """A package's ranges, and the constants (float32) that replace the graph's own, by their places.

    Attributes:
        weights: sha256 of the weights that they were found with.
    """

    weights: str
    ranges: tuple[Range, ...]
    constants: dict[tuple[str, ...], np.ndarray]


def write_ranges(path: Path, ranges: Ranges) -> None:
    """One safetensors file: all numbers end to end, the places in its metadata."""
    layout = {
        "ranges": [[one.levels, one.low.shape, one.places] for one in ranges.ranges],
        "constants": [[value.shape, places] for places, value in ranges.constants.items()],
    }
    lows, highs = [one.low for one in ranges.ranges], [one.high for one in ranges.ranges]
    tensors = {"low": _join(lows), "high": _join(highs), "constants": _join(list(ranges.constants.values()))}
    save_file(tensors, path, {"weights": ranges.weights, "layout": json.dumps(layout, separators=(",", ":"))})


def read_ranges(path: Path) -> Ranges:
    """What `write_ranges` wrote.

    Raises:
        PackageError: missing, damaged or of another make.
    """
    try:
        with safe_open(path, "numpy") as file:
            metadata = file.metadata()
            low, high, constants = (file.get_tensor(name) for name in ("low", "high", "constants"))
        layout = json.loads(metadata["layout"])
        shapes = [shape for _, shape, _ in layout["ranges"]]
        ranges = tuple(
            Range(tuple(places), levels, *ends)
            for (levels, _, places), ends in zip(
                layout["ranges"], zip(_split(low, shapes), _split(high, shapes), strict=True), strict=True
            )
        )
        values = _split(constants, [shape for shape, _ in layout["constants"]])
        placed = {tuple(places): value for (_, places), value in zip(layout["constants"], values, strict=True)}
        return Ranges(metadata["weights"], ranges, placed)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise PackageError(f"{path} holds no int8 ranges: {error}") from None


def _join(arrays: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(0, np.float32), *(array.ravel() for array in arrays)])


def _split(values: np.ndarray, shapes: list[list[int]]) -> Iterator[np.ndarray]:
    start = 0
    for shape in shapes:
        size = int(np.prod(shape))
        yield values[start : start + size].reshape(shape)
        start += size
