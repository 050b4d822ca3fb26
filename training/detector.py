"""Train, evaluate and publish the bundled person detector: a small YOLO from random weights.

`train_detector(DetectorConfig(...))` prepares the data, trains and leaves `weights/last.pt` in the run folder;
`evaluate_detector` gives COCO box figures on the validation pictures; `publish_detector` writes the weight package.
"""

import datetime
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pydantic

from model.cpu import has_bf16
from model.offline import keep_ultralytics_offline
from model.package import Package, replace_folder
from model.person_detector import CARD, NETWORK, WEIGHTS, PersonDetector
from training import box_scores
from training.config import ConfigError
from training.detector_data import write_yolo_folder
from training.detector_evaluation import PROTOCOL, VALIDATION, evaluate_detector
from training.provenance import git_commit
from training.validation import VALIDATION_SETS

if TYPE_CHECKING:
    import torch

__all__ = ["DetectorConfig", "evaluate_detector", "publish_detector", "train_detector", "write_detector_package"]

NO_LIMIT = 100_000  # epochs
TRAIN = "detect/person_boxes_train.json"
SOURCES = {
    "coco": "COCO 2017: annotations CC BY 4.0, pictures under their Flickr terms",
    "pennfudan": "Penn-Fudan pedestrians: research use",
    "pseudo": "unlabelled Flickr photographs, boxes agreed on by two detectors: research use",
}

logger = logging.getLogger(__name__)


def _data_root() -> Path:
    return Path(os.environ.get("POSE_DATA", "../shared/data"))


class DetectorConfig(pydantic.BaseModel):
    """What a training run of the detector is told.

    Ends after `minutes` of wall clock where given, else after `epochs`; the whole schedule is stretched to fit.
    `resume` continues from `weights/last.pt` of the run folder: `minutes` then counts from the restart, `epochs` from
    the first start; network, optimizer, learning rate, `mosaic` and `scale` stay as they were.
    """

    model_config = pydantic.ConfigDict(extra="forbid", frozen=True)

    data: pydantic.DirectoryPath = pydantic.Field(default_factory=_data_root, validate_default=True)
    run: Path = Path("runs/detector")
    network: str = "yolo26n.yaml"  # an ultralytics network description; never pretrained weights
    init: pydantic.DirectoryPath | None = None  # a package of that network to start from; None: random weights
    image_size: int = pydantic.Field(default=320, ge=64, multiple_of=32)
    epochs: int = pydantic.Field(default=40, ge=1)
    minutes: float | None = pydantic.Field(default=None, gt=0)
    batch: int = pydantic.Field(default=16, ge=2)
    optimizer: str = "AdamW"  # MuSGD costs as much a step as a small batch takes to compute
    learning_rate: float = pydantic.Field(default=0.002, gt=0)  # ultralytics takes this for one class
    mosaic: float = pydantic.Field(default=0.0, ge=0, le=1)  # part of the pictures made of four; none in the last 15 %
    scale: float = pydantic.Field(default=0.25, ge=0, lt=1)  # pictures are drawn this part larger or smaller, at most
    threads: int = pydantic.Field(default=1, ge=1)
    workers: int = pydantic.Field(default=0, ge=0)  # 0 loads pictures in the training process
    device: str = "cpu"
    bf16: bool = pydantic.Field(default_factory=has_bf16)  # doubles the speed where the CPU has it, else halves it
    seed: int = 0
    resume: bool = False

    @classmethod
    def check(cls, **fields: Any) -> "DetectorConfig":
        """The configuration of these fields.

        Raises:
            ConfigError: a value that cannot be.
        """
        try:
            return cls.model_validate(fields)
        except pydantic.ValidationError as error:
            findings = [f"{'.'.join(map(str, e['loc']))}: {e['msg']} ({e['input']})" for e in error.errors()]
            raise ConfigError("; ".join(findings)) from None


