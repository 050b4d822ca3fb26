"""One command for a machine with an NVIDIA GPU: are the numbers right there, and how fast are they?

    python benchmarks/gpu_check.py --json gpu.json
    python benchmarks/gpu_check.py --device cpu --quick

Numbers: crops cut on the GPU against `model.crop.cut`, keypoints of each engine against the float32 network on the CPU
(joints scored 0.2 or more, pixels of the picture), the detector's boxes likewise. Speed: milliseconds per crop by batch
size, plain and recorded as a CUDA graph, beside the measured peak of matrix products; the whole pose stage from a
picture in memory to keypoints; the detector. The pictures are those that ultralytics carries. Exits with 1 where a
number misses its limit (bf16's do not count: it is known to be too coarse), and with 0 where there is no GPU. `--device
cpu` rehearses it all on the CPU.
"""

import argparse
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from app.detector import Detector, NetworkDetector, choose_detector
from app.engines import Runtime, create_pose_engine
from app.engines.torch import TorchEngine
from model.device_crop import cut_crops_on
from model.inference import KEYPOINT_THRESHOLD, cut_crops, estimate, to_picture
from model.networks.complexity import count_macs
from model.networks.pixels import PixelNetwork
from model.package import Package, load_package

PEOPLE = {
    "bus.jpg": [[50, 400, 245, 903], [223, 405, 345, 860], [670, 380, 809, 880]],
    "zidane.jpg": [[748, 40, 1148, 719], [110, 200, 670, 719]],
}
JITTER = 0.1  # of a box's sides: every person is looked at in several boxes
SIZES = (1, 2, 4, 8, 16, 32)


@dataclass
class Check:
    """One number and its limit."""

    name: str
    value: float
    limit: float

    @property
    def passed(self) -> bool:
        """Whether it is below its limit; what is not a number is not."""
        return self.value < self.limit


@dataclass
class Way:
    """One way to run the network, and its seconds by batch size."""

    name: str
    engine: TorchEngine
    tf32: bool = False
    seconds: dict[int, list[float]] = field(default_factory=dict)


