"""What goes over the wire, as pydantic models: options in, people out."""

import json
from collections.abc import Sequence
from typing import Annotated, Any

import numpy as np
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from app.result import PoseResult

FAR = 100_000.0  # pixels; no box reaches farther out of a picture than this
PARTS = ("box", "skeleton", "score")


def _parse_boxes(value: object) -> object:
    if isinstance(value, str):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            raise ValueError("must be a JSON list of [x1, y1, x2, y2]") from None
    return value


def _parse_parts(value: object) -> object:
    if isinstance(value, str):
        value = value.strip().lower()
        value = {"true": True, "1": True, "all": True, "false": False, "0": False, "none": False}.get(value, value)
    if isinstance(value, bool):
        return list(PARTS) if value else []
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


def _check_parts(parts: list[str]) -> list[str]:
    unknown = sorted(set(parts) - set(PARTS))
    if unknown:
        raise ValueError(f"unknown part {unknown[0]!r}; known: {', '.join(PARTS)}, or true, or false")
    return parts


def _check_box(box: tuple[float, float, float, float]) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = box
    if x2 <= x1 or y2 <= y1:
        raise ValueError(f"box [{x1:g}, {y1:g}, {x2:g}, {y2:g}] must have x1 < x2 and y1 < y2")
    return box


Coordinate = Annotated[float, Field(ge=-FAR, le=FAR, allow_inf_nan=False)]
Score = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Box = Annotated[tuple[Coordinate, Coordinate, Coordinate, Coordinate], AfterValidator(_check_box)]


class Options(BaseModel):
    """How one picture is to be worked on; the same names in the query, in a form and in JSON."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    boxes: Annotated[list[Box] | None, BeforeValidator(_parse_boxes)] = Field(
        default=None,
        description="People's boxes `[[x1, y1, x2, y2], ...]` in pixels of the upright picture; skips the detector. "
        "In a query or form: JSON text.",
        examples=[[[48.0, 21.5, 210.2, 470.9]]],
    )
    max_persons: int | None = Field(default=None, ge=1, description="Most persons: those of the highest box score.")
    box_score: Score | None = Field(default=None, description="Least score of a detected box.")
    keypoint_score: Score | None = Field(
        default=None,
        description="Least score of a keypoint that counts in its person's score and is drawn; the JSON has all.",
    )
    flip_test: bool = Field(
        default=False, description="Average with the mirrored crop: a little more accurate, twice the network's time."
    )
    draw: Annotated[list[str], AfterValidator(_check_parts), BeforeValidator(_parse_parts)] = Field(
        default=list(PARTS),
        description="What the annotated picture shows (`Accept: image/jpeg` or `image/png`): a list of `box`, "
        "`skeleton`, `score`, separated by commas in a query or form; `true` is all, `false` is none.",
    )


class JsonRequest(Options):
    """A picture and its options as one JSON object."""

    image: str = Field(description="The picture (JPEG, PNG or WebP), base64.", examples=["/9j/4AAQSkZJRg..."])


class JsonBatchRequest(Options):
    """Several pictures as one JSON object, and the options for all of them."""

    images: list[str] = Field(
        description="The pictures (JPEG, PNG or WebP), base64.", examples=[["/9j/4AAQSkZJRg...", "iVBORw0KGgo..."]]
    )


class ImageSize(BaseModel):
    """Pixels of the upright picture."""

    width: int
    height: int


class Keypoint(BaseModel):
    """A joint. Pixels of the upright picture, x to the right, y down; origin: centre of the top-left one."""

    name: str
    x: float
    y: float
    score: float = Field(
        description="0 to 1: the object keypoint similarity (OKS) that this place can expect. Calibrated by what was "
        "measured on labelled people where `/model` shows a `calibration`, else the network's own belief."
    )


class Person(BaseModel):
    """A person, its box and all joints of the skeleton, in the skeleton's order."""

    box: tuple[float, float, float, float] = Field(description="x1, y1, x2, y2.")
    box_score: float = Field(description="The detector's; 1 where the caller gave the box.")
    score: float = Field(
        description="box_score x the mean score of the keypoints of at least `keypoint_score`; 0 if none."
    )
    track_id: int | None = None
    keypoints: list[Keypoint]


class ModelName(BaseModel):
    """Which package answered."""

    name: str
    version: str