def train_detector(config: DetectorConfig) -> Path:
    """Train a person detector from random weights and return its run folder.

    The run folder receives `data/` (links to the pictures, YOLO labels), `config.json`, `data.json` (counts),
    `results.csv`, `progress.json` and `weights/last.pt` (after every epoch, with the figures logged).

    Raises:
        ConfigError: the run folder holds a training and `resume` was not asked for, or there is nothing to resume.
        PackageError: `init` is no detector package.
        NotFiniteError: the loss is no longer a number.
    """
    run = config.run.absolute()
    last = run / "weights" / "last.pt"
    if config.resume and not last.is_file():
        raise ConfigError(f"{last} does not exist: nothing to resume")
    if last.is_file() and not config.resume:
        raise ConfigError(f"{last} exists: resume that run or give another run folder")
    run.mkdir(parents=True, exist_ok=True)
    keep_ultralytics_offline(run / "ultralytics")
    import torch

    torch.set_num_threads(config.threads)
    if not config.resume:
        _write_data(config, run)
        (run / "config.json").write_text(config.model_dump_json(indent=2), encoding="utf-8")
    from training.detector_trainer import MixedDetectionModel, Plan, ProgressTrainer

    MixedDetectionModel.bf16 = config.bf16

    def report(network: torch.nn.Module) -> dict[str, float]:
        detector = PersonDetector(_copy(network), config.image_size, score=0.001, device=config.device)
        return evaluate_detector(detector, config.data)

    overrides = {
        **{"task": "detect", "mode": "train", "pretrained": False, "resume": str(last) if config.resume else False},
        **{"model": str(last) if config.resume else config.network, "data": str(run / "data" / "data.yaml")},
        **{"imgsz": config.image_size, "batch": config.batch, "nbs": config.batch, "workers": config.workers},
        **{"epochs": NO_LIMIT, "patience": NO_LIMIT, "warmup_epochs": 0.0},  # the plan stops training
        **{"optimizer": config.optimizer, "lr0": config.learning_rate, "momentum": 0.9, "weight_decay": 5e-4},
        **{"cache": "ram", "close_mosaic": 0, "mosaic": config.mosaic, "scale": config.scale, "fliplr": 0.5},
        **{"amp": False if config.device == "cpu" else "bf16", "device": config.device, "seed": config.seed},
        **{"deterministic": False, "plots": False, "val": True, "exist_ok": True, "save_dir": str(run)},
    }
    start = None if config.init is None else starting_weights(config.init)
    ProgressTrainer(overrides, Plan(config.epochs, config.minutes, config.threads), report, start).train()
    logger.info("finished: %s", last)
    return run


def starting_weights(package: Path) -> "dict[str, torch.Tensor]":
    """A detector package's weights for another training of its network.

    The one-to-one head, which a package of the other head leaves out, starts as that one's copy.

    Raises:
        PackageError: it is none.
    """
    from safetensors.torch import load_file

    PersonDetector.from_package(package)
    state = {key: value.float() for key, value in load_file(package / WEIGHTS).items()}
    copies = {_one_to_one(key): value.clone() for key, value in state.items()}
    return copies | state