def read(name: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB: a picture that ultralytics carries."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return np.asarray(cv2.imread(str(Path(spec.origin).parent / "assets" / name), cv2.IMREAD_COLOR_RGB))


def looks(count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(picture, boxes (N, 4)) with every person in `count` boxes."""
    random = np.random.default_rng(0)
    found = []
    for name, people in PEOPLE.items():
        boxes = np.repeat(np.array(people, np.float32), count, 0)
        sides = np.tile(boxes[:, 2:] - boxes[:, :2], 2)
        found.append((read(name), boxes + (sides * random.uniform(-JITTER, JITTER, boxes.shape)).astype(np.float32)))
    return found


def ways(package: Package, device: str) -> list[Way]:
    """The engines that are compared; the last one is what the service runs."""
    network = PixelNetwork(package.network, package.card).eval()
    found = [Way("float32, plain, TF32", TorchEngine(network, device, "f32"), tf32=True)]
    found += [Way("float32, plain", TorchEngine(network, device, "f32"))]
    found += [Way("float32, recorded", TorchEngine(network, device, "f32"))] if device == "cuda" else []
    names = ("bf16, recorded", "f16, plain", "f16, recorded") if device == "cuda" else ("bf16, plain",)
    for name in names:
        runtime = Runtime("torch", device, name.split(",")[0], 0)
        engine = create_pose_engine(load_package(package.card.name), runtime, Path())
        assert isinstance(engine, TorchEngine)
        found.append(Way(name, engine))
    for way in found:
        if "plain" in way.name:
            way.engine.record = None  # launch every kernel anew
    return found


def check_pose(package: Package, every: list[Way], device: str, count: int) -> list[Check]:
    """Crops, and every engine's keypoints from them."""
    card, greys, expected, people = package.card, [], [], []
    network = PixelNetwork(package.network, card).eval()

    @torch.inference_mode()
    def reference(crops: np.ndarray) -> Tensor:
        heatmaps: Tensor = network(torch.from_numpy(crops))
        return heatmaps

    for picture, boxes in track(looks(count), "the float32 network on the CPU", console=Console(stderr=True)):
        here, affines = cut_crops(picture, boxes, card.input_size, card.padding)
        there, _ = cut_crops_on(torch.device(device), picture, boxes, card.input_size, card.padding)
        greys.append(np.abs(there.cpu().numpy().astype(int) - here).ravel())
        keypoints, scores = estimate(reference, here, package.codec, package.skeleton, flip_test=False)
        expected.append((to_picture(keypoints, affines), scores >= KEYPOINT_THRESHOLD))
        people.append((there, affines))
    levels = np.concatenate(greys)
    checks = [Check("crops: mean grey levels", float(levels.mean()), 1.0)]
    for way in every:
        shifts = []
        for (crops, affines), (places, counts) in zip(people, expected, strict=True):
            with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=way.tf32):
                keypoints, _ = estimate(way.engine, crops, package.codec, package.skeleton, flip_test=False)
            shifts.append(np.linalg.norm(to_picture(keypoints, affines) - places, axis=-1)[counts])
        moved = np.concatenate(shifts)
        checks.append(Check(f"{way.name}: mean shift, pixels", float(moved.mean()), 0.1))
        checks.append(Check(f"{way.name}: 99th percentile", float(np.quantile(moved, 0.99)), 0.5))
    return checks


def load_detector(device: str, precision: str) -> Detector:
    """The bundled detector on the torch engine."""
    return choose_detector("bundled", Runtime("torch", device, precision, 0), Path(tempfile.gettempdir())).detector


def half(device: str) -> str:
    """The service's precision on a GPU; a CPU computes f16 too slowly for a rehearsal."""
    return "f16" if device == "cuda" else "bf16"


def check_detector(device: str) -> list[Check]:
    """Boxes scored 0.5 or more in half precision on the device, alone and in a batch, against float32 on the CPU."""
    pictures = [read(name) for name in PEOPLE]
    detector, apart = load_detector(device, half(device)), []
    together = detector.detect(pictures)
    alone = [detector.detect([picture])[0] for picture in pictures]
    again = detector.detect(pictures)  # a recorded run, after another size was recorded
    for boxes, scores in load_detector("cpu", "f32").detect(pictures):
        sure, place = boxes[scores >= 0.5], len(apart) // 3
        for found, _ in (together[place], alone[place], again[place]):
            apart.append(float(np.abs(found[: len(sure)] - sure).max()))
    return [Check("detector: largest shift of a box, pixels", max(apart), 4.0)]


def seconds(run: Callable[[], object], device: str, repeats: int) -> float:
    """Of one run; `repeats` are timed together, so that launches overlap as they do while serving."""
    if device == "cuda":
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        run()
    if device == "cuda":
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def peak(device: str) -> float:
    """Measured multiply-accumulates per second of a large bf16 matrix product."""
    side = 8192 if device == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    seconds(lambda: a @ b, device, 3)
    return float(side**3 / min(seconds(lambda: a @ b, device, 5) for _ in range(3)))


def time_networks(package: Package, every: list[Way], device: str, sizes: tuple[int, ...], rounds: int) -> None:
    """Fill in `Way.seconds`; ways take turns, so that a noisy machine is unfair to all alike."""
    for size in track(sizes, "timing batch sizes", console=Console(stderr=True)):
        crops = torch.randint(0, 256, (size, *package.card.input_size, 3), dtype=torch.uint8, device=device)
        for number in range(rounds + 1):  # the first one warms up
            for way in every:
                with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=way.tf32):
                    spent = seconds(lambda: way.engine(crops), device, 1 if device == "cpu" else 20)  # noqa: B023
                way.seconds.setdefault(size, []).extend([spent] if number else [])


