"""Many at once: everybody gets their own answer, or is told to come back."""

import http.client
import io
import itertools
import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps
from serving import Gate, Running, encode_picture, metric, one_by_one, wait_until

from app.pipeline import Pipeline

PNG = encode_picture(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))


def test_sixteen_clients_get_exactly_the_answers_they_get_alone(
    start: Callable[..., Running], pipeline: Pipeline, pictures: dict[str, bytes]
) -> None:
    server = start(engine=one_by_one(pipeline.engine))
    random = np.random.default_rng(3)
    requests = []
    for i in range(32):
        data = pictures["bus" if i % 2 else "zidane"]
        corners = random.integers(0, 400, (1 + i % 3, 2))
        boxes = [[int(x), int(y), int(x) + 60 + 10 * i, int(y) + 200 + 5 * i] for x, y in corners]
        requests.append((data, {"boxes": json.dumps(boxes), "flip_test": str(i % 3 == 0)}))

    def ask(request: tuple[bytes, dict[str, str]]) -> list[object]:
        response = server.pose(request[0], params=request[1])
        assert response.status_code == 200, response.text
        return response.json()["persons"]

    alone = [ask(request) for request in requests]
    before = metric(server, 'pose_batch_size_count{stage="pose"}')
    with ThreadPoolExecutor(16) as clients:
        together = list(clients.map(ask, requests))
    runs = metric(server, 'pose_batch_size_count{stage="pose"}') - before
    assert together == alone
    assert runs < len(requests)  # they shared runs


@dataclass(frozen=True)
class Known:
    """A picture, the boxes of its people where they are given, and the persons of its answer, taken alone."""

    picture: bytes
    boxes: str | None
    persons: list[dict[str, Any]]


def variants(pictures: dict[str, bytes]) -> list[bytes]:
    """Sixteen pictures that no two have alike: cut, scaled and mirrored."""
    made = []
    for name in ("bus", "zidane"):
        with Image.open(io.BytesIO(pictures[name])) as image:
            for i in range(8):
                part = image.crop((20 * i, 0, image.width - 15 * i, image.height - 25 * i))
                part = ImageOps.mirror(part) if i % 2 else part
                made.append(encode_picture(part.resize((420 - 20 * i, 400 + 10 * i)), "JPEG", quality=90))
    return made


def far_apart(persons: list[dict[str, Any]], others: list[dict[str, Any]]) -> bool:
    """Whether no tolerance of a pixel could take one answer for the other."""
    if len(persons) != len(others):
        return True
    points = [
        np.array([[(p["x"], p["y"]) for p in one["keypoints"]] for one in people]) for people in (persons, others)
    ]
    return bool(np.abs(points[0] - points[1]).max() > 10)


def test_sixty_four_clients_never_get_each_others_answers(
    start: Callable[..., Running], pictures: dict[str, bytes]
) -> None:
    server = start(queue_size=64, request_timeout=300)
    crowd = json.dumps([[10 * i, 5 * i, 60 + 10 * i, 150 + 5 * i] for i in range(6)])

    def ask(picture: bytes, boxes: str | None) -> list[dict[str, Any]]:
        response = server.pose(picture, params={"boxes": boxes} if boxes else {})
        assert response.status_code == 200, response.text
        return response.json()["persons"]

    known = []
    for i, picture in enumerate(variants(pictures)):
        boxes = crowd if i % 5 == 0 else None
        known.append(Known(picture, boxes, ask(picture, boxes)))
    assert all(far_apart(a.persons, b.persons) for a, b in itertools.combinations(known, 2))
    before = metric(server, 'pose_batch_size_count{stage="pose"}')
    asked = known * 6
    with ThreadPoolExecutor(64) as clients:
        answers = list(clients.map(lambda one: ask(one.picture, one.boxes), asked))
    for one, persons in zip(asked, answers, strict=True):
        assert len(persons) == len(one.persons)
        for person, expected in zip(persons, one.persons, strict=True):
            assert person["box"] == expected["box"]
            for name in ("x", "y", "score"):
                found, known_values = ([point[name] for point in p["keypoints"]] for p in (person, expected))
                assert found == pytest.approx(known_values, abs=0.05)
    crops = sum(len(one.persons) for one in asked)
    assert metric(server, 'pose_batch_size_count{stage="pose"}') - before < crops / 2  # they shared runs
    assert server.service.shared.working == 0


def test_a_full_queue_sends_new_requests_away(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate, queue_size=2)
    with ThreadPoolExecutor(2) as clients:
        accepted = [clients.submit(server.pose, PNG) for _ in range(2)]
        wait_until(lambda: server.service.shared.working == 2)
        refused = server.pose(PNG)
        assert refused.status_code == 503
        assert refused.json()["error"]["code"] == "queue_full"
        assert int(refused.headers["retry-after"]) >= 1
        assert server.client.get("/readyz").status_code == 200
        gate.opened.set()
        assert [request.result().status_code for request in accepted] == [200, 200]
    assert server.pose(PNG).status_code == 200
    assert metric(server, 'pose_rejected_total{reason="queue_full"}') == 1


def test_too_many_connections_are_sent_away_but_not_the_probes(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate, max_connections=1)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        refused = server.pose(PNG)
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "too_many_connections")
        for path in ("/healthz", "/readyz", "/metrics"):
            assert server.client.get(path).status_code == 200
        gate.opened.set()
        assert accepted.result().status_code == 200


