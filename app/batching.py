"""Between the async world and the networks: a few threads run a network, and whatever waits shares its next run.

A free thread takes what is queued at once, up to the largest batch; it never waits for more while it could work. How
many items can wait is bounded where requests are let in (`app.commons`), not here.

Fairness: items wait by group, a request being a group, and a batch takes one item from each group in turn, those that
waited before a newcomer first. Where a request with 60 people and one with a single person wait together, the single
person is in the next batch of two or more. Within a group items keep their order.

Batches have sizes of a fixed set, so that shapes repeat and engines can be made for each and warmed; what is
left over waits for the next run. See `batch_sizes`.

On a GPU a network has one thread and large batches. On a CPU it is the cores that are shared out (`Turns`): each runs
a small batch by itself, of whichever network is next, so no core ever waits for another. A lone item gets all cores at
once where nothing else would use them.
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


def is_late(deadline: float) -> bool:
    """Whether the `deadline` (`time.monotonic`) is past, or its timer about to say so."""
    return time.monotonic() >= deadline - TIMER_SLACK


def drop_reason(deadline: float) -> str:
    """Why work is dropped before it runs, for the metrics: its `deadline` (`time.monotonic`) or its client."""
    return "deadline_passed" if is_late(deadline) else "client_closed"


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
    """Places to run in, handed out in the order in which they are asked for.

    A thread comes again only after its run, behind whoever has waited meanwhile. So the detector and the pose network
    alternate under load, and a new picture waits for one pose run before its people are found, however many crops wait.
    """

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self._lock = threading.Lock()
        self._free = places
        self._waiting: deque[threading.Event] = deque()

    @contextlib.contextmanager
    def one(self) -> Iterator["Turn"]:
        """Wait for a place and hold it."""
        mine = threading.Event()
        with self._lock:
            if self._free:
                self._free -= 1
                mine.set()
            else:
                self._waiting.append(mine)
        mine.wait()
        turn = Turn(self)
        try:
            yield turn
        finally:
            with self._lock:
                self._free += turn.held
                while self._free and self._waiting:
                    self._free -= 1
                    self._waiting.popleft().set()

    @property
    def free(self) -> int:
        """Places that nobody holds. They are free for long only where nothing else waits."""
        return self._free

    def take_rest(self) -> int:
        """All other places, if every one is free: how many these are, 0 where one is taken."""
        with self._lock:
            if self._free < self.places - 1:
                return 0
            self._free = 0
            return self.places - 1


@dataclass
class Turn:
    """A place that is held, or all of them."""

    turns: Turns
    held: int = 1

    @property
    def spread(self) -> int:
        """Runs that could go on side by side now, this one included."""
        return 1 + self.turns.free

    def widen(self) -> bool:
        """Hold every place, if the others are all free; whether it does."""
        self.held += self.turns.take_rest()
        return self.held == self.turns.places


class Batcher(Generic[Item, Result]):
    """Runs `work` on batches of what is submitted, in threads of its own.

    Args:
        name: of the threads and in logs.
        work: list of items, and whether it has the processor to itself -> list of as many results, in order. Where it
            raises, the batch is run again item by item, so that only the item that raises gets the exception.
        max_batch: most items of one run.
        turns: shared with other batchers that run on the same cores: a thread and a run for each place. None: one
            thread, which has its processor to itself.
        watch_batch: called with the size of every batch.
        watch_error: called with every exception of a single item.
        watch_drop: called with the reason for every item that is dropped before its run.
    """

    def __init__(
        self,
        name: str,
        work: Callable[[list[Item], bool], list[Result]],
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
        self._coming = 0  # threads on their way to a batch
        self._closed = False
        count = turns.places if turns else 1
        self._threads = [threading.Thread(target=self._loop, name=f"{name}-{i}", daemon=True) for i in range(count)]
        for thread in self._threads:
            thread.start()

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
                self._changed.notify_all()
        return [entry.future for entry in entries]

    def close(self) -> None:
        """Finish what is queued, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _loop(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._enough or self._closed)
                if not self._enough:
                    return
                self._coming += 1
            with self.turns.one() if self.turns else contextlib.nullcontext() as turn:
                batch = self._take(turn.spread if turn else 1)  # only now: what came meanwhile is in it
                if batch:
                    self.watch_batch(len(batch))
                    alone = (
                        turn is None
                        or turn.held == turn.turns.places
                        or (len(batch) == 1 and not len(self) and turn.widen())
                    )
                    self._run(batch, alone)

    @property
    def _enough(self) -> bool:
        """Whether more waits than the threads that are on their way take."""
        return bool(self._groups) and len(self) > self._coming * self.sizes[-1]

    def _take(self, spread: int) -> list[_Entry[Item, Result]]:
        """The next batch, without what was cancelled or came too late; what waits is for so many runs side by side."""
        batch: list[_Entry[Item, Result]] = []
        with self._changed:
            self._coming -= 1
            self._drop()
            share = -(-len(self) // spread)
            size = max((size for size in self.sizes if size <= share), default=0)
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
            if self._enough:
                self._changed.notify()
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

    def _run(self, batch: list[_Entry[Item, Result]], alone: bool) -> None:
        began = time.monotonic()
        try:
            results = self.work([entry.item for entry in batch], alone)
            if len(results) != len(batch):
                raise RuntimeError(f"{self.name} gave {len(results)} results for {len(batch)} items")
        except Exception as error:  # noqa: BLE001 - whatever it is must reach its future, or the request hangs
            if len(batch) == 1:
                self.watch_error(error)
                batch[0].future.set_exception(error)
                return
            logger.warning("%s: a batch of %d failed, running its items alone: %s", self.name, len(batch), error)
            for entry in batch:
                self._run([entry], alone)
            return
        ended = time.monotonic()
        for entry, result in zip(batch, results, strict=True):
            entry.future.set_result(Done(result, began, ended))
