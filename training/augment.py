"""What is done to a person before the network sees it: the crop's geometry, then colours, blur and boxes."""

import cv2
import numpy as np

from model.crop import Region, compose, cut, invert, transform
from model.skeletons import Skeleton
from training.config import Augmentation
from training.crops import KeptCrop
from training.labels import Person

LOWER_BODY = ("hip", "knee", "ankle", "pelvis")
HALF_BODY_PADDING = 1.5  # HRNet's
CUT_SIDES = (0.15, 0.1, 0.15, 0.6)  # how often each side of an xyxy box is cut: tables and pictures end below, mostly


def sample(
    person: Person,
    kept: KeptCrop,
    size: tuple[int, int],
    skeleton: Skeleton,
    config: Augmentation,
    rng: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One augmented training crop.

    Args:
        size: crop (height, width).

    Returns:
        crop (height, width, 3) uint8 RGB; keypoints (K, 2) float32 in crop pixels; weights (K,) float32, 0 for joints
        that are not labelled or fell outside the crop.
    """
    region = random_region(person, size, skeleton, config, rng)
    affine = region.affine(size)
    crop = cut(kept.pixels, compose(affine, invert(kept.affine)), size)
    keypoints = transform(person.keypoints, affine)
    weights = person.weights
    if rng.random() < config.flip:
        crop, keypoints, weights = mirror(crop, keypoints, weights, skeleton)
    inside = ((keypoints >= 0) & (keypoints <= [size[1] - 1, size[0] - 1])).all(1)
    if rng.random() < config.photometric:
        crop = jitter(crop, rng)
    if rng.random() < config.blur:
        crop = blur(crop, rng)
    if rng.random() < config.dropout:
        crop = cover(crop, rng)
    return np.ascontiguousarray(crop), keypoints.astype(np.float32), (weights * inside).astype(np.float32)


def random_region(
    person: Person, size: tuple[int, int], skeleton: Skeleton, config: Augmentation, rng: np.random.Generator
) -> Region:
    """The person's region, half a body's or that of a box cut short, shifted, scaled and rotated at random."""
    region = Region.around(person.box, size)
    if rng.random() < config.half_body:
        region = half_body(person, size, skeleton, rng) or region
    elif rng.random() < config.cut:
        region = Region.around(cut_box(person, rng), size)
    scale = np.clip(1 + config.scale * rng.standard_normal(), 1 - config.scale, 1 + config.scale)
    shift = rng.uniform(-config.shift, config.shift, 2) * region.extent
    rotation = 0.0
    if rng.random() < config.rotation_chance:
        rotation = np.radians(np.clip(rng.standard_normal() * config.rotation / 2, -config.rotation, config.rotation))
    return Region(region.center + shift, region.extent * scale, float(rotation))


def half_body(person: Person, size: tuple[int, int], skeleton: Skeleton, rng: np.random.Generator) -> Region | None:
    """The region of the upper or the lower body's labelled joints; None for people with fewer than eight."""
    labelled = person.weights > 0
    if labelled.sum() < 8:
        return None
    lower = np.array([joint.endswith(LOWER_BODY) for joint in skeleton.joints])
    halves = [half for half in (labelled & lower, labelled & ~lower) if half.sum() >= 3]
    if not halves:
        return None
    points = person.keypoints[halves[rng.integers(len(halves))]]
    low, high = points.min(0), points.max(0)
    if (high - low).max() < 8:  # a crop of a few pixels teaches nothing
        return None
    return Region.around((*low, *high), size, HALF_BODY_PADDING)


def cut_box(person: Person, rng: np.random.Generator) -> np.ndarray:
    """The person's box without one side, as a picture's edge or a table leaves it; (4,) float64 xyxy, picture pixels.

    Three labelled joints and a quarter of the length stay at least; people with fewer than four keep their box.
    """
    box = np.array(person.box, np.float64)
    side = int(rng.choice(4, p=CUT_SIDES))
    sign = 1 if side >= 2 else -1  # to the right and down, or to the left and up
    joints = np.sort(sign * person.keypoints[person.weights > 0, side % 2])
    start, end = sign * box[(side + 2) % 4], sign * box[side]
    if len(joints) >= 4:
        shortest = max(joints[2], start + (end - start) / 4)
        box[side] = sign * rng.uniform(min(shortest, end), end)
    return box


def mirror(
    crop: np.ndarray, keypoints: np.ndarray, weights: np.ndarray, skeleton: Skeleton
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The mirror image of a crop: pixels turned, joints turned and their names swapped."""
    swaps = skeleton.swaps
    turned = keypoints[swaps].copy()
    turned[:, 0] = crop.shape[1] - 1 - turned[:, 0]
    return crop[:, ::-1], turned, weights[swaps]


def jitter(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Random saturation, contrast, brightness and tint as one affine map of RGB; sometimes grey."""
    saturation = 0.0 if rng.random() < 0.1 else rng.uniform(0.5, 1.4)
    gain = rng.uniform(0.7, 1.3) * rng.uniform(0.9, 1.1, 3)
    colours = gain[:, None] * (saturation * np.eye(3) + (1 - saturation) / 3)
    offset = crop.mean() * (1 - gain) + rng.uniform(-32, 32)
    return cv2.transform(crop, np.concatenate([colours, offset[:, None]], 1))


def blur(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A Gaussian, median or motion blur, over 3 pixels up to about a thirtieth of the crop's height."""
    largest = max(1, round(crop.shape[0] / 64))
    reach = int(rng.integers(1, largest + 1))  # pixels to either side
    width = 2 * reach + 1
    kind = rng.integers(3)
    if kind == 0:
        return cv2.GaussianBlur(crop, (width, width), 0)
    if kind == 1:
        return cv2.medianBlur(crop, width)
    angle = rng.uniform(0, np.pi)
    along = np.array([np.cos(angle), np.sin(angle)]) * reach
    start, end = (tuple(int(v) for v in np.round(reach + sign * along)) for sign in (-1, 1))
    kernel = cv2.line(np.zeros((width, width), np.float32), start, end, 1.0)
    # a drawn line is not symmetric to the pixel, and a blur must not move anything
    kernel = kernel + kernel[::-1, ::-1]
    return cv2.filter2D(crop, -1, kernel / kernel.sum())


def cover(crop: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """One to three boxes of random grey or noise over the crop; one box takes a tenth to four tenths of each side,
    several are smaller, so that about as much is covered in all."""
    height, width = crop.shape[:2]
    covered = crop.copy()
    count = int(rng.integers(1, 4))
    for _ in range(count):
        sides = np.array([height, width]) * rng.uniform(0.1, 0.4, 2) / np.sqrt(count)
        h, w = np.maximum(1, sides).astype(int)
        y, x = rng.integers(0, height - h), rng.integers(0, width - w)
        shape = (h, w, 3) if rng.random() < 0.5 else (1, 1, 1)
        covered[y : y + h, x : x + w] = rng.integers(0, 256, shape, np.uint8)
    return covered
