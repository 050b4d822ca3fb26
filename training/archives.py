"""What `pose data fetch` knows: the official archives of COCO 2017 and MPII, and where their files go."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError

BLOCK = 1 << 20  # bytes read at once
SPARE = 100_000_000  # bytes of disk that are left alone

Tick = Callable[[str, int, int | None], object]  # what is being done, bytes done, bytes in all


class FetchError(UserError):
    """A data set cannot be fetched; the message says what is wrong and what to do."""


@dataclass(frozen=True)
class Archive:
    """One file to download and what to take out of it.

    Attributes:
        part: what `--only` calls it.
        size: bytes; None where it is not known for certain, then the server's word is taken.
        digest: `algorithm:hex`; None where nobody publishes one, then its length and the checks inside the archive
            (CRC-32) have to do.
        unpacked: bytes on disk afterwards, roughly.
        target: folder, relative to the data folder, that the files come to.
        files: names of the only files to take; empty for all pictures.
    """

    part: str
    url: str
    size: int | None
    digest: str | None
    unpacked: int
    target: str
    files: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """File name of the archive."""
        return self.url.rsplit("/", 1)[-1]

    def is_there(self, data: Path) -> bool:
        """Whether everything it would bring stands at its place."""
        folder = data / self.target
        return all((folder / file).is_file() for file in self.files) if self.files else folder.is_dir()


COCO_HOST = "http://images.cocodataset.org"  # its https certificate is Amazon's, for another name
MPII_HOST = "https://datasets.d2.mpi-inf.mpg.de/andriluka14cvpr"

# Neither host publishes checksums. COCO's are those that several projects have in their download lists (the same in
# ParlAI and in others' records of the official files). The one of MPII's pictures stands in two lists of one author
# (anibali); for MPII's annotations none was found, nor an exact size for either.
ARCHIVES: dict[str, tuple[Archive, ...]] = {
    "coco": (
        Archive(
            "annotations", f"{COCO_HOST}/annotations/annotations_trainval2017.zip", 252_907_541,
            "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268", 260_000_000,
            "coco2017/annotations", ("person_keypoints_train2017.json", "person_keypoints_val2017.json"),
        ),
        Archive(
            "val", f"{COCO_HOST}/zips/val2017.zip", 815_585_330,
            "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05", 830_000_000, "coco2017/val2017",
        ),
        Archive(
            "train", f"{COCO_HOST}/zips/train2017.zip", 19_336_861_798,
            "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929", 19_600_000_000,
            "coco2017/train2017",
        ),
    ),
    "mpii": (
        Archive(
            "annotations", f"{MPII_HOST}/mpii_human_pose_v1_u12_2.zip", None, None, 50_000_000, "mpii",
            ("mpii_human_pose_v1_u12_1.mat",),
        ),
        Archive(
            "train", f"{MPII_HOST}/mpii_human_pose_v1.tar.gz", None, "md5:b6bc9c6869d3f035a5570b2e68ec84c4",
            13_000_000_000, "mpii/images",
        ),
    ),
}  # fmt: skip
TERMS = {
    "coco": "annotations CC BY 4.0, pictures under Flickr's terms: https://cocodataset.org/#termsofuse",
    "mpii": "for research; cite Andriluka et al., CVPR 2014: http://human-pose.mpi-inf.mpg.de",
}


def need_room(folder: Path, wanted: int, name: str) -> None:
    """Check the disk.

    Raises:
        FetchError: fewer than `wanted` bytes, and some to spare, are free where `folder` is.
    """
    free = shutil.disk_usage(folder).free
    if free < wanted + SPARE:
        raise FetchError(
            f"{name} needs {(wanted + SPARE) / 1e9:.1f} GB more on the disk of {folder}, {free / 1e9:.1f} GB are free: "
            "make room, or give another folder with -o"
        )
