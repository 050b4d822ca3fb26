"""Exported files: they give PyTorch's keypoints, say what they are, and what fails the gate is not left behind."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import openvino
import pytest
import torch
from serving import encode_picture, single_thread

import pose
from app.engines.torch import TorchEngine
from app.export import ExportError, export, open_onnx, real_crops
from model.networks.pixels import PixelNetwork
from model.package import Package, load_package
from model.parity import GATE, Crops, ParityError, check_shift, measure_shift

GUIDE = Path(__file__).parents[2] / "docs" / "export.md"


@pytest.fixture(scope="module")
def package(pose_package: Path) -> Package:
    return load_package(str(pose_package))


@pytest.fixture(scope="module")
def reference(package: Package) -> TorchEngine:
    return TorchEngine(PixelNetwork(package.network, package.card), "cpu", "f32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, package: Package, converted: Path) -> Path:
    """Both formats."""
    folder = tmp_path_factory.mktemp("exported") / "new"
    with single_thread():
        assert export(package, "onnx", folder, converted) == [folder / "random_w16.onnx"]
        assert export(package, "openvino", folder, converted) == [folder / f"random_w16.{x}" for x in ("bin", "xml")]
    return folder


def test_nothing_else_is_left_in_the_folder(folder: Path) -> None:
    assert sorted(path.name for path in folder.iterdir()) == [f"random_w16.{x}" for x in ("bin", "onnx", "xml")]


@pytest.mark.parametrize("count", [1, 3])
def test_an_onnx_file_gives_the_networks_heatmaps_for_any_batch(
    folder: Path, package: Package, reference: TorchEngine, count: int
) -> None:
    crops = real_crops(package).pixels[:count]
    heatmaps = torch.from_numpy(open_onnx(folder / "random_w16.onnx")(crops))
    torch.testing.assert_close(heatmaps, reference(crops), atol=1e-3, rtol=1e-3)


def test_files_say_what_they_are(folder: Path, package: Package) -> None:
    import onnxruntime

    session = onnxruntime.InferenceSession(folder / "random_w16.onnx", providers=["CPUExecutionProvider"])
    told = session.get_modelmeta().custom_metadata_map
    model = openvino.Core().read_model(folder / "random_w16.xml")
    assert {name: model.get_rt_info(["pose", name]).astype(str) for name in told} == told
    assert json.loads(told["joints"]) == list(package.skeleton.joints)
    assert json.loads(told["input_size"]) == [96, 64]
    assert (told["sha256"], told["activation"]) == (package.card.sha256, "softmax")
    assert session.get_inputs()[0].shape == ["batch", 96, 64, 3]


def test_a_file_that_misses_the_gate_is_not_left_and_an_older_one_stays(
    tmp_path: Path, package: Package, converted: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "random_w16.xml").write_text("older")
    monkeypatch.setattr("app.export.compile_float32", lambda _: lambda crops: torch.zeros(len(crops), 17, 24, 16))
    with single_thread(), pytest.raises(ParityError, match=r"the openvino file of random_w16 moves .* the limits are"):
        export(package, "openvino", tmp_path, converted)
    assert [path.read_text() for path in tmp_path.iterdir()] == ["older"]


def test_a_missing_library_is_named_before_any_work(
    tmp_path: Path, package: Package, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("app.export.find_spec", lambda name: None if name == "onnxruntime" else name)
    with pytest.raises(ExportError, match=r"onnxruntime missing: pip install 'pose-server\[export\]'"):
        export(package, "onnx", tmp_path / "new", tmp_path)
    assert not (tmp_path / "new").exists()


def with_network(package: Package, network: torch.nn.Module) -> Package:
    """The package, whose weights are not read."""
    altered = replace(package)
    vars(altered)["network"] = network
    return altered


class Red(torch.nn.Module):
    """Every joint is where the crop is reddest."""

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        red = (pixels[:, :1] - pixels[:, 1:].amax(1, keepdim=True)).expand(-1, 17, -1, -1)
        return torch.nn.functional.avg_pool2d(red, 4)


def test_the_guides_example_finds_the_joints(tmp_path: Path, package: Package, converted: Path) -> None:
    found = re.search(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)
    assert found is not None
    (tmp_path / "example.py").write_text(found[1])
    with single_thread():
        [file] = export(with_network(package, Red()), "onnx", tmp_path, converted)
    dots, boxes = [(150, 90), (300, 210)], [[110, 40, 190, 160], [250, 100, 330, 320]]
    picture = np.full((360, 400, 3), 90, np.uint8)
    for dot in dots:
        cv2.circle(picture, dot, 5, (255, 0, 0), -1)
    (tmp_path / "photo.png").write_bytes(encode_picture(picture))
    command = [sys.executable, "example.py", file.name, "photo.png", json.dumps(boxes)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8", check=True)
    people = [json.loads(line) for line in done.stdout.splitlines()]
    assert [list(person) for person in people] == [list(package.skeleton.joints)] * 2
    for person, dot, (_, top, _, bottom) in zip(people, dots, boxes, strict=True):
        pixel = (bottom - top) * package.card.padding / 95  # of the crop, in pixels of the picture
        assert np.abs(np.array(list(person.values())) - dot).max() <= 3 * pixel


def test_the_gate_measures_pixels_of_the_picture(package: Package, reference: TorchEngine) -> None:
    crops = real_crops(package)
    some = Crops(crops.pixels[:4], np.stack([np.array([[3.0, 0, 10], [0, 3.0, 20]])] * 4))

    def one_heatmap_pixel_right(pixels: np.ndarray) -> torch.Tensor:
        return reference(pixels).roll(1, -1)

    with single_thread():
        same = measure_shift(reference, reference, some, package)
        moved = measure_shift(one_heatmap_pixel_right, reference, some, package)
    check_shift(same, "the same")
    assert same.joints > 0
    assert (same.mean, same.high) == (0, 0)
    step = package.codec.scale[0] * 3
    assert moved.mean > 0.8 * step
    with pytest.raises(ParityError, match=r"moved moves \d+ keypoints of real people by .* limits are 0\.1 and 0\.5"):
        check_shift(moved, "moved", GATE)


def test_the_help_has_examples(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        pose.main(["export", "--help"])
    assert "pose export packages/mine --format openvino -o out" in capsys.readouterr().out
