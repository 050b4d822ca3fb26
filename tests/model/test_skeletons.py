"""Skeleton records: consistent with themselves and with each other."""

import numpy as np
import pytest

from model.skeletons import COCO, LSP, MPII, SKELETONS, Skeleton, map_joints


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_swaps_are_an_involution_between_left_and_right(skeleton: Skeleton) -> None:
    swaps = skeleton.swaps
    assert (swaps[swaps] == np.arange(len(skeleton))).all()
    for joint, mirror in zip(skeleton.joints, swaps, strict=True):
        other = skeleton.joints[mirror]
        if joint.startswith("left_"):
            assert other == joint.replace("left_", "right_")
        elif not joint.startswith("right_"):
            assert other == joint


@pytest.mark.parametrize("skeleton", SKELETONS.values(), ids=SKELETONS)
def test_every_joint_is_linked_and_has_a_sigma_and_a_colour(skeleton: Skeleton) -> None:
    assert {i for link in skeleton.link_indices for i in link} == set(range(len(skeleton)))
    assert len(skeleton.sigmas) == len(skeleton.colors) == len(skeleton)
    assert len(skeleton.link_colors) == len(skeleton.links)
    assert [skeleton.sigmas[i] for i in skeleton.swaps] == list(skeleton.sigmas)


def test_sizes_are_those_of_the_names() -> None:
    assert (len(COCO), len(MPII), len(LSP)) == (17, 16, 14)


def test_coco_sigmas_are_those_of_pycocotools() -> None:
    from pycocotools.cocoeval import Params

    assert np.allclose(COCO.sigmas, Params("keypoints").kpt_oks_sigmas)


def test_joints_map_by_name_and_missing_ones_are_marked() -> None:
    indices = map_joints(LSP.joints, COCO.joints)
    assert (indices[:5] == -1).all()
    assert [LSP.joints[i] for i in indices[5:]] == list(COCO.joints[5:])


@pytest.mark.parametrize(
    ("joints", "sigmas", "links"),
    [
        pytest.param(("a", "a"), (0.1, 0.1), (), id="joint twice"),
        pytest.param(("a", "b"), (0.1,), (), id="sigma missing"),
        pytest.param(("a",), (0.1,), (("a", "z"),), id="link to nowhere"),
    ],
)
def test_inconsistent_skeletons_are_refused(
    joints: tuple[str, ...], sigmas: tuple[float, ...], links: tuple[tuple[str, str], ...]
) -> None:
    with pytest.raises(ValueError, match="skeleton bad"):
        Skeleton("bad", joints, sigmas, links)
