"""`POST /pose/batch`: several pictures in, the keypoints of each out, or what is wrong with it."""

import logging
from typing import Any

from fastapi import APIRouter
from pydantic_core import to_json
from starlette.requests import Request
from starlette.responses import Response

from app.errors import RequestError
from app.receiving import FORM, JSON, read_pictures
from app.result import PoseResult
from app.routes.pose import ERRORS, describe_parameters, read_timeout, unless_gone, weigh_types
from app.schemas import BatchResponse, ErrorDetail, ErrorResponse, JsonBatchRequest, ModelName, Options, to_plain
from app.service import Service

logger = logging.getLogger(__name__)

router = APIRouter()

BATCH_ERRORS = ERRORS | {
    400: "No picture at all, or a malformed body",
    406: "Only a picture is accepted as the answer, and this route draws none",
    413: "Too many bytes in all, or too many pictures",
}
del BATCH_ERRORS[504]  # a late picture is an error entry


def _describe_body() -> dict[str, Any]:
    """OpenAPI's request body: two ways to send several pictures."""
    files = {"type": "array", "items": {"type": "string", "format": "binary"}, "description": "A part per picture."}
    options = Options.model_json_schema()["properties"]
    form = {"type": "object", "required": ["file"], "properties": {"file": files, **options}}
    content = {FORM: {"schema": form}, JSON: {"schema": JsonBatchRequest.model_json_schema()}}
    return {"required": True, "content": content}


@router.post(
    "/pose/batch",
    summary="People and their keypoints in several pictures",
    response_model=BatchResponse,
    responses={
        200: {"description": "One entry per picture, in order; also where every entry is an error."},
        **{status: {"model": ErrorResponse, "description": text} for status, text in BATCH_ERRORS.items()},
    },
    openapi_extra={"requestBody": _describe_body(), "parameters": describe_parameters()},
)
async def pose_batch(request: Request) -> Response:
    """Send the pictures (JPEG, PNG or WebP) as several parts `file` of a form, or as a list of base64 in JSON. Options
    go in the query, in the form or in the JSON, and hold for all of the pictures.

    A picture that `/pose` would refuse is an error entry in its own place, with the code that `/pose` gives; its
    neighbours are answered as if they were alone. Pictures not done when the request's time runs out are error entries
    `deadline_passed`; those done are answered. The request as a whole is refused where an option is bad, where there
    are too many pictures or bytes, or where not even one place is free (503): later pictures wait for their places. The
    answer is always JSON.
    """
    service: Service = request.app.state.service
    with service.lease() as shared:
        timeout = read_timeout(request, service.settings.request_timeout)
        pictures, options = await read_pictures(request, service.settings, shared.in_pool)
        json, jpeg, png = weigh_types(request.headers.getlist("accept"))
        if max(jpeg, png) > json == 0:
            raise RequestError(406, "not_acceptable", f"the answer is {JSON}; /pose draws one picture at a time")
        results = await unless_gone(request, shared.answer_each(pictures, options, timeout))
        package = shared.pipeline.package
        name = ModelName(name=package.card.name, version=package.card.version)
        entries = [
            result if isinstance(result, PoseResult) else _explain(result, service, request.state.request_id)
            for result in results
        ]
        body = await shared.in_pool(_render, entries, package.skeleton.joints, name)
    return Response(body, media_type=JSON)


def _explain(error: BaseException, service: Service, request_id: str) -> ErrorResponse:
    """One picture's error as an entry, counted like that of a request."""
    if not isinstance(error, RequestError):
        logger.error("id=%s failed on one picture of a batch", request_id, exc_info=error)
        error = RequestError(500, "internal", "the service failed on this picture; its log has the reason")
    service.metrics.rejected.labels(error.code).inc()
    return ErrorResponse(error=ErrorDetail(code=error.code, message=error.message, request_id=request_id))


def _render(entries: list[PoseResult | ErrorResponse], joints: tuple[str, ...], model: ModelName) -> bytes:
    plain = [to_plain(entry, joints, model) if isinstance(entry, PoseResult) else entry for entry in entries]
    return to_json({"results": plain})
