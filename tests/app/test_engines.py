"""Engines give the network's numbers, whatever runs them; and what is asked for is what runs."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import openvino
import pytest
import torch
from serving import ROOT, single_thread

from app.detector import WholePicture, choose_detector
from app.engines import Runtime, choose_runtime, convert_apart, create_pose_engine, on_one_core
from app.settings import Settings, SettingsError
from model.cpu import has_bf16
from model.errors import PackageError
from model.inference import estimate
from model.networks.pixels import PixelNetwork
from model.package import load_package

CROPS = np.random.default_rng(0).integers(0, 256, (5, 96, 64, 3), np.uint8)


@pytest.fixture(scope="module")
def reference(pose_package: Path) -> torch.Tensor:
    """(5, 17, 24, 16): the float32 network's heatmaps of CROPS."""
    package = load_package(str(pose_package))
    with torch.inference_mode(), single_thread():
        return PixelNetwork(package.network, package.card).eval()(torch.from_numpy(CROPS))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def runtime(engine: str, precision: str) -> Runtime:
    return Runtime(engine, "cpu", precision, 1)


def test_a_package_can_be_converted_in_a_process_of_its_own(
    pose_package: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    convert_apart(str(pose_package), runtime("openvino", "f32"), cache)
    monkeypatch.setattr("app.engines.openvino.convert", None)  # in this process nothing can be converted
    create_pose_engine(load_package(str(pose_package)), runtime("openvino", "f32"), cache)


def test_a_process_that_cannot_convert_is_an_error_here(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.choice._convert", abs)  # fails: it is given three arguments
    with pytest.raises(PackageError, match=r"some cannot be converted for openvino .* ended with status 1 "):
        convert_apart("some", runtime("openvino", "f32"), cache)


def test_nothing_is_converted_for_torch(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.choice._convert", abs)
    convert_apart("some", runtime("torch", "f32"), cache)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_float32_engines_give_the_networks_heatmaps(
    engine: str, pose_package: Path, cache: Path, reference: torch.Tensor
) -> None:
    with single_thread():
        run = create_pose_engine(load_package(str(pose_package)), runtime(engine, "f32"), cache)
        heatmaps = torch.as_tensor(run(CROPS))
        alone = torch.cat([torch.as_tensor(run(CROPS[i : i + 1])) for i in range(len(CROPS))])
    torch.testing.assert_close(heatmaps, reference, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(alone, heatmaps, atol=1e-3, rtol=1e-3)


def engines_with_bf16() -> list[str]:
    return ["torch", "openvino"] if has_bf16() else ["torch"]


@pytest.mark.parametrize("engine", engines_with_bf16())
def test_bf16_engines_end_in_float32(engine: str, pose_package: Path, cache: Path, reference: torch.Tensor) -> None:
    package = load_package(str(pose_package))
    with single_thread():
        heatmaps = torch.as_tensor(create_pose_engine(package, runtime(engine, "bf16"), cache)(CROPS))
    assert heatmaps.dtype == torch.float32
    fine = heatmaps.contiguous().view(torch.int32) & 0xFFFF  # what bf16 has no room for
    assert (fine != 0).float().mean() > 0.9
    assert (heatmaps - reference).abs().mean() < 0.05 * reference.std()


def test_the_second_start_takes_the_converted_network(pose_package: Path, cache: Path) -> None:
    package = load_package(str(pose_package))
    with single_thread():
        create_pose_engine(package, runtime("openvino", "f32"), cache)
        kept = {path: path.stat().st_mtime_ns for path in cache.iterdir()}
        create_pose_engine(package, runtime("openvino", "f32"), cache)
    assert {path.suffix or path.name for path in kept} == {".xml", ".bin", ".blob", ".lock"}  # converted, and compiled
    assert {path: path.stat().st_mtime_ns for path in cache.iterdir()} == kept


@pytest.mark.parametrize("threads", [1, 2])
def test_sizes_that_are_compiled_on_their_own_give_the_same(
    threads: int, pose_package: Path, cache: Path, reference: torch.Tensor
) -> None:
    fixed = Runtime("openvino", "cpu", "f32", threads, sizes=(1, 2))
    run = create_pose_engine(load_package(str(pose_package)), fixed, cache)
    for size in (1, 2, 3, 4, 5):
        for way in (run, on_one_core(run)):
            torch.testing.assert_close(torch.as_tensor(way(CROPS[:size])), reference[:size], atol=1e-3, rtol=1e-3)


def test_cores_that_run_side_by_side_give_the_same(pose_package: Path, cache: Path, reference: torch.Tensor) -> None:
    run = create_pose_engine(load_package(str(pose_package)), Runtime("openvino", "cpu", "f32", 2, sizes=(1, 2)), cache)
    with ThreadPoolExecutor(5) as pool:
        places = [i % 4 for i in range(24)]
        found = list(pool.map(lambda i: (on_one_core(run) if i else run)(CROPS[i : i + 1 + i % 2]), places))
    for i, heatmaps in zip(places, found, strict=True):
        torch.testing.assert_close(torch.as_tensor(heatmaps), reference[i : i + 1 + i % 2], atol=1e-3, rtol=1e-3)


FIRST_RUN_ON_TWO_CORES = """
import builtins, sys, time
from pathlib import Path
import numpy as np, torch
from app.engines.openvino import OpenVINOEngine

find = builtins.__import__
def slowly(name, *arguments):
    if name.startswith("numpy"):
        time.sleep(0.2)  # the other core's thread comes here too
    return find(name, *arguments)
builtins.__import__ = slowly

crops = np.ones((4, 3, 8, 8), np.float32)
engine = OpenVINOEngine(torch.nn.ReLU, crops, "relu", "f32", 2, Path(sys.argv[1]), sizes=(1, 2))
assert (engine(crops) == crops).all()
"""


def test_the_first_run_may_be_on_two_cores(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-c", FIRST_RUN_ON_TWO_CORES, tmp_path], cwd=ROOT, check=True, timeout=120)


def test_a_damaged_cache_and_one_that_cannot_be_written_do_no_harm(
    pose_package: Path,
    cache: Path,
    tmp_path: Path,
    reference: torch.Tensor,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    package = load_package(str(pose_package))
    create_pose_engine(package, runtime("openvino", "f32"), cache)
    [converted] = cache.glob("*.xml")
    model = openvino.Core().read_model(converted)
    monkeypatch.setattr("app.engines.openvino.convert", lambda *_: model)  # which takes half a minute
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for kept in (converted, *cache.glob("*.blob")):
        (damaged / kept.name).write_text("no network")
    (tmp_path / "file").touch()
    for folder, warning in ((damaged, "cannot be read"), (tmp_path / "file" / "cache", "is not kept")):
        heatmaps = torch.as_tensor(create_pose_engine(package, runtime("openvino", "f32"), folder)(CROPS))
        assert warning in caplog.text
        torch.testing.assert_close(heatmaps, reference, atol=1e-3, rtol=1e-3)


def test_auto_takes_openvino_on_a_machine_without_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.choice.has_cuda", lambda: False)
    chosen = choose_runtime(Settings())
    assert (chosen.engine, chosen.device) == ("openvino", "cpu")
    assert chosen.precision == ("bf16" if has_bf16() else "f32")
    assert chosen.threads >= 1


def test_auto_takes_torch_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("app.engines.choice.has_cuda", lambda: True)
    assert choose_runtime(Settings(threads=3)) == Runtime("torch", "cuda", "f16", 3)
    assert choose_runtime(Settings(precision="bf16")).precision == "bf16"
    assert choose_runtime(Settings(engine="openvino")).device == "cpu"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        pytest.param(Settings(device="cuda"), "POSE_DEVICE=cuda, but torch finds no CUDA", id="no GPU"),
        pytest.param(Settings(precision="bf16"), "POSE_PRECISION=bf16, but this CPU", id="no bf16"),
        pytest.param(Settings(precision="f16"), "POSE_PRECISION=f16 is for a GPU", id="f16 without a GPU"),
    ],
)
def test_what_is_asked_for_and_missing_is_an_error(
    settings: Settings, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.engines.choice.has_cuda", lambda: False)
    monkeypatch.setattr("app.engines.choice.has_bf16", lambda: False)
    with pytest.raises(SettingsError, match=message):
        choose_runtime(settings)


def test_flip_test_needs_nothing_of_an_engine(pose_package: Path, cache: Path) -> None:
    package = load_package(str(pose_package))
    with single_thread():
        engine = create_pose_engine(package, runtime("torch", "f32"), cache)
        keypoints, scores = estimate(engine, CROPS, package.codec, package.skeleton, flip_test=True)
    assert keypoints.shape == (5, 17, 2)
    assert scores.shape == (5, 17)


def test_no_detector_takes_the_whole_picture() -> None:
    detector = choose_detector("none", runtime("torch", "f32"), Path("unused")).detector
    assert isinstance(detector, WholePicture)
    [(boxes, scores)] = detector.detect([np.zeros((20, 30, 3), np.uint8)])
    assert (boxes.tolist(), scores.tolist()) == ([[0, 0, 30, 20]], [1])
