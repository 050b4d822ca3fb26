"""Dockerfile, compose files and `.env.example`: checked without an engine. Refresh `.env.example`: `make docs`."""

import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from app.settings import Settings

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "docker" / "Dockerfile"
EXAMPLE = ROOT / ".env.example"
HEAD = """# Copied to .env, this file sets what `docker compose` starts. Every line shows its default; to change
# one, take out the `# ` before it.

# --- Compose ---

# Address on which the service and the proxy are reached; 0.0.0.0 opens them to the network: set POSE_API_KEYS then.
# BIND_ADDRESS=127.0.0.1
# Port of the service; 0 takes a free one for each replica, which `--scale` needs.
# API_PORT=8000
# Port of nginx, with --profile proxy.
# PROXY_PORT=8080
# Port of Prometheus, on 127.0.0.1.
# PROMETHEUS_PORT=9090
# How long Prometheus keeps its data.
# PROMETHEUS_RETENTION=15d
# Port of Grafana, on 127.0.0.1, with --profile dashboards.
# GRAFANA_PORT=3000
# CPU cores of one replica, at most those of the machine (4 by default with docker-compose.gpu.yml).
# API_CPUS=2
# Memory of one replica (8g by default with docker-compose.gpu.yml).
# API_MEMORY=2g
# Folder of weight packages of your own, such as ./packages: /packages in the container. By default a named volume.
# PACKAGES=packages

# --- Build ---

# Another package index.
# PIP_INDEX_URL=
# One more index for PyTorch: https://download.pytorch.org/whl/cpu spares the build of the CPU image 3 GB.
# TORCH_INDEX_URL=
# The same for the GPU image, such as https://download.pytorch.org/whl/cu130.
# GPU_TORCH_INDEX_URL=
# What the image says it was built from.
# REVISION=

# --- The service; see docs/settings.md. Compose itself sets POSE_HOST and POSE_PORT. ---

"""
NOT_ON_A_CPU = {"torch", "torchvision", "ultralytics"}
WINDOWED = {"opencv-python": "opencv-python-headless"}


def describe() -> str:
    """`.env.example` as it should be."""
    rows = []
    for name, field in Settings.model_fields.items():
        default = "" if field.default in (None, ()) else str(field.default)
        default = default.lower() if isinstance(field.default, bool) else default
        rows.append(f"# {field.description}\n# POSE_{name.upper()}={default}\n")
    return HEAD + "".join(rows)


def needs(word: str) -> pytest.MarkDecorator:
    """Skips where the docker command has no such part."""
    found = shutil.which("docker") and not subprocess.run(["docker", word, "version"], capture_output=True).returncode
    return pytest.mark.skipif(not found, reason=f"`docker {word}` is not installed")


@cache
def compose(*files: str) -> dict[str, Any]:
    """The services as compose understands the files, every profile's, without a `.env` and variables of this shell."""
    variables = {"PATH": os.environ["PATH"]}
    variables |= {name: value for name, value in os.environ.items() if name.startswith(("DOCKER_", "HOME"))}
    command = ["docker", "compose", "--env-file", "/dev/null", "--profile", "*"]
    for file in files:
        command += ["-f", str(ROOT / file)]
    done = subprocess.run(
        [*command, "config", "--format", "json"], capture_output=True, encoding="utf-8", env=variables, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    services: dict[str, Any] = json.loads(done.stdout)["services"]
    return services


def test_the_example_lists_every_setting_as_it_is() -> None:
    assert EXAMPLE.read_text() == describe(), "run: make docs"


def test_the_example_lists_every_variable_of_the_compose_files() -> None:
    shown = dict(re.findall(r"^# ([A-Z_]+)=(.*)$", EXAMPLE.read_text(), re.M))
    for file in ("docker-compose.yml", "docker-compose.gpu.yml"):
        text = (ROOT / file).read_text()
        for name, default in re.findall(r"\$\{([A-Z_]+):-([^}]*)\}", text):
            assert name in shown
            if file == "docker-compose.yml":
                assert shown[name] == default
        assert text.count("${") == len(re.findall(r"\$\{[A-Z_]+:-", text)), "a variable without a default"
        for names in re.findall(r"args: \[(.*)\]", text):
            assert set(names.split(", ")) <= set(shown)


def test_the_linter_finds_nothing_in_the_dockerfile() -> None:
    linter = Path(sys.executable).with_name("hadolint")
    done = subprocess.run([linter, DOCKERFILE], capture_output=True, encoding="utf-8")
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_cpu_image_has_every_dependency_but_those_of_pytorch() -> None:
    def name(requirement: str) -> str:
        return re.split(r"[<>=!~ ]", requirement)[0]

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = {WINDOWED.get(name(line), name(line)) for line in project["dependencies"]} - NOT_ON_A_CPU
    lines = (ROOT / "docker" / "requirements-cpu.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == sorted(wanted)
    assert f'image.version="{project["version"]}"' in DOCKERFILE.read_text()


def test_the_build_context_is_what_the_dockerfile_copies() -> None:
    copied = {
        path for line in re.findall(r"^COPY (?!--from)(.*) \S+$", DOCKERFILE.read_text(), re.M) for path in line.split()
    }
    allowed = set(re.findall(r"^!(.*)$", (ROOT / ".dockerignore").read_text(), re.M))
    assert allowed == copied
    files = [
        file for path in allowed for file in ([ROOT / path] if (ROOT / path).is_file() else (ROOT / path).rglob("*"))
    ]
    assert sum(file.stat().st_size for file in files if "__pycache__" not in file.parts) < 60e6


@needs("compose")
@pytest.mark.parametrize(
    "files", [("docker-compose.yml",), ("docker-compose.yml", "docker-compose.gpu.yml")], ids=["cpu", "gpu"]
)
def test_every_service_is_bounded_and_has_no_more_rights_than_it_needs(files: tuple[str, ...]) -> None:
    services = compose(*files)
    assert set(services) == {"api", "prometheus", "grafana", "proxy", "prepare"}
    for name, service in services.items():
        assert service["read_only"], name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}, name
        assert set(service["logging"]["options"]) == {"max-size", "max-file"}, name
        assert {port["host_ip"] for port in service.get("ports", [])} <= {"127.0.0.1"}, name
        for mount in service.get("volumes", []):
            assert mount.get("read_only") or mount["type"] == "volume", f"{name} may write to the host"
            if mount["type"] == "bind":
                assert Path(mount["source"]).exists(), f"{name} mounts {mount['source']}, which is missing"
        if name != "prepare":
            assert service["restart"] == "unless-stopped", name


@needs("compose")
def test_compose_stops_the_service_no_sooner_than_it_has_drained() -> None:
    [seconds] = re.findall(r"(\d+)s", compose("docker-compose.yml")["api"]["stop_grace_period"])
    assert int(seconds) > Settings.model_fields["drain_timeout"].default


@needs("compose")
def test_only_the_gpu_file_asks_for_a_gpu() -> None:
    cpu, gpu = compose("docker-compose.yml"), compose("docker-compose.yml", "docker-compose.gpu.yml")
    assert (cpu["api"]["build"]["target"], gpu["api"]["build"]["target"]) == ("cpu", "gpu")
    assert "reservations" not in cpu["api"]["deploy"]["resources"]
    assert gpu["api"]["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}
    ]
    assert gpu["api"]["ports"] == cpu["api"]["ports"]


if __name__ == "__main__":
    EXAMPLE.write_text(describe())
