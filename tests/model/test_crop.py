"""Crop geometry: exact there and back, the right content, and mirror symmetry."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from model.crop import Region, compose, cut, invert, transform

SIZE = (256, 192)
coordinate = st.floats(-500, 3000)
extent = st.floats(0, 2000)


@given(x=coordinate, y=coordinate, w=extent, h=extent, rotation=st.floats(-3.2, 3.2))
@settings(max_examples=200, deadline=None)
def test_points_come_back_to_where_they_were(x: float, y: float, w: float, h: float, rotation: float) -> None:
    region = Region.around((x, y, x + w, y + h), SIZE)
    affine = Region(region.center, region.extent, rotation).affine(SIZE)
    points = np.array([[x, y], [x + w, y + h], [x + w / 2, y], [0, 0]])
    assert np.abs(transform(transform(points, affine), invert(affine)) - points).max() < 1e-3


@pytest.mark.parametrize(
    ("box", "extent"),
    [
        pytest.param((0, 0, 30, 40), (37.5, 50), id="already three to four"),
        pytest.param((10, 10, 20, 110), (93.75, 125), id="tall"),
        pytest.param((10, 10, 190, 30), (225, 300), id="wide"),
        pytest.param((5, 5, 5, 5), (1.25, 1.25 * 4 / 3), id="no extent"),
    ],
)
def test_the_region_holds_the_box_at_the_crops_aspect(box: tuple[float, ...], extent: tuple[float, float]) -> None:
    region = Region.around(box, SIZE)
    assert region.extent == pytest.approx(extent)
    assert region.center == pytest.approx(((box[0] + box[2]) / 2, (box[1] + box[3]) / 2))


def test_region_edges_land_on_the_outer_pixel_centres() -> None:
    region = Region(np.array([100.0, 80.0]), np.array([60.0, 80.0]))
    corners = transform(np.array([[70.0, 40.0], [130.0, 120.0]]), region.affine(SIZE))
    assert corners == pytest.approx(np.array([[0, 0], [191, 255]]))


def test_rotation_turns_the_content_clockwise() -> None:
    quarter = Region(np.array([50.0, 50.0]), np.array([100.0, 100.0]), np.pi / 2).affine((101, 101))
    assert transform(np.array([[50.0, 0.0]]), quarter) == pytest.approx(np.array([[100.0, 50.0]]))


def test_composition_is_one_after_the_other() -> None:
    rng = np.random.default_rng(0)
    a, b, points = rng.random((2, 3)), rng.random((2, 3)), rng.random((5, 2))
    assert transform(points, compose(a, b)) == pytest.approx(transform(transform(points, b), a))


@pytest.mark.parametrize("shrink", [0.5, 1.5, 3.0, 8.0])
def test_a_bright_blob_is_cut_to_where_the_affine_says(shrink: float) -> None:
    x, y = 700.0, 500.0
    ys, xs = np.mgrid[:1200, :1600]
    blob = 255 * np.exp(-((xs - x) ** 2 + (ys - y) ** 2) / (2 * (4 * shrink) ** 2))
    picture = np.repeat(blob.round().astype(np.uint8)[..., None], 3, 2)
    region = Region(np.array([x + 13, y - 21]), np.array([191 * shrink, 255 * shrink]))
    affine = region.affine(SIZE)
    crop = cut(picture, affine, SIZE).astype(float)[..., 0]
    ys, xs = np.mgrid[:256, :192]
    found = np.array([(crop * xs).sum(), (crop * ys).sum()]) / crop.sum()
    assert found == pytest.approx(transform(np.array([x, y]), affine), abs=0.05)


def test_outside_the_picture_is_black() -> None:
    crop = cut(np.full((50, 50, 3), 200, np.uint8), Region.around((-400, -400, -300, -300), SIZE).affine(SIZE), SIZE)
    assert crop.shape == (256, 192, 3)
    assert crop.max() == 0


def test_crops_of_a_mirrored_picture_are_mirrored_crops() -> None:
    rng = np.random.default_rng(3)
    picture = rng.integers(0, 256, (300, 401, 3), np.uint8)
    box = np.array([52.3, 40.1, 180.9, 270.4])
    mirrored_box = np.array([400 - box[2], box[1], 400 - box[0], box[3]])
    crop = cut(picture, Region.around(box, SIZE).affine(SIZE), SIZE)
    mirrored = cut(np.ascontiguousarray(picture[:, ::-1]), Region.around(mirrored_box, SIZE).affine(SIZE), SIZE)
    assert np.abs(crop.astype(int) - mirrored[:, ::-1]).mean() < 0.5
