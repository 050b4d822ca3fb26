"""Crops cut on a device are the crops that `model.crop.cut` cuts, and the network sees the same people in them."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from model.crop import Region, cut
from model.device_crop import TOGETHER, cut_crops_on, cut_on, upload
from model.inference import cut_crops, estimate, to_picture
from model.networks.pixels import PixelNetwork
from model.package import load_package

SIZE = (192, 144)
PEOPLE = {
    "bus.jpg": [[50, 400, 245, 903], [223, 405, 345, 860], [670, 380, 809, 880]],
    "zidane.jpg": [[748, 40, 1148, 719], [110, 200, 670, 719]],
}
CPU = torch.device("cpu")


@pytest.fixture(
    params=[
        "cpu",
        pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")),
    ]
)
def device(request: pytest.FixtureRequest) -> torch.device:
    return torch.device(request.param)


def read(name: str) -> np.ndarray:
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return np.asarray(cv2.imread(str(Path(spec.origin).parent / "assets" / name), cv2.IMREAD_COLOR_RGB))


@pytest.fixture(scope="module")
def bus() -> np.ndarray:
    """(1080, 810, 3) uint8 RGB."""
    return read("bus.jpg")


def differences(device: torch.device, picture: np.ndarray, affines: np.ndarray) -> np.ndarray:
    """(N, height, width, 3): grey levels between crops cut on the device and those of `model.crop.cut`."""
    expected = np.stack([cut(picture, affine, SIZE) for affine in affines])
    found = cut_on(device, picture, affines, SIZE)
    assert (found.dtype, found.device.type) == (torch.uint8, device.type)
    return np.abs(found.cpu().numpy().astype(int) - expected)


@pytest.mark.parametrize("shrink", [0.3, 1.0, 1.9, 2.1, 4.0, 5.5])
@pytest.mark.parametrize("rotation", [0.0, 0.7])
def test_crops_are_equal_at_every_scale(device: torch.device, bus: np.ndarray, shrink: float, rotation: float) -> None:
    extent = np.array([SIZE[1] - 1, SIZE[0] - 1]) * shrink
    centers = [(400.0, 600.0), (120.3, 650.7), (800.0, 30.0)]  # the last reaches far out of the picture
    affines = np.array([Region(np.array(center), extent, rotation).affine(SIZE) for center in centers])
    found = differences(device, bus, affines)
    assert found.mean() < 0.05  # halves of a grey level are rounded up here and down there
    assert found.max() <= 2


def test_people_of_all_sizes_are_cut_together_as_alone(device: torch.device, bus: np.ndarray) -> None:
    rng = np.random.default_rng(0)
    low = rng.uniform(-100, 700, (TOGETHER + 3, 2))
    boxes = np.concatenate([low, low + rng.uniform(2, 900, low.shape)], 1)
    crops, affines = cut_crops_on(device, bus, boxes, SIZE, 1.25)
    expected, same = cut_crops(bus, boxes, SIZE, 1.25)
    np.testing.assert_array_equal(affines, same)
    assert np.abs(crops.cpu().numpy().astype(int) - expected).max() <= 2
    for i in (0, TOGETHER, len(boxes) - 1):
        alone, _ = cut_crops_on(device, bus, boxes[i : i + 1], SIZE, 1.25)
        assert (alone[0].int() - crops[i].int()).abs().max() <= 1


@pytest.mark.parametrize(
    "box",
    [
        pytest.param((-1e5, -1e5, 1e5, 1e5), id="huge"),
        pytest.param((5, 5, 5.001, 5.001), id="no extent"),
        pytest.param((-1e5, 4, 1e5, 4.5), id="a line"),
        pytest.param((-900, -900, -800, -700), id="outside"),
    ],
)
@pytest.mark.parametrize("shape", [(1, 1, 3), (1, 500, 3), (300, 1, 3), (90, 70, 3)])
def test_odd_boxes_and_pictures_are_cut_alike(
    device: torch.device, box: tuple[float, ...], shape: tuple[int, ...]
) -> None:
    picture = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    found = differences(device, picture, Region.around(box, SIZE).affine(SIZE)[None])
    assert found.mean() < 0.05
    assert found.max() <= 4  # noise magnified a hundred times is as steep as pictures get


def test_no_boxes_give_no_crops(device: torch.device, bus: np.ndarray) -> None:
    crops, affines = cut_crops_on(device, bus, np.zeros((0, 4), np.float32), SIZE, 1.25)
    assert crops.shape == (0, *SIZE, 3)
    assert affines.shape == (0, 2, 3)


def test_a_view_of_a_picture_is_cut_like_its_copy(device: torch.device, bus: np.ndarray) -> None:
    mirrored = bus[:, ::-1]
    box = np.array(PEOPLE["bus.jpg"][:1], np.float32)
    crops, _ = cut_crops_on(device, mirrored, box, SIZE, 1.25)
    same, _ = cut_crops_on(device, np.ascontiguousarray(mirrored), box, SIZE, 1.25)
    assert torch.equal(crops, same)


def test_the_sums_are_exact_in_the_largest_pictures(device: torch.device) -> None:
    white = np.full((5000, 8000, 3), 255, np.uint8)  # sums up to ten billion
    white[4700, 7700] = 0
    regions = [Region.around(box, SIZE) for box in ((7600, 4600, 7900, 4900), (100, 100, 7900, 4900))]
    assert differences(device, white, np.array([region.affine(SIZE) for region in regions])).max() <= 1


def test_keypoints_do_not_move(device: torch.device) -> None:
    package = load_package("sdhrnet_w32_coco")
    network = PixelNetwork(package.network, package.card).eval()

    @torch.inference_mode()
    def engine(crops: np.ndarray | Tensor) -> Tensor:
        heatmaps: Tensor = network(crops.cpu() if isinstance(crops, Tensor) else torch.from_numpy(crops))
        return heatmaps

    shifts = []
    for name, boxes in PEOPLE.items():
        arguments = read(name), np.array(boxes, np.float32), package.card.input_size, package.card.padding
        (expected, affines), (crops, _) = cut_crops(*arguments), cut_crops_on(device, *arguments)
        here, _ = estimate(engine, expected, package.codec, package.skeleton, flip_test=False)
        there, _ = estimate(engine, crops, package.codec, package.skeleton, flip_test=False)
        shifts.append(np.linalg.norm(to_picture(here, affines) - to_picture(there, affines), axis=-1))
    assert np.concatenate(shifts).mean() < 0.1


def test_what_is_uploaded_comes_back(device: torch.device) -> None:
    numbers = np.random.default_rng(0).integers(0, 256, (7, 5, 3), np.uint8)
    uploaded = upload(numbers, device)
    assert uploaded.device.type == device.type
    np.testing.assert_array_equal(uploaded.cpu().numpy(), numbers)
    numbers.flags.writeable = False
    np.testing.assert_array_equal(upload(numbers[::-1, 1:], device).cpu().numpy(), numbers[::-1, 1:])
