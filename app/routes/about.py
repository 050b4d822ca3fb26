"""What is served, and whether it is well: `/`, `/model`, `/healthz`, `/readyz`, `/metrics`."""

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.requests import Request
from starlette.responses import Response

from app.errors import OverloadError
from app.schemas import ErrorResponse
from app.service import Service
from model.card import Calibration, DataSet, Evaluation

router = APIRouter()


class Index(BaseModel):
    """Where to go from here."""

    service: str = "pose estimation: POST a picture to /pose, get every person's keypoints"
    links: dict[str, str] = {"docs": "/docs", "model": "/model", "ready": "/readyz", "metrics": "/metrics"}


class ModelResponse(BaseModel):
    """The models that serve, and how."""

    name: str
    version: str
    sha256: str
    licence: str
    skeleton: str
    joints: list[str]
    links: list[tuple[str, str]] = Field(description="Pairs of joints to draw.")
    input_size: tuple[int, int] = Field(description="Height and width of a crop.")
    detector: str
    engine: str
    device: str
    precision: str
    threads: int
    data: list[DataSet]
    evaluation: list[Evaluation]
    calibration: Calibration | None = Field(
        description="How keypoint scores were calibrated, and their expected error; null where they are as the network "
        "gives them."
    )
    notes: list[str] = Field(description="What was asked for and is not used, and why.")


class Status(BaseModel):
    """One word."""

    status: str


def _service(request: Request) -> Service:
    service: Service = request.app.state.service
    return service


UNAVAILABLE: dict[int | str, dict[str, Any]] = {503: {"model": ErrorResponse, "description": "Not ready"}}


@router.get("/", summary="What this is")
async def index() -> Index:
    """What this is, and links."""
    return Index()


@router.get("/model", summary="The models that serve", responses=UNAVAILABLE)
async def show_model(request: Request) -> ModelResponse:
    """The package, how it was trained and evaluated, and what it runs on."""
    service = _service(request)
    pipeline = service.shared.pipeline
    card, skeleton, runtime = pipeline.package.card, pipeline.package.skeleton, pipeline.runtime
    quantised = card.int8 if runtime.precision == "int8" else None
    return ModelResponse(
        name=card.name,
        version=card.version,
        sha256=card.sha256,
        licence=card.licence,
        skeleton=skeleton.name,
        joints=list(skeleton.joints),
        links=list(skeleton.links),
        input_size=card.input_size,
        detector=pipeline.detector.name,
        engine=runtime.engine,
        device=runtime.device,
        precision=runtime.precision,
        threads=runtime.threads,
        data=card.data,
        evaluation=quantised.after if quantised else card.evaluation,
        calibration=card.calibration,
        notes=[*pipeline.choice.notes, *service.notes],
    )


@router.get("/healthz", summary="Alive", responses=UNAVAILABLE)
async def health(request: Request) -> Status:
    """200 while the process can do its work; 503 once its GPU is lost for good: restart it."""
    if not _service(request).alive:
        raise OverloadError("gpu_lost", "the GPU does not answer any more; restart this process")
    return Status(status="alive")


@router.get("/readyz", summary="Ready for work", responses=UNAVAILABLE)
async def ready(request: Request) -> Status:
    """200 while models are loaded, warm and found sane, and the service is not shutting down."""
    _ = _service(request).shared
    return Status(status="ready")


@router.get("/metrics", summary="Prometheus metrics", response_class=Response)
async def show_metrics(request: Request) -> Response:
    """The text exposition format."""
    return Response(_service(request).metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")
