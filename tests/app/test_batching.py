"""What waits shares a run, and nobody pays for a neighbour."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from serving import wait_until

from app.batching import Batcher, Done
from app.errors import DeadlineError

NEVER = math.inf


class Work:
    """Doubles numbers; stands still until opened; raises on the batches it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self.opened.set()
        self.fails: Callable[[list[int]], bool] = lambda _: False

    def __call__(self, items: list[int]) -> list[int]:
        self.batches.append(items)
        self.entered.set()
        assert self.opened.wait(60)
        if self.fails(items):
            raise ArithmeticError(f"cannot do {items}")
        return [2 * item for item in items]


@pytest.fixture
def work() -> Work:
    return Work()


@pytest.fixture
def errors() -> list[Exception]:
    return []


@pytest.fixture
def batcher(work: Work, errors: list[Exception]) -> Iterator[Batcher[int, int]]:
    batcher = Batcher[int, int]("test", work, max_batch=4, watch_error=errors.append)
    yield batcher
    work.opened.set()
    batcher.close()


def occupy(batcher: Batcher[int, int], work: Work) -> Future[Done[int]]:
    """Keep the worker busy with one item, so that what follows has to queue."""
    work.opened.clear()
    [future] = batcher.submit([0], NEVER)
    assert work.entered.wait(60)
    return future


def results(futures: list[Future[Done[int]]]) -> list[int]:
    return [future.result(60).result for future in futures]


def test_results_come_in_order(batcher: Batcher[int, int]) -> None:
    assert results(batcher.submit(range(10), NEVER)) == [2 * i for i in range(10)]


def test_nothing_submitted_is_nothing_done(batcher: Batcher[int, int]) -> None:
    assert batcher.submit([], NEVER) == []


def test_a_free_worker_starts_at_once(batcher: Batcher[int, int], work: Work) -> None:
    results(batcher.submit([1], NEVER))
    assert work.batches == [[1]]


def test_what_waits_shares_the_next_run_up_to_the_largest_batch(batcher: Batcher[int, int], work: Work) -> None:
    first = occupy(batcher, work)
    futures = [batcher.submit([i], NEVER)[0] for i in range(1, 7)]
    assert len(batcher) == 6
    work.opened.set()
    assert results([first, *futures]) == [0, 2, 4, 6, 8, 10, 12]
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_one_bad_item_does_not_spoil_its_neighbours(
    batcher: Batcher[int, int], work: Work, errors: list[Exception]
) -> None:
    occupy(batcher, work)
    work.fails = lambda items: 2 in items
    good, bad, other = batcher.submit([1, 2, 3], NEVER)
    work.opened.set()
    assert results([good, other]) == [2, 6]
    with pytest.raises(ArithmeticError, match="cannot do"):
        bad.result(60)
    assert [str(error) for error in errors] == ["cannot do [2]"]


def test_a_wrong_number_of_results_is_an_error(errors: list[Exception]) -> None:
    batcher = Batcher[int, int]("test", lambda _: [], max_batch=4, watch_error=errors.append)
    [future] = batcher.submit([1], NEVER)
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        future.result(60)
    batcher.close()


def test_a_cancelled_item_is_not_run(batcher: Batcher[int, int], work: Work) -> None:
    occupy(batcher, work)
    gone, stays = batcher.submit([1, 2], NEVER)
    assert gone.cancel()
    work.opened.set()
    assert results([stays]) == [4]
    assert work.batches == [[0], [2]]


def test_an_item_past_its_deadline_is_not_run(batcher: Batcher[int, int], work: Work) -> None:
    occupy(batcher, work)
    [late] = batcher.submit([1], time.monotonic())
    [stays] = batcher.submit([2], NEVER)
    work.opened.set()
    assert results([stays]) == [4]
    with pytest.raises(DeadlineError):
        late.result(60)
    assert work.batches == [[0], [2]]


def test_closing_finishes_what_is_queued(batcher: Batcher[int, int], work: Work) -> None:
    first = occupy(batcher, work)
    futures = batcher.submit([1, 2], NEVER)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    work.opened.set()
    closing.join(60)
    assert not closing.is_alive()
    assert results([first, *futures]) == [0, 2, 4]
    with pytest.raises(RuntimeError, match="closed"):
        batcher.submit([3], NEVER)


def test_many_threads_get_their_own_answers(batcher: Batcher[int, int]) -> None:
    answers: dict[int, list[int]] = {}

    def ask(first: int) -> None:
        answers[first] = results(batcher.submit(range(first, first + 5), NEVER))

    threads = [threading.Thread(target=ask, args=(100 * i,)) for i in range(16)]
    for thread in threads:
        thread.start()
    wait_until(lambda: len(answers) == 16)
    assert all(answer == [2 * i for i in range(first, first + 5)] for first, answer in answers.items())