def publish_detector(
    run: Path,
    folder: Path,
    pose: Package,
    name: str = "person_yolo26n",
    data: Path | None = None,
    size: int | None = None,
) -> Path:
    """Write the weight package of a run to `folder`, replacing what lies there, and return it.

    Both heads of an end-to-end network are evaluated; the better one is published, and the card says which. The least
    score of a box is chosen by the AP that the pose package `pose` reaches with it, end to end.

    Args:
        data: root of the data for the evaluation; that of the training where None.
        size: side of the square input in pixels; that of the training where None.

    Raises:
        ConfigError: there is no run, `size` is impossible, or the validation set is not there.
    """
    keep_ultralytics_offline()
    from ultralytics import __version__
    from ultralytics.nn.tasks import load_checkpoint

    if not (run / "weights" / "last.pt").is_file():
        raise ConfigError(f"{run} holds no run of `pose train-detector`: name its folder with --output")
    fields = json.loads((run / "config.json").read_text(encoding="utf-8"))
    config = DetectorConfig.check(**fields | ({} if data is None else {"data": data}))
    size = DetectorConfig.check(**fields | {"data": config.data, "image_size": size or config.image_size}).image_size
    network, _ = load_checkpoint(run / "weights" / "last.pt")
    figures: dict[str, dict[str, float]] = {}
    for head, end_to_end in (("one-to-one", True), ("one-to-many", False)):
        copy = _copy(network)
        copy.model[-1].end2end = end_to_end
        figures[head] = evaluate_detector(PersonDetector(copy, size, score=0.001), config.data)
    best = max(figures, key=lambda head: figures[head]["AP"])
    copy = _copy(network)
    copy.model[-1].end2end = best == "one-to-one"
    served = PersonDetector(copy, size, score=min(box_scores.CANDIDATES))
    curve = box_scores.end_to_end(served, pose, VALIDATION_SETS["coco-val"], config.data)
    progress = json.loads((run / "progress.json").read_text(encoding="utf-8"))
    card = {
        "name": name,
        "version": f"{datetime.datetime.now(datetime.UTC):%Y.%m.%d}-{progress['samples'] // 1000}k",
        "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "architecture": config.network,
        "head": best,
        "classes": ["person"],
        "input_size": size,
        "score_threshold": box_scores.least_score(curve),
        "colour": "RGB, 0..1, letterboxed with grey 114",
        "data": json.loads((run / "data.json").read_text(encoding="utf-8")),
        "recipe": config.model_dump(mode="json", exclude={"data", "run", "resume", "init"}),
        "started_from": config.init and json.loads((config.init / CARD).read_text(encoding="utf-8"))["sha256"],
        "samples_seen": progress["samples"],
        "training_seconds": round(progress["seconds"]),
        "evaluation": {"protocol": PROTOCOL, "figures": figures[best], "heads": figures},
        "end_to_end": {
            **{"pose": f"{pose.card.name} {pose.card.version}", "data": "coco-val", "flip_test": False},
            **{"AP_by_score_threshold": {str(least): ap for least, ap in curve.items()}},
        },
        "git_commit": git_commit(),
        "ultralytics": __version__,
        "licence": "AGPL-3.0 (network description and training code of ultralytics); mind the terms of the pictures",
    }
    return write_detector_package(network, folder, card, end_to_end=best == "one-to-one")


def write_detector_package(network: Any, folder: Path, card: dict[str, Any], *, end_to_end: bool) -> Path:
    """Write weights in half precision, network description and card to `folder`; the card's sha256 is filled in.

    `end_to_end` says which head of a network with two is served; without it the one-to-one head is left out. The
    package is written beside, loaded once, then renamed, so that a reader never meets half of it.
    """
    from safetensors.torch import save
    from ultralytics.utils import YAML

    state = {key: value.half().contiguous() for key, value in network.state_dict().items()}
    if not end_to_end:
        state = {key: value for key, value in state.items() if ".one2one_" not in key}
    weights = save(state)
    folder = folder.absolute()
    folder.parent.mkdir(parents=True, exist_ok=True)
    beside = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        (beside / WEIGHTS).write_bytes(weights)
        YAML.save(beside / NETWORK, {**network.yaml, "end2end": end_to_end})
        content = json.dumps({**card, "sha256": hashlib.sha256(weights).hexdigest()}, indent=2)
        (beside / CARD).write_text(content + "\n", encoding="utf-8")
        beside.chmod(0o755)
        PersonDetector.from_package(beside)
        replace_folder(beside, folder)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return folder


def _write_data(config: DetectorConfig, run: Path) -> None:
    folder = run / "data"
    counts: dict[str, Any] = {}
    for split, annotations in (("train", TRAIN), ("val", VALIDATION)):
        written = write_yolo_folder(config.data, config.data / annotations, folder, split)
        sources = {source: {"pictures": n, "licence": SOURCES[source]} for source, n in written.sources.items()}
        counts[split] = {
            **{"annotations": annotations, "pictures": written.images, "boxes": written.boxes},
            **{"partly_painted": written.painted, "left_out": written.skipped, "sources": sources},
        }
    content = f"path: {folder}\ntrain: train.txt\nval: val.txt\nnames:\n  0: person\n"
    (folder / "data.yaml").write_text(content, encoding="utf-8")
    (run / "data.json").write_text(json.dumps(counts, indent=2), encoding="utf-8")


def _one_to_one(key: str) -> str:
    """The name in the one-to-one head of what is `key` in the one-to-many head: model.23.cv2... -> one2one_cv2..."""
    return re.sub(r"^(model\.\d+\.)(cv[23]\.\d+\.\d)", r"\1one2one_\2", key)


def _copy(network: Any) -> Any:
    """A float32 copy in eval mode, without the criterion that training hangs on the network."""
    copied = deepcopy(network).float().eval()
    copied.criterion = None
    return copied
