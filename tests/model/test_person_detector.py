"""The person detector: geometry, batching, packages, and silence on the network."""

import hashlib
import json
import os
import socket
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import save

from model.errors import PackageError
from model.offline import keep_ultralytics_offline
from model.person_detector import CARD, NETWORK, WEIGHTS, Letterbox, PersonDetector, letterbox
from training.detector import write_detector_package

SIZE = 96
CARD_CONTENT: dict[str, Any] = {"name": "random", "version": "0", "classes": ["person"], "input_size": SIZE}


def picture(height: int, width: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError(f"network reached with {args} {kwargs}")

    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, refuse)
    for name in ("getaddrinfo", "gethostbyname", "create_connection"):
        monkeypatch.setattr(socket, name, refuse)


@pytest.fixture(scope="module")
def network() -> Any:
    keep_ultralytics_offline()
    from ultralytics.nn.tasks import DetectionModel

    torch.manual_seed(0)
    network = DetectionModel("yolo26n.yaml", nc=1, verbose=False)
    for head in (network.model[-1].cv3, network.model[-1].one2one_cv3):
        for branch in head:
            branch[-1].bias.data.zero_()  # else no random network finds anybody
    return network.eval()


@pytest.fixture(scope="module", params=[True, False], ids=["end-to-end head", "head with suppression"])
def package(request: pytest.FixtureRequest, network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packages") / "person"
    return write_detector_package(network, folder, CARD_CONTENT, end_to_end=request.param)


@pytest.fixture(scope="module")
def detector(package: Path) -> PersonDetector:
    return PersonDetector.from_package(package, score=0.01, limit=40, batch=3)


@pytest.mark.parametrize("shape", [(480, 640), (640, 480), (7, 500), (500, 7), (1, 1), (96, 96), (1, 4000), (33, 31)])
def test_letterbox_brings_boxes_back(shape: tuple[int, int]) -> None:
    height, width = shape
    square, record = letterbox(picture(height, width), SIZE)
    assert square.shape == (SIZE, SIZE, 3)
    assert square.dtype == np.uint8
    boxes = np.array([[0, 0, width, height], [width / 4, height / 3, width / 2, height]], dtype=np.float32)
    inside = record.to_square(boxes)
    assert inside.min() >= -1e-3
    assert inside.max() <= SIZE + 1e-3
    np.testing.assert_allclose(record.to_picture(inside), boxes, atol=1e-2)


def test_letterbox_puts_the_picture_where_its_record_says() -> None:
    image = np.zeros((50, 100, 3), dtype=np.uint8)
    image[10:30, 40:80] = 255
    square, record = letterbox(image, 200)
    x1, y1, x2, y2 = record.to_square(np.array([[40, 10, 80, 30]], dtype=np.float32))[0].astype(int)
    assert (square[y1 + 2 : y2 - 2, x1 + 2 : x2 - 2] == 255).all()
    assert not square[y1 - 3, x1:x2].any()
    assert not square[y1:y2, x2 + 3].any()
    assert (square[:50] == 114).all()


def test_boxes_are_cut_to_the_picture() -> None:
    record = Letterbox(width=20, height=10, scale_x=1.0, scale_y=1.0, left=0, top=5)
    cut = record.to_picture(np.array([[-5, -5, 99, 99]], dtype=np.float32))
    np.testing.assert_array_equal(cut, [[0, 0, 20, 10]])


def test_no_pictures_give_no_results(detector: PersonDetector) -> None:
    assert detector.detect([]) == []
    inputs, records = detector.prepare([])
    assert inputs.shape == (0, 3, SIZE, SIZE)
    assert records == []


def test_batched_equals_single(detector: PersonDetector) -> None:
    images = [picture(h, w, h) for h, w in ((60, 90), (90, 60), (120, 40), (96, 96), (300, 500))]
    batched = detector.detect(images)
    assert len(batched) == len(images)
    for image, (boxes, scores) in zip(images, batched, strict=True):
        single_boxes, single_scores = detector.detect([image])[0]
        np.testing.assert_allclose(scores, single_scores, atol=1e-5)
        np.testing.assert_allclose(boxes, single_boxes, atol=1e-2)


@pytest.mark.parametrize("shape", [(1, 1), (2, 3000), (3000, 2), (5, 5), (700, 40)])
def test_results_are_sorted_and_lie_in_pictures_of_any_aspect(detector: PersonDetector, shape: tuple[int, int]) -> None:
    boxes, scores = detector.detect([picture(*shape)])[0]
    assert boxes.dtype == scores.dtype == np.float32
    assert boxes.shape == (len(scores), 4)
    assert len(scores) <= 40
    assert (np.diff(scores) <= 0).all()
    assert ((scores > 0) & (scores <= 1)).all()
    assert (boxes >= 0).all()
    assert (boxes[:, 0::2] <= shape[1]).all()
    assert (boxes[:, 1::2] <= shape[0]).all()
    assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_a_random_network_finds_something_else_these_tests_are_empty(detector: PersonDetector) -> None:
    assert len(detector.detect([picture(200, 300)])[0][1]) > 0


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3), np.float32), picture(0, 5)],
    ids=["grey", "four channels", "float", "empty"],
)
def test_what_is_no_picture_is_refused(detector: PersonDetector, image: Any) -> None:
    with pytest.raises(ValueError, match="must be"):
        detector.prepare([image])