def time_stages(package: Package, engine: TorchEngine, device: str, rounds: int) -> dict[str, float]:
    """Milliseconds of what surrounds the networks, and of the detector."""
    card, picture = package.card, read("zidane.jpg")
    boxes = np.repeat(np.array(PEOPLE["zidane.jpg"], np.float32), 4, 0)
    detector = load_detector(device, half(device))
    assert isinstance(detector, NetworkDetector)

    def pose(crops: np.ndarray | Tensor) -> object:
        return estimate(engine, crops, package.codec, package.skeleton, flip_test=False)

    arguments = picture, boxes, card.input_size, card.padding
    runs: dict[str, Callable[[], object]] = {
        "1280x720, 8 people: upload and cut on the device": lambda: cut_crops_on(torch.device(device), *arguments),
        "the same, cut on the CPU": lambda: cut_crops(*arguments),
        "upload, cut, network, keypoints back": lambda: pose(cut_crops_on(torch.device(device), *arguments)[0]),
        "cut on the CPU, upload, network, keypoints back": lambda: pose(cut_crops(*arguments)[0]),
        "detector, 1 picture": lambda: detector.detect([picture]),
        "detector, 8 pictures": lambda: detector.detect([picture] * 8),
        "of that, scaling 8 pictures on the CPU": lambda: detector.steps.letterbox([picture] * 8),
    }
    found: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(rounds + 1):
        for name, run in runs.items():
            found[name].extend([1000 * seconds(run, device, 1)] if number else [seconds(run, device, 1)][:0])
    return {name: statistics.median(values) for name, values in found.items()}


def main() -> None:
    """Parse, check, time, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="sdhrnet_w32_coco", help="pose package (default sdhrnet_w32_coco)")
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--rounds", default=10, type=int, help="timings of every row (default 10)")
    parser.add_argument("--quick", action="store_true", help="two boxes per person, two rounds, batches up to 8")
    parser.add_argument("--json", type=Path, metavar="FILE")
    options = parser.parse_args()
    console, device = Console(), options.device
    if device == "cuda" and not torch.cuda.is_available():
        console.print("no CUDA device here")
        return
    rounds, sizes = (2, SIZES[:4]) if options.quick else (options.rounds, SIZES)
    package = load_package(options.package)
    every = ways(package, device)
    checks = check_pose(package, every, device, 2 if options.quick else 8) + check_detector(device)
    time_networks(package, every, device, sizes, rounds)
    stages = time_stages(package, every[-1].engine, device, rounds)
    machine = torch.cuda.get_device_name() if device == "cuda" else platform.processor() or platform.machine()
    macs, most = count_macs(package.network, package.card.input_size), peak(device)

    table = Table("number", "value", "limit", "", title=f"numbers on {machine}")
    for check in checks:
        table.add_row(check.name, f"{check.value:.4f}", f"{check.limit:g}", "ok" if check.passed else "missed")
    console.print(table)
    height, width = package.card.input_size
    title = f"{options.package}, {height}x{width}: milliseconds per crop by batch size"
    table = Table("engine", *map(str, sizes), "crops/s", "ratio", "of peak", title=title)
    rows = []
    for way in every:
        per_crop = {size: statistics.median(way.seconds[size]) / size for size in sizes}
        best, first = min(per_crop.values()), min(statistics.median(v) / n for n, v in every[0].seconds.items())
        row = {
            "engine": way.name,
            "ms_per_crop": {str(size): round(1000 * value, 4) for size, value in per_crop.items()},
            "crops_per_s": round(1 / best, 1),
            "ratio": round(first / best, 2),
            "share_of_peak": round(macs / best / most, 4),
        }
        rows.append(row)
        figures = f"{1 / best:.0f}", f"{first / best:.1f}", f"{macs / best / most:.1%}"
        table.add_row(way.name, *(f"{1000 * value:.3f}" for value in per_crop.values()), *figures)
    console.print(table)
    table = Table("stage", "ms", title="around the networks")
    for name, value in stages.items():
        table.add_row(name, f"{value:.2f}")
    console.print(table)
    console.print(
        f"{macs / 1e9:.2f} billion multiply-accumulates a crop; the peak measured here is {most / 1e12:.2f} million "
        f"million of them a second, in bf16; torch {torch.__version__}, CUDA {torch.version.cuda}"
    )
    if options.json:
        report = {
            "machine": machine,
            "torch": torch.__version__,
            "checks": [{"name": c.name, "value": c.value, "limit": c.limit, "passed": c.passed} for c in checks],
            "rows": rows,
            "stages_ms": {name: round(value, 3) for name, value in stages.items()},
            "peak_macs_per_s": most,
        }
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    if not all(check.passed for check in checks if not check.name.startswith("bf16")):
        sys.exit(1)


if __name__ == "__main__":
    main()
