"""The client: a closed loop of keep-alive connections, in a process of its own, with nothing but the standard library.

Each connection sends its next picture as soon as it has its answer. No request is sent after `seconds`; those in
flight are waited for and count, and so does their time, so that slow and fast servers are counted alike.
"""

import asyncio
import json
import re
import resource
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from model.errors import UserError

BOUNDARY = "----picture"
HEADERS = (
    "POST /pose{query} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: multipart/form-data; boundary={boundary}\r\n"
    "Accept: application/json\r\nContent-Length: {length}\r\n\r\n"
)
PERSON = b'"box_score"'  # stands once in every person of an answer
TIMINGS = re.compile(rb'"timings_ms":(\{[^}]*\})')


class ClientError(UserError):
    """A server did not answer as it should."""


@dataclass(frozen=True)
class Loop:
    """What one closed loop saw.

    Attributes:
        latencies: seconds of every request, in the order of the answers.
        seconds: from the first request to the last answer.
        persons: people in all answers.
        timings: `timings_ms` of every answer, where it has them.
        cpu: seconds of CPU time that the client itself used.
    """

    latencies: list[float]
    seconds: float
    persons: int
    cpu: float
    timings: list[dict[str, float]]


def run_loop(
    port: int, pictures: Sequence[Path], concurrency: int, seconds: float, requests: int = 0, query: str = ""
) -> Loop:
    """Run the client as a process and wait for it.

    Args:
        port: of a server on loopback with `POST /pose`.
        pictures: JPEG files, sent in turn.
        concurrency: connections.
        seconds: no request is sent later than this.
        requests: nor more than these; 0 is no limit.
        query: such as `?max_persons=3`.

    Raises:
        ClientError: an answer other than 200, or none.
    """
    order = {
        "port": port, "pictures": [str(path) for path in pictures], "concurrency": concurrency, "seconds": seconds,
        "requests": requests, "query": query,
    }  # fmt: skip
    root = Path(__file__).parents[1]
    command = [sys.executable, __file__, json.dumps(order)]
    done = subprocess.run(
        command, cwd=root, env={"PYTHONPATH": str(root)}, capture_output=True, encoding="utf-8", check=False
    )
    if done.returncode:
        raise ClientError(done.stderr.strip().splitlines()[-1] if done.stderr.strip() else "the client failed")
    return Loop(**json.loads(done.stdout))


class _Client:
    """Connections that share one list of requests."""

    def __init__(
        self, port: int, pictures: Sequence[str], concurrency: int, seconds: float, requests: int, query: str
    ) -> None:
        self.port, self.concurrency, self.seconds, self.most = port, concurrency, seconds, requests
        self.requests = [_request(port, Path(picture).read_bytes(), query) for picture in pictures]
        self.latencies: list[float] = []
        self.timings: list[bytes] = []
        self.sent = self.persons = 0
        self.end = 0.0

    async def run(self) -> Loop:
        """See `run_loop`."""
        connections = [await asyncio.open_connection("127.0.0.1", self.port) for _ in range(self.concurrency)]
        began = time.perf_counter()
        self.end = began + self.seconds
        await asyncio.gather(*(self._drive(reader, writer) for reader, writer in connections))
        seconds = time.perf_counter() - began
        for _, writer in connections:
            writer.close()
        usage = resource.getrusage(resource.RUSAGE_SELF)
        timings = [json.loads(text) for text in self.timings]
        return Loop(self.latencies, seconds, self.persons, usage.ru_utime + usage.ru_stime, timings)

    async def _drive(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while (began := time.perf_counter()) < self.end and not 0 < self.most <= self.sent:
            request = self.requests[self.sent % len(self.requests)]
            self.sent += 1
            writer.write(request)
            body = await _answer(reader)
            self.latencies.append(time.perf_counter() - began)
            self.persons += body.count(PERSON)
            self.timings += TIMINGS.findall(body)


def _request(port: int, picture: bytes, query: str) -> bytes:
    """The bytes of one request: the picture as the part `file` of a form."""
    part = 'Content-Disposition: form-data; name="file"; filename="picture.jpg"\r\nContent-Type: image/jpeg'
    body = f"--{BOUNDARY}\r\n{part}\r\n\r\n".encode() + picture + f"\r\n--{BOUNDARY}--\r\n".encode()
    return HEADERS.format(query=query, port=port, boundary=BOUNDARY, length=len(body)).encode() + body


async def _answer(reader: asyncio.StreamReader) -> bytes:
    """The body of a 200.

    Raises:
        ClientError: another status, or a body without a length.
    """
    try:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
        fields = dict(line.split(": ", 1) for line in head.split("\r\n")[1:] if ": " in line)
        if "content-length" not in fields:
            raise ClientError(f"the answer has no Content-Length: {head.splitlines()[0]}")
        body = await reader.readexactly(int(fields["content-length"]))
    except (asyncio.IncompleteReadError, ConnectionError) as error:
        raise ClientError(f"the server hung up: {error}") from None
    if " 200 " not in head.split("\r\n", 1)[0] + " ":
        raise ClientError(f"{head.splitlines()[0]}: {body[:300].decode('utf-8', 'replace')}")
    return body


def main() -> int:
    """One loop; the order is the argument, the outcome goes to stdout, both as JSON."""
    try:
        loop = asyncio.run(_Client(**json.loads(sys.argv[1])).run())
    except (ClientError, OSError) as error:
        sys.stderr.write(f"{error}\n")
        return 1
    json.dump(vars(loop), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
