"""Augmentation: labels stay on the pixels they belong to."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model.crop import Region
from model.skeletons import COCO
from training.augment import blur, cover, cut_box, half_body, jitter, mirror, random_region, sample
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


def test_a_cut_takes_one_side_of_the_box_and_leaves_three_joints() -> None:
    person, _ = person_on_black(0)
    sides = set()
    for seed in range(60):
        box = cut_box(person, np.random.default_rng(seed))
        (moved,) = np.flatnonzero(box != person.box)
        sides.add(int(moved))
        assert (box[:2] >= person.box[:2]).all()
        assert (box[2:] <= person.box[2:]).all()
        assert (box[2:] - box[:2] >= (person.box[2:] - person.box[:2]) / 4).all()
        assert ((person.keypoints >= box[:2]) & (person.keypoints <= box[2:])).all(1).sum() >= 3
    assert sides == {0, 1, 2, 3}


def test_people_of_three_joints_are_not_cut() -> None:
    person, _ = person_on_black(0)
    few = replace(person, weights=np.arange(17) < 3)
    for seed in range(20):
        assert (cut_box(few, np.random.default_rng(seed)) == person.box).all()


@pytest.mark.parametrize("chance", [0.0, 1.0])
def test_boxes_are_cut_as_often_as_asked(chance: float) -> None:
    person, _ = person_on_black(0)
    config = Augmentation(scale=0, shift=0, rotation_chance=0, cut=chance, **STILL)
    whole = Region.around(person.box, SIZE)
    seen = [random_region(person, SIZE, COCO, config, np.random.default_rng(seed)) for seed in range(20)]
    assert all((region.center != whole.center).any() == bool(chance) for region in seen)


def test_colour_changes_keep_shape_and_range() -> None:
    crop = np.random.default_rng(0).integers(0, 256, (16, 12, 3), np.uint8)
    changed = [jitter(crop, np.random.default_rng(seed)) for seed in range(20)]
    assert all(out.shape == crop.shape and out.dtype == np.uint8 for out in changed)
    assert any((out != crop).any() for out in changed)
    assert any((np.ptp(out.astype(int), axis=2) <= 60).all() for out in changed)  # some are nearly grey


@pytest.mark.parametrize("size", [(64, 48), (128, 96), (256, 192)], ids=str)
def test_blurs_soften_without_moving_anything(size: tuple[int, int]) -> None:
    ys, xs = np.mgrid[: size[0], : size[1]]
    spot = (np.hypot(ys - size[0] // 2, xs - size[1] // 2) < 8).astype(np.uint8) * 200
    crop = np.repeat(spot[..., None], 3, 2)
    results = [blur(crop, np.random.default_rng(seed)) for seed in range(30)]
    for result in results:
        assert result.shape == crop.shape
        assert result.dtype == np.uint8
        light = result[..., 0].astype(float)
        assert (light * xs).sum() / light.sum() == pytest.approx(size[1] // 2, abs=0.05)
        assert (light * ys).sum() / light.sum() == pytest.approx(size[0] // 2, abs=0.05)
        assert np.abs(np.diff(light, axis=1)).max() <= np.abs(np.diff(spot.astype(float), axis=1)).max()
    assert len({result.tobytes() for result in results}) > 5  # kinds, reaches and directions


def test_boxes_are_one_to_three_grey_or_noisy_and_leave_most_of_the_crop() -> None:
    crop = np.full((128, 96, 3), 10, np.uint8)
    grey = noisy = 0
    shares = []
    for seed in range(60):
        result = cover(crop, np.random.default_rng(seed))
        changed = (result != crop).any(2)
        shares.append(changed.mean())
        colours = np.unique(result[changed], axis=0)
        grey += len(colours) <= 3
        noisy += len(colours) > 20
    assert (crop == 10).all()  # the crop itself is left alone
    assert grey > 5
    assert noisy > 5
    assert min(shares) > 0
    assert max(shares) < 0.25


def test_what_a_sample_draws_depends_on_its_random_numbers_alone() -> None:
    person, kept = person_on_black(3)
    everything = Augmentation(photometric=1, blur=1, dropout=1)
    first, again, other = (
        sample(person, kept, SIZE, COCO, everything, np.random.default_rng(seed)) for seed in (5, 5, 6)
    )
    assert all((a == b).all() for a, b in zip(first, again, strict=True))
    assert (first[0] != other[0]).any()
