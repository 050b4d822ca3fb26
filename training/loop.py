"""The training loop: `train(config, run)` starts or resumes a run and ends with its last checkpoint on disk.

A run is a folder: `config.json`, `checkpoint.pt` (everything needed to go on), `before_decay.pt` (the same, from
before the learning rate fell: the place to train longer from), `results.csv`, `pictures/`, TensorBoard's files.
"""

import csv
import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.utils.tensorboard import SummaryWriter

from model.codec import HeatmapCodec
from model.crop import PADDING
from model.errors import UserError
from model.networks import build
from model.package import IMAGENET_MEAN, IMAGENET_STD
from model.skeletons import SKELETONS
from training.checkpoint import LATEST, TRUNK, Average, load_checkpoint, save_checkpoint
from training.config import Phase, TrainConfig
from training.evaluation import LabelledCrops, oks_ap, pck, predict
from training.loader import Batch, Crops, loader
from training.losses import heatmap_loss
from training.people import Person, keep_crops, read_people
from training.pictures import write_sheet
from training.warm_start import warm_start

SHOWN = 32  # people on the sheet of predictions

log = logging.getLogger("pose.training")


class NotFiniteError(UserError):
    """The loss is no longer a number; the message names the pictures of the batch."""


class StoppedError(UserError):
    """A signal asked the run to stop; its checkpoint is written."""


class Trainer:
    """State of one run: the network, its average, the optimiser, and how many samples they have seen."""

    def __init__(self, config: TrainConfig, data: Path, run: Path) -> None:
        self.config, self.data, self.run = config, data, run
        self.skeleton = SKELETONS[config.skeleton]
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(config.seed)
        network = build(config.network, len(self.skeleton), **config.switches)
        if config.init is not None:
            warm_start(network, config.init, self.skeleton)
        self.network = network.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.average = Average(self.network, config.ema)
        decayed = [p for p in self.network.parameters() if p.ndim > 1]
        plain = [p for p in self.network.parameters() if p.ndim <= 1]  # norms and biases
        groups = [{"params": decayed, "weight_decay": config.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, foreach=True)
        self.samples, self.step = 0, 0

    def save(self, name: str = LATEST) -> None:
        """Write everything the run needs to go on."""
        state = {
            "network": self.network.state_dict(),
            "average": self.average.network.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "samples": self.samples,
            "step": self.step,
            "config": self.config.model_dump(mode="json"),
        }
        save_checkpoint(self.run / name, state)

    def load(self, path: Path) -> None:
        """Go on from a checkpoint."""
        state = load_checkpoint(path)
        self.network.load_state_dict(state["network"])
        self.average.network.load_state_dict(state["average"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.samples, self.step = state["samples"], state["step"]

    def train_batch(self, batch: Batch, codec: HeatmapCodec, people: list[Person]) -> float:
        """One optimiser step; returns the loss.

        Raises:
            NotFiniteError: the loss is infinite or not a number. Nothing was updated.
        """
        crops, keypoints, weights, indices = batch
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.config, self.samples)
        pixels = normalise(crops.to(self.device, non_blocking=True))
        targets = codec.encode(keypoints.to(self.device, non_blocking=True))
        self.network.train()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
            raw = self.network(pixels)
        loss = heatmap_loss(raw, targets, weights.to(self.device), self.config.loss)
        value = float(loss.detach())
        if not math.isfinite(value):
            names = ", ".join(sorted({str(people[i].picture) for i in indices}))
            raise NotFiniteError(f"loss is {value} at sample {self.samples}; pictures of the batch: {names}")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), self.config.clip)
        self.optimizer.step()
        self.step += 1
        self.samples += len(indices)
        self.average.update(self.network, self.step)
        return value

    def validate(self, labelled: LabelledCrops, codec: HeatmapCodec) -> dict[str, float]:
        """Figures of the averaged weights, flip test, ground-truth boxes; writes a sheet of predictions."""
        average = self.average.network

        @torch.inference_mode()
        def engine(crops: np.ndarray) -> Tensor:
            pixels = normalise(torch.from_numpy(crops).to(self.device))
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.config.precision == "bf16"):
                return average(pixels).float()  # type: ignore[no-any-return]

        found = predict(engine, labelled, codec, self.skeleton, flip_test=True)
        chosen = np.linspace(0, len(labelled.people) - 1, min(SHOWN, len(labelled.people))).astype(int).tolist()
        write_sheet(self.run / "pictures" / f"{self.samples:09d}.jpg", labelled, found, self.skeleton, chosen)
        truth = self.data / self.config.validation.annotations
        return {
            **oks_ap(truth, labelled.people, found, self.skeleton),
            **pck(labelled.people, found, self.skeleton),
        }


def normalise(crops: Tensor) -> Tensor:
    """(N, H, W, 3) uint8 RGB -> (N, 3, H, W) float32, ImageNet-normalised; channels-last in memory."""
    mean, std = (crops.new_tensor(v, dtype=torch.float32) * 255 for v in (IMAGENET_MEAN, IMAGENET_STD))
    return ((crops.float() - mean) / std).permute(0, 3, 1, 2)


def learning_rate(config: TrainConfig, samples: int) -> float:
    """Linear warm-up, a constant stretch, then a cosine to zero from `decay_from` on."""
    if samples < config.warmup_samples:
        return config.learning_rate * (samples + 1) / config.warmup_samples
    start = config.decay_from * config.samples
    progress = max(0.0, (samples - start) / (config.samples - start))
    return config.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


