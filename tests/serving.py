"""Helpers of the service's tests: real servers on loopback, pictures as files, and waiting."""

import contextlib
import io
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import httpx
import numpy as np
import torch
import uvicorn
from PIL import Image

from app.main import Server, create_app
from app.pipeline import Pipeline
from app.service import Service
from app.settings import Settings
from model.codec import HeatmapCodec
from model.inference import Engine


@contextlib.contextmanager
def single_thread() -> Iterator[None]:
    """PyTorch on one thread: small networks run faster so, above all on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@dataclass(frozen=True)
class Running:
    """A server on loopback and a client for it."""

    server: Server
    service: Service
    client: httpx.Client
    port: int

    def pose(self, data: bytes, **arguments: object) -> httpx.Response:
        """POST a picture as the body."""
        headers = {"content-type": "application/octet-stream", **arguments.pop("headers", {})}
        return self.client.post("/pose", content=data, headers=headers, **arguments)


@contextlib.contextmanager
def run_server(settings: Settings, pipeline: Pipeline) -> Iterator[Running]:
    """A real uvicorn in a thread of its own; it has drained when this returns."""
    pipeline = Pipeline(settings, pipeline.package, pipeline.engine, pipeline.runtime, pipeline.choice)
    app = create_app(settings, pipeline)
    service = app.state.service
    server = Server(uvicorn.Config(app, port=0, log_config=None, access_log=False), service)
    thread = threading.Thread(target=server.run, name="server")
    thread.start()
    wait_until(lambda: server.started or not thread.is_alive())
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False) as client:
            yield Running(server, service, client, port)
    finally:
        server.should_exit = True
        thread.join(60)
        assert not thread.is_alive()


class Gate:
    """A pose engine that stands still until it is opened: for tests of what happens while work waits."""

    def __init__(self, engine: Engine) -> None:
        self.engine, self.opened, self.entered = engine, threading.Event(), threading.Event()
        self.batches: list[int] = []

    def __call__(self, crops: np.ndarray) -> torch.Tensor:
        self.entered.set()
        assert self.opened.wait(60)
        self.batches.append(len(crops))
        return self.engine(crops)


def find_dots(crops: np.ndarray) -> torch.Tensor:
    """An engine whose every joint is the crop's red dot: for tests of geometry, where the truth is known."""
    pixels = crops.astype(np.float32)
    red = torch.from_numpy(pixels[..., 0] - pixels[..., 1:].max(-1)).clamp(min=0) + 1e-6  # (N, H, W)
    height, width = red.shape[1:]
    total = red.sum((1, 2))
    x = (red.sum(1) * torch.arange(width)).sum(1) / total
    y = (red.sum(2) * torch.arange(height)).sum(1) / total
    dots = torch.stack([x, y], -1)[:, None].expand(-1, 17, -1)
    return HeatmapCodec((height, width), 1.0).encode(dots).clamp(min=1e-9).log()


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    """Return once `condition` holds."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def encode_picture(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: object) -> bytes:
    """A picture as a file; lossless unless JPEG."""
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, kind, **({"lossless": True} if kind == "WEBP" else {}), **options)
    return buffer.getvalue()
