"""Real pictures for the servers: 1, 3 and 12 or more people at 640x480 and 1920x1080, as JPEG files of quality 90.

They are windows of photographs, scaled: of the two that the ultralytics package carries, and for many people of COCO's
validation pictures in `$POSE_DATA/coco` where that folder is there. Where no photograph has enough people, three are
cut out of one and set side by side again and again. How many people a picture has is what the bundled detector finds.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
from PIL import Image

from model.errors import UserError

Picture = np.ndarray  # (H, W, 3) uint8 RGB
Count = Callable[[Picture], int]

SIZES = ((640, 480), (1920, 1080))  # width, height
GROUPS = {"1": (1, 1), "3": (3, 3), "12+": (12, 40)}  # name -> least and most people
CROWD = 20  # people of the picture for the third target
EACH = 3  # most pictures of a set
QUALITY = 90
CUTS = {  # people of the two photographs (x1, y1, x2, y2), with some of what surrounds them
    "bus.jpg": ((30, 390, 255, 910), (205, 395, 360, 875), (655, 370, 809, 890)),
    "zidane.jpg": ((640, 10, 1275, 719), (100, 200, 670, 719)),
}


class PictureError(UserError):
    """No picture with the wanted number of people could be made."""


@dataclass(frozen=True)
class PictureSet:
    """Pictures of one size with about as many people each.

    Attributes:
        size: such as `640x480`.
        group: the wanted number of people: `1`, `3`, `12+`.
        paths: the JPEG files.
        people: mean number of people that the bundled detector finds in them.
        source: what they were made from.
    """

    size: str
    group: str
    paths: list[Path]
    people: float
    source: str


def make_pictures(
    folder: Path, count: Count, sizes: Sequence[tuple[int, int]], groups: Sequence[str]
) -> list[PictureSet]:
    """The sets, by size, then by people; their files are written to `folder`.

    Raises:
        PictureError: no picture has the wanted number of people.
    """
    return [_make_set(folder, count, size, group, *GROUPS[group]) for size in sizes for group in groups]


def make_crowd(folder: Path, count: Count) -> PictureSet:
    """One picture of 640x480 with at least `CROWD` people.

    Raises:
        PictureError: see `make_pictures`.
    """
    return _make_set(folder, count, SIZES[0], f"{CROWD}+", CROWD, 60)


def photographs() -> dict[str, Picture]:
    """The two pictures that the ultralytics package carries, by file name."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "assets"
    return {name: _read(folder / name) for name in CUTS}


def _make_set(folder: Path, count: Count, size: tuple[int, int], group: str, least: int, most: int) -> PictureSet:
    name = f"{size[0]}x{size[1]}"
    paths: list[Path] = []
    people: list[int] = []
    sources: list[str] = []
    for source, tries in _subjects(size, least):
        for picture in tries:
            path = folder / f"{name}_{group}_{len(paths)}.jpg"
            Image.fromarray(picture).save(path, quality=QUALITY)
            found = count(_read(path))
            if least <= found <= most:
                paths.append(path)
                people.append(found)
                sources.append(source)
                break
        if len(paths) == EACH or source == "collage":
            break
    if not paths:
        raise PictureError(
            f"the detector finds {least} people in no {name} window of the photographs, nor in a collage"
        )
    return PictureSet(name, group, paths, sum(people) / len(people), ", ".join(sorted(set(sources))))


def _subjects(size: tuple[int, int], least: int) -> Iterator[tuple[str, Iterator[Picture]]]:
    """Sources, and tries to make a picture of `size` (width, height) of each: few people from the two photographs, many
    from COCO, then from a collage."""
    downs = (0.5, 0.4, 0.3)
    if least >= 12:
        for path in _crowded():
            photograph = _read(path)
            everything = (0, 0, photograph.shape[1], photograph.shape[0])
            yield f"COCO {path.name}", (_window(photograph, size, everything, 1.0, down) for down in downs)
        grids = [grid for grid in ((6, 2), (7, 2), (8, 2), (9, 2), (10, 2), (10, 3)) if grid[0] * grid[1] >= least]
        yield "collage", (_collage(size, *grid) for grid in grids)
        return
    for name, photograph in photographs().items():
        boxes = np.array(CUTS[name])
        everybody = (*boxes[:, :2].min(0), *boxes[:, 2:].max(0))
        # one person: closer and closer, until nobody else is in sight; three: all of the photograph's people
        margins = (0.9, 0.7, 0.6, 0.5, 0.4) if least == 1 else (1.0, 1.15, 1.3)
        for box in CUTS[name] if least == 1 else [everybody]:
            yield name, (_window(photograph, size, box, m, down) for m in margins for down in downs)


def _window(photograph: Picture, size: tuple[int, int], box: Sequence[int], margin: float, down: float) -> Picture:
    """The window of the aspect of `size` that holds `box` (xyxy, pixels) times `margin`, as far as the photograph
    reaches, scaled to `size`; the box's point at `down` of its height is in the middle."""
    height, width = photograph.shape[:2]
    x1, y1, x2, y2 = box
    scale = max((x2 - x1) / size[0], (y2 - y1) / size[1]) * margin  # photograph's pixels per pixel
    scale = min(scale, width / size[0], height / size[1])
    w, h = int(size[0] * scale), int(size[1] * scale)
    x = min(max((x1 + x2 - w) // 2, 0), width - w)
    y = min(max(int(y1 + (y2 - y1) * down - h / 2), 0), height - h)
    return _scale(photograph[y : y + h, x : x + w], size)


def _collage(size: tuple[int, int], columns: int, rows: int) -> Picture:
    """Three people cut out of a photograph, again and again, in a grid."""
    pictures = photographs()
    people = [pictures["bus.jpg"][y1:y2, x1:x2] for x1, y1, x2, y2 in CUTS["bus.jpg"]]
    width, height = size
    x, y = np.linspace(0, width, columns + 1).astype(int), np.linspace(0, height, rows + 1).astype(int)
    sheet = np.empty((height, width, 3), np.uint8)
    for row in range(rows):
        for column in range(columns):
            cell = int(x[column + 1] - x[column]), int(y[row + 1] - y[row])
            sheet[y[row] : y[row + 1], x[column] : x[column + 1]] = _scale(people[(row + column) % len(people)], cell)
    return sheet


def _scale(picture: Picture, size: tuple[int, int]) -> Picture:
    shrinks = picture.shape[1] > size[0]
    return np.asarray(cv2.resize(picture, size, interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC), np.uint8)


def _crowded() -> list[Path]:
    """COCO's validation pictures with ten people or more, the most crowded first; none where the data are not here."""
    folder = Path(os.environ.get("POSE_DATA", "../shared/data")) / "coco"
    labels = folder / "person_keypoints_val.json"
    if not labels.is_file():
        return []
    content = json.loads(labels.read_text())
    people: dict[int, int] = {}
    for annotation in content["annotations"]:
        people[annotation["image_id"]] = people.get(annotation["image_id"], 0) + 1
    images = [image for image in content["images"] if people.get(image["id"], 0) >= 10]
    images.sort(key=lambda image: (-people[image["id"]], image["file_name"]))
    return [path for image in images if (path := folder / "images" / image["file_name"]).is_file()]


def _read(path: Path) -> Picture:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))
