"""Which detector serves, and what becomes of one that cannot."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from serving import single_thread

from app.detector import NetworkDetector, choose_detector
from app.engines import Runtime
from model.errors import PackageError
from model.offline import keep_ultralytics_offline
from model.person_detector import PersonDetector
from training.detector import write_detector_package

TORCH = Runtime("torch", "cpu", "f32", 1)
PICTURES = [np.random.default_rng(i).integers(0, 256, (90 + 40 * i, 120, 3), np.uint8) for i in range(3)]


@pytest.fixture(scope="module", params=[True, False], ids=["end-to-end head", "head with suppression"])
def package(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A detector of random weights that finds people everywhere."""
    keep_ultralytics_offline()
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    network: Any = DetectionModel("yolo26n.yaml", nc=1, verbose=False)
    for head in (network.model[-1].cv3, network.model[-1].one2one_cv3):
        for branch in head:
            branch[-1].bias.data.zero_()  # else no random network finds anybody
    for layer in network.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.momentum = None  # running statistics of the noise below, so that scores and boxes differ
            layer.reset_running_stats()
    with torch.no_grad(), single_thread():
        network.train()(torch.rand(4, 3, 96, 96, generator=torch.Generator().manual_seed(0)))
    folder = tmp_path_factory.mktemp("packages") / "person"
    card = {"name": "random_person", "version": "0", "classes": ["person"], "input_size": 96}
    return write_detector_package(network.eval(), folder, card, end_to_end=request.param)


def test_a_package_by_its_folder_serves(package: Path, tmp_path: Path) -> None:
    with single_thread():
        choice = choose_detector(str(package), TORCH, tmp_path)
        found = choice.detector.detect(PICTURES)
    assert (choice.detector.name, choice.notes) == ("random_person", [])
    for (boxes, scores), picture in zip(found, PICTURES, strict=True):
        assert len(boxes) == len(scores) > 0
        assert (boxes >= 0).all()
        assert (boxes[:, 2:] <= [picture.shape[1], picture.shape[0]]).all()
        assert (np.diff(scores) <= 0).all()


def test_a_picture_is_found_alike_alone_and_in_a_batch(package: Path, tmp_path: Path) -> None:
    with single_thread():
        detector = choose_detector(str(package), TORCH, tmp_path).detector
        together = detector.detect(PICTURES)
        alone = [detector.detect([picture])[0] for picture in PICTURES]
    assert detector.detect([]) == []
    for (boxes, scores), (same_boxes, same_scores) in zip(together, alone, strict=True):
        np.testing.assert_allclose(scores[:10], same_scores[:10], atol=1e-4)
        np.testing.assert_allclose(boxes[:3], same_boxes[:3], atol=0.05)


@pytest.mark.parametrize("engine", ["torch", "openvino"])
def test_an_engine_takes_over_the_forward_pass_and_nothing_else(engine: str, package: Path, tmp_path: Path) -> None:
    runtime = Runtime(engine, "cpu", "f32", 1)
    with single_thread():
        detector = choose_detector(str(package), runtime, tmp_path).detector
        assert isinstance(detector, NetworkDetector)
        expected = PersonDetector.from_package(package).detect(PICTURES)
        found = detector.detect(PICTURES)
    for (boxes, scores), (same_boxes, same_scores) in zip(found, expected, strict=True):
        np.testing.assert_allclose(scores[:10], same_scores[:10], atol=1e-4)
        np.testing.assert_allclose(boxes[:3], same_boxes[:3], atol=0.05)


@pytest.mark.parametrize("kind", ["missing file", "no checkpoint", "damaged package"])
def test_a_detector_that_cannot_serve_gives_way_to_the_bundled_one(
    kind: str, package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    bad = tmp_path / "own.pt"
    if kind == "no checkpoint":
        bad.write_bytes(b"no pickle at all")
    elif kind == "damaged package":
        bad.mkdir()
        (bad / "card.json").write_text("{}")
    monkeypatch.setattr("app.detector._bundled", lambda: str(package))
    with single_thread():
        choice = choose_detector(str(bad), TORCH, tmp_path)
    assert choice.detector.name == "random_person"
    [note] = choice.notes
    assert "own.pt' is not used, the bundled one serves" in note
    assert note in caplog.text


def test_without_a_bundled_detector_the_way_out_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("app.detector.bundled_packages", lambda **_: [])
    with pytest.raises(PackageError, match="POSE_DETECTOR=none"):
        choose_detector("bundled", TORCH, tmp_path)
