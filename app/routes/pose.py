"""`POST /pose`: a picture in, keypoints out."""

import asyncio
import contextlib
import math
from collections.abc import Coroutine
from typing import Any, TypeVar

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.errors import ClientGoneError, RequestError
from app.receiving import FORM, JSON, RAW_TYPES, read_picture, wait_for_hangup
from app.schemas import ErrorResponse, JsonRequest, ModelName, Options, PoseResponse, to_plain
from app.service import Service

router = APIRouter()

T = TypeVar("T")

DRAWN_TYPES = ("image/jpeg", "image/png")
ERRORS = {
    400: "No picture, or a damaged one, or a malformed body",
    401: "Key missing or wrong (only where the server has keys)",
    408: "The body was too slow",
    413: "Too many bytes or too many pixels",
    415: "Type not accepted",
    422: "Bad option",
    503: "No place left, or shutting down: come back after `Retry-After` seconds",
    504: "The request's time ran out (`X-Request-Timeout`)",
}


def _describe_body() -> dict[str, Any]:
    """OpenAPI's request body: three ways to send a picture."""
    properties = Options.model_json_schema()["properties"]
    binary = {"schema": {"type": "string", "format": "binary"}}
    form = {"type": "object", "required": ["file"], "properties": {"file": binary["schema"], **properties}}
    ways: dict[str, Any] = {FORM: {"schema": form}} | {kind: binary for kind in RAW_TYPES}
    return {"required": True, "content": {**ways, JSON: {"schema": JsonRequest.model_json_schema()}}}


def describe_parameters() -> list[dict[str, Any]]:
    """OpenAPI's parameters: the options, and the header with the deadline."""
    deadline = {
        "name": "X-Request-Timeout",
        "in": "header",
        "description": "Seconds after which the answer is of no use: it is 504 then, and work not begun is dropped.",
        "schema": {"type": "number", "exclusiveMinimum": 0},
    }
    options = Options.model_json_schema()["properties"].items()
    return [*({"name": n, "in": "query", "description": s["description"], "schema": s} for n, s in options), deadline]


@router.post(
    "/pose",
    summary="People and their keypoints in a picture",
    response_model=PoseResponse,
    responses={
        200: {
            "description": "People as JSON; with `Accept: image/jpeg` or `image/png` the picture with people drawn.",
            "content": {kind: {"schema": {"type": "string", "format": "binary"}} for kind in DRAWN_TYPES},
        },
        **{status: {"model": ErrorResponse, "description": text} for status, text in ERRORS.items()},
    },
    openapi_extra={"requestBody": _describe_body(), "parameters": describe_parameters()},
)
async def pose(request: Request) -> Response:
    """Send the picture (JPEG, PNG or WebP) as the part `file` of a form, as the body itself, or as base64 in JSON.
    Options go in the query, in the form or in the JSON, under the same names.

    Coordinates are pixels of the picture as a person sees it: EXIF orientation is applied.
    """
    service: Service = request.app.state.service
    with service.lease() as shared:
        timeout = read_timeout(request, service.settings.request_timeout)
        data, options = await read_picture(request, service.settings, shared.in_pool)
        media_type = choose_media_type(request.headers.getlist("accept"))
        answer = await unless_gone(request, shared.answer(data, options, timeout, media_type))
    if answer.picture is not None:
        return Response(answer.picture, media_type=media_type)
    package = shared.pipeline.package
    name = ModelName(name=package.card.name, version=package.card.version)
    return Response(to_json(to_plain(answer.result, package.skeleton.joints, name)), media_type=JSON)


def choose_media_type(accept: list[str]) -> str | None:
    """The picture type an Accept header prefers to JSON; None where JSON is as welcome, or nothing fits."""
    json, jpeg, png = weigh_types(accept)
    if max(jpeg, png) <= json:
        return None
    return "image/png" if png > jpeg else "image/jpeg"


def weigh_types(accept: list[str]) -> tuple[float, float, float]:
    """How welcome JSON, JPEG and PNG are by an Accept header, 0 to 1."""
    weights: dict[str, float] = {}
    for entry in ",".join(accept).split(","):
        kind, _, parameters = entry.strip().lower().partition(";")
        quality = next((p.strip()[2:] for p in parameters.split(";") if p.strip().startswith("q=")), "1")
        try:
            weights[kind.strip()] = float(quality)
        except ValueError:
            weights[kind.strip()] = 0.0
    json = max(weights.get(kind, 0.0) for kind in (JSON, "application/*", "*/*"))
    jpeg = max(weights.get(kind, 0.0) for kind in ("image/jpeg", "image/*"))
    return json, jpeg, weights.get("image/png", 0.0)


def read_timeout(request: Request, most: float) -> float:
    """Seconds from `X-Request-Timeout`, at most the server's own.

    Raises:
        RequestError: 422, not a positive number.
    """
    text = request.headers.get("x-request-timeout")
    if text is None:
        return most
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not seconds > 0:
        raise RequestError(422, "bad_option", f"X-Request-Timeout: {text[:40]!r} is no positive number of seconds")
    return min(seconds, most)


async def unless_gone(request: Request, work: Coroutine[Any, Any, T]) -> T:
    """The work's result; the work is cancelled when the client hangs up, which frees its place in the queues.

    Raises:
        ClientGoneError: the client hung up.
    """
    working = asyncio.create_task(work)
    hangup = asyncio.create_task(wait_for_hangup(request))
    try:
        await asyncio.wait((working, hangup), return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientGoneError
    finally:
        for task in (working, hangup):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task
