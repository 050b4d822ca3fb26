"""`pose validate`: a weight package scored on labelled sets, with every detail of the protocol named."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.card import Evaluation
from model.inference import Engine
from model.package import Package
from model.person_detector import PersonDetector
from model.skeletons import Skeleton
from training.config import ConfigError, DataSet, data_folder
from training.gallery import write_gallery
from training.measuring import TorchEngine, detect_boxes, evaluate_boxes, find
from training.people import read_set
from training.reliability import draw_reliability

COCO_LICENCE = "annotations CC BY 4.0; Flickr terms for pictures"
VALIDATION_SETS = {
    data.name: data
    for data in (
        DataSet(
            name="coco-val", annotations="coco/person_keypoints_val.json", images="coco/images", licence=COCO_LICENCE
        ),
        DataSet(
            name="lspet-val", annotations="lspet/lsp14_val.json", images="lspet/images",
            licence="Leeds Sports Pose Extended; research use",
        ),
        DataSet(
            name="coco2017-val", annotations="coco2017/annotations/person_keypoints_val2017.json",
            images="coco2017/val2017", licence=COCO_LICENCE,
        ),
        DataSet(
            name="mpii-val", annotations="mpii/annot/valid.json", images="mpii/images",
            licence="MPII Human Pose; research use",
        ),
    )
}  # fmt: skip

EVERYONE = ("coco-val", "coco2017-val")  # every person is labelled, so that detected boxes can be scored
SHARED = ("coco-val", "lspet-val")  # what `pose publish` scores beside the run's own validation set

log = logging.getLogger("pose.training")


@dataclass(frozen=True)
class Request:
    """What `pose validate` is asked for.

    Attributes:
        sets: names; None takes all that are there and fit.
        annotations, images: a set of one's own instead, and its picture folder (None: the folder of the labels).
        detector: what finds the boxes, or a file of detections in HRNet's format; None takes the labelled boxes.
        box_score: least score of a detected box.
        gallery: folder for sheets of the worst people.
        reliability: picture of scores against what they turned out to be worth.
    """

    sets: Sequence[str] | None = None
    annotations: Path | None = None
    images: Path | None = None
    detector: PersonDetector | Path | None = None
    box_score: float = 0.0
    flip_test: bool = True
    gallery: Path | None = None
    reliability: Path | None = None


def run_validation(package: Package, request: Request, engine: Engine | None = None) -> list[Evaluation]:
    """Score the package as asked, on `engine` (default: PyTorch float32), and draw what is asked for.

    Raises:
        ConfigError: a set is unknown or its files are missing, or options do not go together.
    """
    engine = engine or TorchEngine(package)
    root, entries = requested_sets(request, package.skeleton)
    if request.detector is not None:
        boxes = [detect_boxes(entry, root, request.detector, request.box_score) for entry in entries]
        return [
            evaluate_boxes(package, entry, root, engine, found, flip_test=request.flip_test)
            for entry, found in zip(entries, boxes, strict=True)
        ]
    found = [find(package, entry, root, engine, flip_test=request.flip_test) for entry in entries]
    if request.gallery:
        for one in found:
            path = write_gallery(request.gallery / f"worst_{one.entry.name}.jpg", one, package)
            log.info("the people of the lowest OKS: %s", path)
    if request.reliability:
        draw_reliability(request.reliability, found, package)
        log.info("how far scores can be believed: %s", request.reliability)
    return [one.evaluate(package.codec, package.skeleton) for one in found]


def requested_sets(request: Request, skeleton: Skeleton) -> tuple[Path, list[DataSet]]:
    """The folder that the sets' paths start from, and the sets.

    Raises:
        ConfigError: see `run_validation`.
    """
    if request.detector is not None and (request.gallery or request.reliability):
        raise ConfigError("--gallery and --reliability are drawn with the labelled boxes: leave out the detected ones")
    if request.annotations is not None:
        if request.sets:
            raise ConfigError("--set and --annotations do not go together: score one after the other")
        return Path(), [own_set(request.annotations, request.images)]
    if request.images is not None:
        raise ConfigError("--images belongs to --annotations, which is not given")
    root = data_folder()
    if request.detector is None or request.sets:
        return root, choose_sets(request.sets, root, skeleton)
    entries = choose_sets(
        [name for name in EVERYONE if (root / VALIDATION_SETS[name].annotations).is_file()], root, skeleton
    )
    if isinstance(request.detector, Path) and len(entries) > 1:
        raise ConfigError(f"--detections belongs to one set: name it with --set ({', '.join(EVERYONE)})")
    return root, entries


def own_set(annotations: Path, images: Path | None) -> DataSet:
    """A set that is none of the named ones; pictures lie beside the labels where `images` is None."""
    folder = annotations.parent if images is None else images
    return DataSet(
        name=annotations.stem, annotations=str(annotations.resolve()), images=str(folder.resolve()), licence="not named"
    )


def choose_sets(names: Sequence[str] | None, root: Path, skeleton: Skeleton) -> list[DataSet]:
    """The named sets; by default all that are there and share joints with `skeleton`. What is absent is logged.

    Raises:
        ConfigError: an unknown name, or none of the sets is there.
    """
    for name in names or []:
        if name not in VALIDATION_SETS:
            raise ConfigError(f"unknown validation set {name!r}; known: {', '.join(VALIDATION_SETS)}")
    if names:
        return [VALIDATION_SETS[name] for name in names]
    present = [entry for entry in VALIDATION_SETS.values() if (root / entry.annotations).is_file()]
    absent = [name for name, entry in VALIDATION_SETS.items() if entry not in present]
    if absent:
        log.info("not in %s, so not scored: %s", root, ", ".join(absent))
    fitting = [entry for entry in present if shares_joints(entry, root, skeleton)]
    if not fitting:
        raise ConfigError(
            f"none of {', '.join(VALIDATION_SETS)} is in {root} with joints of skeleton {skeleton.name}: "
            "name a set of your own with --annotations and --images, or set POSE_DATA"
        )
    return fitting


def shares_joints(entry: DataSet, root: Path, skeleton: Skeleton) -> bool:
    """Whether the set labels any joint of `skeleton`."""
    return bool(set(read_set(entry, root).joints) & set(skeleton.joints))


def shared_sets(data: Path, skeleton: Skeleton) -> list[DataSet]:
    """The shared validation sets that are there and have joints of `skeleton`."""
    named = [VALIDATION_SETS[name] for name in SHARED if name in VALIDATION_SETS]
    present = [entry for entry in named if (data / entry.annotations).is_file()]
    return [entry for entry in present if shares_joints(entry, data, skeleton)]
