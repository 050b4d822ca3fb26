"""`pose export`: a package's network as one ONNX or OpenVINO file for other programs, with all they need to use it."""

import json
import logging
import tempfile
import time
import warnings
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from app.engines.choice import convert_pose, example_crops
from app.engines.openvino import compile_float32
from app.engines.torch import TorchEngine
from model.errors import UserError
from model.folding import fold
from model.inference import Engine
from model.networks.pixels import PixelNetwork
from model.package import Package
from model.parity import Crops, check_shift, cut_around, join, measure_shift

logger = logging.getLogger(__name__)

Format = Literal["onnx", "openvino"]
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml"}
OPSET = 17
INPUT, OUTPUT = "crops", "heatmaps"

# the people whom an export is checked on: two photographs that come with ultralytics, boxes xyxy
PEOPLE = {
    "bus.jpg": [(48, 398, 246, 904), (221, 404, 346, 860), (668, 392, 810, 880)],
    "zidane.jpg": [(120, 195, 1120, 715), (745, 40, 1145, 715)],
}
TIMES = 4  # crops of each

USAGE = (
    "Input: crops (N, height, width, 3) uint8 RGB; normalisation is part of the graph. A person's crop is the smallest "
    "rectangle of the input's aspect around the box, times padding, same centre, resampled so that the centres "
    "of its outermost pixels lie on its edges. Output: heatmaps (N, joints, rows, columns) float32, a map per joint in "
    "the order of `joints`; with activation softmax they are log-probabilities over the pixels of a map, with identity "
    "the map itself. A joint is at the top of its map; heatmap pixel (u, v) is crop pixel (u * (width - 1) / "
    "(columns - 1), v * (height - 1) / (rows - 1)). The origin of both is the centre of the top-left pixel."
)


class ExportError(UserError):
    """The export cannot be made; the message says what is missing."""


def export(package: Package, kind: Format, folder: Path, cache: Path) -> list[Path]:
    """Write `<name>.onnx`, or `<name>.xml` and `.bin`, and return the files.

    They are written beside their place, checked, then moved there: what stands there is always whole and checked.

    Args:
        folder: made where missing.
        cache: folder of converted networks.

    Raises:
        ExportError: a library is missing.
        ParityError: the file does not give the network's keypoints.
    """
    if kind == "onnx":
        _require("onnx", "onnxruntime")
    name = package.card.name
    folder.mkdir(parents=True, exist_ok=True)
    began = time.monotonic()
    logger.info("exporting %s %s as %s, which takes a minute or two", name, package.card.version, kind)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as scratch:
        beside = Path(scratch) / f"{name}{SUFFIXES[kind]}"
        if kind == "onnx":
            _write_onnx(package, beside)
        else:
            _write_openvino(package, beside, cache)
        logger.info("written after %.0f s, checking it on real people", time.monotonic() - began)
        crops = real_crops(package)
        reference = TorchEngine(PixelNetwork(package.network, package.card), "cpu", "f32")
        engine: Engine = open_onnx(beside) if kind == "onnx" else compile_float32(beside)
        shift = measure_shift(engine, reference, crops, package)
        check_shift(shift, f"the {kind} file of {name}")
        logger.info(
            "checked: %d keypoints move by %.4f pixels on average, 99th percentile %.4f, against float32 PyTorch",
            shift.joints, shift.mean, shift.high,
        )  # fmt: skip
        files = sorted(Path(scratch).iterdir())
        for file in files:  # .bin before .xml, which is what is opened
            file.chmod(0o644)
            file.replace(folder / file.name)
    return [folder / file.name for file in files]


def metadata(package: Package) -> dict[str, str]:
    """What the file says of itself: strings, or JSON where a value is a list or a number."""
    card, skeleton = package.card, package.skeleton
    fields: dict[str, Any] = {
        "name": card.name,
        "version": card.version,
        "sha256": card.sha256,
        "licence": card.licence,
        "architecture": card.architecture.name,
        "skeleton": skeleton.name,
        "joints": skeleton.joints,
        "links": skeleton.links,
        "input_size": card.input_size,
        "padding": card.padding,
        "mean": card.normalisation.mean,
        "std": card.normalisation.std,
        "heatmap_size": package.codec.heatmap_size,
        "sigma": card.codec.sigma,
        "activation": card.codec.activation,
        "usage": USAGE,
        "producer": f"pose-server {version('pose-server')}",
    }
    return {name: value if isinstance(value, str) else json.dumps(value) for name, value in fields.items()}


def open_onnx(path: Path) -> Engine:
    """An engine on onnxruntime."""
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])

    def run(crops: np.ndarray) -> np.ndarray:
        found: np.ndarray = session.run([OUTPUT], {INPUT: crops})[0]
        return found

    return run


def real_crops(package: Package) -> Crops:
    """Crops of the people whom exports are checked on.

    Raises:
        ExportError: the photographs are missing.
    """
    spec = find_spec("ultralytics")
    assets = Path(spec.origin).parent / "assets" if spec and spec.origin else Path()
    parts = []
    for name, boxes in PEOPLE.items():
        picture = cv2.imread(str(assets / name), cv2.IMREAD_COLOR_RGB)
        if picture is None:
            raise ExportError(f"{assets / name} is missing, and with it the people to check the file on")
        parts.append(cut_around(np.asarray(picture), boxes, package, TIMES))
    return join(parts)


def _write_onnx(package: Package, path: Path) -> None:
    import onnx

    network = fold(PixelNetwork(package.network, package.card))
    batch = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its own deprecation: the newer exporter takes minutes for this network
        example = torch.from_numpy(example_crops(package))
        torch.onnx.export(
            network, (example,), path, dynamo=False, opset_version=OPSET, input_names=[INPUT],
            output_names=[OUTPUT], dynamic_axes=batch,
        )  # fmt: skip
    model = onnx.load(path)
    onnx.helper.set_model_props(model, metadata(package))
    model.producer_name, model.doc_string = "pose-server", USAGE
    onnx.checker.check_model(model)
    onnx.save(model, path)


def _write_openvino(package: Package, path: Path, cache: Path) -> None:
    import openvino

    model = convert_pose(package, cache)
    model.inputs[0].get_tensor().set_names({INPUT})
    model.outputs[0].get_tensor().set_names({OUTPUT})
    for name, value in metadata(package).items():
        model.set_rt_info(value, ["pose", name])
    openvino.save_model(model, path, compress_to_fp16=False)


def _require(*modules: str) -> None:
    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise ExportError(f"{' and '.join(missing)} missing: pip install 'pose-server[export]'")
