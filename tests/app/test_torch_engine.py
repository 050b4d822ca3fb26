"""The PyTorch engine: recorded runs give what plain ones give, nothing makes a GPU wait, heads end in float32.

What only a GPU can do is tested only where there is one. Everything around it, padding, buffers and copies, is tested
here with a recorder that runs the network anew.
"""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import find_dots, single_thread
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from app.detector import NetworkDetector, choose_detector
from app.engines import Runtime
from app.engines.torch import HALF, Float32Head, TorchEngine
from app.images import Picture, decode
from app.pipeline import Pipeline
from app.schemas import Options
from model.inference import estimate
from model.networks.pixels import PixelNetwork
from model.package import Package, load_package

CROPS = np.random.default_rng(0).integers(0, 256, (8, 96, 64, 3), np.uint8)
ON_GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
# reading a number back, or making a tensor of Python's, makes the host wait for a GPU; neither can be recorded
WAITS = {
    "aten._local_scalar_dense.default",
    "aten.nonzero.default",
    "aten.lift_fresh.default",
    "aten.is_nonzero.default",
}


@pytest.fixture(scope="module")
def package(pose_package: Path) -> Package:
    return load_package(str(pose_package))


@pytest.fixture(scope="module")
def network(package: Package) -> nn.Module:
    return PixelNetwork(package.network, package.card).eval()


@pytest.fixture(scope="module")
def bus(pictures: dict[str, bytes]) -> Picture:
    return decode(pictures["bus"], 10**7)


class Rerun:
    """Records by running anew into the same tensor, as a CUDA graph's outputs stand in one place."""

    def __init__(self) -> None:
        self.recorded: list[int] = []

    def __call__(self, run: Callable[[], Tensor]) -> tuple[Callable[[], object], Tensor]:
        outputs = run()
        self.recorded.append(len(outputs))
        return lambda: outputs.copy_(run()), outputs


