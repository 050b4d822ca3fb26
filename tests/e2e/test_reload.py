"""A running server takes new packages: nobody's request is lost, and each is answered by one package alone."""

import gc
import http.client
import json
import logging
import os
import pty
import shutil
import signal
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from serving import (
    Gate,
    Process,
    Running,
    encode_picture,
    environment,
    metric,
    one_by_one,
    publish,
    wait_until,
    write_random_package,
)

import app.pipeline
import app.reload
from app.images import decode
from app.pipeline import Pipeline
from app.schemas import ModelName, Options, PoseResponse
from app.settings import Settings
from model.errors import PackageError
from model.package import CARD, WEIGHTS, hash_file

PNG = encode_picture(np.random.default_rng(0).integers(0, 256, (40, 30, 3), np.uint8))
BOXES = ([[4, 5, 20, 40]], [[8, 10, 28, 30]], [[0, 0, 30, 40]])


@pytest.fixture(scope="module")
def packages(pose_package: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """By version: `1` is the one that servers start with, `2` differs in its weights, `3` in skeleton and size too."""
    folder = tmp_path_factory.mktemp("versions")
    return {
        "1": pose_package,
        "2": write_random_package(folder / "2", seed=1, version="2"),
        "3": write_random_package(folder / "3", seed=2, version="3", skeleton="lsp14", size=(64, 96)),
    }


@pytest.fixture
def folder(pose_package: Path, tmp_path: Path) -> Path:
    """What POSE_MODEL names."""
    return shutil.copytree(pose_package, tmp_path / "package")


def reloads(server: Running) -> dict[str, float]:
    return {r: metric(server, f'pose_model_reloads_total{{result="{r}"}}') for r in ("ok", "unchanged", "refused")}


def version(server: Running) -> str:
    return server.client.get("/model").json()["version"]


def pose_threads() -> int:
    return sum(thread.name.startswith("pose-") for thread in threading.enumerate())


def damage(folder: Path, change: Callable[[dict[str, Any]], object] | None = None, **card: object) -> None:
    """Change the weights or the card's fields; the checksum fits unless it is changed itself."""
    fields = json.loads((folder / CARD).read_text())
    if change is not None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)
    (folder / CARD).write_text(json.dumps(fields | {"sha256": hash_file(folder / WEIGHTS)} | card))


@contextmanager
def clients(ask: Callable[[int], object], count: int) -> Iterator[list[object]]:
    """Clients that ask without a pause, until the block ends; gives the answers so far."""
    answers: list[object] = []
    stop = threading.Event()

    def keep_asking(number: int) -> None:
        while not stop.is_set():
            answers.append(ask(number))

    with ThreadPoolExecutor(count) as pool:
        asking = [pool.submit(keep_asking, number) for number in range(count)]
        try:
            yield answers
        finally:
            stop.set()
    for client in asking:
        client.result()


