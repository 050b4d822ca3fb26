"""`POST /pose/batch`: every picture gets its own answer or its own error, as it would alone."""

import base64
import http.client
import json
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import Gate, Running, encode_picture, metric, one_by_one, wait_until

from app.main import create_app
from app.pipeline import Pipeline
from app.settings import Settings

RANDOM = np.random.default_rng(0)
PNG = encode_picture(RANDOM.integers(0, 256, (40, 30, 3), np.uint8))
GIF = encode_picture(Image.new("RGB", (3, 3)), "GIF")
JPEG_HEAD = b"\xff\xd8\xff\xe0nothing more"
NOISE = [encode_picture(RANDOM.integers(0, 256, (40 + i, 30, 3), np.uint8)) for i in range(12)]


def send(
    server: Running, pictures: Sequence[bytes], data: dict[str, str] | None = None, **more: object
) -> httpx.Response:
    files = [("file", (f"{i}.jpg", picture)) for i, picture in enumerate(pictures)]
    return server.client.post("/pose/batch", files=files, data=data or {}, **more)


def send_json(server: Running, pictures: Sequence[bytes], **options: object) -> httpx.Response:
    images = [base64.b64encode(picture).decode() for picture in pictures]
    return server.client.post("/pose/batch", json={"images": images, **options})


def entries(response: httpx.Response) -> list[dict[str, object]]:
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "application/json"
    return response.json()["results"]


def codes(response: httpx.Response) -> list[str | None]:
    """Each entry's error code; None where it is an answer."""
    return [entry["error"]["code"] if "error" in entry else None for entry in entries(response)]


def same(entry: dict[str, object], alone: dict[str, object]) -> None:
    """Equal but for timings and float noise."""
    assert entry["image"] == alone["image"]
    assert entry["model"] == alone["model"]
    assert len(entry["persons"]) == len(alone["persons"]) > 0
    for person, other in zip(entry["persons"], alone["persons"], strict=True):
        assert person["box"] == pytest.approx(other["box"], abs=0.02)
        for name in ("x", "y", "score"):
            found, expected = ([point[name] for point in one["keypoints"]] for one in (person, other))
            assert found == pytest.approx(expected, abs=0.02)


def test_bad_pictures_are_errors_in_their_places_and_do_not_spoil_their_neighbours(
    start: Callable[..., Running], pipeline: Pipeline, pictures: dict[str, bytes]
) -> None:
    server = start(engine=one_by_one(pipeline.engine), max_pixels=1_000_000)
    bomb = encode_picture(np.zeros((1001, 1000, 3), np.uint8))
    bus, zidane = pictures["bus"], pictures["zidane"]
    sent = [bus, bus[:20_000], zidane, bomb, PNG, b"", GIF, b"hello", JPEG_HEAD, bus]
    expected = [
        None, "damaged_image", None, "too_many_pixels", None, "no_image", "unsupported_type", "not_an_image",
        "damaged_image", None,
    ]  # fmt: skip
    alone = {picture: server.pose(picture).json() for picture in (bus, zidane, PNG)}
    for response in (send(server, sent), send_json(server, sent)):
        assert codes(response) == expected
        for picture, entry in zip(sent, entries(response), strict=True):
            if "error" in entry:
                assert entry["error"].keys() == {"code", "message", "request_id"}
                assert entry["error"]["request_id"] == response.headers["x-request-id"]
            else:
                same(entry, alone[picture])
    assert metric(server, 'pose_rejected_total{reason="too_many_pixels"}') == 2
    assert metric(server, 'pose_requests_total{route="/pose/batch",status="200"}') == 2


def test_options_hold_for_all_pictures(
    start: Callable[..., Running], pipeline: Pipeline, pictures: dict[str, bytes]
) -> None:
    server = start(engine=one_by_one(pipeline.engine))
    boxes = [[60.0, 40.0, 240.0, 500.0], [220.0, 40.0, 350.0, 470.0]]
    text = {"boxes": json.dumps(boxes), "flip_test": "true"}
    both = [pictures["bus"], pictures["zidane"]]
    alone = [server.pose(picture, params=text).json() for picture in both]
    for response in (
        send(server, both, text),
        send(server, both, params=text),
        send_json(server, both, boxes=boxes, flip_test=True),
    ):
        for entry, other in zip(entries(response), alone, strict=True):
            assert [person["box"] for person in entry["persons"]] == boxes
            same(entry, other)


