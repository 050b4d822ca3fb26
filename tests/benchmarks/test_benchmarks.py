"""The benchmarks' parts, and short runs of the real thing. No figure is judged: a busy machine would decide."""

import io
import json
import os
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import overhead
import psutil
import pytest
import serve
import servers
import targets
from bare import Bare
from closed_loop import ClientError, run_loop
from photographs import CROWD, make_crowd, make_pictures
from rich.console import Console
from serving import Running, environment, single_thread, wait_until
from shared_steps import Steps

from app.images import decode
from app.schemas import Options
from app.settings import Settings

KEYS = {
    "server", "pictures", "people", "concurrency", "pictures_per_s", "p50_ms", "p95_ms", "p99_ms", "cpu_ms", "rss_mb",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small(pose_package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A small pose network and the bundled detector, in PyTorch: quick to start, and people are found."""
    variables = environment(pose_package, tmp_path, POSE_DETECTOR="bundled", POSE_DATA=str(tmp_path))
    for name in [name for name in os.environ if name.startswith("POSE_")]:
        monkeypatch.delenv(name)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with single_thread():
        yield


@pytest.fixture
def files(pictures: dict[str, bytes], tmp_path: Path) -> list[Path]:
    """The two real pictures as files."""
    paths = [tmp_path / f"{name}.jpg" for name in pictures]
    for path, data in zip(paths, pictures.values(), strict=True):
        path.write_bytes(data)
    return paths


def test_serve_measures_servers_on_the_same_pictures(tmp_path: Path) -> None:
    file, console = tmp_path / "serve.json", Console(file=io.StringIO(), width=120)
    options = ["--servers", "ours", "naive", "--concurrency", "1", "2", "--people", "1", "--sizes", "640x480"]
    options += ["--seconds", "0.3", "--rounds", "1", "--rows-only", "--json", str(file)]
    before = set(psutil.Process().children())  # what earlier tests left, such as multiprocessing's own process
    serve.run(serve.parse(options), console)
    rows = json.loads(file.read_text())["rows"]
    assert [(row["server"], row["concurrency"]) for row in rows] == [
        ("ours", 1),
        ("naive", 1),
        ("ours", 2),
        ("naive", 2),
    ]
    for row in rows:
        assert set(row) == KEYS
        assert row["pictures"] == "640x480"
        assert row["people"] == 1
        assert row["pictures_per_s"] > 0
        assert row["cpu_ms"] > 0
        assert row["rss_mb"] > 50
        assert 0 < row["p50_ms"] <= row["p95_ms"] <= row["p99_ms"]
    assert "naive" in console.file.getvalue()  # type: ignore[attr-defined]
    left = set(psutil.Process().children()) - before
    assert not [child for child in left if child.status() != psutil.STATUS_ZOMBIE]


def test_overhead_accounts_for_all_of_a_requests_time(tmp_path: Path) -> None:
    file = tmp_path / "overhead.json"
    options = overhead.parse(["--quick", "--requests", "5", "--json", str(file)])
    overhead.run(options, Console(file=io.StringIO()))
    rows = json.loads(file.read_text())["rows"]
    assert [row["people"] for row in rows] == [1, 3]
    for row in rows:
        parts = {name: value for name, value in row["mean_ms"].items() if ":" not in name}
        whole = parts.pop("client sees")
        assert sum(parts.values()) == pytest.approx(whole, abs=0.02)
        assert row["added_ms"] > row["inside_ms"] > 0
        assert row["mean_ms"]["detect: engine"] > 0
        assert row["mean_ms"]["pose: engine"] > 0


@pytest.mark.parametrize("name", ["litserve", "ray"])
def test_a_peer_framework_answers_as_the_service_does(
    name: str, files: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("POSE_BOX_SCORE", "0.3")
    if text := servers.missing(name):
        pytest.skip(text)
    server = servers.ServerProcess(name, tmp_path / "log")
    try:
        server.wait(files[0])
        loop = server.measure(files, 2, 60, requests=4).loop
    finally:
        server.end()
    assert len(loop.latencies) == 4
    assert loop.persons == 10  # 3 and 2 people, each twice


def test_steps_of_several_pictures_answer_as_one_by_one(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    # real weights: boxes move by thousandths of a pixel with the batch, and flat maps of random weights with them
    monkeypatch.setattr("shared_steps.Settings", partial(Settings, model="sdhrnet_w32_coco", precision="f32"))
    steps = Steps()
    pictures = [decode(path.read_bytes(), 10**7) for path in files]
    together = [json.loads(answer) for answer in steps.answer(pictures)]
    for picture, answer in zip(pictures, together, strict=True):
        alone = steps.pipeline.predict(picture, Options())
        found = np.array([[(p["x"], p["y"]) for p in person["keypoints"]] for person in answer["persons"]])
        assert len(found) == len(alone.boxes) > 1
        assert np.abs(found - alone.keypoints).max() < 0.5


def test_pictures_have_the_people_that_are_asked_for(tmp_path: Path) -> None:
    count = Bare().count
    sets = [*make_pictures(tmp_path, count, [(640, 480), (1920, 1080)], ["1", "3", "12+"]), make_crowd(tmp_path, count)]
    assert [(one.size, one.group) for one in sets[:2]] == [("640x480", "1"), ("640x480", "3")]
    for one in sets:
        found = []
        for path in one.paths:
            picture = decode(path.read_bytes(), 10**7)
            assert f"{picture.shape[1]}x{picture.shape[0]}" == one.size
            found.append(count(picture))
        assert one.people == np.mean(found)
    assert [one.people >= 12 for one in sets] == [False, False, True, False, False, True, True]
    assert sets[-1].people >= CROWD
    assert sets[-1].source == "collage"  # there are no data in this test


def test_the_client_counts_requests_people_and_timings(server: Running, files: list[Path]) -> None:
    loop = run_loop(server.port, files, 3, 60, requests=7)
    assert len(loop.latencies) == len(loop.timings) == loop.persons == 7  # the test server takes a picture for a person
    assert max(loop.latencies) <= loop.seconds
    assert all(timing["total"] > 0 for timing in loop.timings)
    assert run_loop(server.port, files, 1, 0.0).latencies == []  # no time, no request


def test_the_client_fails_on_any_answer_but_200(server: Running, tmp_path: Path) -> None:
    path = tmp_path / "note.jpg"
    path.write_text("this is no picture")
    with pytest.raises(ClientError, match=r"400.*not_an_image"):
        run_loop(server.port, [path], 1, 60, requests=1)


def test_a_server_that_ends_at_its_start_is_named_with_its_last_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: list[Path]
) -> None:
    monkeypatch.setattr(servers, "SERVERS", {"broken": ("-c", "raise SystemExit('no weights here')")})
    server = servers.ServerProcess("broken", tmp_path / "log")
    try:
        with pytest.raises(servers.ServerError, match=r"broken ended with status 1 at its start:\nno weights here"):
            server.wait(files[0])
    finally:
        server.end()


def test_a_server_that_will_not_end_is_killed_with_its_children(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stubborn = (
        "import signal, subprocess, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        "subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)']); print('up', flush=True); "
        "time.sleep(600)"
    )
    monkeypatch.setattr(servers, "SERVERS", {"stubborn": ("-c", stubborn)})
    monkeypatch.setattr(servers, "END", 0.2)
    server = servers.ServerProcess("stubborn", tmp_path / "log")
    wait_until(lambda: (tmp_path / "log").read_text() == "up\n")
    processes = server.tree()
    try:
        assert len(processes) == 2
        server.pause()  # as it is while another one is measured
        wait_until(lambda: {process.status() for process in processes} == {psutil.STATUS_STOPPED})
    finally:
        server.end()
    assert not any(process.is_running() and process.status() != psutil.STATUS_ZOMBIE for process in processes)


def test_a_missing_peer_is_left_out_with_the_way_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(servers, "PEERS", {"litserve": "no_such_package"})
    text = servers.missing("litserve")
    assert text is not None
    assert "litserve is left out" in text
    assert "pip install" in text
    assert servers.missing("ours") is None


ROW = {
    "server": "ours", "pictures": "640x480", "people": 1.0, "concurrency": 8, "pictures_per_s": 20.0, "p50_ms": 300.0,
    "p95_ms": 400.0, "p99_ms": 450.0, "cpu_ms": 80.0, "rss_mb": 900.0,
}  # fmt: skip


def test_targets_compare_with_the_best_rival_and_show_the_worst_row() -> None:
    rows = [
        ROW,
        ROW | {"server": "naive", "pictures_per_s": 2.0, "p95_ms": 4000.0},
        ROW | {"server": "litserve", "pictures_per_s": 15.0, "p95_ms": 500.0},
        ROW | {"server": "ray", "pictures_per_s": 10.0, "p95_ms": 390.0},
        ROW | {"people": 3.0, "pictures_per_s": 9.0},
        ROW | {"people": 3.0, "server": "naive", "pictures_per_s": 3.0, "p95_ms": 1.0},
        ROW | {"people": 13.0, "pictures_per_s": 1.0},
        ROW | {"people": 13.0, "server": "naive", "pictures_per_s": 1.0},  # too many people for the first target
    ]
    found = targets.check_rows(rows, lambda people: 0.04 * people)
    assert [(target.measured, target.verdict) for target in found] == [
        (3.0, "miss"), (1.333, "pass"), (400.0, "miss"), (1.026, "miss"), (0.52, "miss"),
    ]  # fmt: skip
    assert found[0].where == "640x480, 3 people"
    assert found[4].where == "640x480, 13 people"
    assert all(target.verdict == "not measured" for target in targets.check_rows([], None))


def test_targets_of_one_client_and_of_a_crowd() -> None:
    alone = ROW | {"concurrency": 1}
    assert targets.check_idle([alone, ROW], [alone | {"p50_ms": 290.0}]).verdict == "pass"
    assert targets.check_idle([alone], [alone | {"p50_ms": 280.0}]).verdict == "miss"
    assert targets.check_crowd(0.43, 0.4).verdict == "pass"
    assert targets.check_crowd(0.45, 0.4).verdict == "miss"
    assert replace(targets.check_crowd(0.45, 0.4), measured=None).verdict == "not measured"


def test_stage_means_come_from_the_difference_of_two_looks() -> None:
    before = {
        'pose_request_duration_seconds_count{route="/pose"}': 2.0,
        'pose_stage_duration_seconds_sum{stage="decode"}': 1.0,
    }
    after = {
        'pose_request_duration_seconds_count{route="/pose"}': 6.0,
        'pose_request_duration_seconds_sum{route="/pose"}': 0.4,
        'pose_stage_duration_seconds_sum{stage="decode"}': 1.02,
    }
    found = overhead.means(before, after)
    assert found["decode"] == pytest.approx(5.0)
    assert found["request"] == pytest.approx(100.0)
    assert found["pose"] == 0