def test_work_past_its_deadline_is_dropped(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        late = server.pose(PNG, headers={"X-Request-Timeout": "1"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_passed")
        gate.opened.set()
        assert accepted.result().status_code == 200
    assert server.pose(PNG).status_code == 200
    assert gate.batches == [1, 1]
    assert metric(server, 'pose_rejected_total{reason="deadline_passed"}') == 1
    assert metric(server, 'pose_dropped_total{reason="deadline_passed",stage="pose"}') == 1


def test_a_client_that_hangs_up_frees_its_place(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        connection = http.client.HTTPConnection("127.0.0.1", server.port)
        connection.request("POST", "/pose", PNG, {"Content-Type": "image/png"})
        wait_until(lambda: metric(server, 'pose_queue_depth{stage="pose"}') == 1)
        connection.close()
        wait_until(lambda: server.service.shared.working == 1)
        gate.opened.set()
        assert accepted.result().status_code == 200
    assert server.pose(PNG).status_code == 200
    assert gate.batches == [1, 1]
    assert metric(server, 'pose_rejected_total{reason="client_closed"}') == 1
    assert metric(server, 'pose_dropped_total{reason="client_closed",stage="pose"}') == 1
    assert metric(server, 'pose_requests_total{route="/pose",status="499"}') == 1


def test_one_bad_crop_does_not_spoil_its_neighbours(start: Callable[..., Running], gate: Gate) -> None:
    inner = gate.engine

    def poisoned(crops: np.ndarray) -> object:
        if any((crop == 255).all() for crop in crops):
            raise ArithmeticError("poison")
        return inner(crops)

    gate.engine = poisoned
    server = start(engine=gate)
    white = encode_picture(np.full((400, 400, 3), 255, np.uint8))
    inside = {"boxes": "[[150, 150, 250, 250]]"}
    with ThreadPoolExecutor(4) as clients:
        first = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        others = [clients.submit(server.pose, PNG) for _ in range(2)]
        bad = clients.submit(server.pose, white, params=inside)
        wait_until(lambda: metric(server, 'pose_queue_depth{stage="pose"}') == 3)
        gate.opened.set()
        assert [request.result().status_code for request in (first, *others)] == [200, 200, 200]
        assert bad.result().status_code == 500


def test_probes_answer_while_the_network_works(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate)
    with ThreadPoolExecutor(8) as clients:
        accepted = [clients.submit(server.pose, PNG)]
        assert gate.entered.wait(60)  # else the first run could take all eight, and none would wait
        accepted += [clients.submit(server.pose, PNG) for _ in range(7)]
        wait_until(lambda: server.service.shared.working == 8)
        assert server.client.get("/healthz").status_code == 200
        wait_until(lambda: metric(server, 'pose_queue_depth{stage="pose"}') >= 1)
        gate.opened.set()
        assert all(request.result().status_code == 200 for request in accepted)


def test_metrics_count_what_happened(start: Callable[..., Running]) -> None:
    server = start()
    for _ in range(3):
        server.pose(PNG)
    server.pose(b"hello")
    server.client.get("/no/such/path?token=secret")
    text = server.client.get("/metrics").text
    assert metric(server, 'pose_requests_total{route="/pose",status="200"}') == 3
    assert metric(server, 'pose_requests_total{route="/pose",status="400"}') == 1
    assert metric(server, 'pose_requests_total{route="other",status="404"}') == 1
    assert metric(server, 'pose_rejected_total{reason="not_an_image"}') == 1
    assert metric(server, 'pose_request_duration_seconds_count{route="/pose"}') == 4
    assert metric(server, "pose_persons_per_image_sum") == 3
    assert metric(server, "pose_keypoint_score_count") == 3 * 17
    for stage in ("decode", "queue", "detect", "crop", "pose", "keypoints"):
        assert metric(server, f'pose_stage_duration_seconds_count{{stage="{stage}"}}') == 3
    assert metric(server, 'pose_batch_size_sum{stage="pose"}') == 3
    assert "pose_model_load_seconds" in text
    assert 'name="random_w16"' in text
    assert "process_resident_memory_bytes" in text
    assert "secret" not in text


def test_logs_have_the_request_id_and_nothing_of_the_user(server: Running, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "app.request")
    server.pose(PNG, params={"draw": "box"}, headers={"X-Request-ID": "trace-me"})
    wait_until(lambda: "trace-me" in caplog.text)  # it is written after the answer
    [line] = [record.getMessage() for record in caplog.records if "trace-me" in record.getMessage()]
    assert line.startswith("id=trace-me method=POST route=/pose status=200 ms=")
    assert "draw" not in line


def test_a_drained_server_takes_no_work_and_finishes_what_it_has(start: Callable[..., Running], gate: Gate) -> None:
    server = start(engine=gate)
    with ThreadPoolExecutor(1) as clients:
        accepted = clients.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        server.server.should_exit = True
        wait_until(lambda: server.service.draining)
        for response in (server.pose(PNG), server.client.get("/readyz")):
            assert response.status_code == 503
            assert response.json()["error"]["code"] == "draining"
            assert response.headers["retry-after"]
        assert server.client.get("/healthz").status_code == 200
        gate.opened.set()
        assert accepted.result().status_code == 200
