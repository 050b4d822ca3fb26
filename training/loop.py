"""The training loop: `train(config, data, run)` starts or resumes a run and ends with its last checkpoint on disk.

A run is a folder: `config.json`, `checkpoint.pt` (everything needed to go on), `before_decay.pt` (the same, from
before the learning rate fell: the place to train longer from), `results.csv`, `results.png`, `pictures/`,
TensorBoard's files. Under `torchrun`, every process calls `train`; the first one writes.
"""

import json
import logging
import math
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from model.codec import HeatmapCodec
from model.crop import PADDING
from model.errors import UserError
from training.checkpoint import LATEST, TRUNK
from training.config import ConfigError, Phase, TrainConfig
from training.distributed import join_workers
from training.evaluation import LabelledCrops, Predictions, predict, score_people
from training.loader import Crops, draw_weights, loader
from training.people import Person, keep_crops, read_people
from training.pictures import write_sheet
from training.summary import FIGURES, add_row, draw_summary
from training.trainer import Trainer, normalise

SHOWN = 32  # people on the sheet of predictions

log = logging.getLogger("pose.training")


class StoppedError(UserError):
    """A signal asked the run to stop; its checkpoint is written."""


def train(config: TrainConfig, data: Path, run: Path) -> dict[str, float]:
    """Train to the end of the configuration; a run folder with a checkpoint is resumed. Returns the last figures.

    Raises:
        NotFiniteError: see `Trainer.train_batch`.
        StoppedError: SIGINT or SIGTERM came; the checkpoint holds all steps done.
        CheckpointError: the disk is full; the last checkpoint is whole.
        ConfigError: a set or a picture is missing or broken, or nobody is left to train on.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    run.mkdir(parents=True, exist_ok=True)
    with join_workers() as workers, stop_requests() as stop:
        people = training_people(config, data)
        if len(people) < 2:
            raise ConfigError("fewer than two people to train on: see min_joints and min_height, and `pose data check`")
        config = config.resolve(len(people))
        trainer = Trainer(config, run, workers)
        if (run / LATEST).is_file():
            trainer.load(run / LATEST)
            log.info("resumed %s at sample %d of %d", run, trainer.samples, config.samples)
        writer = SummaryWriter(run) if workers.first else nullcontext()
        with Progress(*COLUMNS, disable=not workers.first) as progress, writer as board:
            session = Session(trainer, data, people, progress, board, stop)
            if workers.first:
                (run / "config.json").write_text(config.model_dump_json(indent=2) + "\n")
            session.run()
    return session.figures


COLUMNS = (
    TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[note]}"),
    TimeElapsedColumn(), TimeRemainingColumn(),
)  # fmt: skip


@dataclass
class Session:
    """One call of `train`: goes through the phases that are left."""

    trainer: Trainer
    data: Path
    people: list[Person]
    progress: Progress
    board: SummaryWriter | None  # of the first process
    stop: list[int]
    figures: dict[str, float] = field(default_factory=dict)
    loss: float = math.nan  # running mean
    saved: float = field(default_factory=time.monotonic)

    def run(self) -> None:
        """Train phase after phase."""
        trainer, config = self.trainer, self.trainer.config
        judged = read_people(config.validation, self.data, config.skeleton) if trainer.workers.first else []
        task = self.progress.add_task("reading pictures", total=len(self.people), note="")
        kept = keep_crops(self.people, config.largest_size, lambda count: self.progress.advance(task, count))
        weights = draw_weights(self.people, config)
        self.task = self.progress.add_task("training", total=config.samples, note="")
        done = 0
        for phase in config.phases:
            done += phase.samples or 0
            if trainer.samples < done:
                augmentation = phase.augmentation or config.augmentation
                crops = Crops(self.people, kept, phase.input_size, trainer.skeleton, augmentation, config.seed)
                self.run_phase(phase, done, crops, weights, judged)

    def run_phase(self, phase: Phase, end: int, crops: Crops, weights: np.ndarray, judged: list[Person]) -> None:
        """Train up to sample number `end`, validating and saving on the way."""
        trainer, config, first = self.trainer, self.trainer.config, self.trainer.workers.first
        codec = HeatmapCodec(phase.input_size, config.sigma_at(phase.input_size), config.activation)
        labelled = LabelledCrops.cut(judged, phase.input_size, PADDING) if first else None
        decay_at = config.decay_from * config.samples
        next_check = (trainer.samples // config.validate_every + 1) * config.validate_every
        speed = Speed(trainer.samples)
        batches = iter(loader(crops, weights, phase.batch, trainer.samples, config.workers, trainer.workers))
        while trainer.samples < end:
            with speed.waiting():
                batch = next(batches)
            before = trainer.samples
            loss = trainer.train_batch(batch, phase, codec, self.people)
            self.loss = loss if math.isnan(self.loss) else 0.98 * self.loss + 0.02 * loss
            finished, stopping = trainer.samples >= end, trainer.workers.any(bool(self.stop))
            if first:
                self._show(phase, speed)
                if config.schedule == "cosine" and before < decay_at <= trainer.samples:
                    trainer.save(TRUNK)
                if finished or stopping or time.monotonic() - self.saved >= 60 * config.checkpoint_minutes:
                    self._save(speed.text(trainer.samples))
            if stopping:
                raise StoppedError(
                    f"stopped by signal {self.stop[0] if self.stop else 'to another process'} at sample "
                    f"{trainer.samples}; run the same command to go on"
                )
            if finished or trainer.samples >= next_check:
                next_check += config.validate_every
                if labelled is not None:
                    self._validate(labelled, codec)
                trainer.workers.wait()

    def _show(self, phase: Phase, speed: "Speed") -> None:
        trainer = self.trainer
        size, rate = f"{phase.input_size[0]}x{phase.input_size[1]}", speed.text(trainer.samples)
        figure = next((f"{name} {self.figures[name]:.1f}" for name in FIGURES if name in self.figures), "")
        note = f"{size} {rate} loss {self.loss:.3f} {figure}"
        self.progress.update(self.task, completed=trainer.samples, note=note)
        if trainer.step % 20 == 0:
            self._record({"loss": self.loss, "learning rate": trainer.rate, **speed.figures(trainer.samples)})

    def _record(self, scalars: dict[str, float]) -> None:
        """Give figures to TensorBoard."""
        assert self.board is not None
        for name, value in scalars.items():
            self.board.add_scalar(name, value, self.trainer.samples)

    def _save(self, speed: str) -> None:
        trainer = self.trainer
        trainer.save(LATEST)
        self.saved = time.monotonic()
        total = trainer.config.samples
        log.info("saved at sample %d of %d: %s, loss %.3f", trainer.samples, total, speed, self.loss)

    def _validate(self, labelled: LabelledCrops, codec: HeatmapCodec) -> None:
        """Score the averaged weights; add to `results.csv`, its picture, TensorBoard and the log."""
        trainer = self.trainer
        self.figures = validate(trainer, labelled, codec, self.data)
        height, width = codec.input_size
        row = {"samples": trainer.samples, "size": f"{height}x{width}", "loss": round(self.loss, 4), **self.figures}
        table = trainer.run / "results.csv"
        add_row(table, row)
        draw_summary(table, table.with_suffix(".png"), trainer.config.name)
        self._record({f"validation/{name}": value for name, value in self.figures.items()})
        assert self.board is not None
        self.board.flush()
        log.info("validation %s", json.dumps(row))


class Speed:
    """Pictures per second since sample `start`, and how much of the time went by waiting for pictures."""

    def __init__(self, start: int) -> None:
        self.start, self.began, self.waited = start, time.monotonic(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Count the time inside as waiting for the loader."""
        began = time.monotonic()
        yield
        self.waited += time.monotonic() - began

    def figures(self, samples: int) -> dict[str, float]:
        """For TensorBoard."""
        seconds = max(time.monotonic() - self.began, 1e-9)
        return {"pictures per second": (samples - self.start) / seconds, "share of waiting": self.waited / seconds}

    def text(self, samples: int) -> str:
        """For the progress bar and the log."""
        speed, share = self.figures(samples).values()
        return f"{speed:.1f} pictures/s ({share:.0%} waiting for pictures)"


def validate(trainer: Trainer, labelled: LabelledCrops, codec: HeatmapCodec, data: Path) -> dict[str, float]:
    """Figures of the averaged weights, flip test, ground-truth boxes; writes a sheet of predictions."""
    found = predict_average(trainer, labelled, codec)
    chosen = np.linspace(0, len(labelled.people) - 1, min(SHOWN, len(labelled.people))).astype(int).tolist()
    write_sheet(trainer.run / "pictures" / f"{trainer.samples:09d}.jpg", labelled, found, trainer.skeleton, chosen)
    annotations = data / trainer.config.validation.annotations
    return score_people(annotations, labelled.people, found, trainer.skeleton).metrics


def predict_average(trainer: Trainer, labelled: LabelledCrops, codec: HeatmapCodec) -> Predictions:
    """What the averaged weights find, with flip test."""
    average, device = trainer.average.network, trainer.device

    @torch.inference_mode()
    def engine(crops: np.ndarray) -> Tensor:
        pixels = normalise(torch.from_numpy(crops).to(device))
        with trainer.autocast():
            return average(pixels).float()  # type: ignore[no-any-return]

    return predict(engine, labelled, codec, trainer.skeleton, flip_test=True)


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
