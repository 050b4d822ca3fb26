"""What people write today: plain FastAPI, ultralytics' `predict`, and the pose network in float32, crop by crop.

    python benchmarks/naive_server.py --port 8001

The same detector weights, pose weights, crops and decoding as the service, so the answers are about the same. Nothing
is held back: PyTorch gets every core, and endpoints run in FastAPI's thread pool. A lock stands around the models,
since an ultralytics model must not be used by two threads at once.
"""

import argparse
import os
import tempfile
import threading
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, HTTPException, UploadFile

from app.settings import Settings
from model.codec import HeatmapCodec
from model.crop import Region, cut, invert, transform
from model.offline import keep_ultralytics_offline
from model.package import BUNDLED, bundled_packages, load_package
from model.person_detector import PersonDetector


class Models:
    """Detector and pose network, as their own libraries run them."""

    def __init__(self, settings: Settings) -> None:
        keep_ultralytics_offline()
        from ultralytics import YOLO

        self.settings, self.package = settings, load_package(settings.model)
        packed = PersonDetector.from_package(BUNDLED / bundled_packages(pose=False)[0])
        self.size = packed.size
        self.least_score = packed.least_score if settings.box_score is None else settings.box_score
        packed.network.args = {"imgsz": packed.size, "task": "detect"}  # type: ignore[assignment]
        with tempfile.TemporaryDirectory() as folder:
            checkpoint = Path(folder) / "person.pt"
            torch.save({"model": packed.network}, checkpoint)
            self.detector = YOLO(checkpoint)
            self.detect(np.zeros((480, 640, 3), np.uint8))
        torch.set_num_threads(len(os.sched_getaffinity(0)))  # ultralytics takes one less than there are
        card = self.package.card
        self.mean = torch.tensor(card.normalisation.mean).view(3, 1, 1)
        self.std = torch.tensor(card.normalisation.std).view(3, 1, 1)

    def detect(self, picture: np.ndarray) -> list[tuple[list[float], float]]:
        """Boxes xyxy in picture pixels and scores, for a picture (H, W, 3) uint8 BGR."""
        [result] = self.detector.predict(
            picture, imgsz=self.size, conf=self.least_score, max_det=self.settings.max_persons, classes=[0],
            device="cpu", verbose=False,
        )  # fmt: skip
        return list(zip(result.boxes.xyxy.tolist(), result.boxes.conf.tolist(), strict=True))

    @torch.inference_mode()
    def pose(self, picture: np.ndarray, box: list[float]) -> tuple[np.ndarray, np.ndarray]:
        """Keypoints (K, 2) in pixels of the picture (H, W, 3) uint8 RGB, and scores (K,)."""
        card, codec = self.package.card, self.package.codec
        affine = Region.around(box, card.input_size, card.padding).affine(card.input_size)
        crop = cut(picture, affine, card.input_size)
        pixels = (torch.from_numpy(crop).permute(2, 0, 1).float() / 255 - self.mean) / self.std
        keypoints, scores = _decode(codec, self.package.network(pixels[None]))
        return transform(keypoints, invert(affine)), scores


def _decode(codec: HeatmapCodec, heatmaps: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    keypoints, scores = codec.decode(codec.activate(heatmaps))
    return keypoints[0].numpy(), scores[0].numpy()


def create_app(models: Models) -> FastAPI:
    """The application: `POST /pose`."""
    app, lock = FastAPI(), threading.Lock()
    names = models.package.skeleton.joints

    @app.post("/pose")
    def pose(file: UploadFile) -> dict[str, Any]:
        bgr = cv2.imdecode(np.frombuffer(file.file.read(), np.uint8), cv2.IMREAD_COLOR)
        if bgr is None:
            raise HTTPException(400, "not an image")
        rgb = cv2.cvtColor(bgr, cv2.COLOR_BGR2RGB)
        persons = []
        with lock:
            for box, box_score in models.detect(bgr):
                keypoints, scores = models.pose(rgb, box)
                joints = [
                    {"name": name, "x": float(x), "y": float(y), "score": float(score)}
                    for name, (x, y), score in zip(names, keypoints, scores, strict=True)
                ]
                persons.append({"box": box, "box_score": box_score, "keypoints": joints})
        return {"image": {"width": bgr.shape[1], "height": bgr.shape[0]}, "persons": persons}

    return app


def main() -> None:
    """Serve on loopback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8001)
    options = parser.parse_args()
    uvicorn.run(create_app(Models(Settings())), port=options.port, log_level="warning")


if __name__ == "__main__":
    main()