class Timings(BaseModel):
    """Milliseconds."""

    decode: float
    detect: float = Field(description="The detector's run that this picture shared; 0 with `boxes`.")
    pose: float = Field(description="From the first to the last run that had a person of this picture.")
    queue: float = Field(description="Waiting for a thread or a network.")
    total: float = Field(description="From the body's arrival to the answer.")


EXAMPLE: dict[str, Any] = {
    "image": {"width": 640, "height": 480},
    "persons": [
        {
            "box": [48.0, 21.5, 210.2, 470.9],
            "box_score": 0.93,
            "score": 0.82,
            "track_id": None,
            "keypoints": [
                {"name": "nose", "x": 120.4, "y": 60.1, "score": 0.97},
                {"name": "left_eye", "x": 126.0, "y": 54.8, "score": 0.95},
            ],
        }
    ],
    "model": {"name": "sdhrnet_w32_coco", "version": "1.0.0"},
    "timings_ms": {"decode": 2.1, "detect": 9.8, "pose": 12.0, "queue": 0.4, "total": 25.0},
}


class PoseResponse(BaseModel):
    """The answer of `/pose`."""

    model_config = ConfigDict(json_schema_extra={"example": EXAMPLE})

    image: ImageSize
    persons: list[Person]
    model: ModelName
    timings_ms: Timings

    @classmethod
    def build(cls, result: PoseResult, joints: Sequence[str], model: ModelName) -> "PoseResponse":
        """From the pipeline's arrays; see `to_plain`."""
        return cls.model_validate(to_plain(result, joints, model))


def to_plain(result: PoseResult, joints: Sequence[str], model: ModelName) -> dict[str, Any]:
    """`PoseResponse` as plain objects, which cost a crowded picture a fraction of the time.

    From the pipeline's arrays: coordinates to 1/100 pixel, scores to 1/10000, times to 1/100 ms.
    """
    boxes, points = _rounded(result.boxes, 2), _rounded(result.keypoints, 2)
    box_scores, scores, joint_scores = (
        _rounded(values, 4) for values in (result.box_scores, result.scores, result.keypoint_scores)
    )
    return {
        "image": {"width": result.width, "height": result.height},
        "persons": [
            {
                "box": box,
                "box_score": box_score,
                "score": score,
                "track_id": None,
                "keypoints": [
                    {"name": name, "x": x, "y": y, "score": joint_score}
                    for name, (x, y), joint_score in zip(joints, places, certain, strict=True)
                ],
            }
            for box, box_score, score, places, certain in zip(
                boxes, box_scores, scores, points, joint_scores, strict=True
            )
        ],
        "model": {"name": model.name, "version": model.version},
        "timings_ms": {name: round(seconds * 1000, 2) for name, seconds in result.timings.items()},
    }


def _rounded(values: np.ndarray, digits: int) -> list[Any]:
    rounded: list[Any] = np.asarray(values, np.float64).round(digits).tolist()
    return rounded


class ErrorDetail(BaseModel):
    """What went wrong."""

    code: str = Field(description="Stable word for programs.", examples=["too_many_pixels"])
    message: str = Field(description="Sentence for people: the thing, the limit, the way out.")
    request_id: str = Field(description="As in the header `X-Request-ID` and in the server's log.")


class ErrorResponse(BaseModel):
    """The one shape of every error."""

    error: ErrorDetail


class ProtocolError(BaseModel):
    """An error below `/v2`: the Open Inference Protocol prescribes that `error` is a text."""

    error: str = Field(description="Sentence for people: the thing, the limit, the way out.")
    code: str = Field(description="Stable word for programs.", examples=["not_found"])
    request_id: str = Field(description="As in the header `X-Request-ID` and in the server's log.")


BATCH_EXAMPLE: dict[str, Any] = {
    "results": [
        EXAMPLE,
        {
            "error": {
                "code": "damaged_image",
                "message": "the picture is damaged or cut short; send the whole file",
                "request_id": "5f0c9d3be1a24c77",
            }
        },
    ]
}


class BatchResponse(BaseModel):
    """The answer of `/pose/batch`."""

    model_config = ConfigDict(json_schema_extra={"example": BATCH_EXAMPLE})

    results: list[PoseResponse | ErrorResponse] = Field(
        description="One per picture, in order: what `/pose` answers, or that picture's error."
    )
