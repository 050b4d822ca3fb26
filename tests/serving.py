"""Helpers of the service's tests: real servers on loopback, pictures as files, and waiting."""

import contextlib
import io
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import torch
import uvicorn
from PIL import Image

from app.main import Server, create_app
from app.pipeline import Pipeline
from app.reload import Reloader
from app.service import Service
from app.settings import Settings
from model.codec import HeatmapCodec
from model.inference import Engine
from model.networks import build
from model.package import replace_folder, write_package
from model.skeletons import SKELETONS

ROOT = Path(__file__).parents[1]
SIZE = (96, 64)


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

    @property
    def reloader(self) -> Reloader:
        """What takes a new package in."""
        return self.server.config.app.state.reloader

    def pose(self, data: bytes, **arguments: object) -> httpx.Response:
        """POST a picture as the body."""
        headers = {"content-type": "application/octet-stream", **arguments.pop("headers", {})}
        return self.client.post("/pose", content=data, headers=headers, **arguments)


def write_random_package(
    folder: Path, *, seed: int = 0, version: str = "1", skeleton: str = "coco17", size: tuple[int, int] = SIZE
) -> Path:
    """A small network of random weights whose heatmaps have clear peaks, so that answers are quick and stable."""
    torch.manual_seed(seed)
    joints = len(SKELETONS[skeleton])
    network = build("sdhrnet_w16", joints)
    noise = torch.rand(4, 3, *size, generator=torch.Generator().manual_seed(seed)) * 4 - 2
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # running statistics of what follows, so that activations keep their size
    with torch.no_grad(), single_thread():
        network.train()(noise)
        spread = network.eval()(noise).std()
        network.head.weight *= 4 / spread
    fields = {
        "name": "random_w16",
        "version": version,
        "architecture": {"name": "sdhrnet_w16", "joints": joints},
        "input_size": size,
        "skeleton": skeleton,
        "codec": {"sigma": 1.0, "activation": "softmax"},
        "git_commit": "none",
        "created": "2000-01-01",
        "licence": "none",
        "data": [],
        "recipe": {},
        "evaluation": [],
    }
    write_package(folder, fields, network.state_dict())
    return folder


def publish(package: Path, folder: Path) -> None:
    """Put a copy of the package in the folder's place, in one step."""
    beside = folder.with_name(f".{folder.name}.new")
    shutil.copytree(package, beside)
    replace_folder(beside, folder)


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


def environment(pose_package: Path, tmp_path: Path, **changed: str) -> dict[str, str]:
    """Environment variables of a server like the test servers, on a free port."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("POSE_")}
    own = {
        "POSE_MODEL": str(pose_package),
        "POSE_DETECTOR": "none",
        "POSE_ENGINE": "torch",
        "POSE_THREADS": "1",
        "POSE_PORT": "0",
        "POSE_CACHE": str(tmp_path / "cache"),
        "PYTHONUNBUFFERED": "1",
    }
    return kept | own | changed


class Process:
    """`pose serve` on a free port; `log` is what it has written so far."""

    def __init__(
        self, variables: dict[str, str], command: Sequence[str] = ("-m", "pose", "serve"), stdin: int | None = None
    ) -> None:
        arguments = [sys.executable, *command]
        self.popen = subprocess.Popen(
            arguments, cwd=ROOT, env=variables, stdin=stdin, stderr=subprocess.PIPE, encoding="utf-8"
        )
        self.log = ""
        self.reader = threading.Thread(target=self._read)
        self.reader.start()

    def _read(self) -> None:
        assert self.popen.stderr is not None
        for line in self.popen.stderr:
            self.log += line

    def url(self) -> str:
        """Where it listens, once it does."""
        self.wait_for("running on http")
        found = re.search(r"running on (http://\S+)", self.log)
        assert found, self.log
        return found[1]

    def wait_for(self, words: str) -> None:
        """Return once the log has them, or the process has ended."""
        wait_until(lambda: words in self.log or self.popen.poll() is not None, 120)

    def end(self) -> int:
        """The exit status."""
        status = self.popen.wait(60)
        self.reader.join(60)
        assert self.popen.stderr is not None
        self.popen.stderr.close()
        return status


def one_by_one(engine: Engine) -> Engine:
    """The engine, with results that are the same to the last bit in any batch, which PyTorch does not promise."""
    return lambda crops: torch.cat([engine(crops[i : i + 1]) for i in range(len(crops))])


def metric(server: Running, line: str) -> float:
    """The value of one sample; 0 where there is none."""
    for found in server.client.get("/metrics").text.splitlines():
        if found.startswith(line + " "):
            return float(found.rsplit(" ", 1)[1])
    return 0.0


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
