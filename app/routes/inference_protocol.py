"""Health and metadata as the Open Inference Protocol has them, so that tools which speak it (KServe's, for one) find
their way: `/v2`, `/v2/health/live`, `/v2/health/ready`, `/v2/models/{name}`, `/v2/models/{name}/ready`.

The protocol: https://github.com/kserve/open-inference-protocol, `specification/protocol/inference_rest.md` and
`open_inference_rest.yaml`. Its inference route is not served: it wraps a picture in JSON and people in tensors, while
`/pose` takes the picture's bytes as they are and has options and errors of its own. Errors below `/v2` have the
protocol's shape, since it prescribes that `error` is a text: see `ProtocolError`.
"""

from typing import Annotated, Any

from fastapi import APIRouter, Path
from pydantic import BaseModel, ConfigDict, Field
from starlette.requests import Request

from app.errors import RequestError
from app.routes.about import health, ready
from app.schemas import ProtocolError
from app.service import Service
from model.card import Card

router = APIRouter()

NAME = "pose-server"
Name = Annotated[str, Path(description="The served package's name, as `/model` shows it.")]
Version = Annotated[str, Path(description="The served package's version, the only one there is.")]


class ServerMetadata(BaseModel):
    """The server."""

    model_config = ConfigDict(json_schema_extra={"example": {"name": NAME, "version": "0.1.0", "extensions": []}})

    name: str = NAME
    version: str
    extensions: list[str] = Field(default=[], description="Of the protocol; none.")


class Live(BaseModel):
    """The process can do its work."""

    live: bool = True


class Ready(Live):
    """All models take work. The protocol's text calls the field `live`, its gRPC form and KServe `ready`: both."""

    ready: bool = True


class ModelReady(BaseModel):
    """This model takes work."""

    name: str
    ready: bool = True


class Tensor(BaseModel):
    """What goes in or comes out."""

    name: str
    datatype: str = Field(description="`BYTES`: each element is a string of bytes.")
    shape: list[int]


IMAGE = Tensor(name="image", datatype="BYTES", shape=[1])
RESULT = Tensor(name="result", datatype="BYTES", shape=[1])
MODEL_EXAMPLE: dict[str, Any] = {
    "name": "sdhrnet_w32_coco",
    "versions": ["1.0.0"],
    "platform": "openvino_safetensors",
    "inputs": [IMAGE.model_dump()],
    "outputs": [RESULT.model_dump()],
}


class ModelMetadata(BaseModel):
    """The model as `/pose` serves it: a picture's file in, JSON out."""

    model_config = ConfigDict(json_schema_extra={"example": MODEL_EXAMPLE})

    name: str
    versions: list[str] = Field(description="The one that serves.")
    platform: str = Field(description="What runs the network, and the format of its weights.")
    inputs: list[Tensor] = Field(default=[IMAGE], description="`image`: the bytes of one JPEG, PNG or WebP file.")
    outputs: list[Tensor] = Field(default=[RESULT], description="`result`: the JSON that `/pose` answers, UTF-8.")


Responses = dict[int | str, dict[str, Any]]
NOT_READY: Responses = {503: {"model": ProtocolError, "description": "Not ready"}}
ABOUT_MODEL: Responses = {
    404: {"model": ProtocolError, "description": "Another name or version than the one served"},
    **NOT_READY,
    "default": {"model": ProtocolError, "description": "Any other refusal"},  # else FastAPI adds its own 422
}


def _find(request: Request, name: str, version: str | None = None) -> Card:
    """The card of the model that serves, if that is its name and version.

    Raises:
        RequestError: 404, it is not.
        OverloadError: 503, no work is taken now.
    """
    service: Service = request.app.state.service
    card = service.shared.pipeline.package.card
    if name != card.name:
        raise RequestError(404, "not_found", f"no model {name[:80]!r} is served here, only {card.name!r}")
    if version not in (None, card.version):
        message = f"no version {version[:80]!r} of {name!r} is served here, only {card.version!r}"
        raise RequestError(404, "not_found", message)
    return card


def _describe(request: Request, card: Card) -> ModelMetadata:
    service: Service = request.app.state.service
    engine = service.shared.pipeline.runtime.engine
    return ModelMetadata(name=card.name, versions=[card.version], platform=f"{engine}_safetensors")


@router.get("/v2/", include_in_schema=False)  # the protocol's OpenAPI document has the slash, its text has not
@router.get("/v2", summary="Open Inference Protocol: the server")
async def describe_server(request: Request) -> ServerMetadata:
    """Name and version. There is no `infer` route: POST the picture to `/pose`."""
    return ServerMetadata(version=request.app.version)


@router.get("/v2/health/live", summary="Open Inference Protocol: alive", responses=NOT_READY)
async def show_live(request: Request) -> Live:
    """As `/healthz`."""
    await health(request)
    return Live()


@router.get("/v2/health/ready", summary="Open Inference Protocol: ready for work", responses=NOT_READY)
async def show_ready(request: Request) -> Ready:
    """As `/readyz`."""
    await ready(request)
    return Ready()


@router.get("/v2/models/{name}", summary="Open Inference Protocol: the model", responses=ABOUT_MODEL)
async def describe_model(request: Request, name: Name) -> ModelMetadata:
    """What it takes and gives. There is no `infer` route: POST the picture to `/pose`."""
    return _describe(request, _find(request, name))


@router.get("/v2/models/{name}/ready", summary="Open Inference Protocol: the model is ready", responses=ABOUT_MODEL)
async def show_model_ready(request: Request, name: Name) -> ModelReady:
    """As `/readyz`, for the model of this name."""
    return ModelReady(name=_find(request, name).name)


@router.get(
    "/v2/models/{name}/versions/{version}",
    summary="Open Inference Protocol: a version of the model",
    responses=ABOUT_MODEL,
)
async def describe_version(request: Request, name: Name, version: Version) -> ModelMetadata:
    """What it takes and gives. There is no `infer` route: POST the picture to `/pose`."""
    return _describe(request, _find(request, name, version))


@router.get(
    "/v2/models/{name}/versions/{version}/ready",
    summary="Open Inference Protocol: a version of the model is ready",
    responses=ABOUT_MODEL,
)
async def show_version_ready(request: Request, name: Name, version: Version) -> ModelReady:
    """As `/readyz`, for the model of this name and version."""
    return ModelReady(name=_find(request, name, version).name)
