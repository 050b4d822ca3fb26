"""Servers to measure: each a process on a free loopback port, paused while another is measured, ended in any case."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import psutil  # type: ignore[import-untyped]
from closed_loop import ClientError, Loop, run_loop

from model.errors import UserError

ROOT = Path(__file__).parents[1]
HERE = Path(__file__).parent
START = 180.0  # seconds that a server may take to answer its first picture
END = 20.0  # seconds that it may take to end before it is killed
OWN = frozenset({"POSE_HOST", "POSE_PORT", "POSE_API_KEYS"})  # settings that would keep the client out
SAMPLE = 0.2  # seconds between looks at the memory
PEERS = {"litserve": "litserve", "ray": "ray"}  # server -> the package it needs
SERVERS: Mapping[str, Sequence[str]] = {
    "ours": ("-m", "pose", "serve"),
    "naive": (str(HERE / "naive_server.py"),),
    "litserve": (str(HERE / "litserve_server.py"),),
    "ray": (str(HERE / "ray_server.py"),),
}


class ServerError(UserError):
    """A server does not start, or does not answer."""


def missing(server: str) -> str | None:
    """How to install what a server needs; None where it is there."""
    package = PEERS.get(server)
    if package is None or importlib.util.find_spec(package) is not None:
        return None
    return f"{server} is left out, it is not installed: pip install -c constraints.txt -e '.[bench]'"


@dataclass(frozen=True)
class Measured:
    """A closed loop against a server: what the client saw, CPU seconds of the server's processes, and the most bytes
    of memory that they held together meanwhile (resident; what they share counts once for each)."""

    loop: Loop
    cpu: float
    memory: int


class ServerProcess:
    """One server and all processes that it starts.

    Args:
        name: a key of `SERVERS`.
        log: file that takes its output.
        variables: environment variables on top of this process's own, of which those of `OWN` are not handed on.
        options: more of its command line.
    """

    def __init__(
        self, name: str, log: Path, variables: Mapping[str, str] | None = None, options: Sequence[str] = ()
    ) -> None:
        self.name, self.log = name, log
        self.port = _free_port()
        kept = {key: value for key, value in os.environ.items() if key not in OWN}
        kept |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"} | dict(variables or {})
        command = [sys.executable, *SERVERS[name], *options]
        if name == "ours":
            kept["POSE_PORT"] = str(self.port)
        else:
            command += ["--port", str(self.port)]
        self._file: IO[bytes] = log.open("wb")
        self._popen = subprocess.Popen(
            command, cwd=ROOT, env=kept, stdin=subprocess.DEVNULL, stdout=self._file, stderr=self._file,
            start_new_session=True,
        )  # fmt: skip
        self._root = psutil.Process(self._popen.pid)

    def wait(self, picture: Path) -> None:
        """Return once it answers a picture.

        Raises:
            ServerError: it ended, or took too long; with the end of its output.
        """
        end = time.monotonic() + START
        while time.monotonic() < end:
            if self._popen.poll() is not None:
                raise ServerError(
                    f"{self.name} ended with status {self._popen.returncode} at its start:\n{self._tail()}"
                )
            try:
                run_loop(self.port, [picture], 1, 60, requests=1)
            except ClientError:
                time.sleep(0.3)
            else:
                return
        raise ServerError(f"{self.name} did not answer within {START:.0f} s of its start:\n{self._tail()}")

    def measure(
        self, pictures: Sequence[Path], concurrency: int, seconds: float, requests: int = 0, query: str = ""
    ) -> Measured:
        """Run a closed loop against it; see `run_loop`.

        Raises:
            ServerError: it did not answer every request with 200.
        """
        most, stop = self.memory(), threading.Event()

        def watch() -> None:
            nonlocal most
            while not stop.wait(SAMPLE):
                most = max(most, self.memory())

        watcher = threading.Thread(target=watch)
        before = self.cpu()
        watcher.start()
        try:
            loop = run_loop(self.port, pictures, concurrency, seconds, requests, query)
        except ClientError as error:
            raise ServerError(f"{self.name} at concurrency {concurrency}: {error}\n{self._tail()}") from None
        finally:
            stop.set()
            watcher.join()
        return Measured(loop, self.cpu() - before, max(most, self.memory()))

    def tree(self) -> list[psutil.Process]:
        """Its processes, the first one first."""
        try:
            return [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def cpu(self) -> float:
        """Seconds of CPU time that its processes have used."""
        total = 0.0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                times = process.cpu_times()
                total += times.user + times.system + times.children_user + times.children_system
        return total

    def memory(self) -> int:
        """Resident bytes of its processes."""
        total = 0
        for process in self.tree():
            with contextlib.suppress(psutil.NoSuchProcess):
                total += process.memory_info().rss
        return total

    def pause(self) -> None:
        """Stop its processes where they are; they use no CPU then."""
        self._each("suspend", self.tree())

    def resume(self) -> None:
        """Let them go on."""
        self._each("resume", self.tree())

    def end(self) -> None:
        """End its processes: asked first, then by force."""
        processes = self.tree()
        self._each("resume", processes)
        self._each("terminate", processes[:1])
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(END)
        self._each("kill", processes)
        self._popen.wait()
        psutil.wait_procs(processes, END)
        self._file.close()

    def _each(self, action: str, processes: Sequence[psutil.Process]) -> None:
        for process in processes:
            with contextlib.suppress(psutil.NoSuchProcess):
                getattr(process, action)()

    def _tail(self) -> str:
        return "\n".join(self.log.read_text("utf-8", "replace").splitlines()[-15:])


@contextlib.contextmanager
def awake(server: ServerProcess) -> Iterator[ServerProcess]:
    """The server goes on for a while, then pauses again."""
    server.resume()
    try:
        yield server
    finally:
        server.pause()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
