"""`pose validate`: a weight package scored on the validation sets, with every detail of the protocol named."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor

from model.inference import Engine, PixelNetwork
from model.package import Card, Evaluation, Package
from training.config import ConfigError, DataSet
from training.evaluation import LabelledCrops, oks_ap, pck, predict
from training.people import read_people

VALIDATION_SETS = {
    "coco-val": DataSet(
        name="coco-val", annotations="coco/person_keypoints_val.json", images="coco/images",
        licence="annotations CC BY 4.0; Flickr terms for pictures",
    ),
    "lspet-val": DataSet(
        name="lspet-val", annotations="lspet/person_keypoints_val.json", images="lspet/images",
        licence="Leeds Sports Pose Extended; research use",
    ),
}  # fmt: skip


class TorchEngine:
    """The reference every other engine is held to: PyTorch in float32."""

    def __init__(self, package: Package) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.network = PixelNetwork(package.network, package.card).to(self.device).eval()

    @torch.inference_mode()
    def __call__(self, crops: np.ndarray) -> Tensor:
        heatmaps: Tensor = self.network(torch.from_numpy(crops).to(self.device))
        return heatmaps


def validate_package(
    package: Package,
    data: Path,
    sets: Sequence[str] | None = None,
    *,
    flip_test: bool = True,
    engine: Engine | None = None,
) -> list[Evaluation]:
    """Figures with ground-truth boxes for every named set (default: all), on `engine` (default: PyTorch float32).

    Raises:
        ConfigError: unknown set, or its files are missing.
    """
    engine = engine or TorchEngine(package)
    report = []
    for name in sets or list(VALIDATION_SETS):
        if name not in VALIDATION_SETS:
            raise ConfigError(f"unknown validation set {name!r}; known: {', '.join(VALIDATION_SETS)}")
        entry = VALIDATION_SETS[name]
        people = read_people(entry, data, package.skeleton.name)
        labelled = LabelledCrops.cut(people, package.card.input_size, package.card.padding)
        with Progress(transient=True) as progress:
            task = progress.add_task(name, total=len(people))
            tick = partial(progress.advance, task)
            found = predict(engine, labelled, package.codec, package.skeleton, flip_test, tick)
        metrics = pck(people, found, package.skeleton)
        if name.startswith("coco"):
            metrics = {**oks_ap(data / entry.annotations, people, found, package.skeleton), **metrics}
        pictures = len({person.image for person in people})
        report.append(
            Evaluation(
                data=name, pictures=pictures, people=len(people), boxes="ground truth", flip_test=flip_test,
                metrics=metrics,
            )
        )  # fmt: skip
    return report


def format_report(card: Card, engine: str, report: Sequence[Evaluation]) -> str:
    """A few lines for the terminal; the protocol stands beside every figure."""
    height, width = card.input_size
    lines = [f"{card.name} {card.version} ({card.sha256[:12]}), {height}x{width}, engine {engine}"]
    for entry in report:
        flip = "flip test" if entry.flip_test else "no flip test"
        lines.append(f"{entry.data}: {entry.pictures} pictures, {entry.people} people, {entry.boxes} boxes, {flip}")
        lines.append("  " + "  ".join(f"{name} {value:.1f}" for name, value in entry.metrics.items()))
    return "\n".join(lines)
