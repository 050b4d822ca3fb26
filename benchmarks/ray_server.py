"""The service's pipeline and engines under Ray Serve, with its batching (`serve.batch`).

    pip install 'pose-server[bench]'
    python benchmarks/ray_server.py --port 8003

One replica owns the models and every core. Pictures are decoded in two threads while a batch runs; a batch runs the
detector on its pictures and the pose network on the people of all of them.
"""

import argparse
import asyncio
import os
import signal
import tempfile
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import ray
from ray import serve
from shared_steps import Steps
from starlette.requests import Request
from starlette.responses import Response

from app.images import Picture


class Pose:
    """The replica."""

    def __init__(self, max_batch: int, wait: float) -> None:
        self.steps = Steps()
        self.pool = ThreadPoolExecutor(self.steps.settings.decode_threads)
        self.owner = ThreadPoolExecutor(1)
        batching: Any = self.answer
        batching.set_max_batch_size(max_batch)
        batching.set_batch_wait_timeout_s(wait)

    async def __call__(self, request: Request) -> Response:
        """Form in, JSON out."""
        file = (await request.form())["file"]
        assert not isinstance(file, str)
        loop = asyncio.get_running_loop()
        picture = await loop.run_in_executor(self.pool, self.steps.decode, await file.read())
        return Response(await self.answer(picture), media_type="application/json")

    @serve.batch
    async def answer(self, pictures: list[Picture]) -> list[bytes]:
        """Ray Serve hands over the pictures of several requests."""
        return await asyncio.get_running_loop().run_in_executor(self.owner, self.steps.answer, pictures)


def main() -> None:
    """Serve on loopback until SIGTERM or SIGINT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--port", type=int, default=8003)
    parser.add_argument("--max-batch", type=int, default=8, help="most pictures of a batch (default 8)")
    parser.add_argument("--wait", type=float, default=5, help="ms to wait for a fuller batch (default 5)")
    options = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    os.environ.update({"RAY_USAGE_STATS_ENABLED": "0", "RAY_SERVE_LOG_TO_STDERR": "0"})
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, signal.default_int_handler)
    with tempfile.TemporaryDirectory(prefix="ray") as folder:
        # Ray sets OMP_NUM_THREADS to a replica's CPUs; the engines take every core whatever it says
        ray.init(
            address="local", num_cpus=cores, include_dashboard=False, log_to_driver=False, _temp_dir=folder,
            object_store_memory=200 * 2**20, runtime_env={"env_vars": {"OMP_NUM_THREADS": str(cores)}},
        )  # fmt: skip
        try:
            serve.start(http_options={"host": "127.0.0.1", "port": options.port})
            deploy = serve.deployment(
                num_replicas=1, max_ongoing_requests=64, ray_actor_options={"num_cpus": 0},
                logging_config={"enable_access_log": False},
            )  # fmt: skip
            serve.run(deploy(Pose).bind(options.max_batch, options.wait / 1000), route_prefix="/pose")
            signal.pause()
        except KeyboardInterrupt:
            pass
        finally:
            ray.shutdown()


if __name__ == "__main__":
    main()