def test_every_answer_under_load_is_one_packages_own_while_packages_are_swapped(
    start: Callable[..., Running],
    pipeline: Pipeline,
    settings: Settings,
    packages: dict[str, Path],
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    create = app.pipeline.create_pose_engine
    monkeypatch.setattr(app.pipeline, "create_pose_engine", lambda *given: one_by_one(create(*given)))

    def alone(package: Path, boxes: object) -> object:
        models = Pipeline.load(Settings.model_validate(settings.model_dump() | {"model": str(package)}))
        card = models.package.card
        result = models.predict(decode(PNG, 10**7), Options(boxes=boxes))
        name = ModelName(name=card.name, version=card.version)
        return PoseResponse.build(result, models.package.skeleton.joints, name).model_dump(mode="json")["persons"]

    truth = {
        (number, i): alone(package, boxes) for number, package in packages.items() for i, boxes in enumerate(BOXES)
    }
    assert truth["1", 0] != truth["2", 0]
    server = start(engine=one_by_one(pipeline.engine), model=str(folder))
    threads = pose_threads()

    def ask(number: int) -> tuple[int, int, str, object]:
        which = number % len(BOXES)
        response = server.pose(PNG, params={"boxes": json.dumps(BOXES[which])})
        body = response.json()
        return response.status_code, which, body.get("model", {}).get("version", ""), body.get("persons")

    order = ["2", "3", "1"]
    networks: list[weakref.ref[torch.nn.Module]] = []
    with clients(ask, 6) as answers:
        for count, number in enumerate(order, 1):
            publish(packages[number], folder)
            server.reloader.ask()
            wait_until(lambda count=count: reloads(server)["ok"] == count)
            networks.append(weakref.ref(server.service.shared.pipeline.package.network))
            wait_until(lambda number=number: [answer[2] for answer in answers[-6:]] == [number] * 6)
    assert [answer for answer in answers if answer[0] != 200] == []
    assert [answer for answer in answers if answer[3] != truth[answer[2], answer[1]]] == []
    assert metric(server, 'pose_batch_size_sum{stage="pose"}') > metric(server, 'pose_batch_size_count{stage="pose"}')
    assert reloads(server) == {"ok": 3, "unchanged": 0, "refused": 0}
    wait_until(lambda: pose_threads() == threads)
    gc.collect()
    assert [network() is None for network in networks] == [True] * 2 + [False]


def test_what_serves_is_shown_and_nothing_else(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path
) -> None:
    server = start(model=str(folder))
    publish(packages["3"], folder)
    server.reloader.ask()
    wait_until(lambda: reloads(server)["ok"] == 1)
    shown = server.client.get("/model").json()
    assert (shown["version"], shown["skeleton"], shown["input_size"], shown["notes"]) == ("3", "lsp14", [64, 96], [])
    assert len(server.pose(PNG).json()["persons"][0]["keypoints"]) == 14
    lines = [li for li in server.client.get("/metrics").text.splitlines() if li.startswith("pose_model_info{")]
    assert len(lines) == 1
    assert shown["sha256"] in lines[0]
    assert metric(server, "pose_model_load_seconds") == server.service.shared.pipeline.load_seconds > 0


def test_a_request_is_answered_by_the_package_it_began_with(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path, gate: Gate
) -> None:
    server = start(engine=gate, model=str(folder), max_batch=1)
    threads = pose_threads()

    def answered_by(request: Future[httpx.Response]) -> tuple[int, str]:
        return request.result().status_code, request.result().json()["model"]["version"]

    with ThreadPoolExecutor(2) as pool:
        early = [pool.submit(server.pose, PNG) for _ in range(2)]
        wait_until(lambda: metric(server, 'pose_queue_depth{stage="pose"}') == 1 and gate.entered.is_set())
        publish(packages["2"], folder)
        server.reloader.ask()
        wait_until(lambda: version(server) == "2")
        late = server.pose(PNG)
        assert (late.status_code, late.json()["model"]["version"]) == (200, "2")
        assert not any(request.done() for request in early)
        assert server.service.shared.working == 2  # the places are the same ones
        assert metric(server, 'pose_queue_depth{stage="pose"}') == 0  # the new package's
        assert pose_threads() == threads + 1
        gate.opened.set()
        assert [answered_by(request) for request in early] == [(200, "1")] * 2
    wait_until(lambda: pose_threads() == threads)


def test_a_request_whose_body_is_still_arriving_keeps_its_package(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path
) -> None:
    server = start(model=str(folder))
    threads = pose_threads()
    connection = http.client.HTTPConnection("127.0.0.1", server.port)
    connection.putrequest("POST", "/pose")
    connection.putheader("Content-Type", "image/png")
    connection.putheader("Content-Length", str(len(PNG)))
    connection.endheaders(PNG[:100])
    wait_until(lambda: server.service.shared.users == 1)
    publish(packages["2"], folder)
    server.reloader.ask()
    wait_until(lambda: version(server) == "2")
    time.sleep(0.2)  # in which it could be closed too early
    connection.send(PNG[100:])
    response = connection.getresponse()
    assert (response.status, json.load(response)["model"]["version"]) == (200, "1")
    connection.close()
    wait_until(lambda: pose_threads() == threads)


def test_a_server_told_to_stop_lets_the_old_package_finish_too(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path, gate: Gate
) -> None:
    server = start(engine=gate, model=str(folder))
    with ThreadPoolExecutor(1) as pool:
        early = pool.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        publish(packages["2"], folder)
        server.reloader.ask()
        wait_until(lambda: version(server) == "2")
        server.server.should_exit = True
        wait_until(lambda: server.service.draining)
        gate.opened.set()
        assert early.result().status_code == 200


def test_a_bad_package_is_refused_and_the_old_one_goes_on(
    start: Callable[..., Running],
    packages: dict[str, Path],
    folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("no memory left\non this machine")

    def fail(*_: object) -> None:
        raise PackageError("it cannot be converted")

    def poison(state: dict[str, torch.Tensor]) -> None:
        state["head.weight"][0] = torch.nan

    def blank(state: dict[str, torch.Tensor]) -> None:
        state["head.weight"].zero_()

    cases: list[tuple[Callable[[Path], object], str]] = [
        (lambda new: (new / WEIGHTS).unlink(), "weights.safetensors is missing"),
        (lambda new: (new / CARD).write_text("{"), "card.json: the file: Invalid JSON"),
        (lambda new: (new / WEIGHTS).write_bytes(b"x"), "the file is damaged or not the card's"),
        (lambda new: damage(new, skeleton="octopus8"), "unknown skeleton 'octopus8'"),
        (lambda new: damage(new, architecture={"name": "sdhrnet_w32", "joints": 17}), "does not fit sdhrnet_w32"),
        (lambda new: damage(new, poison), "FloatingPointError: the pose network gave numbers that are not finite"),
        (lambda new: damage(new, blank), "the canary's keypoints lie all in one point"),
        (
            lambda _: monkeypatch.setattr(app.pipeline, "create_pose_engine", full),
            "OutOfMemoryError: no memory left on",
        ),
        (lambda _: monkeypatch.setattr(app.pipeline, "convert_apart", fail), "it cannot be converted"),
    ]
    server = start(model=str(folder))
    with clients(lambda _: server.pose(PNG), 2) as answers:
        for count, (spoil, words) in enumerate(cases, 1):
            new = shutil.copytree(packages["2"], tmp_path / f"bad{count}")
            spoil(new)
            publish(new, folder)
            caplog.clear()
            server.reloader.ask()
            wait_until(lambda count=count: reloads(server)["refused"] == count)
            [line] = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
            assert words in line
            assert "\n" not in line
            assert line.startswith("reload refused, random_w16 1 (")
            shown = server.client.get("/model").json()
            assert (shown["version"], shown["notes"]) == ("1", [line])
            assert server.client.get("/readyz").status_code == 200
        monkeypatch.undo()
        publish(packages["2"], folder)
        server.reloader.ask()
        wait_until(lambda: version(server) == "2")
        assert server.client.get("/model").json()["notes"] == []
    assert {answer.status_code for answer in answers} == {200}
    assert reloads(server) == {"ok": 1, "unchanged": 0, "refused": len(cases)}


def test_a_package_that_is_replaced_while_it_is_read_is_not_mixed_with_the_next(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    check = app.reload.check_pose

    def replace_then_check(models: Pipeline) -> None:
        publish(packages["3"], folder)
        check(models)

    server = start(model=str(folder))
    publish(packages["2"], folder)
    monkeypatch.setattr(app.reload, "check_pose", replace_then_check)
    server.reloader.ask()
    wait_until(lambda: reloads(server)["refused"] == 1)
    monkeypatch.undo()
    assert "replaced while it was read" in server.client.get("/model").json()["notes"][0]
    server.reloader.ask()
    wait_until(lambda: version(server) == "3")


def test_what_is_asked_for_during_a_reload_is_done_after_it(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on, renew = threading.Event(), threading.Event(), app.reload.renew

    def slow(current: Pipeline) -> Pipeline | None:
        started.set()
        assert go_on.wait(60)
        return renew(current)

    monkeypatch.setattr(app.reload, "renew", slow)
    server = start(model=str(folder))
    publish(packages["2"], folder)
    server.reloader.ask()
    assert started.wait(60)
    server.reloader.ask()
    server.reloader.ask()
    assert server.pose(PNG).json()["model"]["version"] == "1"
    go_on.set()
    wait_until(lambda: reloads(server) == {"ok": 1, "unchanged": 1, "refused": 0})
    assert version(server) == "2"


def test_a_server_that_drains_loads_nothing(
    start: Callable[..., Running],
    packages: dict[str, Path],
    folder: Path,
    gate: Gate,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "app.reload")
    server = start(engine=gate, model=str(folder), watch=True)
    with ThreadPoolExecutor(1) as pool:
        accepted = pool.submit(server.pose, PNG)
        assert gate.entered.wait(60)
        server.server.should_exit = True
        wait_until(lambda: server.service.draining)
        publish(packages["2"], folder)
        server.reloader.ask()
        wait_until(lambda: "no reload: the service takes no more work" in caplog.text)
        gate.opened.set()
        assert accepted.result().json()["model"]["version"] == "1"


def test_a_watched_folder_is_taken_in_when_it_is_replaced(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app.reload, "LOOK", 0.1)
    server = start(model=str(folder), watch=True)
    for number in ("2", "3"):
        publish(packages[number], folder)
        wait_until(lambda number=number: version(server) == number)
    assert reloads(server) == {"ok": 2, "unchanged": 0, "refused": 0}


def test_a_folder_is_not_watched_unless_asked_for(
    start: Callable[..., Running], packages: dict[str, Path], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looks: list[float] = []
    monkeypatch.setattr(app.reload.Watch, "look", lambda _, now: bool(looks.append(now)))
    monkeypatch.setattr(app.reload, "LOOK", 0.0)
    watching, other = start(model=str(folder), watch=True), start(model=str(folder))
    wait_until(lambda: len(looks) >= 3)
    assert watching.service.ready
    assert other.service.ready
    before = len(looks)
    watching.server.should_exit = True
    wait_until(lambda: not watching.service.opened)
    publish(packages["2"], folder)
    other.reloader.ask()  # done in its turn: until then it had every chance to look
    wait_until(lambda: version(other) == "2")
    assert len(looks) <= before + 1


SLOW_IN_TERMINAL = """
import fcntl, os, sys, termios, time
os.setsid()
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
import app.reload
app.reload.renew = lambda _: (app.reload.logger.info("this takes long"), time.sleep(600))
from pose import main
sys.exit(main(["serve"]))
"""


@contextmanager
def ended(process: Process) -> Iterator[Process]:
    try:
        yield process
    finally:
        if process.popen.poll() is None:
            process.popen.kill()
            process.end()


def test_sighup_swaps_and_sigterm_drains_under_load(packages: dict[str, Path], folder: Path, tmp_path: Path) -> None:
    answers: list[tuple[int, str]] = []
    with ended(Process(environment(folder, tmp_path))) as process:
        url = process.url()

        def keep_asking() -> None:
            while True:
                try:
                    response = httpx.post(f"{url}/pose", content=PNG, headers={"Content-Type": "image/png"}, timeout=60)
                except httpx.TransportError:
                    return  # the door is closed
                body = response.json()
                answers.append((response.status_code, body.get("model", body.get("error")).get("version", "none")))

        with ThreadPoolExecutor(4) as pool:
            asking = [pool.submit(keep_asking) for _ in range(4)]
            for number in ("2", "3"):
                publish(packages[number], folder)
                process.popen.send_signal(signal.SIGHUP)
                wait_until(lambda number=number: (200, number) in answers)
            (folder / CARD).unlink()
            process.popen.send_signal(signal.SIGHUP)
            process.wait_for("ERROR app.reload reload refused, random_w16 3")
            count = len(answers)
            wait_until(lambda: len(answers) >= count + 8)
            assert {status for status, _ in answers} == {200}
            publish(packages["2"], folder)
            process.popen.send_signal(signal.SIGHUP)  # the load that begins is not waited for
            process.popen.send_signal(signal.SIGTERM)
            assert process.end() == 0
            for client in asking:
                client.result(60)
    assert set(answers) <= {(200, "1"), (200, "2"), (200, "3"), (503, "none")}
    assert "Traceback" not in process.log


def test_sighup_at_the_start_is_kept_and_a_closed_terminal_ends_the_server_even_while_it_loads(
    folder: Path, tmp_path: Path
) -> None:
    terminal, inside = pty.openpty()
    with ended(Process(environment(folder, tmp_path), ("-c", SLOW_IN_TERMINAL), inside)) as process:
        os.close(inside)
        process.wait_for("engine torch")
        process.popen.send_signal(signal.SIGHUP)
        process.wait_for("this takes long")  # the terminal is open, so it meant to reload
        assert httpx.get(f"{process.url()}/readyz").status_code == 200
        os.close(terminal)
        assert process.end() == 0
    assert "draining" in process.log
