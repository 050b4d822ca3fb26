"""Human pose estimation: POST a picture, get every person's keypoints."""

import asyncio
import logging
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import PackageNotFoundError, version
from types import FrameType

import uvicorn
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi_offline import FastAPIOffline
from starlette.exceptions import HTTPException

from app.errors import RequestError
from app.metrics import Metrics
from app.middleware import DOCS, Gateway, on_http_error, on_request_error, on_validation_error
from app.pipeline import Pipeline
from app.reload import Reloader
from app.routes import about, batch, inference_protocol, pose
from app.service import Service, load
from app.settings import Settings

logger = logging.getLogger(__name__)

LAST_CALL = 1.0  # seconds for requests on connections that came in just before the door was closed
LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s %(message)s"


def create_app(settings: Settings, pipeline: Pipeline | None = None) -> FastAPI:
    """The ASGI application.

    Args:
        pipeline: models that are loaded and warm already. Where they are neither given nor in `app.state.service` when
            the application starts, it loads them.
    """
    metrics = Metrics()
    service = Service(settings, metrics)
    reloader = Reloader(service)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not service.opened:
            service.open(pipeline or load(settings))
        async with reloader.running():
            yield
        service.close()

    app = FastAPIOffline(  # its page at /docs brings its own scripts, so it works without a network
        title="Pose estimation",
        version=_version(),
        description=__doc__,
        lifespan=lifespan,
        redoc_url=None,
        static_url=f"{DOCS}/assets",
        redirect_slashes=False,
    )
    app.state.service, app.state.reloader = service, reloader
    app.include_router(pose.router)
    app.include_router(batch.router)
    app.include_router(about.router)
    app.include_router(inference_protocol.router)
    app.add_exception_handler(RequestError, on_request_error)
    app.add_exception_handler(HTTPException, on_http_error)
    app.add_exception_handler(RequestValidationError, on_validation_error)
    app.add_middleware(Gateway, service=service, routes={*app.openapi()["paths"], DOCS, "/openapi.json"})
    return app


class Server(uvicorn.Server):
    """uvicorn that, told to stop, first lets accepted requests finish while it still listens: probes and new requests
    are then answered 503 instead of finding a closed door."""

    def __init__(self, config: uvicorn.Config, service: Service) -> None:
        super().__init__(config)
        self.service = service

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 - uvicorn's signature
        """On SIGTERM and SIGINT; a second one does not wait."""
        self.force_exit = self.should_exit
        self.should_exit = True

    async def main_loop(self) -> None:
        """Serve until told to stop, then drain."""
        await super().main_loop()
        self.service.drain()
        end = time.monotonic() + self.service.settings.drain_timeout
        while self.service.requests and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.05)
        for server in self.servers:
            server.close()
        end = time.monotonic() + LAST_CALL
        while self._has_new_connections() and time.monotonic() < end and not self.force_exit:
            await asyncio.sleep(0.02)

    def _has_new_connections(self) -> bool:
        """Whether somebody who was let in has not been heard yet: he gets his 503 instead of silence."""
        return any(getattr(connection, "cycle", 0) is None for connection in self.server_state.connections)


def serve(settings: Settings) -> int:
    """Load the models and serve until SIGTERM or SIGINT; returns 0 once drained.

    Raises:
        PackageError, SettingsError, CanaryError: see `load`; nothing listens then.
    """
    logging.basicConfig(format=LOG_FORMAT)
    logging.getLogger().setLevel(settings.log_level.upper())
    app = create_app(settings)
    service, reloader = app.state.service, app.state.reloader
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=1,
    )
    server = Server(config, service)
    _handle_hangup(server, reloader)  # before loading: a package may be replaced meanwhile
    signal.signal(signal.SIGTERM, _stop)  # until the server heeds it: a container's first process ignores it else
    service.open(load(settings))
    server.run()
    if reloader.loading:  # a thread cannot be interrupted, and nobody waits for it any more
        for process in multiprocessing.active_children():
            process.terminate()
        os._exit(0)
    return 0


def _stop(sig: int, _: FrameType | None) -> None:
    sys.exit(128 + sig)


def _handle_hangup(server: Server, reloader: Reloader) -> None:
    """SIGHUP reloads the package. From a terminal that is closed it means, as ever, to stop; nohup prevents that."""
    from_terminal = _has_terminal() and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN

    def handle(sig: int, frame: FrameType | None) -> None:
        if from_terminal and not _has_terminal():
            server.handle_exit(sig, frame)
        else:
            reloader.ask()

    signal.signal(signal.SIGHUP, handle)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True


def _version() -> str:
    try:
        return version("pose-server")
    except PackageNotFoundError:
        return "0"
