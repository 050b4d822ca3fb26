"""Around every request: id, key, places, log line, metrics, and one shape for every error."""

import hmac
import http
import logging
import re
import secrets
import time
from collections.abc import Collection

from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.datastructures import Headers, MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.errors import ClientGoneError, OverloadError, RequestError
from app.schemas import ErrorDetail, ErrorResponse, ProtocolError
from app.service import Service

logger = logging.getLogger("app.request")

DOCS = "/docs"
PROTOCOL = "/v2"  # the Open Inference Protocol's paths
# asked for no key, answered whatever the load, and logged at debug only; names of models have no slash
HEALTH = re.compile(rf"/healthz|/readyz|{PROTOCOL}/health/(live|ready)|{PROTOCOL}/models/[^/]+(/versions/[^/]+)?/ready")
PUBLIC = frozenset({"/", PROTOCOL, f"{PROTOCOL}/", DOCS, "/openapi.json"})  # asked for no key
METRICS = "/metrics"  # answered whatever the load
REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,64}")
CLIENT_GONE = 499  # nginx's status for a client that hung up: in log and metrics only, nobody reads it
CODES = {400: "bad_request", 404: "not_found", 405: "method_not_allowed", 413: "too_many_bytes"}


class Gateway:
    """ASGI middleware; see the module.

    Args:
        routes: the paths that are served: the only ones that become metric labels.
    """

    def __init__(self, app: ASGIApp, service: Service, routes: Collection[str]) -> None:
        self.app, self.service, self.routes = app, service, frozenset(routes)
        self.keys = [key.get_secret_value().encode() for key in service.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        began = time.monotonic()
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if REQUEST_ID.fullmatch(given) else secrets.token_hex(8)
        scope.setdefault("state", {})["request_id"] = request_id
        status = 0

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["X-Request-ID"] = request_id
            await send(message)

        self.service.requests += 1
        try:
            try:
                self._admit(scope)
                await self.app(scope, receive, send_with_id)
            except RequestError as error:
                self.service.metrics.rejected.labels(error.code).inc()
                await render(error, request_id, scope["path"])(scope, receive, send_with_id)
            except ClientGoneError:
                status = CLIENT_GONE
                self.service.metrics.rejected.labels("client_closed").inc()
            except Exception:  # a fault of this service: whatever it is, the client gets the one shape
                logger.exception("id=%s failed", request_id)
                if status:
                    raise
                fault = RequestError(500, "internal", "the service failed on this request; its log has the reason")
                await render(fault, request_id, scope["path"])(scope, receive, send_with_id)
        finally:
            self.service.requests -= 1
            self._record(scope, request_id, status, time.monotonic() - began)

    def _admit(self, scope: Scope) -> None:
        """Refuse requests without a key and those that are too many. Reads the raw path: URLs built from the Host
        header can be made to lie."""
        path = scope["path"]
        if HEALTH.fullmatch(path):
            return
        if self.keys and path not in PUBLIC and not path.startswith(f"{DOCS}/"):
            headers = Headers(scope=scope)
            key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
            if not any([hmac.compare_digest(key.encode(), known) for known in self.keys]):  # every key, equal time
                raise RequestError(
                    401,
                    "unauthorized",
                    "a key is needed: `Authorization: Bearer <key>` or `X-API-Key: <key>`",
                    {"WWW-Authenticate": "Bearer"},
                )
        limit = self.service.settings.max_connections
        if path != METRICS and self.service.requests > limit:
            raise OverloadError(
                "too_many_connections", f"{limit} requests are in progress, the limit; try again shortly"
            )

    def _record(self, scope: Scope, request_id: str, status: int, seconds: float) -> None:
        path = scope["path"]
        template = getattr(scope.get("route"), "path", path)  # `/v2/models/{name}`, where it came as far as a route
        route = template if template in self.routes else "other"
        metrics = self.service.metrics
        metrics.requests.labels(route, str(status)).inc()
        metrics.request_duration.labels(route).observe(seconds)
        level = logging.DEBUG if path == METRICS or HEALTH.fullmatch(path) else logging.INFO
        logger.log(
            level,
            "id=%s method=%s route=%s status=%d ms=%.1f",
            request_id,
            _method(scope),
            route,
            status,
            seconds * 1e3,
        )


def render(error: RequestError, request_id: str, path: str) -> JSONResponse:
    """The one shape of every error; below `/v2` the one that the protocol prescribes."""
    if path == PROTOCOL or path.startswith(f"{PROTOCOL}/"):
        prescribed = ProtocolError(error=error.message, code=error.code, request_id=request_id)
        return JSONResponse(prescribed.model_dump(), error.status, error.headers)
    detail = ErrorDetail(code=error.code, message=error.message, request_id=request_id)
    return JSONResponse(ErrorResponse(error=detail).model_dump(), error.status, error.headers)


async def on_request_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of RequestError."""
    assert isinstance(error, RequestError)
    service: Service = request.app.state.service
    service.metrics.rejected.labels(error.code).inc()
    return render(error, request.state.request_id, request.scope["path"])


async def on_http_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of the framework's own refusals: unknown path, wrong method, malformed form."""
    assert isinstance(error, HTTPException)
    code = CODES.get(error.status_code, "bad_request")
    message = str(error.detail or http.HTTPStatus(error.status_code).phrase)
    return await on_request_error(request, RequestError(error.status_code, code, message, error.headers))


async def on_validation_error(request: Request, error: Exception) -> JSONResponse:
    """Handler of malformed parameters of routes that declare them."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    message = f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    return await on_request_error(request, RequestError(422, "bad_option", message))


def _method(scope: Scope) -> str:
    method = str(scope["method"])
    return method if method in http.HTTPMethod.__members__ else "other"
