"""A real Prometheus that scrapes a real `pose serve`, by the files in docker/prometheus.

Prometheus and promtool are found by the environment variables PROMETHEUS and PROMTOOL, on PATH, or beside each other.
Only the clock is another than in the shipped files: it ticks twice a second.
"""

import contextlib
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from serving import ROOT, Process, environment, wait_until

SHIPPED = ROOT / "docker" / "prometheus"
RULES = sorted((SHIPPED / "rules").glob("*.yml"))

Sample = dict[str, Any]


def find(program: str) -> str | None:
    """The path of `prometheus` or `promtool`; None where it is nowhere."""
    beside = [Path(os.environ[name]).with_name(program) for name in ("PROMETHEUS", "PROMTOOL") if os.environ.get(name)]
    places = [os.environ.get(program.upper()), shutil.which(program), *beside]
    return next((str(place) for place in places if place and Path(place).is_file()), None)


def needs(program: str) -> pytest.MarkDecorator:
    """Skips a test where the program is missing."""
    reason = f"no {program} here: install Debian's package prometheus, or set {program.upper()} to its path"
    return pytest.mark.skipif(find(program) is None, reason=reason)


def promtool(*arguments: str | Path) -> str:
    """What it prints; fails where it does."""
    done = subprocess.run([str(find("promtool")), *map(str, arguments)], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@dataclass(frozen=True)
class Watched:
    """A `pose serve` and the Prometheus that scrapes it."""

    service: Process
    url: str
    client: httpx.Client

    def ask(self, expression: str) -> list[Sample]:
        """The samples of an expression now."""
        answer = self.client.get("/api/v1/query", params={"query": expression}).json()
        assert answer["status"] == "success", f"{expression}: {answer}"
        found = answer["data"]["result"]
        return [{"value": [0, found[1]], "metric": {}}] if answer["data"]["resultType"] == "scalar" else found

    def value(self, expression: str) -> float:
        """The sum of the samples; 0 where there are none."""
        return sum(float(sample["value"][1]) for sample in self.ask(expression))


def quicken(folder: Path, target: str, own: str) -> Path:
    """The shipped files with a quick clock, one target in place of a name in DNS, and Prometheus' own address."""
    config = yaml.safe_load((SHIPPED / "prometheus.yml").read_text("utf-8"))
    config["global"] = dict.fromkeys(config["global"], "500ms") | {"scrape_timeout": "500ms"}
    service, itself = config["scrape_configs"]
    assert service.pop("dns_sd_configs") == [{"names": ["api"], "type": "A", "port": 8000, "refresh_interval": "15s"}]
    service["static_configs"], itself["static_configs"] = [{"targets": [target]}], [{"targets": [own]}]
    (folder / "rules").mkdir(parents=True)
    for path in RULES:
        rules = yaml.safe_load(path.read_text("utf-8"))
        for group in rules["groups"]:
            group.pop("interval", None)
        (folder / "rules" / path.name).write_text(yaml.safe_dump(rules), "utf-8")
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config), "utf-8")
    return folder / "prometheus.yml"


@contextlib.contextmanager
def watching(package: Path, folder: Path) -> Iterator[Watched]:
    """Both started, and the first scrape done."""
    service = Process(environment(package, folder))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        own = f"127.0.0.1:{free.getsockname()[1]}"
    with contextlib.ExitStack() as stack:
        stack.callback(service.end)
        stack.callback(service.popen.terminate)
        url = service.url()
        config = quicken(folder / "prometheus", url.removeprefix("http://"), own)
        log = stack.enter_context((folder / "prometheus.log").open("w"))
        program = subprocess.Popen(
            [
                str(find("prometheus")),
                f"--config.file={config}",
                f"--storage.tsdb.path={folder / 'data'}",
                f"--web.listen-address={own}",
            ],
            stdout=log,
            stderr=log,
        )
        stack.callback(program.wait, 60)
        stack.callback(program.terminate)
        client = stack.enter_context(httpx.Client(base_url=f"http://{own}", timeout=30, trust_env=False))

        def scraped() -> bool:
            assert program.poll() is None, (folder / "prometheus.log").read_text()
            with contextlib.suppress(httpx.TransportError):
                ready = client.get("/-/ready").status_code == 200
                return ready and bool(watched.ask("pose_ready == 1"))
            return False

        watched = Watched(service, url, client)
        wait_until(scraped)
        yield watched
