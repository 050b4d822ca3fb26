"""Where the boxes of an evaluation come from: labels, a file of detections, or a detector end to end."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from model.inference import cut_crops
from model.package import BUNDLED, bundled_packages
from model.person_detector import PersonDetector
from training.config import ConfigError
from training.people import Person, read_json, read_picture

GROUND_TRUTH = "ground truth"
PERSON = 1  # COCO's category
AT_ONCE = 16  # pictures decoded ahead


@dataclass(frozen=True)
class Boxes:
    """Where people are said to be.

    Attributes:
        source: stands beside every figure that comes of these boxes.
        pictures: (N) path of each box's picture.
        images: (N,) int64, the pictures' ids.
        boxes: (N, 4) float64 xyxy, picture pixels.
        scores: (N,) float64 in 0..1.
    """

    source: str
    pictures: Sequence[Path]
    images: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, kept: np.ndarray) -> "Boxes":
        """Those that the mask or the indices `kept` choose."""
        indices = np.arange(len(self))[kept]
        pictures = [self.pictures[i] for i in indices]
        return Boxes(self.source, pictures, self.images[indices], self.boxes[indices], self.scores[indices])

    @classmethod
    def of_people(cls, people: Sequence[Person]) -> "Boxes":
        """The labelled boxes, all with score 1."""
        return cls(
            GROUND_TRUTH,
            [person.picture for person in people],
            np.array([person.image for person in people], np.int64),
            np.array([person.box for person in people]).reshape(-1, 4),
            np.ones(len(people)),
        )

    @classmethod
    def from_file(cls, path: Path, pictures: dict[int, Path], score: float = 0.0) -> "Boxes":
        """HRNet's format, `COCO_val2017_detections_AP_H_56_person.json`: a list of `image_id`, `category_id`, `bbox`
        [x, y, width, height], `score`. People (category 1) of at least `score` are taken, as HRNet does with 0.

        Args:
            pictures: the set's pictures by id; detections in others are left out.

        Raises:
            ConfigError: not that format, or none of the detections is in one of the pictures.
        """
        content = read_json(path)
        try:
            kept = [
                (int(entry["image_id"]), [float(side) for side in entry["bbox"]], float(entry["score"]))
                for entry in content
                if entry["category_id"] == PERSON and entry["score"] >= score
            ]
            rows = [(image, [x, y, x + w, y + h], sure) for image, (x, y, w, h), sure in kept if image in pictures]
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(
                f"{path} is no file of detections, a list of image_id, category_id, bbox and score: {error!r}"
            ) from None
        if not rows:
            raise ConfigError(f"{path}: none of its people is in one of the set's {len(pictures)} pictures")
        return cls(
            f"detections {path.name}",
            [pictures[image] for image, _, _ in rows],
            np.array([image for image, _, _ in rows], np.int64),
            np.array([box for _, box, _ in rows]),
            np.array([sure for _, _, sure in rows]),
        )

    @classmethod
    def from_detector(
        cls, detector: PersonDetector, pictures: dict[int, Path], score: float, tick: Callable[[int], object] = int
    ) -> "Boxes":
        """What `detector` finds with at least `score`; `tick` is called with the number of pictures done."""
        paths: list[Path] = []
        images: list[int] = []
        boxes, scores = np.zeros((0, 4)), np.zeros(0)
        for image, path in pictures.items():
            [(found, sure)] = detector.detect([read_picture(path)])
            keep = sure >= score
            paths += [path] * int(keep.sum())
            images += [image] * int(keep.sum())
            boxes, scores = np.concatenate([boxes, found[keep]]), np.concatenate([scores, sure[keep]])
            tick(1)
        name = detector.card.get("name", "detector")
        return cls(f"{name}, score >= {score:g}", paths, np.array(images, np.int64), boxes, scores)


def load_detector(name_or_path: str) -> PersonDetector:
    """The detector of a package: `bundled`, a bundled one's name, or a folder.

    Raises:
        PackageError: there is none, or it is damaged.
    """
    names = bundled_packages(pose=False)
    if name_or_path == "bundled" and names:
        name_or_path = names[0]
    return PersonDetector.from_package(BUNDLED / name_or_path if name_or_path in names else Path(name_or_path))


def pictures_by_id(annotations: Path, images: Path) -> dict[int, Path]:
    """Every picture of a COCO-format set.

    Raises:
        ConfigError: the json is missing or has no pictures.
    """
    content = read_json(annotations)
    try:
        return {image["id"]: images / image["file_name"] for image in content["images"]}
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{annotations} is not in COCO's format: {error!r} is missing") from None


def each_picture(
    boxes: Boxes, size: tuple[int, int], padding: float
) -> Iterator[tuple[list[int], np.ndarray, np.ndarray]]:
    """Picture by picture, few in memory at a time: numbers of its boxes, and what `model.inference.cut_crops` gives.

    Raises:
        ConfigError: a picture is missing or broken.
    """
    by_picture: dict[Path, list[int]] = {}
    for index, path in enumerate(boxes.pictures):
        by_picture.setdefault(path, []).append(index)

    def cut(path: Path) -> tuple[list[int], np.ndarray, np.ndarray]:
        indices = by_picture[path]
        return indices, *cut_crops(read_picture(path), boxes.boxes[indices], size, padding)

    paths = list(by_picture)
    with ThreadPoolExecutor(2) as pool:
        for start in range(0, len(paths), AT_ONCE):
            yield from pool.map(cut, paths[start : start + AT_ONCE])
