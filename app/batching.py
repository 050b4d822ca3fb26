"""Between the async world and the networks: one thread owns each network, and whatever waits shares its next run.

A free worker takes what is queued at once, up to the largest batch; it never waits for more while it could work. How
many items can wait is bounded where requests are let in (`app.commons`), not here.

Fairness: items wait by group, a request being a group, and a batch takes one item from each group in turn, those that
waited before a newcomer first. Where a request with 60 people and one with a single person wait together, the single
person is in the next batch of two or more. Within a group items keep their order.

Batches have sizes of a fixed set, so that shapes repeat and engines can be made for each and warmed; what is
left over waits for the next run. See `batch_sizes`.

Networks on a CPU use all of its threads, so two of them at once would only be in each other's way: they take turns
(`Turns`). A GPU's are not held back.
"""

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from app.errors import DeadlineError

logger = logging.getLogger(__name__)

TIMER_SLACK = 0.01  # seconds by which an event loop's timer may be early

Item = TypeVar("Item")
Result = TypeVar("Result")


def batch_sizes(most: int) -> tuple[int, ...]:
    """The sizes that batches have, ascending: powers of two up to `most`, and `most`."""
    return tuple(n for n in range(1, most + 1) if n & (n - 1) == 0 or n == most)


def drop_reason(deadline: float) -> str:
    """Why work is dropped before it runs, for the metrics: its `deadline` (`time.monotonic`) or its client."""
    return "deadline_passed" if time.monotonic() >= deadline - TIMER_SLACK else "client_closed"


@dataclass(frozen=True)
class Done(Generic[Result]):
    """An item's result, and when its run began and ended (`time.monotonic` seconds)."""

    result: Result
    began: float
    ended: float


def timed(step: Callable[..., Result], *arguments: object) -> Done[Result]:
    """A step's result, with its begin and end."""
    began = time.monotonic()
    result = step(*arguments)
    return Done(result, began, time.monotonic())


@dataclass(frozen=True)
class _Entry(Generic[Item, Result]):
    item: Item
    deadline: float
    future: Future[Done[Result]] = field(default_factory=Future)


class Turns:
    """One at a time, in the order in which they came.

    A thread comes again only after its run, behind whoever has waited meanwhile. So the detector and the pose network
    alternate under load, and a new picture waits for one pose run before its people are found, however many crops wait.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._busy = False
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """Wait for a turn and hold it."""
        mine = threading.Event()
        with self._lock:
            if self._busy:
                self._waiting.append(mine)
            else:
                self._busy = True
                mine.set()
        mine.wait()
        try:
            yield
        finally:
            with self._lock:
                if self._waiting:
                    self._waiting.popleft().set()
                else:
                    self._busy = False


class Batcher(Generic[Item, Result]):
    """Runs `work` on batches of what is submitted, in one thread of its own.

    Args:
        name: of the thread and in logs.
        work: list of items -> list of as many results, in order. Where it raises, the batch is run again item by item,
            so that only the item that raises gets the exception.
        max_batch: most items of one run.
        turns: shared with other batchers where only one is to run at a time.
        watch_batch: called with the size of every batch.
        watch_error: called with every exception of a single item.
        watch_drop: called with the reason for every item that is dropped before its run.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Item]], list[Result]],
        max_batch: int,
        turns: Turns | None = None,
        watch_batch: Callable[[int], object] = lambda _: None,
        watch_error: Callable[[Exception], object] = lambda _: None,
        watch_drop: Callable[[str], object] = lambda _: None,
    ) -> None:
        self.name, self.work, self.turns = name, work, turns
        self.sizes = batch_sizes(max_batch)
        self.watch_batch, self.watch_error, self.watch_drop = watch_batch, watch_error, watch_drop
        self._groups: dict[Hashable, deque[_Entry[Item, Result]]] = {}  # the next one to take from comes first
        self._changed = threading.Condition()
        self._closed = False
        self._thread = threading.Thread(target=self._loop, name=name, daemon=True)
        self._thread.start()

    def __len__(self) -> int:
        """Items that wait."""
        with self._changed:
            return sum(map(len, self._groups.values()))

    def submit(self, items: Sequence[Item], deadline: float, group: Hashable = None) -> list[Future[Done[Result]]]:
        """Queue items; one future each.

        A future that is cancelled before its run takes its item out of it. An item whose `deadline`
        (`time.monotonic`) passes before its run is dropped: its future raises DeadlineError.

        Args:
            group: whose items they are; None makes them a group of their own. See the module.

        Raises:
            RuntimeError: the batcher is closed.
        """
        entries = [_Entry[Item, Result](item, deadline) for item in items]
        with self._changed:
            if self._closed:
                raise RuntimeError(f"{self.name} is closed")
            if entries:
                self._groups.setdefault(object() if group is None else group, deque()).extend(entries)
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
                self._changed.wait_for(lambda: self._groups or self._closed)
                if not self._groups:
                    return
            with self.turns.one() if self.turns else contextlib.nullcontext():
                batch = self._take()  # only now: what came while it waited for its turn is in it
                if batch:
                    self.watch_batch(len(batch))
                    self._run(batch)

    def _take(self) -> list[_Entry[Item, Result]]:
        """The next batch, without what was cancelled or came too late."""
        batch: list[_Entry[Item, Result]] = []
        with self._changed:
            self._drop()
            waiting = len(self)
            size = max((size for size in self.sizes if size <= waiting), default=0)
            while self._groups and len(batch) < size:
                group = next(iter(self._groups))
                entries = self._groups.pop(group)
                entry = entries.popleft()
                if entries:
                    self._groups[group] = entries  # behind the others
                if entry.future.set_running_or_notify_cancel():
                    batch.append(entry)
                else:
                    self.watch_drop(drop_reason(entry.deadline))
        return batch

    def _drop(self) -> None:
        """Take out what was cancelled or came too late."""
        now = time.monotonic()
        for group, entries in list(self._groups.items()):
            kept = deque(entry for entry in entries if not self._is_stale(entry, now))
            if kept:
                self._groups[group] = kept
            else:
                del self._groups[group]

    def _is_stale(self, entry: _Entry[Item, Result], now: float) -> bool:
        if not entry.future.cancelled() and now < entry.deadline:
            return False
        self.watch_drop(drop_reason(entry.deadline))
        if entry.future.set_running_or_notify_cancel():
            entry.future.set_exception(DeadlineError())
        return True

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
