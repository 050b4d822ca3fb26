"""The real stack on a real engine: built, started, scraped, loaded, cut off, scaled and stopped.

The project has a name of its own here and free ports, so that a stack in use is left alone.
"""

import contextlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving import publish, wait_until, write_random_package

ROOT = Path(__file__).parents[2]
IMAGE = "pose-server:cpu"
PROXY_IMAGE = "nginxinc/nginx-unprivileged:1.30-alpine"
MOST_BYTES = 1.2e9
VARIABLES = {
    "COMPOSE_PROJECT_NAME": "pose-test",
    "API_PORT": "0",
    "PROMETHEUS_PORT": "0",
    "PROXY_PORT": "0",
    "API_CPUS": str(min(2, os.cpu_count() or 1)),
}
# run in the container, which has neither curl nor a network: the picture comes by stdin
ASK = """
import http.client, sys
connection = http.client.HTTPConnection("127.0.0.1", 8000)
connection.request("POST", "/pose", sys.stdin.buffer.read(), {"Content-Type": "image/jpeg"})
print(connection.getresponse().read().decode())
"""
# nginx as Debian has it, in place of the image that compose names, where no registry can be reached
STAND_IN = """FROM python:3.13-slim
RUN apt-get update -qq && apt-get install -y -qq --no-install-recommends nginx-light wget && rm -rf /var/lib/apt/lists/*
USER 101
CMD ["nginx", "-g", "daemon off;"]
"""


def find_engine() -> str:
    """Why there is no engine to test with; empty where there is one."""
    if shutil.which("docker") is None:
        return "docker is not installed"
    for command in (["info"], ["compose", "version"]):
        done = subprocess.run(["docker", *command], capture_output=True, encoding="utf-8")
        if done.returncode:
            return f"`docker {' '.join(command)}` fails: {(done.stderr or done.stdout).strip().splitlines()[-1]}"
    return ""


LACKING = find_engine()
pytestmark = [
    pytest.mark.skipif(bool(LACKING), reason=f"no Docker engine with compose: {LACKING}"),
    pytest.mark.timeout(1500),  # the image's build is in it
]


def docker(*arguments: str, stdin: bytes | None = None, check: bool = True, **variables: str) -> str:
    """What the docker command prints on stdout."""
    done = subprocess.run(
        ["docker", *arguments], input=stdin, capture_output=True, cwd=ROOT, env={**os.environ, **VARIABLES, **variables}
    )
    assert not check or done.returncode == 0, f"docker {' '.join(arguments)}\n{done.stderr.decode()[-4000:]}"
    return done.stdout.decode().strip()


def compose(*arguments: str, **variables: str) -> str:
    """The same for the stack under test."""
    return docker("compose", *arguments, **variables)


def url(service: str, port: int) -> str:
    """Where a port of a service is reached from here."""
    return f"http://{compose('port', service, str(port))}"


def inspect(name: str) -> Any:
    """What the engine knows of a container or an image."""
    return json.loads(docker("inspect", name))[0]


def pose(url: str, picture: bytes, client: httpx.Client | None = None, **headers: str) -> httpx.Response:
    """POST a picture."""
    sender = client or httpx
    given = {"Content-Type": "image/jpeg", **{name.replace("_", "-"): value for name, value in headers.items()}}
    return sender.post(f"{url}/pose", content=picture, headers=given, timeout=60)


def is_ready(url: str) -> bool:
    with contextlib.suppress(httpx.TransportError):
        return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
    return False


def query(prometheus: str, expression: str) -> list[Any]:
    """The result of an instant query."""
    answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}, timeout=30).json()
    assert answer["status"] == "success", answer
    found: list[Any] = answer["data"]["result"]
    return found