class Operations(TorchDispatchMode):
    """The names of all operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, function: Any, _types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(str(function))
        return function(*args, **(kwargs or {}))


def test_recorded_runs_of_any_size_give_what_plain_ones_give(network: nn.Module) -> None:
    recorder = Rerun()
    with single_thread():
        plain, recorded = TorchEngine(network, "cpu", "f32"), TorchEngine(network, "cpu", "f32", recorder)
        expected = plain(CROPS)
        results = [
            (count, recorded(CROPS[:count])) for count in (8, 3, 1, 5, 4, 7, 2)
        ]  # none may change an earlier one
    for count, heatmaps in results:
        torch.testing.assert_close(heatmaps, expected[:count], atol=1e-4, rtol=1e-4)
    assert recorder.recorded == [8, 4, 1, 2]


def test_shapes_are_recorded_each_for_itself(network: nn.Module) -> None:
    recorder = Rerun()
    with single_thread():
        engine = TorchEngine(network, "cpu", "f32", recorder)
        assert engine(CROPS[:2]).shape == (2, 17, 24, 16)
        assert engine(CROPS[:2, :64, :48]).shape == (2, 17, 16, 12)
    assert recorder.recorded == [2, 2]


def test_crops_may_be_on_the_device_already(network: nn.Module) -> None:
    with single_thread():
        engine = TorchEngine(network, "cpu", "f32")
        assert torch.equal(engine(torch.from_numpy(CROPS[:2])), engine(CROPS[:2]))


def test_f16_is_finer_than_bf16(network: nn.Module) -> None:
    with single_thread():
        expected, f16, bf16 = (TorchEngine(network, "cpu", kind)(CROPS[:1]) for kind in ("f32", "f16", "bf16"))
    assert (f16 - expected).abs().mean() < (bf16 - expected).abs().mean() / 3


def test_flip_test_of_crops_on_the_device_is_the_arrays(network: nn.Module, package: Package) -> None:
    with single_thread():
        engine = TorchEngine(network, "cpu", "f32")
        here = estimate(engine, CROPS[:2], package.codec, package.skeleton, flip_test=True)
        there = estimate(engine, torch.from_numpy(CROPS[:2]), package.codec, package.skeleton, flip_test=True)
    for one, other in zip(here, there, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_the_network_given_stays_as_it_is(network: nn.Module, precision: str) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    TorchEngine(network, "cpu", precision)
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) and value.dtype == after[name].dtype for name, value in before.items())


@pytest.mark.parametrize(("precision", "half"), HALF.items())
def test_weights_are_cast_beforehand_but_for_the_head(precision: str, half: torch.dtype) -> None:
    body, head = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)), nn.Conv2d(4, 2, 1)
    engine = TorchEngine(nn.Sequential(body, Float32Head(head)), "cpu", precision)
    assert [parameter.dtype for parameter in engine.network[0].parameters()] == [half] * 2
    assert [parameter.dtype for parameter in engine.network[1].parameters()] == [torch.float32] * 2
    assert engine(np.ones((2, 3, 5, 5), np.float32)).dtype == torch.float32


@torch.inference_mode()
@pytest.mark.parametrize("precision", ["f32", "bf16"])
def test_from_pixels_to_keypoints_nothing_waits(network: nn.Module, package: Package, precision: str) -> None:
    engine, crops = TorchEngine(network, "cpu", precision), torch.from_numpy(CROPS[:2])
    for operations in (Operations(), Operations()):  # the second time, constants are there
        with single_thread(), operations:
            package.codec.decode(package.codec.activate(engine(crops)))
    assert "aten.conv2d.default" in operations.names
    assert not operations.names & WAITS


@pytest.fixture(scope="module")
def detectors(tmp_path_factory: pytest.TempPathFactory) -> dict[str, NetworkDetector]:
    """The bundled detector by precision."""
    found = {}
    for precision in ("f32", "bf16"):
        runtime = Runtime("torch", "cpu", precision, 1)
        detector = choose_detector("bundled", runtime, tmp_path_factory.mktemp("cache")).detector
        assert isinstance(detector, NetworkDetector)
        found[precision] = detector
    return found


def test_a_detector_in_bf16_ends_in_float32(detectors: dict[str, NetworkDetector], bus: Picture) -> None:
    with single_thread():
        (boxes, scores), (expected, _) = (detectors[name].detect([bus])[0] for name in ("bf16", "f32"))
        raw = detectors["bf16"].forward(detectors["bf16"].steps.letterbox([bus])[0])
    assert raw.dtype == torch.float32
    fine = raw.contiguous().view(torch.int32) & 0xFFFF  # what bf16 has no room for
    assert (fine != 0).float().mean() > 0.9
    assert scores[1] > 0.5
    np.testing.assert_allclose(boxes[:2], expected[:2], atol=2)


@torch.inference_mode()
def test_a_recorded_detector_keeps_what_it_reads_and_waits_for_nothing(
    detectors: dict[str, NetworkDetector], bus: Picture
) -> None:
    engine = detectors["bf16"].forward
    assert isinstance(engine, TorchEngine)
    one, two = (torch.from_numpy(detectors["bf16"].steps.letterbox([bus] * n)[0]) for n in (1, 2))
    with single_thread():
        engine(one)
        [head] = [layer for layer in engine.network.modules() if hasattr(layer, "anchors")]
        anchors, strides = weakref.ref(head.anchors), weakref.ref(head.strides)
        engine(two)
        with Operations() as operations:
            engine(two)
    assert head.anchors is not anchors()
    assert anchors() is not None
    assert strides() is not None
    assert "aten.conv2d.default" in operations.names
    assert not operations.names & WAITS


def test_people_are_the_same_with_crops_cut_on_the_device(pipeline: Pipeline, bus: Picture) -> None:
    parts = pipeline.package, lambda crops: find_dots(np.asarray(crops)), pipeline.runtime, pipeline.choice
    on_host, on_device = Pipeline(pipeline.settings, *parts), Pipeline(pipeline.settings, *parts)
    on_device.crops_on = torch.device("cpu")
    boxes = [(50.0, 400.0, 245.0, 903.0), (223.0, 405.0, 345.0, 860.0), (0.0, 0.0, 810.0, 1080.0)]
    for flip_test in (False, True):
        options = Options(boxes=boxes, flip_test=flip_test)
        crops, _ = on_device.cut(bus, np.array(boxes, np.float32), options)
        assert all(isinstance(crop.pixels, Tensor) for crop in crops)
        here, there = on_host.predict(bus, options), on_device.predict(bus, options)
        np.testing.assert_allclose(here.keypoints, there.keypoints, atol=0.1)
        np.testing.assert_allclose(here.keypoint_scores, there.keypoint_scores, atol=0.01)


@ON_GPU
@pytest.mark.parametrize("precision", ["f32", "bf16", "f16"])
def test_on_a_gpu_recorded_runs_give_the_networks_heatmaps(network: nn.Module, precision: str) -> None:
    expected = TorchEngine(network, "cpu", "f32")(CROPS)
    engine = TorchEngine(network, "cuda", precision)
    results = [(count, engine(CROPS[:count]).cpu()) for count in (8, 3, 1, 5, 8)]
    for count, heatmaps in results:
        error = (heatmaps - expected[:count]).abs().mean()
        assert error < {"f32": 1e-4, "bf16": 0.05, "f16": 0.01}[precision] * expected.std()


@ON_GPU
@torch.inference_mode()
def test_on_a_gpu_nothing_waits_before_the_keypoints_come_back(network: nn.Module, package: Package) -> None:
    engine, crops = TorchEngine(network, "cuda", "f16"), torch.from_numpy(CROPS).cuda()
    for mode in ("default", "error"):
        torch.cuda.set_sync_debug_mode(mode)
        try:
            package.codec.decode(package.codec.activate(engine(crops)))
        finally:
            torch.cuda.set_sync_debug_mode("default")
