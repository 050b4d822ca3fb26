"""A real server, real pictures: every way in, every option, every answer."""

import base64
import io
import json
import re
from collections.abc import Iterator
from typing import Any

import cv2
import httpx
import numpy as np
import pytest
from PIL import Image
from serving import Running, encode_picture, find_dots, run_server

from app.pipeline import Pipeline
from app.settings import Settings

BOXES = [[60.0, 400.0, 240.0, 900.0], [220.0, 400.0, 350.0, 870.0]]


def people(response: httpx.Response) -> Any:
    """The persons of an answer: what must not depend on how the picture was sent."""
    assert response.status_code == 200, response.text
    return response.json()["persons"]


def as_form(server: Running, data: bytes, **options: str) -> httpx.Response:
    return server.client.post("/pose", files={"file": ("bus.jpg", data, "image/jpeg")}, data=options)


def as_json(server: Running, data: bytes, **options: object) -> httpx.Response:
    return server.client.post("/pose", json={"image": base64.b64encode(data).decode(), **options})


def test_the_answer_has_the_documented_shape(server: Running, pictures: dict[str, bytes]) -> None:
    response = server.pose(pictures["bus"])
    answer = response.json()
    assert response.headers["content-type"] == "application/json"
    assert answer["image"] == {"width": 810, "height": 1080}
    assert answer["model"] == {"name": "random_w16", "version": "1"}
    assert set(answer["timings_ms"]) == {"decode", "detect", "pose", "queue", "total"}
    assert all(value >= 0 for value in answer["timings_ms"].values())
    [person] = answer["persons"]
    assert person.keys() == {"box", "box_score", "score", "track_id", "keypoints"}
    assert person["box"] == [0, 0, 810, 1080]
    assert person["track_id"] is None
    assert [point["name"] for point in person["keypoints"]][:3] == ["nose", "left_eye", "right_eye"]
    assert all(0 <= point["score"] <= 1 for point in person["keypoints"])


@pytest.mark.parametrize("name", ["bus", "zidane"])
def test_every_way_of_sending_gives_the_same_answer(server: Running, pictures: dict[str, bytes], name: str) -> None:
    data = pictures[name]
    expected = people(server.pose(data))
    assert people(as_form(server, data)) == expected
    assert people(as_json(server, data)) == expected
    for kind in ("image/jpeg", "image/png", "image/webp", "application/octet-stream"):  # the bytes say what it is
        assert people(server.pose(data, headers={"content-type": kind})) == expected
    data_url = "data:image/jpeg;base64," + base64.encodebytes(data).decode()
    assert people(server.client.post("/pose", json={"image": data_url})) == expected


def test_options_mean_the_same_in_query_form_and_json(server: Running, pictures: dict[str, bytes]) -> None:
    text = {"boxes": json.dumps(BOXES), "flip_test": "true", "keypoint_score": "0.3", "max_persons": "1"}
    expected = people(server.pose(pictures["bus"], params=text))
    assert [person["box"] for person in expected] == BOXES[:1]
    assert people(as_form(server, pictures["bus"], **text)) == expected
    values = {"boxes": BOXES, "flip_test": True, "keypoint_score": 0.3, "max_persons": 1}
    assert people(as_json(server, pictures["bus"], **values)) == expected
    mixed = server.client.post(
        "/pose", params={"max_persons": "1"}, files={"file": pictures["bus"]}, data=text | {"max_persons": ""}
    )
    assert people(mixed) == expected


def test_every_box_gets_its_person_in_order(server: Running, pictures: dict[str, bytes]) -> None:
    persons = people(server.pose(pictures["bus"], params={"boxes": json.dumps(BOXES)}))
    assert [person["box"] for person in persons] == BOXES
    assert [person["box_score"] for person in persons] == [1, 1]


def test_no_boxes_give_no_persons(server: Running, pictures: dict[str, bytes]) -> None:
    assert people(server.pose(pictures["bus"], params={"boxes": "[]"})) == []


