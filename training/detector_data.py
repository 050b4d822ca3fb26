"""Person boxes in COCO format, written out the way the ultralytics trainer reads them.

YOLO has no label for "do not judge this region", and the training set has about 4,000 such boxes (`iscrowd` 1: two
teachers disagreed). Leaving them out would teach the network that these people are background, so the pixels go
instead: a picture with ignored boxes is written once more with these regions painted in the grey of the letterbox,
save where a certain person overlaps them. A picture of which more than half would be painted is left out.
"""

import json
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

GREY = 114  # the letterbox colour of model.person_detector
MAX_IGNORED = 0.5  # part of a picture that may be painted over
MIN_SIDE = 2.0  # boxes thinner than this many pixels carry no usable picture

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class YoloFolder:
    """A prepared split: `images` pictures with `boxes` boxes, listed in `listing`; the rest is for the card."""

    listing: Path
    images: int
    boxes: int
    painted: int
    skipped: int
    sources: dict[str, int]


def read_boxes(path: Path) -> tuple[list[dict[str, Any]], dict[int, list[dict[str, Any]]]]:
    """Read a COCO box file: its image records, and the annotations of every image id."""
    content = json.loads(path.read_text(encoding="utf-8"))
    by_image: dict[int, list[dict[str, Any]]] = {image["id"]: [] for image in content["images"]}
    for annotation in content["annotations"]:
        by_image[annotation["image_id"]].append(annotation)
    return content["images"], by_image


def clipped(annotations: list[dict[str, Any]], width: int, height: int) -> npt.NDArray[np.float64]:
    """Boxes (N, 4) float64 xyxy in pixels, cut to the picture; boxes thinner than `MIN_SIDE` are dropped."""
    boxes = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
    boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
    return boxes[((boxes[:, 2:] - boxes[:, :2]) >= MIN_SIDE).all(axis=1)]


def ignore_mask(
    ignored: npt.NDArray[np.float64], certain: npt.NDArray[np.float64], width: int, height: int
) -> npt.NDArray[np.bool_]:
    """Mask (H, W) bool of the pixels that lie in an ignored box and in no certain one."""
    mask = np.zeros((height, width), dtype=np.bool_)
    for value, boxes in ((True, ignored), (False, certain)):
        for x1, y1, x2, y2 in boxes:
            mask[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))] = value
    return mask


def label_lines(boxes: npt.NDArray[np.float64], width: int, height: int) -> str:
    """YOLO label text: one line `0 cx cy w h` a box, as parts of the picture."""
    scale = np.array([width, height, width, height], dtype=np.float64)
    centred = np.concatenate([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]], axis=1) / scale
    return "".join(f"0 {cx:.6f} {cy:.6f} {w:.6f} {h:.6f}\n" for cx, cy, w, h in centred)


def write_yolo_folder(data_root: Path, annotations: Path, folder: Path, split: str) -> YoloFolder:
    """Write `folder/images/<split>`, `folder/labels/<split>` and `folder/<split>.txt` from a COCO box file.

    Pictures become symbolic links; only those with ignored regions are written anew (see the top of this file).
    A JPEG without its end marker would be "repaired" in place by ultralytics, through the link: such a picture is
    written anew as well. Existing files are replaced, so a second call gives the same folder.
    """
    images, by_image = read_boxes(annotations)
    image_folder, label_folder = folder / "images" / split, folder / "labels" / split
    for each in (image_folder, label_folder):
        each.mkdir(parents=True, exist_ok=True)
    listing: list[str] = []
    boxes_total = painted = skipped = 0
    sources: dict[str, int] = {}
    for image in images:
        width, height = image["width"], image["height"]
        certain = clipped([a for a in by_image[image["id"]] if not a.get("iscrowd", 0)], width, height)
        ignored = clipped([a for a in by_image[image["id"]] if a.get("iscrowd", 0)], width, height)
        mask = ignore_mask(ignored, certain, width, height)
        if mask.mean() > MAX_IGNORED:
            skipped += 1
            continue
        source = (data_root / image["file_name"]).resolve()
        target = image_folder / image["file_name"].replace("/", "__")
        rewrite = bool(mask.any())
        if rewrite or _is_cut_jpeg(source):
            target = target.with_suffix(".jpg")
            _write_painted(source, target, mask)
            painted += rewrite
        else:
            target.unlink(missing_ok=True)
            target.symlink_to(source)
        (label_folder / target.name).with_suffix(".txt").write_text(label_lines(certain, width, height))
        listing.append(str(target.absolute()))
        boxes_total += len(certain)
        sources[image.get("source", "unknown")] = sources.get(image.get("source", "unknown"), 0) + 1
    path = folder / f"{split}.txt"
    path.write_text("\n".join(listing) + "\n", encoding="utf-8")
    logger.info(
        "%s: %d pictures, %d boxes, %d painted, %d left out", split, len(listing), boxes_total, painted, skipped
    )
    return YoloFolder(path, len(listing), boxes_total, painted, skipped, sources)


def _is_cut_jpeg(path: Path) -> bool:
    if path.suffix.lower() not in {".jpg", ".jpeg"}:
        return False
    with path.open("rb") as stream:
        stream.seek(-2, os.SEEK_END)
        return stream.read() != b"\xff\xd9"


def _write_painted(source: Path, target: Path, mask: npt.NDArray[np.bool_]) -> None:
    picture = cv2.imread(str(source), cv2.IMREAD_COLOR)
    if picture is None or picture.shape[:2] != mask.shape:
        raise ValueError(f"{source} cannot be read at its annotated size {mask.shape[::-1]}; fetch the data anew")
    picture[mask] = GREY
    target.unlink(missing_ok=True)
    if not cv2.imwrite(str(target), picture, [cv2.IMWRITE_JPEG_QUALITY, 95]):
        raise OSError(f"{target} cannot be written")
