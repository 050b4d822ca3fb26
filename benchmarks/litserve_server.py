"""The service's pipeline and engines under LitServe, with LitServe's dynamic batching.

    pip install 'pose-server[bench]'
    python benchmarks/litserve_server.py --port 8002

One worker process owns the models and every core. It decodes a batch's pictures in two threads, then runs the detector
on the pictures and the pose network on the people of all of them.
"""

import argparse
from concurrent.futures import ThreadPoolExecutor

import litserve  # type: ignore[import-untyped]
from fastapi import Request, Response
from shared_steps import Steps

from app.images import Picture


class PoseAPI(litserve.LitAPI):  # type: ignore[misc]
    """LitServe calls these in the worker, in this order."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - LitServe's signature
        """Load the models."""
        self.steps = Steps()
        self.pool = ThreadPoolExecutor(self.steps.settings.decode_threads)

    def decode_request(self, request: Request) -> bytes:
        """The form's file. LitServe hands over the parsed form."""
        data: bytes = request["file"].file.read()
        return data

    def batch(self, inputs: list[bytes]) -> list[Picture]:
        """The pictures of all requests."""
        return list(self.pool.map(self.steps.decode, inputs))

    def predict(self, x: list[Picture]) -> list[bytes]:
        """The answers of all pictures."""
        return self.steps.answer(x)

    def unbatch(self, output: list[bytes]) -> list[bytes]:
        """They are apart already."""
        return output

    def encode_response(self, output: bytes) -> Response:
        """The JSON as it is."""
        return Response(output, media_type="application/json")


def main() -> None:
    """Serve on loopback."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8002)
    parser.add_argument("--max-batch", type=int, default=8, help="most pictures of a batch (default 8)")
    parser.add_argument(
        "--wait", type=float, default=20, help="ms to wait for a fuller batch (default 20: faster than 5)"
    )
    parser.add_argument("--fast-queue", action="store_true", help="LitServe's queue over ZeroMQ")
    options = parser.parse_args()
    api = PoseAPI(max_batch_size=options.max_batch, batch_timeout=options.wait / 1000, api_path="/pose")
    server = litserve.LitServer(api, accelerator="cpu", devices=1, timeout=600, fast_queue=options.fast_queue)
    server.run(
        host="127.0.0.1", port=options.port, num_api_servers=1, log_level="warning", generate_client_file=False,
        access_log=False,
    )  # fmt: skip


if __name__ == "__main__":
    main()