def train(config: TrainConfig, data: Path, run: Path) -> dict[str, float]:
    """Train to the end of the configuration; a run folder with a checkpoint is resumed. Returns the last figures.

    Raises:
        NotFiniteError: see `Trainer.train_batch`.
        StoppedError: SIGINT or SIGTERM came; the checkpoint holds all steps done.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    run.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(config, data, run)
    if (run / LATEST).is_file():
        trainer.load(run / LATEST)
        log.info("resumed %s at sample %d of %d", run, trainer.samples, config.samples)
    (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
    people = training_people(config, data)
    judged = read_people(config.validation, data, config.skeleton)
    weights = np.array([config.data[person.set_index].weight for person in people])
    figures: dict[str, float] = {}
    columns = (
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
        TimeElapsedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Progress(*columns) as progress, SummaryWriter(run) as board, stop_requests() as stop:
        largest = max((phase.input_size for phase in config.phases), key=lambda size: size[0])
        task = progress.add_task("reading pictures", total=len(people), note="")
        kept = keep_crops(people, largest, lambda count: progress.advance(task, count))
        task = progress.add_task("training", total=config.samples, note="")
        done = 0
        for phase in config.phases:
            done += phase.samples
            if trainer.samples < done:
                crops = Crops(people, kept, phase.input_size, trainer.skeleton, config.augmentation, config.seed)
                figures = run_phase(trainer, phase, done, crops, weights, judged, progress, task, board, stop)
    return figures


def run_phase(
    trainer: Trainer, phase: Phase, end: int, crops: Crops, weights: np.ndarray, judged: list[Person],
    progress: Progress, task: Any, board: SummaryWriter, stop: list[int],
) -> dict[str, float]:  # fmt: skip
    """Train one phase up to sample number `end`, validating and saving on the way; returns the last figures."""
    config = trainer.config
    codec = HeatmapCodec(phase.input_size, config.sigma_at(phase.input_size), config.activation)
    labelled = LabelledCrops.cut(judged, phase.input_size, PADDING)
    decay_at = config.decay_from * config.samples
    figures: dict[str, float] = {}
    next_check = (trainer.samples // config.validate_every + 1) * config.validate_every
    saved, began, first = time.monotonic(), time.monotonic(), trainer.samples
    mean_loss = float("nan")
    for batch in loader(crops, weights, phase.batch, trainer.samples, config.workers):
        before = trainer.samples
        loss = trainer.train_batch(batch, codec, list(crops.people))
        mean_loss = loss if math.isnan(mean_loss) else 0.98 * mean_loss + 0.02 * loss
        speed = (trainer.samples - first) / (time.monotonic() - began)
        size = f"{phase.input_size[0]}x{phase.input_size[1]}"
        progress.update(
            task,
            completed=trainer.samples,
            note=f"{size} {speed:.1f} pictures/s loss {mean_loss:.3f} {_brief(figures)}",
        )
        if trainer.step % 20 == 0:
            board.add_scalar("loss", mean_loss, trainer.samples)
            board.add_scalar("learning rate", trainer.optimizer.param_groups[0]["lr"], trainer.samples)
            board.add_scalar("pictures per second", speed, trainer.samples)
        finished = trainer.samples >= end
        if before < decay_at <= trainer.samples:
            trainer.save(TRUNK)
        if finished or stop or time.monotonic() - saved > 60 * config.checkpoint_minutes:
            trainer.save()
            saved = time.monotonic()
            log.info(
                "saved at sample %d of %d: %s, %.1f pictures/s, loss %.3f",
                trainer.samples,
                config.samples,
                size,
                speed,
                mean_loss,
            )
        if stop:
            raise StoppedError(
                f"stopped by signal {stop[0]} at sample {trainer.samples}; run the same command to go on"
            )
        if finished or trainer.samples >= next_check:
            next_check += config.validate_every
            figures = trainer.validate(labelled, codec)
            record(trainer, size, mean_loss, figures, board)
        if finished:
            break
    return figures


def record(trainer: Trainer, size: str, loss: float, figures: dict[str, float], board: SummaryWriter) -> None:
    """Append one validation to `results.csv`, TensorBoard and the log."""
    row = {"samples": trainer.samples, "size": size, "loss": round(loss, 4), **figures}
    path = trainer.run / "results.csv"
    new = not path.exists()
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, row)
        if new:
            writer.writeheader()
        writer.writerow(row)
    for name, value in figures.items():
        board.add_scalar(f"validation/{name}", value, trainer.samples)
    board.flush()
    log.info("validation %s", json.dumps(row))


def training_people(config: TrainConfig, data: Path) -> list[Person]:
    """The people of all sets with enough joints and pixels."""
    people = []
    for index, entry in enumerate(config.data):
        found = read_people(entry, data, config.skeleton, index)
        usable = [
            person
            for person in found
            if (person.weights > 0).sum() >= config.min_joints and person.box[3] - person.box[1] >= config.min_height
        ]
        log.info("%s: %d of %d people used", entry.name, len(usable), len(found))
        people += usable
    return people


@contextmanager
def stop_requests() -> Iterator[list[int]]:
    """A list that SIGINT and SIGTERM append to, instead of ending the process in the middle of a step."""
    received: list[int] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    for number in handlers:
        signal.signal(number, lambda caught, _: received.append(caught))
    try:
        yield received
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def _brief(figures: dict[str, float]) -> str:
    return f"AP {figures['AP']:.1f}" if figures else ""
