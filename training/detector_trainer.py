"""The ultralytics trainer, run by progress in 0..1 instead of by epochs.

Only a few thousand steps fit into the time a small machine gives, and how many is not known beforehand: other work
slows it down. So everything that changes while training follows one number, the part of the time (or of the epochs)
that has passed: learning rate, picture size, mosaic, and the balance of the two heads of an end-to-end YOLO. Import
this module only after `model.person_detector.keep_ultralytics_offline()`.
"""

import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional
from ultralytics.models.yolo.detect import DetectionTrainer
from ultralytics.nn.tasks import DetectionModel

from training.trainer import NotFiniteError

WARMUP_STEPS = 300  # linear; the first steps of a random network are wild
FINAL_RATE = 0.01  # of the highest learning rate
CLOSE_MOSAIC = 0.85  # progress from which whole pictures are shown, as they will be served
SIZES = ((0.0, 0.6), (0.35, 0.8), (0.65, 1.0))  # (from this progress, part of the full picture side): small is fast
HEAD_BALANCE = (0.8, 0.1)  # weight of the one-to-many loss at the start and at the end, as ultralytics has it
REPORT_EVERY = 2  # epochs
LOG_SECONDS = 30.0

logger = logging.getLogger(__name__)


class MixedDetectionModel(DetectionModel):  # type: ignore[misc]
    """A DetectionModel whose training forward pass runs in bfloat16 on the CPU, which ultralytics refuses to do.

    The loss stays in float32. `bf16` is a class attribute, so that copies and checkpoints need not know it.
    """

    bf16 = True

    def loss(self, batch: dict[str, Any], preds: Any = None) -> Any:
        """Loss of a batch, see `DetectionModel.loss`; computes the predictions where `preds` is None."""
        image = batch["img"]
        if preds is None and self.training and self.bf16 and image.device.type == "cpu":
            with torch.autocast("cpu", torch.bfloat16):
                preds = self.forward(image.contiguous(memory_format=torch.channels_last))
            preds = _as_float(preds)
        return super().loss(batch, preds)


@dataclass(frozen=True)
class Plan:
    """When training ends: after `minutes` of wall clock where given, else after `epochs`."""

    epochs: int
    minutes: float | None
    threads: int


