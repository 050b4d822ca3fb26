"""Every refusal has its status, its code and the one shape; no input is answered 5xx."""

import base64
import json
import socket
from collections.abc import Callable, Iterator

import httpx
import numpy as np
import pytest
from PIL import Image
from serving import Running, encode_picture

PNG = encode_picture(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
RAW = {"content-type": "application/octet-stream"}
FORM = {"content-type": "multipart/form-data; boundary=b"}
ODD_FORM = {"content-type": "multipart/form-data; boundary=b; charset=undefined"}
JSON = {"content-type": "application/json"}
WEB = {"content-type": "application/x-www-form-urlencoded"}


def check(response: httpx.Response, status: int, code: str, words: str = "") -> None:
    assert response.status_code == status, response.text
    assert response.headers["content-type"] == "application/json"
    error = response.json()["error"]
    assert error.keys() == {"code", "message", "request_id"}
    assert error["code"] == code
    assert words in error["message"]
    assert error["request_id"] == response.headers["x-request-id"]


def test_a_picture_too_long_for_a_jpeg_is_named(server: Running) -> None:
    long = encode_picture(np.zeros((1, 70_000, 3), np.uint8))
    headers = {"accept": "image/jpeg"}
    check(server.pose(long, headers=headers), 422, "too_long_for_jpeg", "70000 x 1: ask for image/png")
    assert server.pose(long, headers={"accept": "image/png"}).status_code == 200


@pytest.mark.parametrize(
    ("options", "words"),
    [
        pytest.param({"boxes": "[1, 2]"}, "boxes", id="boxes are no boxes"),
        pytest.param({"boxes": "[[1, 2, 3]]"}, "boxes.0", id="a box of three numbers"),
        pytest.param({"boxes": "[[5, 5, 5, 9]]"}, "x1 < x2", id="a box without width"),
        pytest.param({"boxes": "[[9, 9, 1, 1]]"}, "x1 < x2", id="a box inside out"),
        pytest.param({"boxes": "[[NaN, 0, 1, 1]]"}, "boxes.0", id="not a number"),
        pytest.param({"boxes": "[[0, 0, Infinity, 1]]"}, "boxes.0", id="infinity"),
        pytest.param({"boxes": "[[0, 0, 1e300, 1]]"}, "boxes.0", id="beyond reason"),
        pytest.param({"boxes": "[[500, 500, 600, 600]]"}, "lies outside the picture, which is 30 x 40", id="outside"),
        pytest.param({"boxes": "{"}, "JSON list", id="boxes are no JSON"),
        pytest.param({"boxes": "[" * 5000}, "JSON list", id="boxes nested without end"),
        pytest.param({"boxes": json.dumps([[0, 0, 9, 9]] * 51)}, "the limit is 50", id="too many boxes"),
        pytest.param({"max_persons": "0"}, "max_persons", id="no persons"),
        pytest.param({"max_persons": "51"}, "the limit is 50", id="too many persons"),
        pytest.param({"max_persons": "two"}, "max_persons", id="a word"),
        pytest.param({"max_persons": "9" * 5000}, "max_persons", id="a number without end"),
        pytest.param({"box_score": "1.5"}, "box_score", id="score over one"),
        pytest.param({"keypoint_score": "nan"}, "keypoint_score", id="score not a number"),
        pytest.param({"flip_test": "perhaps"}, "flip_test", id="neither true nor false"),
        pytest.param({"draw": "hat"}, "unknown part 'hat'; known: box, skeleton, score", id="part that is not there"),
        pytest.param({"colour": "red"}, "colour: no such option; known: boxes", id="option that is not there"),
    ],
)
def test_bad_options_are_named(server: Running, options: dict[str, str], words: str) -> None:
    check(server.pose(PNG, params=options), 422, "bad_option", words)
    check(server.client.post("/pose", files={"file": PNG}, data=options), 422, "bad_option", words)


def test_an_option_given_twice_is_refused(server: Running) -> None:
    check(server.pose(PNG, params={"draw": ["box", "score"]}), 422, "bad_option", "'draw' is given twice")
    twice = server.client.post("/pose", params={"draw": "box"}, files={"file": PNG}, data={"draw": "box"})
    check(twice, 422, "bad_option", "'draw' is given twice")


@pytest.mark.parametrize("value", ["0", "-1", "nan", "soon", ""])
def test_a_deadline_must_be_a_positive_number(server: Running, value: str) -> None:
    check(server.pose(PNG, headers={"X-Request-Timeout": value}), 422, "bad_option", "X-Request-Timeout")


def part(disposition: str, content: bytes = b"x") -> bytes:
    return b"--b\r\nContent-Disposition: " + disposition.encode() + b"\r\n\r\n" + content + b"\r\n"


NAMED_FILE, OTHER_FILE = (f'form-data; name="{name}"; filename="a.png"' for name in ("file", "image"))
DRAW = 'form-data; name="draw"'
FILE, FIELD = part(NAMED_FILE, PNG), part('form-data; name="a"')


@pytest.mark.parametrize(
    ("headers", "body", "status", "code"),
    [
        pytest.param(RAW, b"", 400, "no_image", id="empty body"),
        pytest.param(RAW, b"hello", 400, "not_an_image", id="text"),
        pytest.param(RAW, PNG[:500], 400, "damaged_image", id="truncated"),
        pytest.param(RAW, encode_picture(Image.new("RGB", (3, 3)), "GIF"), 415, "unsupported_type", id="GIF"),
        pytest.param({}, PNG, 415, "unsupported_type", id="no type"),
        pytest.param({"content-type": "text/plain"}, PNG, 415, "unsupported_type", id="text type"),
        pytest.param(WEB, b"a=1", 415, "unsupported_type", id="web form"),
        pytest.param({"content-type": "image/tiff"}, PNG, 415, "unsupported_type", id="TIFF type"),
        pytest.param(JSON, b"{", 400, "malformed_json", id="half a JSON"),
        pytest.param(JSON, b"[" * 100_000, 400, "malformed_json", id="deep JSON"),
        pytest.param(JSON, b"\xff\xfe", 400, "malformed_json", id="no Unicode"),
        pytest.param(JSON, b"[]", 422, "bad_option", id="JSON of another kind"),
        pytest.param(JSON, b"{}", 422, "bad_option", id="JSON without image"),
        pytest.param(JSON, b'{"image": 1}', 422, "bad_option", id="image is a number"),
        pytest.param(JSON, b'{"image": ""}', 400, "no_image", id="empty image"),
        pytest.param(JSON, b'{"image": "!!!!"}', 400, "bad_base64", id="no base64"),
        pytest.param(JSON, b'{"image": "\\u00e9"}', 400, "bad_base64", id="not ASCII"),
        pytest.param(JSON, b'{"image": "abc"}', 400, "bad_base64", id="half base64"),
        pytest.param(
            JSON,
            json.dumps({"image": base64.b64encode(PNG).decode(), "boxes": [[1, 2]]}).encode(),
            422,
            "bad_option",
            id="bad box in JSON",
        ),
        pytest.param({"content-type": "multipart/form-data"}, FILE + b"--b--", 400, "malformed_form", id="no boundary"),
        pytest.param(FORM, b"", 400, None, id="empty form"),
        pytest.param(FORM, b"nonsense", 400, "malformed_form", id="no form"),
        pytest.param(FORM, FILE[:100], 400, None, id="half a form"),
        pytest.param(FORM, part('form-data; name="file"', PNG) + b"--b--", 400, "no_image", id="file without filename"),
        pytest.param(FORM, part(OTHER_FILE, PNG) + b"--b--", 400, "no_image", id="other name"),
        pytest.param(FORM, part(NAMED_FILE, b"") + b"--b--", 400, "no_image", id="empty file"),
        pytest.param(ODD_FORM, FILE + FIELD + b"--b--", 400, "malformed_form", id="charset that refuses"),
        pytest.param(FORM, part("form-data") + b"--b--", 400, "malformed_form", id="part without name"),
        pytest.param(FORM, FILE + FILE + b"--b--", 400, "malformed_form", id="two files"),
        pytest.param(FORM, FIELD * 1000 + b"--b--", 400, "malformed_form", id="a thousand fields"),
        pytest.param(FORM, part(DRAW, b"x" * 100_000) + b"--b--", 400, "malformed_form", id="long field"),
        pytest.param(FORM, FILE + FIELD + b"--b--", 422, "bad_option", id="unknown field"),
    ],
)  # fmt: skip
def test_bodies_that_do_not_fit_are_refused(
    server: Running, headers: dict[str, str], body: bytes, status: int, code: str | None
) -> None:
    response = server.client.post("/pose", content=body, headers=headers)
    check(response, status, code or response.json()["error"]["code"])


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        pytest.param("GET", "/nowhere", 404, "not_found", id="unknown path"),
        pytest.param("GET", "/pose/", 404, "not_found", id="slash at the end"),
        pytest.param("GET", "/pose", 405, "method_not_allowed", id="GET"),
        pytest.param("DELETE", "/pose", 405, "method_not_allowed", id="DELETE"),
        pytest.param("POST", "/healthz", 405, "method_not_allowed", id="POST to a probe"),
        pytest.param("GET", "/%2e%2e/%2e%2e/etc/passwd", 404, "not_found", id="path that climbs"),
    ],
)
def test_paths_and_methods_that_are_not_there(server: Running, method: str, path: str, status: int, code: str) -> None:
    check(server.client.request(method, path), status, code)


