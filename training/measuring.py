"""A package run on labelled pictures: what it finds in boxes of any source, and what that is worth."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor

from model.card import Evaluation
from model.codec import HeatmapCodec
from model.crop import Region
from model.inference import Engine, estimate, person_scores, to_picture
from model.networks.pixels import PixelNetwork
from model.package import Package
from model.person_detector import PersonDetector
from model.skeletons import Skeleton
from training.boxes import Boxes, each_picture, pictures_by_id
from training.config import ConfigError, DataSet
from training.evaluation import BATCH, Predictions, average_precision, has_coco_labels, match, score_people
from training.oks import suppress
from training.people import Person, read_people


class TorchEngine:
    """The reference every other engine is held to: PyTorch in float32."""

    def __init__(self, package: Package) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = PixelNetwork(package.network, package.card).to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> Tensor:
        heatmaps: Tensor = self.network(torch.from_numpy(crops).to(self.device))
        return heatmaps


@dataclass(frozen=True)
class Found:
    """What a package found in the labelled boxes of one set.

    Attributes:
        entry: the set; `root` is the data folder.
        raw: keypoints, and scores before calibration.
        flip_test: whether mirrored crops were averaged in.
    """

    entry: DataSet
    root: Path
    people: list[Person]
    raw: Predictions
    flip_test: bool

    def calibrated(self, codec: HeatmapCodec) -> Predictions:
        """As `codec` serves them."""
        scores = codec.calibrate(torch.from_numpy(self.raw.scores)).numpy()
        return Predictions(self.raw.keypoints, scores)

    def evaluate(self, codec: HeatmapCodec, skeleton: Skeleton) -> Evaluation:
        """The figures that the set's labels allow, with the scores that `codec` serves."""
        figures = score_people(self.root / self.entry.annotations, self.people, self.calibrated(codec), skeleton)
        boxes = Boxes.of_people(self.people)
        return Evaluation(
            data=self.entry.name, pictures=len(set(boxes.pictures)), people=len(self.people), boxes=boxes.source,
            flip_test=self.flip_test, metrics=figures.metrics, intervals=figures.intervals, notes=figures.notes,
        )  # fmt: skip


def find(package: Package, entry: DataSet, root: Path, engine: Engine, *, flip_test: bool = True) -> Found:
    """Run `engine` on the labelled boxes of a set.

    Raises:
        ConfigError: a file is missing or damaged, or the set has nobody with a joint of the package's skeleton.
    """
    people = read_people(entry, root, package.skeleton.name)
    if not people:
        raise ConfigError(f"{entry.name} has no labelled person with a joint of skeleton {package.skeleton.name}")
    raw = run_boxes(engine, package, Boxes.of_people(people), entry.name, flip_test=flip_test)
    return Found(entry, root, people, raw, flip_test)


def run_boxes(engine: Engine, package: Package, boxes: Boxes, title: str, *, flip_test: bool) -> Predictions:
    """Keypoints and raw scores of every box, in order, with a progress bar called `title`."""
    joints = len(package.skeleton)
    codec = replace(package.codec, calibration=())
    found = Predictions(np.zeros((len(boxes), joints, 2), np.float32), np.zeros((len(boxes), joints), np.float32))
    waiting: list[int] = []
    crops: list[np.ndarray] = []
    affines: list[np.ndarray] = []

    def run() -> None:
        points, scores = estimate(engine, np.stack(crops[:BATCH]), codec, package.skeleton, flip_test)
        found.keypoints[waiting[:BATCH]] = to_picture(points, affines[:BATCH])
        found.scores[waiting[:BATCH]] = scores
        del waiting[:BATCH], crops[:BATCH], affines[:BATCH]

    with progress_bar(title, len(boxes)) as tick:
        for indices, cut, back in each_picture(boxes, package.card.input_size, package.card.padding):
            waiting += indices
            crops += list(cut)
            affines += list(back)
            while len(waiting) >= BATCH:
                run()
                tick(BATCH)
        if waiting:
            run()
    return found


def evaluate_boxes(
    package: Package, entry: DataSet, root: Path, engine: Engine, boxes: Boxes, *, flip_test: bool = True
) -> Evaluation:
    """COCO's figures with boxes that were detected, by HRNet's protocol: a person scores its box's score times the mean
    of its joints' scores from 0.2 on, and people are suppressed at an OKS of 0.9.

    Raises:
        ConfigError: the set is not in COCO's format.
    """
    raw = run_boxes(engine, package, boxes, entry.name, flip_test=flip_test)
    return score_boxes(package, entry, root, boxes, raw, flip_test=flip_test)


def score_boxes(
    package: Package, entry: DataSet, root: Path, boxes: Boxes, raw: Predictions, *, flip_test: bool
) -> Evaluation:
    """What `evaluate_boxes` makes of `raw`, found by `run_boxes`."""
    joint_scores = package.codec.calibrate(torch.from_numpy(raw.scores)).numpy()
    scores = boxes.scores * person_scores(joint_scores)
    card = package.card
    areas = np.array([np.prod(Region.around(box, card.input_size, card.padding).extent) for box in boxes.boxes])
    sigmas = np.array(package.skeleton.sigmas)
    kept = [np.zeros(0, np.int64)]
    for image in np.unique(boxes.images):
        here = np.flatnonzero(boxes.images == image)
        kept.append(here[suppress(raw.keypoints[here], scores[here], areas[here], sigmas)])
    chosen = np.concatenate(kept)
    people = Predictions(raw.keypoints[chosen], joint_scores[chosen])
    annotations = root / entry.annotations
    figures = average_precision(match(annotations, boxes.images[chosen], people, scores[chosen], package.skeleton))
    labelled = len(read_people(entry, root, package.skeleton.name))
    return Evaluation(
        data=entry.name, pictures=len(pictures_by_id(annotations, root / entry.images)), people=labelled,
        boxes=boxes.source, flip_test=flip_test, metrics=figures.metrics, intervals=figures.intervals,
    )  # fmt: skip


def detect_boxes(entry: DataSet, root: Path, detector: PersonDetector | Path, score: float) -> Boxes:
    """Boxes of a detector, or of a file of detections, in the pictures of a COCO-format set.

    Raises:
        ConfigError: the set is in another format, or the file does not fit it.
    """
    annotations = root / entry.annotations
    if not has_coco_labels(annotations):
        raise ConfigError(f"{entry.name} is not in COCO's format: only such sets are scored with detected boxes")
    pictures = pictures_by_id(annotations, root / entry.images)
    if isinstance(detector, Path):
        return Boxes.from_file(detector, pictures, score)
    with progress_bar(f"{entry.name}, people", len(pictures)) as tick:
        return Boxes.from_detector(detector, pictures, score, tick)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """A bar on the terminal for as long as the block runs; gives the function that moves it on."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield partial(progress.advance, progress.add_task(title, total=total))