def test_a_box_outside_one_picture_is_that_pictures_error(server: Running, pictures: dict[str, bytes]) -> None:
    assert codes(send(server, [PNG, pictures["bus"]], {"boxes": "[[200, 200, 300, 300]]"})) == ["bad_option", None]


def test_a_picture_over_the_limit_of_one_is_its_own_error(start: Callable[..., Running]) -> None:
    server = start(max_bytes=len(PNG) + 100)
    large = encode_picture(RANDOM.integers(0, 256, (60, 60, 3), np.uint8))
    assert codes(send(server, [PNG, large, PNG])) == [None, "too_many_bytes", None]
    assert codes(send_json(server, [large, PNG])) == ["too_many_bytes", None]


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        pytest.param({"content-type": "image/png"}, PNG, 415, "unsupported_type", id="a bare picture"),
        pytest.param({}, b'{"images": []}', 400, "no_image", id="an empty list"),
        pytest.param({}, b'{"images": "abc"}', 422, "bad_option", id="no list"),
        pytest.param({}, b'{"images": [1]}', 422, "bad_option", id="a number for a picture"),
        pytest.param({}, b'{"image": "abc"}', 422, "bad_option", id="one image"),
        pytest.param({}, b'{"images": ["abc"], "colour": 1}', 422, "bad_option", id="unknown option"),
        pytest.param({}, b'{"images": ["abc"], "max_persons": 51}', 422, "bad_option", id="too many persons"),
        pytest.param({}, b'{"images": ["a", "a", "a", "a", "a"]}', 413, "too_many_pictures", id="too many"),
        pytest.param({}, b'{"images": ["%s"]}' % (b"a" * 20_000), 413, "too_many_bytes", id="too many bytes"),
        pytest.param({"accept": "image/png"}, b'{"images": ["abc"]}', 406, "not_acceptable", id="a picture back"),
    ],
)
def test_what_is_wrong_with_the_whole_is_refused_as_a_whole(
    start: Callable[..., Running], headers: dict[str, str], body: bytes, status: int, code: str
) -> None:
    server = start(max_pictures=4, max_pictures_bytes=20_000)
    headers = {"content-type": "application/json", **headers}
    response = server.client.post("/pose/batch", content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text


def test_forms_that_do_not_fit_are_refused_as_a_whole(start: Callable[..., Running]) -> None:
    server = start(max_pictures=4)
    other = {"image": ("a.png", PNG)}
    refused = [
        (send(server, [PNG] * 5), 413, "too_many_pictures"),
        (server.client.post("/pose/batch", files=[*other.items()]), 400, "no_image"),
        (server.client.post("/pose/batch", files=[*other.items(), ("file", ("b.png", PNG))]), 400, "malformed_form"),
        (send(server, [PNG], {"colour": "red"}), 422, "bad_option"),
        (send(server, [PNG], headers={"X-Request-Timeout": "soon"}), 422, "bad_option"),
    ]
    for response, status, code in refused:
        assert (response.status_code, response.json()["error"]["code"]) == (status, code), response.text
    assert "limit of one request" in refused[0][0].json()["error"]["message"]
    assert codes(send(server, [PNG] * 4)) == [None] * 4


def test_base64_that_is_none_is_its_own_error(server: Running) -> None:
    good = base64.b64encode(PNG).decode()
    response = server.client.post("/pose/batch", json={"images": ["!!!", good, "", f"data:image/png;base64,{good}"]})
    assert codes(response) == ["bad_base64", None, "no_image", None]
    assert "`images.0` is no base64" in entries(response)[0]["error"]["message"]


@pytest.mark.parametrize("accept", ["*/*", "application/json", "image/png, application/json;q=0.1", "text/html"])
def test_the_answer_is_json_wherever_that_is_acceptable(server: Running, accept: str) -> None:
    assert codes(send(server, [PNG], headers={"accept": accept})) == [None]


def test_more_pictures_than_places_wait_for_them_in_order(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate, queue_size=4)
    with ThreadPoolExecutor(2) as clients:
        batch = clients.submit(send, server, NOISE)
        wait_until(lambda: server.service.shared.working == 2)  # half of the places
        single = clients.submit(server.pose, PNG)  # others get in
        wait_until(lambda: server.service.shared.working == 3)
        gate.opened.set()
        assert single.result().status_code == 200
        assert codes(batch.result()) == [None] * 12
    for picture, entry in zip(NOISE, entries(batch.result()), strict=True):
        same(entry, server.pose(picture).json())


def test_batches_that_need_more_than_all_places_together_end_all(start: Callable[..., Running]) -> None:
    server = start(queue_size=1)
    with ThreadPoolExecutor(4) as clients:
        answers = list(clients.map(lambda _: send(server, NOISE), range(4)))
    served = [answer for answer in answers if answer.status_code == 200]
    assert served
    assert all(codes(answer) == [None] * 12 for answer in served)
    for answer in answers:
        assert answer.status_code == 200 or answer.json()["error"]["code"] == "queue_full"
    assert server.service.shared.working == 0


def test_a_batch_is_refused_where_not_one_place_is_free(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate, queue_size=1)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        refused = send(server, NOISE)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "queue_full")
        gate.opened.set()
        assert accepted.result().status_code == 200


