"""Contact sheets of labels: captioned tiles under headings, as `pose data check` and `pose data show` write them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from model.crop import Region, compose, cut, invert, transform
from model.drawing import FONT, draw
from model.skeletons import SKELETONS, Skeleton
from training.config import ConfigError
from training.labels import Person
from training.people import read_picture

COLUMNS, TILE = 8, (256, 192)  # tiles in a row; (height, width) of one in pixels
LINE, HEADING = 14, 30  # pixels of a caption's line and of a heading
LETTERS = 34  # about what a line of a caption holds
INK, PAPER, FAINT = (235, 235, 235), (24, 24, 28), (170, 170, 175)

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class OnePerson:
    """`model.drawing.People` of a single crop."""

    boxes: Floats
    keypoints: Floats
    keypoint_scores: Floats
    scores: Floats


def skeleton_of(joints: tuple[str, ...]) -> Skeleton:
    """A known skeleton with these joints, or one with whatever links of known skeletons they allow."""
    for skeleton in SKELETONS.values():
        if skeleton.joints == joints:
            return skeleton
    links = dict.fromkeys(link for skeleton in SKELETONS.values() for link in skeleton.links)
    return Skeleton(
        "the set's", joints, (0.1,) * len(joints), tuple(link for link in links if set(link) <= set(joints))
    )


def person_tile(person: Person, skeleton: Skeleton) -> np.ndarray:
    """(*TILE, 3) uint8 RGB: someone with box and labelled joints, all of them in sight.

    Raises:
        ConfigError: the picture is broken.
    """
    seen = person.keypoints[person.weights > 0]
    low = np.minimum(person.box[:2], seen.min(0, initial=np.inf))
    high = np.maximum(person.box[2:], seen.max(0, initial=-np.inf))
    affine = Region.around((*low, *high), TILE, 1.1).affine(TILE)
    if person.packed is None:
        tile = cut(read_picture(person.picture), affine, TILE)
    else:
        tile = cut(person.packed.pixels, compose(affine, invert(person.packed.affine)), TILE)
    box = transform(person.box.reshape(2, 2), affine).reshape(4)
    return draw_joints(tile, transform(person.keypoints, affine), person.weights, skeleton, box)


def draw_joints(
    tile: np.ndarray, keypoints: np.ndarray, weights: np.ndarray, skeleton: Skeleton, box: np.ndarray | None = None
) -> np.ndarray:
    """`tile` (h, w, 3) uint8 RGB with the joints (K, 2) drawn that weigh something, and the box if one is given."""
    frame = np.array([0, 0, tile.shape[1], tile.shape[0]]) if box is None else box
    person = OnePerson(
        boxes=frame[None].astype(np.float32),
        keypoints=keypoints[None].astype(np.float32),
        keypoint_scores=(weights[None] > 0).astype(np.float32),
        scores=np.ones(1, np.float32),
    )
    parts = ["skeleton"] if box is None else ["box", "skeleton"]
    return draw(np.ascontiguousarray(tile, np.uint8), person, skeleton, parts, 0.5)


def caption(tile: np.ndarray, lines: Sequence[str], count: int) -> np.ndarray:
    """`tile` with `count` lines of small text below it; what does not fit is cut off."""
    strip = np.full((LINE * count + 4, tile.shape[1], 3), PAPER, np.uint8)
    for number, line in enumerate(lines[:count]):
        place = (3, LINE * (number + 1) - 2)
        cv2.putText(strip, _ascii(line), place, FONT, 0.36, INK if number == 0 else FAINT, 1, cv2.LINE_AA)
    return np.concatenate([tile, strip], 0)


def write_sections(path: Path, sections: Sequence[tuple[str, Sequence[np.ndarray]]]) -> None:
    """Write tiles of one size, eight to a row under their headings, to the picture `path` (JPEG or PNG).

    Raises:
        ConfigError: there is nothing to show, or the file cannot be written.
    """
    filled = [(heading, list(tiles)) for heading, tiles in sections if tiles]
    if not filled:
        raise ConfigError(f"{path}: there is nobody to show")
    blank = np.full_like(filled[0][1][0], PAPER)
    rows = []
    for heading, tiles in filled:
        strip = np.full((HEADING, COLUMNS * blank.shape[1], 3), PAPER, np.uint8)
        cv2.putText(strip, _ascii(heading), (6, HEADING - 10), FONT, 0.55, INK, 1, cv2.LINE_AA)
        rows += [strip, *grid(tiles, blank)]
    write_rows(path, rows)


def grid(tiles: Sequence[np.ndarray], blank: np.ndarray) -> list[np.ndarray]:
    """Rows of eight tiles, all of the size of `blank`, which fills the last one."""
    filled = [*tiles, *[blank] * (-len(tiles) % COLUMNS)]
    return [np.concatenate(filled[i : i + COLUMNS], 1) for i in range(0, len(filled), COLUMNS)]


def write_rows(path: Path, rows: Sequence[np.ndarray]) -> None:
    """Write rows (h, W, 3) uint8 RGB of one width below each other to the picture `path`, beside it first.

    Raises:
        ConfigError: the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.stem}.partial{path.suffix}")
    try:
        if not cv2.imwrite(str(beside), cv2.cvtColor(np.concatenate(rows, 0), cv2.COLOR_RGB2BGR)):
            raise ConfigError(f"{path} cannot be written: is there room, and may you write there?")
        beside.replace(path)
    except cv2.error:
        raise ConfigError(f"{path} cannot be written: its name must end in .jpg or .png") from None
    finally:
        beside.unlink(missing_ok=True)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()  # OpenCV's letters
