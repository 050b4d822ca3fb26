"""A new weight package for a running service: loaded beside the old one, checked, and put in its place.

What is loaded is always what `POSE_MODEL` named at the start, and only the operator can ask for it: by SIGHUP, or by
changing the folder where `POSE_WATCH` is set. No route leads here.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor

from app.canary import check_pose
from app.pipeline import Pipeline
from app.service import Service
from model.card import Card
from model.errors import PackageError, UserError
from model.package import CARD, WEIGHTS, find_package, read_card

logger = logging.getLogger(__name__)

TICK = 0.2  # seconds between looks at whether a reload is asked for
LOOK = 1.0  # seconds between looks at the folder; what has not changed from one to the next is taken for written
PATIENCE = 10.0  # seconds for which an incomplete package is taken for one that is still being copied
LONGEST = 300  # characters of a reason; those of engines can be pages

Signature = tuple[tuple[int, int, int], ...]


def renew(current: Pipeline) -> Pipeline | None:
    """The pipeline of the package as it is on disk now, warm and found sane; None where it is the current one.

    Raises:
        PackageError: it is missing, damaged or not sane, or was replaced while it was read.
        Exception: whatever a network that does not fit this machine makes an engine raise.
    """
    began = time.monotonic()
    folder = find_package(current.settings.model)
    if read_card(folder) == current.package.card:
        return None
    pipeline = current.renew()
    check_pose(pipeline)
    if read_card(folder) != pipeline.package.card:
        raise PackageError(f"{folder} was replaced while it was read; send SIGHUP once it is complete")
    pipeline.load_seconds = time.monotonic() - began
    return pipeline


class Watch:
    """Tells when a package's folder holds something new. It may be replaced by a rename, or file by file."""

    def __init__(self, name_or_path: str) -> None:
        self.name_or_path = name_or_path
        self._tried = self._seen = self._sign()
        self._since = 0.0

    def look(self, now: float) -> bool:
        """Whether a reload is due: the package has changed, is not changing any more and is complete, or has been
        incomplete for so long that somebody should be told. Says so once for a change.

        Args:
            now: seconds of a steady clock.
        """
        found = self._sign()
        if found != self._seen:
            self._seen, self._since = found, now
            return False
        return found != self._tried and (self._complete() or now - self._since >= PATIENCE)

    def tried(self) -> None:
        """A reload begins: what stands there now is not new any more."""
        self._tried = self._seen = self._sign()

    def _sign(self) -> Signature | None:
        """Changes with the files; None where one is missing."""
        try:
            folder = find_package(self.name_or_path)
            stats = [(folder / name).stat() for name in (CARD, WEIGHTS)]
        except (PackageError, OSError, ValueError):  # also what half-written files make readers raise
            return None
        return tuple((stat.st_ino, stat.st_mtime_ns, stat.st_size) for stat in stats)

    def _complete(self) -> bool:
        try:
            read_card(find_package(self.name_or_path))
        except (PackageError, OSError, ValueError):  # also what half-written files make readers raise
            return False
        return True


class Reloader:
    """Reloads the service's package when asked to, one at a time, while requests go on.

    Attributes:
        loading: a package is being loaded; still true when that was under way as the service ended.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.loading = False
        self._asked = False
        self._watch = Watch(service.settings.model)
        self._looked = 0.0
        self._pool = ThreadPoolExecutor(1, "load")

    def ask(self) -> None:
        """Reload soon; fit for a signal handler. Asking again before that changes nothing, asking while a package is
        being loaded makes one more look at the folder."""
        self._asked = True

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Reloads happen inside; leaving it does not wait for one under way."""
        task = asyncio.create_task(self._run())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            self._pool.shutdown(wait=False)

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            if self._asked or await self._changed():
                self._asked = False
                await self._reload()

    async def _changed(self) -> bool:
        now = time.monotonic()
        if not self.service.settings.watch or not self.service.ready or now - self._looked < LOOK:
            return False
        self._looked = now
        return await asyncio.get_running_loop().run_in_executor(self._pool, self._watch.look, now)

    async def _reload(self) -> None:
        service = self.service
        if not service.ready:
            logger.info("no reload: the service takes no more work")
            return
        current = service.shared.pipeline
        self._watch.tried()
        self.loading = True
        try:
            pipeline = await asyncio.get_running_loop().run_in_executor(self._pool, renew, current)
        except Exception as error:  # noqa: BLE001 - an operator's file: whatever it raises, the old package serves
            self.loading = False
            service.watch_error(error)
            self._refuse(current.package.card, error)
            return
        self.loading = False
        service.notes = []
        if pipeline is None:
            service.metrics.reloads.labels("unchanged").inc()
            logger.info("no reload: the package is %s, which serves already", current.package.card.identity)
        elif service.ready:
            service.metrics.reloads.labels("ok").inc()
            old, new = current.package.card.identity, pipeline.package.card.identity
            logger.info("pose %s serves, loaded and warm after %.1f s; before it %s", new, pipeline.load_seconds, old)
            await service.swap(pipeline)

    def _refuse(self, serving: Card, error: Exception) -> None:
        reason = " ".join(str(error).split())[:LONGEST]
        if not isinstance(error, UserError):
            reason = f"{type(error).__name__}: {reason}"
        note = f"reload refused, {serving.identity} goes on serving: {reason}"
        self.service.notes = [note]
        self.service.metrics.reloads.labels("refused").inc()
        logger.error(note)