def test_405_names_the_methods(server: Running) -> None:
    assert server.client.get("/pose").headers["allow"] == "POST"


@pytest.fixture
def small(start: Callable[..., Running]) -> Running:
    """A server that takes 10 000 bytes, 1000 pixels and half a second."""
    return start(max_bytes=10_000, max_pixels=1000, receive_timeout=0.5)


def chunks(count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield bytes(1000)


def test_bodies_over_the_limit_are_refused_however_they_come(small: Running) -> None:
    for body in (bytes(10_001), chunks(11), chunks(2000), bytes(3_000_000)):
        check(small.client.post("/pose", content=body, headers=RAW), 413, "too_many_bytes", "10000 bytes")
    form = small.client.post("/pose", files={"file": bytes(20_000)})
    check(form, 413, "too_many_bytes")
    assert small.client.get("/readyz").status_code == 200


def test_a_length_that_lies_does_not_help(small: Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as raw:
        head = b"POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 999999999999\r\n"
        raw.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert raw.recv(100).startswith(b"HTTP/1.1 413 ")


def test_pictures_over_the_limit_are_refused(small: Running) -> None:
    check(small.pose(PNG), 413, "too_many_pixels", "30 x 40 = 1200 pixels, the limit is 1000")


def test_a_body_that_does_not_come_is_given_up(small: Running) -> None:
    with socket.create_connection(("127.0.0.1", small.port), timeout=30) as raw:
        raw.sendall(b"POST /pose HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\nContent-Length: 100\r\n\r\nabc")
        answer = b""
        while chunk := raw.recv(4096):  # until the server closes
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 408 ")
    assert json.loads(body)["error"]["code"] == "body_too_slow"


def test_keys_are_asked_for_where_there_are_any(start: Callable[..., Running]) -> None:
    server = start(api_keys="first,second")
    for headers in ({}, {"X-API-Key": "third"}, {"Authorization": "Bearer"}, {"X-API-Key": b"fir\xe9"}):
        check(server.pose(PNG, headers=headers), 401, "unauthorized")
    for path in ("/model", "/metrics", "/nowhere", "/healthz/", "/pose/../healthz/x"):
        check(server.client.get(path, headers={"Host": "x/healthz"}), 401, "unauthorized")
    for headers in ({"X-API-Key": "first"}, {"Authorization": "Bearer second"}):
        assert server.pose(PNG, headers=headers).status_code == 200
    for path in ("/", "/healthz", "/readyz", "/docs", "/docs/assets/swagger-ui.css", "/openapi.json"):
        assert server.client.get(path).status_code == 200


def test_a_fault_of_the_service_has_the_same_shape(
    start: Callable[..., Running], caplog: pytest.LogCaptureFixture
) -> None:
    def broken(_: np.ndarray) -> None:
        raise ArithmeticError("the secret reason")

    server = start(engine=broken)
    response = server.pose(PNG)
    check(response, 500, "internal")
    assert "secret" not in response.text
    assert "the secret reason" in caplog.text
    assert server.client.get("/healthz").status_code == 200


def test_random_bytes_are_never_a_fault(server: Running) -> None:
    random = np.random.default_rng(5)
    whole = FILE + b"--b--"
    for i in range(120):
        body = bytearray(whole if i % 2 else PNG)
        for place in random.integers(0, len(body), 1 + i % 12):
            body[place] = random.integers(256)
        response = server.client.post("/pose", content=bytes(body), headers=FORM if i % 2 else RAW)
        assert response.status_code in (200, 400, 413, 415, 422), response.text
