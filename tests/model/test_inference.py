"""Crops to keypoints: what the whole chain must keep, whatever the network."""

from importlib.util import find_spec
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import Tensor

from model.card import IMAGENET_MEAN, IMAGENET_STD
from model.codec import HeatmapCodec
from model.inference import cut_crops, estimate, to_picture
from model.networks.pixels import PixelNetwork
from model.package import load_package
from model.skeletons import COCO

BUS_PEOPLE = np.array([[50, 400, 245, 903], [223, 405, 345, 860], [670, 380, 809, 880]], np.float32)


@pytest.fixture(scope="module")
def bus() -> np.ndarray:
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    return np.asarray(cv2.imread(str(Path(spec.origin).parent / "assets" / "bus.jpg"), cv2.IMREAD_COLOR_RGB))


def test_keypoints_of_the_mirrored_picture_mirror(bus: np.ndarray) -> None:
    package = load_package("sdhrnet_w32_coco")
    network = PixelNetwork(package.network, package.card).eval()

    @torch.inference_mode()
    def engine(crops: np.ndarray) -> Tensor:
        heatmaps: Tensor = network(torch.from_numpy(crops))
        return heatmaps

    def keypoints(picture: np.ndarray, boxes: np.ndarray) -> np.ndarray:
        crops, affines = cut_crops(picture, boxes, package.card.input_size, package.card.padding)
        found, scores = estimate(engine, crops, package.codec, package.skeleton, flip_test=True)
        assert ((scores >= 0) & (scores <= 1)).all()
        return to_picture(found, affines)

    right = bus.shape[1] - 1
    mirrored_boxes = np.stack(
        [right - BUS_PEOPLE[:, 2], BUS_PEOPLE[:, 1], right - BUS_PEOPLE[:, 0], BUS_PEOPLE[:, 3]], 1
    )
    plain = keypoints(bus, BUS_PEOPLE)
    mirrored = keypoints(np.ascontiguousarray(bus[:, ::-1]), mirrored_boxes)[:, package.skeleton.swaps]
    mirrored[..., 0] = right - mirrored[..., 0]
    assert np.abs(plain - mirrored).max() < 0.1


def test_an_engine_that_knows_the_truth_gives_it_back_in_picture_pixels() -> None:
    codec = HeatmapCodec((256, 192), 2.0)
    rng = np.random.default_rng(0)
    boxes = np.array([[100, 50, 300, 400], [10, 10, 60, 200]], np.float32)
    picture = rng.integers(0, 256, (480, 640, 3), np.uint8)
    crops, affines = cut_crops(picture, boxes, codec.input_size, 1.25)
    truth = rng.uniform(20, 170, (2, 17, 2)).astype(np.float32)
    found, scores = estimate(lambda _: codec.encode(torch.from_numpy(truth)), crops, codec, COCO, flip_test=False)
    wanted = to_picture(truth, affines)
    assert np.abs(to_picture(found, affines) - wanted).max() < 0.05
    assert scores.min() > 0.5
    assert (wanted[0] > boxes[0, :2] - 100).all()


def test_pixels_are_normalised_as_the_card_says() -> None:
    package = load_package("sdhrnet_w32_coco")
    wrapped = PixelNetwork(torch.nn.Identity(), package.card)
    crop = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 3), np.uint8)
    expected = (crop / 255 - np.array(IMAGENET_MEAN)) / np.array(IMAGENET_STD)
    assert np.allclose(wrapped(torch.from_numpy(crop)).numpy(), expected.transpose(0, 3, 1, 2), atol=1e-5)


def test_no_boxes_give_no_crops(bus: np.ndarray) -> None:
    crops, affines = cut_crops(bus, np.zeros((0, 4), np.float32), (64, 48), 1.25)
    assert crops.shape == (0, 64, 48, 3)
    assert to_picture(np.zeros((0, 17, 2), np.float32), affines).shape == (0, 17, 2)