@pytest.fixture(scope="module")
def dots(settings: Settings, pipeline: Pipeline) -> Iterator[Running]:
    """A server whose joints are all at the picture's red dot."""
    finder = Pipeline(settings, pipeline.package, find_dots, pipeline.runtime, pipeline.choice)
    with run_server(settings, finder) as running:
        yield running


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_keypoints_are_in_the_picture_as_a_person_sees_it(dots: Running, orientation: int, kind: str) -> None:
    upright = np.full((300, 200, 3), 90, np.uint8)
    cv2.circle(upright, (60, 220), 12, (255, 0, 0), -1, cv2.LINE_AA)
    back = {2: 2, 3: 3, 4: 4, 5: 5, 6: 8, 7: 7, 8: 6}  # the orientation whose turn undoes another's
    turns = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_270,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_90,
    }
    stored = Image.fromarray(upright)
    if orientation > 1:
        stored = stored.transpose(turns[back[orientation]])
    exif = Image.Exif()
    exif[0x0112] = orientation
    response = dots.pose(encode_picture(stored, kind, exif=exif))
    assert response.json()["image"] == {"width": 200, "height": 300}
    nose = people(response)[0]["keypoints"][0]
    assert (nose["x"], nose["y"]) == pytest.approx((60, 220), abs=2)


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        pytest.param("image/jpeg", "JPEG", id="JPEG"),
        pytest.param("image/png", "PNG", id="PNG"),
        pytest.param("image/*", "JPEG", id="any picture"),
        pytest.param("image/png, image/jpeg;q=0.5", "PNG", id="rather PNG"),
        pytest.param("application/json;q=0.1, image/jpeg", "JPEG", id="rather a picture"),
        pytest.param("*/*", None, id="anything"),
        pytest.param("application/json, image/png", None, id="either"),
        pytest.param("text/html, image/webp, */*;q=0.8", None, id="a browser"),
        pytest.param("image/jpeg;q=banana", None, id="nonsense"),
    ],
)
def test_accept_chooses_between_json_and_the_annotated_picture(
    server: Running, pictures: dict[str, bytes], accept: str, kind: str | None
) -> None:
    response = server.pose(pictures["zidane"], headers={"accept": accept})
    assert response.status_code == 200
    if kind is None:
        assert response.headers["content-type"] == "application/json"
        return
    assert response.headers["content-type"] == f"image/{kind.lower()}"
    with Image.open(io.BytesIO(response.content)) as image:
        assert (image.format, image.size) == (kind, (1280, 720))


@pytest.mark.parametrize(
    ("draw", "changed"),
    [("false", False), ("none", False), ("true", True), ("box", True), ("skeleton,score", True), ("SCORE", True)],
)
def test_draw_chooses_what_is_drawn(server: Running, draw: str, changed: bool) -> None:
    plain = np.full((200, 150, 3), 90, np.uint8)
    response = server.pose(
        encode_picture(plain), params={"draw": draw, "keypoint_score": "0"}, headers={"accept": "image/png"}
    )
    with Image.open(io.BytesIO(response.content)) as image:
        assert (np.asarray(image) != plain).any() == changed


def test_the_request_id_is_echoed_or_made(server: Running) -> None:
    assert server.client.get("/healthz", headers={"X-Request-ID": "abc-1"}).headers["x-request-id"] == "abc-1"
    made = [
        server.client.get("/healthz", headers={"X-Request-ID": given}).headers["x-request-id"]
        for given in ("", "a b", "x" * 65)
    ]
    assert len(set(made)) == 3
    assert all(len(request_id) == 16 for request_id in made)


def test_the_model_route_tells_what_serves(server: Running) -> None:
    model = server.client.get("/model").json()
    assert (model["name"], model["engine"], model["device"], model["precision"]) == (
        "random_w16",
        "torch",
        "cpu",
        "f32",
    )
    assert (model["detector"], model["notes"]) == ("none", [])
    assert model["input_size"] == [96, 64]
    assert len(model["joints"]) == 17


def test_the_index_links_to_what_there_is(server: Running) -> None:
    index = server.client.get("/").json()
    for path in index["links"].values():
        assert server.client.get(path).status_code == 200


def test_the_documentation_page_needs_no_other_host(server: Running) -> None:
    page = server.client.get("/docs")
    assert page.status_code == 200
    sources = re.findall(r'(?:src|href|url)[=:] ?["\']([^"\']+)["\']', page.text)
    assert {"/docs/assets/swagger-ui-bundle.js", "/docs/assets/swagger-ui.css", "/openapi.json"} <= set(sources)
    for source in sources:
        assert source.startswith("/")
        assert server.client.get(source).status_code == 200


def test_probes_answer(server: Running) -> None:
    assert server.client.get("/healthz").json() == {"status": "alive"}
    assert server.client.get("/readyz").json() == {"status": "ready"}
