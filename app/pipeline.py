"""The whole line in one place: picture -> boxes -> crops -> heatmaps -> keypoints -> people.

`Pipeline` holds the models and the steps, and runs them one after the other (`predict`). `app.sharing` runs the same
steps for many requests at once.
"""

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from app.detector import Boxes, Choice, Scores, choose_detector
from app.engines import Runtime, choose_runtime, convert_apart, create_pose_engine, on_one_core
from app.errors import RequestError
from app.images import Picture
from app.result import Floats, PoseResult
from app.schemas import Options
from app.settings import Settings
from model.codec import Array
from model.inference import Engine, cut_crops, estimate, person_scores, to_picture
from model.package import Package, open_package

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Crop:
    """One person's place in a pose batch: pixels (H, W, 3) uint8 RGB, and whether to average with the mirror image."""

    pixels: Array
    flip_test: bool


@dataclass(frozen=True)
class Joints:
    """One person's keypoints (K, 2) float32, crop pixels, and scores (K,) float32."""

    keypoints: Floats
    scores: Floats


class Pipeline:
    """The models and the steps. Its `detect` and `pose` each belong to one thread at a time, but for calls that say
    they are not `alone`: as many of those as the runtime has lanes may go on side by side.

    Attributes:
        crops_on: the GPU that cuts the crops (`torch.device`); None where the CPU cuts them.
    """

    def __init__(self, settings: Settings, package: Package, engine: Engine, runtime: Runtime, choice: Choice) -> None:
        self.settings, self.package, self.engine, self.runtime = settings, package, engine, runtime
        self.choice, self.detector = choice, choice.detector
        self.crops_on: Any = None
        if runtime.device == "cuda":
            import torch

            self.crops_on = torch.device("cuda")
        self.load_seconds = 0.0

    @classmethod
    def load(cls, settings: Settings) -> "Pipeline":
        """Load what the settings name; nothing is fetched from the network.

        Raises:
            PackageError: the pose package is missing or damaged, or the bundled detector is.
            SettingsError: a device, engine or precision is asked for that this machine has not.
        """
        runtime = choose_runtime(settings)
        if runtime.engine == "torch":
            import torch

            torch.set_num_threads(runtime.threads)
        package = open_package(settings.model)
        engine = create_pose_engine(package, runtime, settings.cache_folder)
        choice = choose_detector(settings.detector, runtime, settings.cache_folder)
        card = package.card
        logger.info("pose %s %s (%s), detector %s", card.name, card.version, card.sha256[:12], choice.detector.name)
        return cls(settings, package, engine, runtime, choice)

    def renew(self) -> "Pipeline":
        """The pose package as its folder holds it now, on the same runtime and with the same detector. Not warm yet.

        Raises:
            PackageError: the package is missing or damaged, or cannot be converted for the engine.
        """
        package = open_package(self.settings.model)
        convert_apart(self.settings.model, self.runtime, self.settings.cache_folder)
        engine = create_pose_engine(package, self.runtime, self.settings.cache_folder)
        return Pipeline(self.settings, package, engine, self.runtime, self.choice)

    def predict(self, picture: Picture, options: Options | None = None) -> PoseResult:
        """People of one (H, W, 3) uint8 RGB picture, in this thread.

        Raises:
            RequestError: 422, an option that does not fit the settings or the picture.
        """
        options = self.complete(options or Options())
        began = time.monotonic()
        found = self.given_boxes(picture, options)
        if found is None:
            [found] = self.detect([picture])
        detected = time.monotonic()
        boxes, box_scores = self.select(found, options)
        crops, affines = self.cut(picture, boxes, options)
        batch = self.settings.max_batch
        joints = [j for i in range(0, len(crops), batch) for j in self.pose(crops[i : i + batch])]
        result = self.assemble(picture, boxes, box_scores, joints, affines, options)
        ended = time.monotonic()
        timings = {"decode": 0.0, "detect": detected - began, "pose": ended - detected, "queue": 0.0}
        return replace(result, timings={**timings, "total": ended - began})

    def complete(self, options: Options) -> Options:
        """Options with the settings' defaults in place of None.

        Raises:
            RequestError: 422, more persons than the settings allow.
        """
        most = self.settings.max_persons
        for name, count in (("max_persons", options.max_persons or 0), ("boxes", len(options.boxes or ()))):
            if count > most:
                raise RequestError(422, "bad_option", f"{name}: {count} persons, the limit is {most}")
        settings = self.settings
        least = self.detector.least_score if settings.box_score is None else settings.box_score
        defaults = {"max_persons": most, "box_score": least, "keypoint_score": settings.keypoint_score}
        return options.model_copy(update={k: v for k, v in defaults.items() if getattr(options, k) is None})

    def given_boxes(self, picture: Picture, options: Options) -> tuple[Boxes, Scores] | None:
        """The caller's boxes with score 1; None where the detector has to find them.

        Raises:
            RequestError: 422, a box that lies outside the picture.
        """
        if options.boxes is None:
            return None
        height, width = picture.shape[:2]
        for i, (x1, y1, x2, y2) in enumerate(options.boxes):
            if x1 >= width or y1 >= height or x2 <= 0 or y2 <= 0:
                raise RequestError(
                    422, "bad_option", f"boxes.{i}: lies outside the picture, which is {width} x {height} pixels"
                )
        return np.array(options.boxes, np.float32).reshape(-1, 4), np.ones(len(options.boxes), np.float32)

    def detect(self, pictures: list[Picture], alone: bool = True) -> list[tuple[Boxes, Scores]]:
        """See `Detector.detect`."""
        return self.detector.detect(pictures, alone)

    def select(self, found: tuple[Boxes, Scores], options: Options) -> tuple[Boxes, Scores]:
        """The boxes to work on: scored high enough, and no more than asked for."""
        boxes, scores = found
        if options.boxes is None:
            keep = scores >= (options.box_score or 0)
            boxes, scores = boxes[keep], scores[keep]
        return boxes[: options.max_persons], scores[: options.max_persons]

    def cut(self, picture: Picture, boxes: Boxes, options: Options) -> tuple[list[Crop], np.ndarray]:
        """A crop per box, and affines (N, 2, 3) float64 from crop to picture."""
        size, padding = self.package.card.input_size, self.package.card.padding
        if self.crops_on is not None:
            from model.device_crop import cut_crops_on

            there, affines = cut_crops_on(self.crops_on, picture, boxes, size, padding)
            return [Crop(pixels, options.flip_test) for pixels in there], affines
        crops, affines = cut_crops(picture, boxes, size, padding)
        return [Crop(pixels, options.flip_test) for pixels in crops], affines

    @property
    def cut_at_once(self) -> int:
        """Most boxes to `cut` in one step: a run for each lane, so that the network begins soon; on a GPU all, from one
        upload."""
        return self.runtime.lanes * self.most if self.crops_on is None else self.settings.max_persons

    @property
    def most(self) -> int:
        """Most items of one run of a network."""
        return self.runtime.sizes[-1] if self.runtime.sizes else self.settings.max_batch

    def pose(self, crops: list[Crop], alone: bool = True) -> list[Joints]:
        """Keypoints per crop, in order."""
        engine = self.engine if alone else on_one_core(self.engine)
        joints: dict[int, Joints] = {}
        for flip in (False, True):
            rows = [i for i, crop in enumerate(crops) if crop.flip_test == flip]
            if rows:
                pixels = _stack([crops[i].pixels for i in rows])
                keypoints, scores = estimate(engine, pixels, self.package.codec, self.package.skeleton, flip)
                if not (np.isfinite(keypoints).all() and np.isfinite(scores).all()):
                    raise FloatingPointError("the pose network gave numbers that are not finite")
                joints.update({row: Joints(keypoints[i], scores[i]) for i, row in enumerate(rows)})
        return [joints[i] for i in range(len(crops))]

    def assemble(
        self,
        picture: Picture,
        boxes: Boxes,
        box_scores: Scores,
        joints: Sequence[Joints],
        affines: np.ndarray,
        options: Options,
    ) -> PoseResult:
        """Keypoints in picture pixels and persons' scores; without timings."""
        count = len(self.package.skeleton)
        keypoints = np.asarray([j.keypoints for j in joints], np.float32).reshape(-1, count, 2)
        scores = np.asarray([j.scores for j in joints], np.float32).reshape(-1, count)
        mean = person_scores(scores, options.keypoint_score or 0)
        height, width = picture.shape[:2]
        return PoseResult(
            width,
            height,
            boxes,
            box_scores,
            to_picture(keypoints, affines),
            scores,
            box_scores * mean,
        )


def _stack(crops: Sequence[Array]) -> Array:
    """Crops (H, W, 3), all in memory or all on the GPU, as one (N, H, W, 3) there."""
    if isinstance(crops[0], np.ndarray):
        return np.stack(crops)
    import torch

    return torch.stack(list(crops))
