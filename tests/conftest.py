"""A pose package of random weights, the pipeline that serves it, and real servers on loopback."""

import contextlib
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from serving import Gate, Running, run_server, single_thread, write_random_package

from app.pipeline import Pipeline
from app.service import load
from app.settings import Settings
from model.inference import Engine


@pytest.fixture(scope="session")
def pictures() -> dict[str, bytes]:
    """Real pictures of people, as JPEG files: `bus` (810 x 1080) and `zidane` (1280 x 720)."""
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    folder = Path(spec.origin).parent / "assets"
    return {name: (folder / f"{name}.jpg").read_bytes() for name in ("bus", "zidane")}


@pytest.fixture(scope="session")
def pose_package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A package of random weights."""
    return write_random_package(tmp_path_factory.mktemp("packages") / "random_w16")


@pytest.fixture(scope="session")
def converted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that all tests share: converting the bundled networks takes a while."""
    return tmp_path_factory.mktemp("converted")


@pytest.fixture(scope="session")
def settings(pose_package: Path, converted: Path) -> Settings:
    """Settings of the test servers: the float32 reference engine, every picture one person."""
    return Settings(
        model=str(pose_package),
        detector="none",
        engine="torch",
        device="cpu",
        threads=1,
        cache=converted,
        drain_timeout=20,
    )


@pytest.fixture(scope="session")
def pipeline(settings: Settings) -> Iterator[Pipeline]:
    """The models, loaded and warm."""
    with single_thread():
        yield load(settings)


@pytest.fixture(scope="session")
def server(settings: Settings, pipeline: Pipeline) -> Iterator[Running]:
    """One server for all tests that leave it as it was."""
    with run_server(settings, pipeline) as running:
        yield running


@pytest.fixture
def start(settings: Settings, pipeline: Pipeline) -> Iterator[Callable[..., Running]]:
    """Starts a server of its own for a test, with some settings changed; `engine` wraps the pose engine."""
    with contextlib.ExitStack() as stack:

        def run(*, engine: Engine | None = None, **changed: object) -> Running:
            own = Settings.model_validate(settings.model_dump() | changed)
            models = pipeline
            if engine is not None:
                models = Pipeline(own, pipeline.package, engine, pipeline.runtime, pipeline.choice)
            return stack.enter_context(run_server(own, models))

        yield run


@pytest.fixture
def gate(pipeline: Pipeline) -> Iterator[Gate]:
    """A closed gate before the pose engine; it is opened when the test ends."""
    gate = Gate(pipeline.engine)
    yield gate
    gate.opened.set()