def test_pictures_not_done_in_time_are_late_and_the_others_are_answered(
    start: Callable[..., Running], gate: Gate
) -> None:
    inner = gate.engine

    def lets_the_first_pass(crops: np.ndarray) -> object:
        return gate(crops) if gate.entered.is_set() else first(crops)

    def first(crops: np.ndarray) -> object:
        gate.entered.set()
        return inner(crops)

    server = start(engine=lets_the_first_pass, queue_size=2)  # one picture of a batch at a time
    response = send(server, NOISE[:3], headers={"X-Request-Timeout": "4"})
    gate.opened.set()
    assert codes(response) == [None, "deadline_passed", "deadline_passed"]
    wait_until(lambda: server.service.shared.working == 0)
    assert metric(server, 'pose_rejected_total{reason="deadline_passed"}') == 2
    assert metric(server, 'pose_dropped_total{reason="deadline_passed",stage="place"}') == 1


def test_a_client_that_hangs_up_takes_its_pictures_along(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate, queue_size=8)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        form = httpx.Request("POST", "http://x", files=[("file", ("a.png", picture)) for picture in NOISE])
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/pose/batch", form.read(), {"Content-Type": form.headers["content-type"]})
        wait_until(lambda: metric(server, 'pose_queue_depth{stage="pose"}') == 4)  # half of the places
        connection.close()
        wait_until(lambda: server.service.shared.working == 1)
        gate.opened.set()
        assert accepted.result().status_code == 200
    assert server.pose(PNG).status_code == 200
    assert gate.batches == [1, 1]
    assert metric(server, 'pose_dropped_total{reason="client_closed",stage="pose"}') == 4
    assert metric(server, 'pose_dropped_total{reason="client_closed",stage="place"}') == 8
    assert metric(server, 'pose_requests_total{route="/pose/batch",status="499"}') == 1


def test_a_fault_on_one_picture_is_its_own_error(
    start: Callable[..., Running], gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    inner = gate.engine

    def poisoned(crops: np.ndarray) -> object:
        if any((crop == 255).all() for crop in crops):
            raise ArithmeticError("the secret reason")
        return inner(crops)

    server = start(engine=poisoned)
    white = encode_picture(np.full((400, 400, 3), 255, np.uint8))
    textured = encode_picture(RANDOM.integers(0, 255, (400, 400, 3), np.uint8))
    response = send(server, [textured, white, textured], {"boxes": "[[150, 150, 250, 250]]"})
    assert codes(response) == [None, "internal", None]
    assert "secret" not in response.text
    assert "the secret reason" in caplog.text


def test_the_description_names_both_ways_and_every_refusal() -> None:
    route = create_app(Settings()).openapi()["paths"]["/pose/batch"]["post"]
    assert set(route["requestBody"]["content"]) == {"multipart/form-data", "application/json"}
    assert {"200", "400", "401", "406", "408", "413", "415", "422", "503"} <= set(route["responses"])
