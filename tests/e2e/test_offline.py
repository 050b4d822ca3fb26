"""The service with no network at all: installed once, it never needs one again."""

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# runs inside an empty network namespace: loopback is brought up by hand, then the real command is started
SCRIPT = """
import fcntl, json, os, signal, socket, struct, subprocess, sys, time, urllib.request
with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as control:
    fcntl.ioctl(control, 0x8914, struct.pack("16sh", b"lo", 1))  # SIOCSIFFLAGS, IFF_UP
server = subprocess.Popen([sys.executable, "-m", "pose", "serve"], env={**os.environ, "POSE_PORT": "8765"})
try:
    for _ in range(600):
        try:
            urllib.request.urlopen("http://127.0.0.1:8765/readyz")
            break
        except OSError:
            assert server.poll() is None, "the server ended"
            time.sleep(0.2)
    picture = open(sys.argv[1], "rb").read()
    request = urllib.request.Request("http://127.0.0.1:8765/pose", picture, {"Content-Type": "image/jpeg"})
    answer = json.load(urllib.request.urlopen(request))
finally:
    server.send_signal(signal.SIGTERM)
    status = server.wait(60)
print(json.dumps({"persons": len(answer["persons"]), "status": status}))
"""


def namespaces_allowed() -> bool:
    try:
        return subprocess.run(["unshare", "--map-root-user", "--net", "true"], capture_output=True).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not namespaces_allowed(), reason="this user may not make network namespaces (unshare -rn)")
def test_the_service_answers_inside_an_empty_network_namespace(converted: Path) -> None:
    spec = find_spec("ultralytics")
    assert spec is not None
    assert spec.origin is not None
    picture = Path(spec.origin).parent / "assets" / "bus.jpg"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("POSE_")} | {"POSE_CACHE": str(converted)}
    done = subprocess.run(
        ["unshare", "--map-root-user", "--net", sys.executable, "-c", SCRIPT, str(picture)],
        capture_output=True, encoding="utf-8", env=environment, timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["status"] == 0
    assert json.loads(done.stdout.splitlines()[-1])["persons"] >= 2


def test_openvino_has_nothing_to_send_usage_figures_with() -> None:
    script = (
        "import sys, app.main; from openvino.tools.ovc import convert_impl as convert; "
        "print(convert.tm.__name__, [name for name in sys.modules if name.startswith('openvino_telemetry.')])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8", check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "[]"]
