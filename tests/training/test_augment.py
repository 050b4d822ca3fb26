"""Augmentation: labels stay on the pixels they belong to."""

from pathlib import Path

import numpy as np
import pytest

from model.skeletons import COCO
from training.augment import half_body, jitter, mirror, sample
from training.config import Augmentation
from training.people import DecodedCrop, Person

SIZE = (128, 96)
STILL = {"photometric": 0, "blur": 0, "dropout": 0, "half_body": 0}


def person_on_black(joint: int) -> tuple[Person, DecodedCrop]:
    """Someone on a black picture whose joint number `joint` is a bright blob."""
    rng = np.random.default_rng(joint)
    keypoints = rng.uniform([60, 60], [200, 260], (17, 2))
    ys, xs = np.mgrid[:320, :260]
    x, y = keypoints[joint]
    blob = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * 8.0**2))
    picture = np.repeat(blob.round().astype(np.uint8)[..., None], 3, 2)
    person = Person(0, Path("none"), np.array([50.0, 50, 210, 270]), keypoints, np.ones(17), 1, 1, 1.0)
    return person, DecodedCrop(picture, np.array([[1.0, 0, 0], [0, 1, 0]]))


@pytest.mark.parametrize("flip", [0, 1], ids=["plain", "mirrored"])
@pytest.mark.parametrize("joint", [0, 5, 10, 16])
def test_a_joint_stays_on_its_pixels_under_all_geometry(joint: int, flip: int) -> None:
    person, kept = person_on_black(joint)
    config = Augmentation(flip=flip, rotation_chance=1, **STILL)
    label = COCO.swaps[joint] if flip else joint
    checked = 0
    for seed in range(12):
        crop, keypoints, weights = sample(person, kept, SIZE, COCO, config, np.random.default_rng(seed))
        assert crop.shape == (*SIZE, 3)
        x, y = keypoints[label]
        if not (15 < x < SIZE[1] - 16 and 15 < y < SIZE[0] - 16):
            continue
        light = crop[..., 0].astype(float)
        ys, xs = np.mgrid[: SIZE[0], : SIZE[1]]
        assert (light * xs).sum() / light.sum() == pytest.approx(x, abs=0.3)
        assert (light * ys).sum() / light.sum() == pytest.approx(y, abs=0.3)
        assert weights[label] == 1
        checked += 1
    assert checked >= 4


def test_joints_outside_the_crop_weigh_nothing() -> None:
    person, kept = person_on_black(0)
    config = Augmentation(shift=0.5, scale=0.6, **STILL)
    outside = 0
    for seed in range(20):
        _, keypoints, weights = sample(person, kept, SIZE, COCO, config, np.random.default_rng(seed))
        inside = ((keypoints >= 0) & (keypoints <= [SIZE[1] - 1, SIZE[0] - 1])).all(1)
        assert (weights == inside).all()
        outside += int((~inside).sum())
    assert outside > 0


def test_mirroring_twice_changes_nothing() -> None:
    rng = np.random.default_rng(0)
    crop, keypoints = rng.integers(0, 256, (8, 6, 3), np.uint8), rng.uniform(0, 5, (17, 2))
    weights = rng.random(17)
    once = mirror(crop, keypoints, weights, COCO)
    twice = mirror(*once, COCO)
    for mine, theirs in zip(twice, (crop, keypoints, weights), strict=True):
        assert mine == pytest.approx(theirs)
    assert once[1][1, 0] == pytest.approx(5 - keypoints[2, 0])  # left eye is the mirrored right eye


def test_half_bodies_hold_the_joints_of_one_half() -> None:
    person, _ = person_on_black(0)
    lower = np.array([joint.endswith(("hip", "knee", "ankle")) for joint in COCO.joints])
    seen = set()
    for seed in range(10):
        region = half_body(person, SIZE, COCO, np.random.default_rng(seed))
        assert region is not None
        for name, half in (("lower", lower), ("upper", ~lower)):
            points = person.keypoints[half]
            if (np.abs((points.min(0) + points.max(0)) / 2 - region.center) < 1e-6).all():
                seen.add(name)
                assert (np.abs(points - region.center) <= region.extent / 2).all()
    assert seen == {"lower", "upper"}


def test_colour_changes_keep_shape_and_range() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)
    changed = [jitter(crop, np.random.default_rng(seed)) for seed in range(20)]
    assert all(out.shape == crop.shape and out.dtype == np.uint8 for out in changed)
    assert any((out != crop).any() for out in changed)
    assert any((np.ptp(out.astype(int), axis=2) <= 60).all() for out in changed)  # some are nearly grey
