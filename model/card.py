"""The card of a weight package: how to build the network, crop for it and read its heatmaps; its origin, its worth."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from model.crop import PADDING
from model.skeletons import Skeleton

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Architecture(_Record):
    """How to build the network: `model.networks.build(name, joints, **switches)`."""

    name: str
    joints: int = Field(gt=0)
    switches: dict[str, bool | int] = {}


class Codec(_Record):
    """Arguments of `model.codec.HeatmapCodec` beside the input size."""

    sigma: float = Field(gt=0)
    activation: Literal["identity", "softmax"]


class Normalisation(_Record):
    """Applied to RGB / 255."""

    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD


class DataSet(_Record):
    """One source of training data."""

    name: str
    people: int
    weight: float
    licence: str


class Evaluation(_Record):
    """Figures of one protocol: what was measured, on what, how."""

    data: str
    pictures: int
    people: int
    boxes: str
    flip_test: bool
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]] = Field(
        {}, description="95 % bootstrap confidence intervals of some of the metrics, pictures drawn anew"
    )
    notes: list[str] = Field([], description="what else the figures depend on")


class Calibration(_Record):
    """The map from raw keypoint scores to the OKS that was measured at them, and what it is worth."""

    method: Literal["isotonic"]
    table: dict[str, list[Annotated[float, Field(ge=0, le=1)]]] = Field(
        description="per joint, the calibrated scores at raw scores 0 ... 1 in equal steps; straight lines between them"
    )
    data: str
    flip_test: bool
    pictures: int
    joints: int = Field(description="labelled joints that it was fitted on")
    bins: int = Field(description="equally wide bins of the expected calibration error")
    error_before: float = Field(description="expected calibration error of the raw scores, 0..1")
    error_after: float = Field(
        description="of the calibrated ones: fitted on one half of the pictures, measured on the other, and in turn"
    )

    def rows(self, skeleton: Skeleton) -> tuple[tuple[float, ...], ...]:
        """`HeatmapCodec.calibration`, in the skeleton's order.

        Raises:
            ValueError: a joint is missing.
        """
        missing = set(skeleton.joints) - set(self.table)
        if missing:
            raise ValueError(f"calibration lacks {', '.join(sorted(missing))}")
        return tuple(tuple(self.table[joint]) for joint in skeleton.joints)


class Shift(_Record):
    """How far an engine's keypoints lie from those of the float32 PyTorch network; see `model.parity`."""

    joints: int = Field(description="joints that count")
    mean: float = Field(description="pixels of the picture")
    high: float = Field(description="99th percentile, pixels of the picture")


class Quantisation(_Record):
    """Where `int8.safetensors` is from, and what int8 costs: the same people, boxes and protocol before and after."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="of the file")
    tool: str
    data: str = Field(description="set of the crops that the ranges were found on")
    crops: int
    before: list[Evaluation] = Field(description="float32")
    after: list[Evaluation] = Field(description="int8")
    shift: Shift


class Card(_Record):
    """`card.json`: everything about a package but the numbers themselves."""

    name: str = Field(pattern=r"^[a-z0-9_]+$")
    version: str
    architecture: Architecture
    input_size: tuple[int, int]
    skeleton: str
    codec: Codec
    padding: float = PADDING
    normalisation: Normalisation = Normalisation()
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    git_commit: str
    created: str
    licence: str
    data: list[DataSet]
    recipe: dict[str, Any]
    evaluation: list[Evaluation]
    calibration: Calibration | None = None
    int8: Quantisation | None = None

    @property
    def identity(self) -> str:
        """Which weights these are, for people: name, version and the beginning of the checksum."""
        return f"{self.name} {self.version} ({self.sha256[:12]})"
