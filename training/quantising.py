"""`pose quantise`: int8 ranges for a package, found on real crops, and what int8 costs, measured."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from model.card import Card, Evaluation
from model.inference import Engine
from model.package import Package, add_ranges
from model.parity import Crops, measure_shift
from model.ranges import Ranges
from training.boxes import Boxes, each_picture
from training.config import ConfigError, DataSet, data_folder
from training.measuring import TorchEngine
from training.people import read_people
from training.validation import COCO_LICENCE, Request, own_set, requested_sets, run_validation

COCO_TRAIN = DataSet(
    name="coco-train", annotations="coco/person_keypoints_train.json", images="coco/images", licence=COCO_LICENCE
)
MIN_JOINTS = 5  # labelled ones: with fewer there is little of the person to see
SHIFTED = 200  # people of a validation set whose keypoints' shift is measured

FindRanges = Callable[[np.ndarray], Ranges]
BuildEngine = Callable[[Package, Literal["f32", "int8"]], Engine]

log = logging.getLogger("pose.training")


@dataclass(frozen=True)
class Tools:
    """What the serving side lends, which training does not know.

    Attributes:
        name: of what finds the ranges, and its version.
        find: ranges for crops (N, H, W, 3) uint8.
        build: a package's serving engine in `f32` or `int8`.
    """

    name: str
    find: FindRanges
    build: BuildEngine


def quantise(
    package: Package, folder: Path, calibration: Request, validation: Request, count: int, tools: Tools
) -> Card:
    """Write `int8.safetensors` into the package's folder, and into its card what int8 changes.

    Args:
        calibration: a set of one's own to take crops from; one without annotations takes COCO's training pictures.
        validation: what the accuracy before and after is measured on.
        count: crops to find ranges on.

    Raises:
        ConfigError: a set is missing, or has nobody to crop.
    """
    root, entry = _calibration_set(calibration)
    crops = draw_crops(package, entry, root, count)
    requested_sets(validation, package.skeleton)  # before the long work: is there anything to measure on?
    log.info("looking for ranges on %d crops of %s", len(crops.pixels), entry.name)
    ranges = tools.find(crops.pixels)
    log.info("%d ranges and %d biases found; measuring float32, then int8", len(ranges.ranges), len(ranges.constants))
    candidate = replace(package, ranges=ranges)
    before = run_validation(package, validation, tools.build(package, "f32"))
    engine = tools.build(candidate, "int8")
    after = [
        entry.model_copy(update={"notes": [*entry.notes, "int8"]})
        for entry in run_validation(candidate, validation, engine)
    ]
    root, entries = requested_sets(validation, package.skeleton)
    shift = measure_shift(engine, TorchEngine(package), draw_crops(package, entries[0], root, SHIFTED), package)
    fields = {
        "tool": tools.name, "data": entry.name, "crops": len(crops.pixels), "before": before, "after": after,
        "shift": shift,
    }  # fmt: skip
    return add_ranges(folder, ranges, fields)


def draw_crops(package: Package, entry: DataSet, root: Path, count: int) -> Crops:
    """At most `count` people of the set, drawn at random but always the same, in their labelled boxes.

    Raises:
        ConfigError: nobody has enough joints.
    """
    people = [one for one in read_people(entry, root, package.skeleton.name) if (one.weights > 0).sum() >= MIN_JOINTS]
    if not people:
        raise ConfigError(f"{entry.name} has nobody with {MIN_JOINTS} labelled joints of {package.skeleton.name}")
    chosen = [people[i] for i in np.random.default_rng(0).permutation(len(people))[:count]]
    size = package.card.input_size
    pixels, affines = np.zeros((len(chosen), *size, 3), np.uint8), np.zeros((len(chosen), 2, 3))
    for indices, cut, back in each_picture(Boxes.of_people(chosen), size, package.card.padding):
        pixels[indices], affines[indices] = cut, back
    return Crops(pixels, affines)


def describe_loss(before: list[Evaluation], after: list[Evaluation]) -> str:
    """One line per set: the figures that people look at first, before -> after."""
    lines = []
    for old, new in zip(before, after, strict=True):
        names = [name for name in ("AP", "AP50", "AP75", "PCK@0.2", "PCKh@0.5 mean") if name in old.metrics]
        figures = ", ".join(f"{name} {old.metrics[name]:.1f} -> {new.metrics[name]:.1f}" for name in names)
        lines.append(f"{old.data}, {old.people} people: {figures}")
    return "\n".join(lines)


def _calibration_set(request: Request) -> tuple[Path, DataSet]:
    if request.annotations is not None:
        return Path(), own_set(request.annotations, request.images)
    root = data_folder()
    if not (root / COCO_TRAIN.annotations).is_file():
        raise ConfigError(
            f"{root / COCO_TRAIN.annotations} is missing: ranges need a few hundred real people; name labels of your "
            "own with --annotations and --images"
        )
    return root, COCO_TRAIN
