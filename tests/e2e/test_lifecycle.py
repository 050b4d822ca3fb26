"""A server as its own process: it starts, says where, drains at SIGTERM, and tells in a line what is wrong."""

import json
import signal
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from serving import Process, encode_picture, environment, wait_until

PICTURE = encode_picture(np.random.default_rng(0).integers(0, 256, (600, 800, 3), np.uint8), "JPEG")


@pytest.fixture
def process(pose_package: Path, tmp_path: Path) -> Iterator[Process]:
    process = Process(environment(pose_package, tmp_path))
    yield process
    if process.popen.poll() is None:
        process.popen.kill()
        process.end()


def post(url: str) -> tuple[int, str]:
    request = urllib.request.Request(f"{url}/pose?flip_test=true", PICTURE, {"Content-Type": "image/jpeg"})
    try:
        with urllib.request.urlopen(request, timeout=60) as response:
            return response.status, ""
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)["error"]["code"]


def test_sigterm_under_load_finishes_what_was_accepted_and_exits_0(process: Process) -> None:
    url = process.url()
    answers: list[tuple[int, str]] = []
    ends: list[Exception] = []

    def keep_asking() -> None:
        while True:
            try:
                answers.append(post(url))
            except (urllib.error.URLError, ConnectionError) as error:
                ends.append(error)
                return

    with ThreadPoolExecutor(4) as clients:
        asking = [clients.submit(keep_asking) for _ in range(4)]
        wait_until(lambda: len(answers) >= 8)
        assert not ends
        process.popen.send_signal(signal.SIGTERM)
        assert process.end() == 0
        for client in asking:
            client.result(60)
    # only once the door is closed: refused, or reset before being let in, which a writer may see as a broken pipe
    assert all(any(word in str(end) for word in ("refused", "reset", "Broken pipe")) for end in ends), ends
    assert set(answers) <= {(200, ""), (503, "draining")}
    assert "draining" in process.log
    assert "Traceback" not in process.log


def test_the_log_says_what_serves_and_nothing_is_lost_in_it(process: Process) -> None:
    url = process.url()
    assert post(url) == (200, "")
    process.popen.send_signal(signal.SIGINT)
    assert process.end() == 0
    for words in ("engine torch on cpu in f32, 1 CPU threads", "pose random_w16 1", "detector none", "status=200"):
        assert words in process.log


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        pytest.param({"POSE_PROT": "1"}, "POSE_PROT is no setting; did you mean POSE_PORT?", id="unknown setting"),
        pytest.param({"POSE_DEVICE": "gpu"}, "POSE_DEVICE='gpu'", id="bad value"),
        pytest.param({"POSE_MODEL": "no_such"}, "no weight package 'no_such'", id="no package"),
    ],
)
def test_a_start_that_fails_says_why_in_a_line(
    pose_package: Path, tmp_path: Path, changed: dict[str, str], words: str
) -> None:
    process = Process(environment(pose_package, tmp_path, **changed))
    assert process.end() == 2
    assert words in process.log
    assert "Traceback" not in process.log
