"""`pose label`: a package's own predictions as labels of a set, with a confidence per joint.

What a network learns from pictures that nobody labelled is as good as the labels it is given. So each person is looked
at several times, mirrored and at several scales, and a joint is worth what the network says of it times how far those
looks agree (Radosavovic et al., "Data distillation: towards omni-supervised learning", CVPR 2018).
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from model.inference import Engine
from model.package import Package
from model.person_detector import PersonDetector
from training.boxes import Boxes, pictures_by_id
from training.coco import BODY_SHARE
from training.config import ConfigError
from training.evaluation import Predictions
from training.measuring import progress_bar, run_boxes
from training.oks import joint_oks
from training.people import read_json, read_picture

SCALES = (0.85, 1.0, 1.2)  # of the package's padding
PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")


def label_set(content: dict[str, Any], images: Path, package: Package, engine: Engine, least: float) -> dict[str, Any]:
    """A COCO-format set with the joints that `package` finds in its boxes, in place of any it has.

    Every annotation keeps its id and box; crowds are left as they are. Joints surer than `least` are labelled (v = 1);
    `confidence`, a list beside `keypoints`, has the joints' worth in 0..1, and training weighs them by it.

    Args:
        content: the set's json; only `images` and the annotations' boxes are read.
        images: folder that file names are relative to.

    Raises:
        ConfigError: the json has no boxes, or a picture is missing or broken.
    """
    try:
        paths = {image["id"]: images / image["file_name"] for image in content["images"]}
        wanted = [a for a in content["annotations"] if not a.get("iscrowd")]
        corners = np.array([a["bbox"] for a in wanted], np.float64).reshape(-1, 4)
        ids = [a["image_id"] for a in wanted]
        boxes = Boxes(
            "labels",
            [paths[i] for i in ids],
            np.array(ids, np.int64),
            np.concatenate([corners[:, :2], corners[:, :2] + corners[:, 2:]], 1),
            np.ones(len(ids)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"the set is not in COCO's format, with a bbox for every annotation: {error!r}") from None
    if not wanted:
        raise ConfigError("the set has no boxes; give a folder of pictures to have people detected")
    looks = []
    for scale in SCALES:
        card = package.card.model_copy(update={"padding": scale * package.card.padding})
        title = f"labelling, scale {scale:g}"
        looks.append(run_boxes(engine, replace(package, card=card), boxes, title, flip_test=True))
    found = agree(looks, BODY_SHARE * corners[:, 2:].prod(1), package)
    for annotation, points, worth in zip(wanted, found.keypoints, found.scores, strict=True):
        kept = worth >= least
        rows = np.where(kept[:, None], np.concatenate([points.round(1), np.ones((len(kept), 1))], 1), 0)
        annotation |= {
            "keypoints": [round(value, 1) for value in rows.ravel().tolist()],
            "num_keypoints": int(kept.sum()),
            "confidence": [round(float(value), 3) for value in worth],
        }
    skeleton = package.skeleton
    category = {"id": 1, "name": "person", "supercategory": "person", "keypoints": list(skeleton.joints)}
    name = f"{package.card.name} {package.card.version}"
    note = f"joints predicted by {name} ({package.card.sha256[:12]}), {2 * len(SCALES)} looks at every person"
    annotations = [{**annotation, "category_id": 1} for annotation in content["annotations"]]
    return {
        "info": {**content.get("info", {}), "joints": note},
        "images": content["images"],
        "annotations": annotations,
        "categories": [category],
    }


def agree(looks: list[Predictions], areas: np.ndarray, package: Package) -> Predictions:
    """The mean of several looks at the same people, weighted by their scores; scores become the joints' worth.

    A joint's worth is its mean score, as the package calibrates it, times the looks' mean OKS with their own mean.

    Args:
        areas: (N,) of the people, square pixels.
    """
    points = np.stack([look.keypoints for look in looks]).astype(np.float64)  # (L, N, K, 2)
    scores = np.stack([package.codec.calibrate(torch.from_numpy(look.scores)).numpy() for look in looks])
    shares = scores / np.maximum(scores.sum(0), 1e-9)
    middle = (points * shares[..., None]).sum(0)
    alike = np.stack([joint_oks(look, middle, areas, np.array(package.skeleton.sigmas)) for look in points]).mean(0)
    return Predictions(middle.astype(np.float32), (scores.mean(0) * alike).astype(np.float32))


def boxed_pictures(folder: Path, detector: PersonDetector) -> dict[str, Any]:
    """The COCO-format set of all pictures in `folder`, with the people that `detector` finds; shows progress.

    Raises:
        ConfigError: there is no picture, or a broken one.
    """
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in PICTURES)
    if not paths:
        raise ConfigError(f"{folder} has no pictures ({', '.join(PICTURES)})")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    with progress_bar("finding people", len(paths)) as tick:
        for number, path in enumerate(paths, 1):
            picture = read_picture(path)
            height, width = picture.shape[:2]
            name = str(path.relative_to(folder))
            images.append({"id": number, "file_name": name, "width": width, "height": height})
            [(boxes, scores)] = detector.detect([picture])
            for (x1, y1, x2, y2), score in zip(boxes.tolist(), scores.tolist(), strict=True):
                if score < detector.least_score:
                    continue
                area = BODY_SHARE * (x2 - x1) * (y2 - y1)
                box = [round(side, 1) for side in (x1, y1, x2 - x1, y2 - y1)]
                annotation = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "bbox": box}
                annotations.append({**annotation, "area": round(area, 1), "box_score": round(score, 3)})
            tick(1)
    return {"images": images, "annotations": annotations}


def read_boxes(path: Path) -> dict[str, Any]:
    """The json of a COCO-format set.

    Raises:
        ConfigError: it is missing, damaged, or of another format.
    """
    pictures_by_id(path, path.parent)
    content: dict[str, Any] = read_json(path)
    return content


def write_set(content: dict[str, Any], path: Path) -> None:
    """Write a set's json beside, then rename."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".partial")
    try:
        beside.write_text(json.dumps(content) + "\n")
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
