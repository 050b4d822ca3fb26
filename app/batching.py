"""Between the async world and the networks: one thread owns each network, and whatever waits shares its next run.

A free worker takes what is queued at once, up to the largest batch; it never waits for more while it could work. How
many items can wait is bounded where requests are let in (`app.pipeline`), not here.
"""

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.errors import DeadlineError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class Done(Generic[Result]):
    """An item's result, and when its run began and ended (`time.monotonic` seconds)."""

    result: Result
    began: float
    ended: float


@dataclass(frozen=True)
class _Entry(Generic[Item, Result]):
    item: Item
    deadline: float
    future: Future[Done[Result]] = field(default_factory=Future)


class Batcher(Generic[Item, Result]):
    """Runs `work` on batches of what is submitted, in one thread of its own.

    Args:
        name: of the thread and in logs.
        work: list of items -> list of as many results, in order. Where it raises, the batch is run again item by item,
            so that only the item that raises gets the exception.
        max_batch: most items of one run.
        watch_batch: called with the size of every batch.
        watch_error: called with every exception of a single item.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Item]], list[Result]],
        max_batch: int,
        watch_batch: Callable[[int], object] = lambda _: None,
        watch_error: Callable[[Exception], object] = lambda _: None,
    ) -> None:
        self.name, self.work, self.max_batch = name, work, max_batch
        self.watch_batch, self.watch_error = watch_batch, watch_error
        self._queue: deque[_Entry[Item, Result]] = deque()
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Items that wait."""
        return len(self._queue)

    def submit(self, items: Sequence[Item], deadline: float) -> list[Future[Done[Result]]]:
        """Queue items; one future each.

        A future that is cancelled before its run takes its item out of it. An item whose `deadline`
        (`time.monotonic`) passes before its run is dropped: its future raises DeadlineError.

        Raises:
            RuntimeError: the batcher is closed.
        """
        entries = [_Entry[Item, Result](item, deadline) for item in items]
        with self._changed:
            if self._closed:
                raise RuntimeError(f"{self.name} is closed")
            self._queue.extend(entries)
            self._changed.notify()
        return [entry.future for entry in entries]

    def close(self) -> None:
        """Finish what is queued, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queue or self._closed)
                if not self._queue:
                    return
                batch = self._take()
            if batch:
                self.watch_batch(len(batch))
                self._run(batch)

    def _take(self) -> list[_Entry[Item, Result]]:
        """The next batch, without what was cancelled or came too late."""
        batch: list[_Entry[Item, Result]] = []
        while self._queue and len(batch) < self.max_batch:
            entry = self._queue.popleft()
            if not entry.future.set_running_or_notify_cancel():
                continue
            if time.monotonic() >= entry.deadline:
                entry.future.set_exception(DeadlineError())
            else:
                batch.append(entry)
        return batch

    def _run(self, batch: list[_Entry[Item, Result]]) -> None:
        began = time.monotonic()
        try:
            results = self.work([entry.item for entry in batch])
            if len(results) != len(batch):
                raise RuntimeError(f"{self.name} gave {len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - whatever it is must reach its future, or the request hangs
            if len(batch) == 1:
                self.watch_error(error)
                batch[0].future.set_exception(error)
                return
            logger.warning("%s: a batch of %d failed, running its items alone: %s", self.name, len(batch), error)
            for entry in batch:
                self._run([entry])
            return
        ended = time.monotonic()
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(Done(result, began, ended))