@pytest.fixture(scope="module")
def report(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Shows a line, in tests that pass too."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    terminal = request.config.pluginmanager.getplugin("terminalreporter")
    assert capture is not None
    assert terminal is not None

    def show(line: str) -> None:
        with capture.global_and_fixture_disabled():
            terminal.write_line(f"\n  {line}")

    return show


@pytest.fixture(scope="module")
def image(report: Callable[[str], None]) -> str:
    """The CPU image, built."""
    began = time.monotonic()
    compose("build", "--quiet", "api")
    report(f"built in {time.monotonic() - began:.0f} s")
    return IMAGE


@pytest.fixture(scope="module")
def stack(image: str) -> Iterator[None]:  # noqa: ARG001 - it is built before
    """The service and Prometheus, healthy."""
    try:
        compose("up", "--detach", "--wait", "--wait-timeout", "180", "api", "prometheus")
        yield
    finally:
        sys.stderr.write(compose("logs", "--no-color", "--tail", "40", "api"))  # shown where a test failed
        compose("--profile", "*", "down", "--volumes", "--remove-orphans", "--timeout", "5")


def test_the_image_is_small_and_holds_nothing_of_cuda_or_pytorch(image: str, report: Callable[[str], None]) -> None:
    found = inspect(image)
    report(f"{image}: {found['Size'] / 1e6:.0f} MB unpacked")
    assert found["Size"] <= MOST_BYTES
    script = (
        "import pathlib, sysconfig; print(*(p.name for p in pathlib.Path(sysconfig.get_path('purelib')).iterdir())); "
        "print(sorted(p.suffix for p in pathlib.Path('/opt/pose/cache').iterdir()))"
    )
    packages, cached = docker("run", "--rm", "--entrypoint", "python", image, "-c", script).splitlines()
    heavy = r"(torch|nvidia|triton|ultralytics|cuda|pip|pytest|openvino_telemetry|tests)\b.*"
    assert [name for name in packages.split() if re.fullmatch(heavy, name)] == []
    assert "'.xml'" in cached
    config = found["Config"]
    assert config["User"] == "10001:10001"
    assert config["StopSignal"] == "SIGTERM"
    assert (config["Entrypoint"], config["Cmd"]) == (["pose"], ["serve"])
    assert config["Healthcheck"]["Test"][0] == "CMD"
    assert config["Labels"]["org.opencontainers.image.licenses"] == "AGPL-3.0-or-later"


@pytest.mark.usefixtures("stack")
def test_a_picture_gets_its_people(pictures: dict[str, bytes]) -> None:
    address = url("api", 8000)
    answer = pose(address, pictures["bus"])
    assert answer.status_code == 200, answer.text
    persons = answer.json()["persons"]
    assert len(persons) >= 3
    assert {len(person["keypoints"]) for person in persons} == {17}
    assert httpx.get(f"{address}/model").json()["engine"] == "openvino"


@pytest.mark.usefixtures("stack")
def test_the_time_from_start_to_ready_is_shown(report: Callable[[str], None]) -> None:
    container = compose("ps", "--quiet", "api")
    docker("restart", container)  # that it becomes ready again is what is asserted; how fast is for the reader
    began = time.monotonic()
    address = url("api", 8000)
    wait_until(lambda: is_ready(address))
    report(f"ready {time.monotonic() - began:.1f} s after its start, on {VARIABLES['API_CPUS']} cores")


@pytest.mark.usefixtures("stack")
def test_a_stop_is_heeded_while_models_load() -> None:
    container = compose("ps", "--quiet", "api")
    docker("restart", container)
    docker("stop", container)
    assert inspect(container)["State"]["ExitCode"] in (0, 143)  # 137: it was killed in the end
    compose("up", "--detach", "--wait", "--wait-timeout", "120", "api")


@pytest.mark.usefixtures("stack")
def test_the_process_has_no_rights_and_a_root_that_cannot_be_written() -> None:
    container = compose("ps", "--quiet", "api")
    status = dict(line.split(":\t", 1) for line in docker("exec", container, "cat", "/proc/1/status").splitlines())
    assert set(status["Uid"].split()) == {"10001"}
    assert set(status["Gid"].split()) == {"10001"}
    assert status["NoNewPrivs"] == "1"
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    script = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('x')"
    for place in ("/x", "/opt/venv/x", "/opt/pose/cache/x", "/packages/x"):
        assert docker("exec", container, "python", "-c", script, place, check=False) == ""
        assert docker("exec", container, "sh", "-c", f"test -e {place} || echo no") == "no"
    for place in ("/tmp/x", "/var/cache/pose/x"):
        docker("exec", container, "python", "-c", script, place)
    assert inspect(container)["HostConfig"]["ReadonlyRootfs"]


@pytest.mark.usefixtures("stack")
def test_prometheus_counts_what_was_sent(pictures: dict[str, bytes]) -> None:
    address, prometheus = url("api", 8000), url("prometheus", 9090)
    sent = {"200": 7, "400": 3}
    expression = 'sum by (status) (pose_requests_total{route="/pose"})'

    def counted() -> dict[str, float]:
        found = {one["metric"]["status"]: float(one["value"][1]) for one in query(prometheus, expression)}
        return {status: value for status, value in found.items() if value}

    def exposed() -> dict[str, float]:
        text = httpx.get(f"{address}/metrics").text
        found = re.findall(r'^pose_requests_total\{route="/pose",status="(\d+)"\} (\S+)', text, re.M)
        return {status: float(value) for status, value in found if float(value)}

    before = exposed()
    for _ in range(sent["200"]):
        assert pose(address, pictures["zidane"]).status_code == 200
    for _ in range(sent["400"]):
        assert pose(address, pictures["zidane"][:100]).status_code == 400
    expected = before | {status: before.get(status, 0) + count for status, count in sent.items()}
    wait_until(lambda: counted() == expected, 120)


def test_the_service_works_without_any_network(image: str, pictures: dict[str, bytes]) -> None:
    container = docker("run", "--detach", "--network", "none", "--read-only", "--tmpfs", "/tmp", image)
    try:
        wait_until(lambda: inspect(container)["State"]["Health"]["Status"] == "healthy", 120)
        answer = docker("exec", "--interactive", container, "python", "-c", ASK, stdin=pictures["bus"])
        assert len(json.loads(answer)["persons"]) >= 3
        docker("stop", container)
        assert inspect(container)["State"]["ExitCode"] == 0
    finally:
        docker("rm", "--force", "--volumes", container)


@pytest.mark.usefixtures("stack")
def test_no_accepted_request_is_lost_when_the_service_is_stopped_under_load(pictures: dict[str, bytes]) -> None:
    container, address = compose("ps", "--quiet", "api"), url("api", 8000)
    answers: dict[str, int] = {}
    stopped = threading.Event()

    def keep_asking(client: int) -> None:
        number = 0
        while not stopped.is_set():
            number += 1
            name = f"load-{client}-{number}"
            # the port's forwarder accepts connections even where nobody listens behind it any more
            with contextlib.suppress(httpx.TransportError):
                answers[name] = pose(address, pictures["zidane"], X_Request_ID=name).status_code

    with ThreadPoolExecutor(6) as clients:
        asking = [clients.submit(keep_asking, number) for number in range(6)]
        try:
            wait_until(lambda: len(answers) >= 12)
            docker("stop", container)
        finally:
            stopped.set()
        for one in asking:
            one.result(90)
    assert inspect(container)["State"]["ExitCode"] == 0
    log = subprocess.run(["docker", "logs", container], capture_output=True, encoding="utf-8").stderr
    assert re.search(r"draining: [1-9]\d* requests in progress", log)
    done = {name: int(status) for name, status in re.findall(r"id=(load-\S+) .* status=(\d+)", log)}
    assert set(done.values()) <= {200, 503}
    assert list(done.values()).count(200) >= 12
    assert answers == done  # whatever the service answered has reached who asked
    docker("start", container)


@pytest.mark.usefixtures("stack")
def test_an_alert_fires_while_the_service_is_away_and_ends_when_it_is_back() -> None:
    prometheus = url("prometheus", 9090)
    compose("stop", "api")
    wait_until(lambda: bool(query(prometheus, 'ALERTS{alertname="PoseDown", alertstate="firing"}')), 240)
    compose("up", "--detach", "--wait", "--wait-timeout", "120", "api")
    wait_until(lambda: query(prometheus, 'ALERTS{alertname="PoseDown"}') == [], 120)


@pytest.mark.usefixtures("stack")
def test_replicas_share_the_load_behind_the_proxy_and_a_new_one_is_found(pictures: dict[str, bytes]) -> None:
    if docker("image", "ls", "--quiet", PROXY_IMAGE) == "":
        pulled = subprocess.run(["docker", "pull", "--quiet", PROXY_IMAGE], capture_output=True, cwd=ROOT)
        if pulled.returncode:
            docker("build", "--quiet", "--network", "host", "-t", PROXY_IMAGE, "-", stdin=STAND_IN.encode())
    compose("up", "--detach", "--wait", "--wait-timeout", "120", "--no-recreate", "proxy")
    compose("up", "--detach", "--wait", "--wait-timeout", "120", "--no-recreate", "--scale", "api=2", "api")
    proxy, prometheus = url("proxy", 8080), url("prometheus", 9090)

    def counts() -> dict[str, float]:
        found = query(prometheus, 'sum by (instance) (pose_requests_total{route="/pose", status="200"})')
        return {one["metric"]["instance"]: float(one["value"][1]) for one in found}

    wait_until(lambda: len(query(prometheus, 'up{job="pose"} == 1')) == 2, 120)
    before = counts()
    for _ in range(30):
        assert pose(proxy, pictures["zidane"]).status_code == 200
    wait_until(lambda: sum(counts().values()) == sum(before.values()) + 30, 120)
    shares = [value - before.get(name, 0) for name, value in counts().items()]
    assert len([share for share in shares if share]) == 2
    assert min(shares) >= 5  # of 30 by chance: fewer once in 30,000 runs

    # one replica leaves: its requests go to the other, and nobody sees an error
    with ThreadPoolExecutor(1) as pool:
        leaving = pool.submit(docker, "stop", compose("ps", "--quiet", "api").splitlines()[-1])
        statuses = []
        while not leaving.done():
            statuses.append(pose(proxy, pictures["zidane"]).status_code)
        leaving.result()
    assert set(statuses) == {200}

    assert httpx.get(f"{proxy}/metrics").status_code == 404
    refused = httpx.post(f"{proxy}/pose", content=bytes(66 * 2**20), timeout=60)
    assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_many_bytes")
    compose("stop", "api")
    wait_until(lambda: pose(proxy, pictures["zidane"]).status_code == 503)  # 504 while nginx still knows its address
    assert pose(proxy, pictures["zidane"]).json()["error"]["code"] == "not_ready"
    compose("rm", "--force", "--stop", "proxy")


@pytest.mark.usefixtures("stack")
def test_a_package_of_ones_own_is_prepared_served_and_replaced(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    packages = tmp_path / "packages"
    for seed in (1, 2):
        write_random_package(packages / f"version{seed}", seed=seed, version=str(seed))
    publish(packages / "version1", packages / "mine")
    own = tmp_path / "own.yml"
    settings = {"POSE_MODEL": "/packages/mine", "POSE_CACHE": "/var/cache/pose"}
    own.write_text(json.dumps({"services": {name: {"environment": settings} for name in ("api", "prepare")}}))
    files = os.environ.get("COMPOSE_FILE", "docker-compose.yml")
    variables = {"COMPOSE_FILE": f"{files}:{own}", "PACKAGES": str(packages)}
    prepare = ["run", "--rm", "--build", "prepare"]

    compose(*prepare, **variables)
    compose(
        "up", "--detach", "--wait", "--wait-timeout", "120", "--force-recreate", "--scale", "api=1", "api", **variables
    )
    address = url("api", 8000)

    def version() -> str:
        return str(httpx.get(f"{address}/model").json()["version"])

    assert version() == "1"
    publish(packages / "version2", packages / "mine")
    compose(*prepare, **variables)
    compose("kill", "--signal", "HUP", "api", **variables)
    wait_until(lambda: version() == "2", 60)
    publish(packages / "version1", packages / "mine")  # back: what was converted before is still there
    compose("kill", "--signal", "HUP", "api", **variables)
    wait_until(lambda: version() == "1", 60)
