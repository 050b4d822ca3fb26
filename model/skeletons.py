"""Skeleton records: joint names, mirror pairs, OKS sigmas, links and colours, in one place per convention.

Sources: COCO keypoints (Lin et al., 2014; sigmas as in pycocotools), MPII (Andriluka et al., CVPR 2014), Leeds Sports
Pose (Johnson and Everingham, BMVC 2010). MPII and LSP publish no OKS sigmas: joints that COCO has too use COCO's; the
others are set by their nearest relative and are marked below.
"""

from dataclasses import dataclass

import numpy as np

ORANGE, GREEN, BLUE, GREY = (255, 140, 30), (70, 200, 90), (60, 140, 255), (235, 235, 235)


@dataclass(frozen=True)
class Skeleton:
    """One joint convention.

    Attributes:
        name: key in `SKELETONS`.
        joints: joint names; a joint's index is its heatmap.
        sigmas: OKS fall-off per joint, relative to the square root of the person's area.
        links: pairs of joint names to draw.
    """

    name: str
    joints: tuple[str, ...]
    sigmas: tuple[float, ...]
    links: tuple[tuple[str, str], ...]

    def __post_init__(self) -> None:
        if len(self.joints) != len(self.sigmas) or len(set(self.joints)) != len(self.joints):
            raise ValueError(f"skeleton {self.name}: joints must be unique and have one sigma each")
        for joint in (joint for link in self.links for joint in link):
            if joint not in self.joints:
                raise ValueError(f"skeleton {self.name}: link to unknown joint {joint!r}")

    def __len__(self) -> int:
        return len(self.joints)

    @property
    def swaps(self) -> np.ndarray:
        """(K,) int64: index of each joint's mirror image; its own index when it has none."""
        index = {joint: i for i, joint in enumerate(self.joints)}
        return np.array([index[mirror_name(joint)] for joint in self.joints])

    @property
    def link_indices(self) -> list[tuple[int, int]]:
        """Links as pairs of joint indices."""
        return [(self.joints.index(a), self.joints.index(b)) for a, b in self.links]

    @property
    def colors(self) -> list[tuple[int, int, int]]:
        """RGB 0..255 per joint: orange on the person's left, blue on the right, green in the middle."""
        return [self._side(joint) for joint in self.joints]

    @property
    def link_colors(self) -> list[tuple[int, int, int]]:
        """RGB 0..255 per link: the side's colour, or green where the link crosses the body."""
        pairs = [(self._side(a), self._side(b)) for a, b in self.links]
        return [a if a == b else (b if a == GREEN else a) if GREEN in (a, b) else GREEN for a, b in pairs]

    @staticmethod
    def _side(joint: str) -> tuple[int, int, int]:
        return ORANGE if joint.startswith("left_") else BLUE if joint.startswith("right_") else GREEN


def mirror_name(joint: str) -> str:
    """`left_knee` for `right_knee` and back; any other name unchanged."""
    if joint.startswith("left_"):
        return "right_" + joint.removeprefix("left_")
    if joint.startswith("right_"):
        return "left_" + joint.removeprefix("right_")
    return joint


def map_joints(source: tuple[str, ...], target: tuple[str, ...]) -> np.ndarray:
    """(len(target),) int64: index in `source` of every joint of `target`, matched by name; -1 where it is missing."""
    return np.array([source.index(joint) if joint in source else -1 for joint in target])


LIMBS = tuple(
    (f"{side}_{a}", f"{side}_{b}")
    for side in ("left", "right")
    for a, b in (("shoulder", "elbow"), ("elbow", "wrist"), ("hip", "knee"), ("knee", "ankle"))
)

COCO = Skeleton(
    name="coco17",
    joints=(
        "nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder", "left_elbow",
        "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip", "left_knee", "right_knee", "left_ankle",
        "right_ankle",
    ),
    sigmas=(
        0.026, 0.025, 0.025, 0.035, 0.035, 0.079, 0.079, 0.072, 0.072, 0.062, 0.062, 0.107, 0.107, 0.087, 0.087, 0.089,
        0.089,
    ),
    links=(
        *LIMBS,
        ("left_shoulder", "right_shoulder"), ("left_hip", "right_hip"),
        ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"),
        ("nose", "left_eye"), ("nose", "right_eye"), ("left_eye", "left_ear"), ("right_eye", "right_ear"),
        ("left_ear", "left_shoulder"), ("right_ear", "right_shoulder"),
    ),
)  # fmt: skip

MPII = Skeleton(
    name="mpii16",
    joints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "pelvis", "thorax", "neck",
        "head_top", "right_wrist", "right_elbow", "right_shoulder", "left_shoulder", "left_elbow", "left_wrist",
    ),
    # pelvis as hip, thorax as shoulder; neck and head_top as MMPose sets them (0.026)
    sigmas=(
        0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.107, 0.079, 0.026, 0.026, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062,
    ),
    links=(
        *LIMBS,
        ("left_hip", "pelvis"), ("right_hip", "pelvis"), ("pelvis", "thorax"), ("thorax", "neck"),
        ("neck", "head_top"), ("left_shoulder", "thorax"), ("right_shoulder", "thorax"),
    ),
)  # fmt: skip

LSP = Skeleton(
    name="lsp14",
    joints=(
        "right_ankle", "right_knee", "right_hip", "left_hip", "left_knee", "left_ankle", "right_wrist", "right_elbow",
        "right_shoulder", "left_shoulder", "left_elbow", "left_wrist", "neck", "head_top",
    ),
    # neck and head_top as in MPII
    sigmas=(0.089, 0.087, 0.107, 0.107, 0.087, 0.089, 0.062, 0.072, 0.079, 0.079, 0.072, 0.062, 0.026, 0.026),
    links=(
        *LIMBS,
        ("left_shoulder", "left_hip"), ("right_shoulder", "right_hip"), ("left_hip", "right_hip"),
        ("left_shoulder", "neck"), ("right_shoulder", "neck"), ("neck", "head_top"),
    ),
)  # fmt: skip

SKELETONS = {skeleton.name: skeleton for skeleton in (COCO, MPII, LSP)}