def test_a_package_keeps_the_network(network: Any, package: Path) -> None:
    loaded = PersonDetector.from_package(package)
    original = deepcopy(network)
    original.end2end = "end2end: true" in (package / NETWORK).read_text()
    assert loaded.network.end2end == original.end2end
    original.names = {0: "person"}
    detector = PersonDetector(original, SIZE)
    inputs, _ = loaded.prepare([picture(80, 90)])
    ours, theirs = loaded.forward(inputs), detector.forward(inputs)
    assert ours.shape == theirs.shape
    scores = (ours[0, :, 4], theirs[0, :, 4]) if loaded.network.end2end else (ours[0, 4], theirs[0, 4])
    torch.testing.assert_close(*scores, atol=2e-2, rtol=0)
    assert loaded.card["name"] == "random"
    assert loaded.size == SIZE


def altered(package: Path, folder: Path, name: str, content: bytes | None) -> Path:
    for each in (WEIGHTS, CARD, NETWORK):
        (folder / each).write_bytes((package / each).read_bytes())
    if content is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        (WEIGHTS, b"other", "sha256"),
        (WEIGHTS, None, "missing"),
        (CARD, b"{", "card.json"),
        (CARD, b'{"sha256": "x"}', "input_size"),
        (CARD, b"[]", "card.json"),
        (NETWORK, b"backbone: []\nhead: []\nnc: 1\n", "do not make a network"),
        (NETWORK, b"backbone: [[-1, 1, load_checkpoint, [x.pt]]]\nhead: []\nnc: 1\n", "not a layer"),
        (NETWORK, b"backbone: [[-1, 1, TorchVision, [3, resnet18]]]\nhead: []\nnc: 1\n", "not a layer"),
        (NETWORK, b"activation: exit()\nbackbone: []\nhead: []\nnc: 1\n", "activation"),
    ],
    ids=[
        *("wrong weights", "no weights", "broken card", "short card", "list as card"),
        *("empty network", "function as layer", "layer that downloads", "code as activation"),
    ],
)
def test_a_faulty_package_is_refused(
    package: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    with pytest.raises(PackageError, match=message):
        PersonDetector.from_package(altered(package, tmp_path, name, content))


def test_weights_of_another_network_are_refused(package: Path, tmp_path: Path) -> None:
    weights = save({"weight": torch.zeros(3)})
    card = {**CARD_CONTENT, "sha256": hashlib.sha256(weights).hexdigest()}
    folder = altered(package, tmp_path, CARD, json.dumps(card).encode())
    (folder / WEIGHTS).write_bytes(weights)
    with pytest.raises(PackageError, match="do not make a network"):
        PersonDetector.from_package(folder)


def test_a_checkpoint_that_is_not_there_is_not_fetched() -> None:
    with pytest.raises(PackageError, match="does not exist"):
        PersonDetector.from_ultralytics("yolo26n.pt")


def test_a_checkpoint_is_read(network: Any, tmp_path: Path) -> None:
    network.names = {0: "cat"}
    network.task = "detect"
    torch.save({"model": network, "train_args": {}}, tmp_path / "cats.pt")
    with pytest.raises(PackageError, match="person"):
        PersonDetector.from_ultralytics(tmp_path / "cats.pt", size=SIZE)
    network.names = {0: "person"}
    torch.save({"model": network, "train_args": {}}, tmp_path / "people.pt")
    detector = PersonDetector.from_ultralytics(tmp_path / "people.pt", size=SIZE)
    assert detector.card["name"] == "people"
    assert len(detector.detect([picture(50, 50)])) == 1
    (tmp_path / "text.pt").write_bytes(b"no checkpoint")
    with pytest.raises(PackageError, match="no ultralytics checkpoint"):
        PersonDetector.from_ultralytics(tmp_path / "text.pt")


PROBE = """
import os, socket, sys
import numpy as np, torch, cv2
def refuse(*args, **kwargs):
    raise AssertionError(f"network reached with {args}")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = refuse
torch.set_num_threads(3)
cv2.setNumThreads(3)
before = (torch.get_num_threads(), cv2.getNumThreads(), os.environ.get("OMP_NUM_THREADS"), np.get_printoptions())
from model.person_detector import PersonDetector
detector = PersonDetector.from_package(sys.argv[1])
detector.detect([np.zeros((40, 60, 3), dtype=np.uint8)])
after = (torch.get_num_threads(), cv2.getNumThreads(), os.environ.get("OMP_NUM_THREADS"), np.get_printoptions())
assert before == after, (before, after)
from ultralytics.utils import ONLINE, SETTINGS, USER_CONFIG_DIR
assert not ONLINE and SETTINGS["sync"] is False
assert not str(USER_CONFIG_DIR).startswith(os.path.expanduser("~"))
"""


def test_a_fresh_process_stays_offline_and_keeps_its_threads(network: Any, tmp_path: Path) -> None:
    folder = write_detector_package(network, tmp_path / "person", CARD_CONTENT, end_to_end=True)
    hidden = ("OMP_NUM_THREADS", "YOLO_OFFLINE", "YOLO_AUTOINSTALL", "YOLO_CONFIG_DIR", "PYTEST_CURRENT_TEST")
    environment = {key: value for key, value in os.environ.items() if key not in hidden}
    environment["HOME"] = str(tmp_path / "home")
    root = Path(__file__).parents[2]
    result = subprocess.run(
        [sys.executable, "-c", PROBE, str(folder)], cwd=root, env=environment, capture_output=True, encoding="utf-8"
    )
    assert result.returncode == 0, result.stderr
    assert not (tmp_path / "home").exists()


def test_ultralytics_imported_too_early_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ultralytics.utils", SimpleNamespace(ONLINE=False, AUTOINSTALL=True))
    with pytest.raises(RuntimeError, match="call that first"):
        keep_ultralytics_offline()


@pytest.mark.parametrize("end_to_end", [False, True])
def test_people_are_chosen_as_ultralytics_does(end_to_end: bool) -> None:
    from ultralytics.utils.nms import non_max_suppression

    random = np.random.default_rng(3)
    centres, sides = random.uniform(0, SIZE, (400, 2)), random.uniform(5, 60, (400, 2))
    if end_to_end:
        corners = np.concatenate([centres - sides / 2, centres + sides / 2], 1)
        output = np.concatenate([corners, random.random((400, 1)), random.integers(0, 3, (400, 1))], 1)[None]
    else:
        output = np.concatenate([centres, sides, random.random((400, 3)) ** 4], 1).T[None]
    output = output.astype(np.float32)
    names = {0: "cat", 1: "person", 2: "dog"}
    detector = PersonDetector(
        torch.nn.Identity(), SIZE, score=0.2, iou=0.5, limit=400, names=names, end_to_end=end_to_end
    )
    [(boxes, scores)] = detector.boxes(output, [Letterbox(SIZE, SIZE, 1.0, 1.0, 0, 0)])
    [expected] = non_max_suppression(
        torch.from_numpy(output), 0.2, 0.5, classes=[1], max_det=400, end2end=end_to_end, max_time_img=60
    )
    expected = expected[expected[:, 4].argsort(descending=True)].numpy()
    assert len(boxes) == len(expected) > 10
    np.testing.assert_allclose(scores, expected[:, 4], atol=1e-6)
    np.testing.assert_allclose(boxes, expected[:, :4].clip(0, SIZE), atol=1e-3)