class ProgressTrainer(DetectionTrainer):  # type: ignore[misc]
    """DetectionTrainer that follows a `Plan`; `report(model)` gives figures after each epoch.

    It begins with `start`, all weights of the network by name, or with random ones.
    """

    def __init__(
        self,
        overrides: dict[str, Any],
        plan: Plan,
        report: Callable[[torch.nn.Module], dict[str, float]],
        start: dict[str, torch.Tensor] | None = None,
    ) -> None:
        super().__init__(overrides=overrides)
        self.start = start
        self.args.workers = overrides.get("workers", 0)  # ultralytics sets 0 on a CPU whatever it was asked for
        self.plan, self.report = plan, report
        self.state_path = Path(self.save_dir) / "progress.json"
        state = json.loads(self.state_path.read_text()) if self.resume and self.state_path.exists() else {}
        self.first_progress: float = state.get("progress", 0.0)
        self.samples: int = state.get("samples", 0)
        self.seconds: float = state.get("seconds", 0.0)  # of earlier calls
        self.begun = self.logged = time.monotonic()
        self.logged_samples = self.samples
        self.steps: int = state.get("steps", 0)
        self.mosaic_open = True
        for event in ("on_train_start", "on_train_batch_start", "on_train_batch_end"):
            self.add_callback(event, getattr(type(self), event))
        self.add_callback("on_model_save", type(self).on_model_save)

    def get_model(self, cfg: Any = None, weights: Any = None, verbose: bool = True) -> Any:
        """A network of random weights, of those to begin with, or of the checkpoint's when training is resumed."""
        model = MixedDetectionModel(cfg, nc=self.data["nc"], ch=self.data["channels"], verbose=verbose)
        if weights:
            model.load(weights)
        elif self.start is not None:
            model.load_state_dict(self.start)
        return model.to(memory_format=torch.channels_last)

    @property
    def progress(self) -> float:
        """Part of the training that is done, 0..1."""
        if self.plan.minutes is not None:
            passed = (time.monotonic() - self.begun) / (60 * self.plan.minutes)
            return min(1.0, self.first_progress + (1 - self.first_progress) * passed)
        return min(1.0, float(self.steps) / (len(self.train_loader) * self.plan.epochs))

    @property
    def side(self) -> int:
        """Picture side in pixels at the present progress, a multiple of the stride."""
        part = max(part for start, part in SIZES if self.progress >= start)
        stride = int(self.stride)
        return max(stride, round(int(self.args.imgsz) * part / stride) * stride)

    def preprocess_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Pictures (B, 3, S, S) float32 in 0..1, RGB, brought to the present side."""
        batch = super().preprocess_batch(batch)
        if batch["img"].shape[-1] != self.side and self.model.training:
            size = (self.side, self.side)
            batch["img"] = functional.interpolate(batch["img"], size, mode="bilinear", antialias=True)
        return batch

    def on_train_start(self) -> None:
        """Start the clock: preparing the data does not count."""
        self.begun = self.logged = time.monotonic()
        torch.set_num_threads(self.plan.threads)  # ultralytics takes all cores but one

    def on_train_batch_start(self) -> None:
        """Set what follows the progress."""
        progress = self.progress
        factor = FINAL_RATE + (1 - FINAL_RATE) * (1 + math.cos(math.pi * progress)) / 2
        factor *= min(1.0, (self.steps + 1) / WARMUP_STEPS)
        for group in self.optimizer.param_groups:
            group["lr"] = group["initial_lr"] * factor
        criterion: Any = getattr(self.model, "criterion", None)
        if hasattr(criterion, "o2m"):
            criterion.o2m = HEAD_BALANCE[0] + (HEAD_BALANCE[1] - HEAD_BALANCE[0]) * progress
            criterion.o2o = 1.0 - criterion.o2m
        if self.mosaic_open and progress >= CLOSE_MOSAIC:
            self.mosaic_open = False
            self._close_dataloader_mosaic()
            if self.args.workers:
                self.train_loader.reset()

    def on_train_batch_end(self) -> None:
        """Count, log, and stop when the plan is fulfilled."""
        self.steps += 1
        self.samples += self.batch_size
        if not torch.isfinite(self.loss):
            raise NotFiniteError(f"loss is {float(self.loss)} at step {self.steps}: {self.loss_items}")
        now, progress = time.monotonic(), self.progress
        if now - self.logged >= LOG_SECONDS:
            logger.info(
                "%5.1f %% epoch %d step %d side %d rate %.5f images/s %.1f loss %s",
                100 * progress,
                self.epoch + 1,
                self.steps,
                self.side,
                self.optimizer.param_groups[-1]["lr"],
                (self.samples - self.logged_samples) / (now - self.logged),
                " ".join(f"{name} {float(value):.3f}" for name, value in self.tloss.items()),
            )
            self.logged, self.logged_samples = now, self.samples
        if progress >= 1.0:
            self.stop = True

    def on_model_save(self) -> None:
        """Keep what a resumed training must know."""
        seconds = self.seconds + time.monotonic() - self.begun
        state = {"progress": self.progress, "samples": self.samples, "steps": self.steps, "seconds": seconds}
        beside = self.state_path.with_suffix(".new")
        beside.write_text(json.dumps(state))
        beside.replace(self.state_path)

    def validate(self) -> tuple[dict[str, float], None]:
        """Log the project's own figures of the averaged weights now and then; they choose nothing."""
        if (self.epoch + 1) % REPORT_EVERY and not self.stop:
            return {}, None
        start = time.monotonic()
        figures = self.report(self.ema.ema)
        text = " ".join(f"{name} {value:.3f}" for name, value in figures.items())
        logger.info("epoch %d samples %d %s (%.0f s)", self.epoch + 1, self.samples, text, time.monotonic() - start)
        return {}, None

    def final_eval(self) -> None:
        """Nothing: the last weights are the ones to use, and `training.detector` evaluates them."""


def _as_float(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _as_float(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_as_float(item) for item in value]
    return value.float() if isinstance(value, torch.Tensor) else value
