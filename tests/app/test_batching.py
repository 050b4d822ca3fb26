"""What waits shares a run, and nobody pays for a neighbour."""

import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future

import pytest
from serving import wait_until

from app.batching import Batcher, Done, Turns, batch_sizes
from app.errors import DeadlineError

NEVER = math.inf


class Work:
    """Doubles numbers; stands still until opened; raises on the batches it is told to."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.alone: list[bool] = []
        self.entered, self.opened = threading.Event(), threading.Event()
        self.opened.set()
        self.fails: Callable[[list[int]], bool] = lambda _: False

    def __call__(self, items: list[int], alone: bool) -> list[int]:
        self.batches.append(items)
        self.alone.append(alone)
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
def drops() -> list[str]:
    return []


@pytest.fixture
def batcher(work: Work, errors: list[Exception], drops: list[str]) -> Iterator[Batcher[int, int]]:
    batcher = Batcher[int, int]("test", work, max_batch=4, watch_error=errors.append, watch_drop=drops.append)
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
    assert work.alone == [True]


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
    batcher = Batcher[int, int]("test", lambda *_: [], max_batch=4, watch_error=errors.append)
    [future] = batcher.submit([1], NEVER)
    with pytest.raises(RuntimeError, match="0 results for 1 items"):
        future.result(60)
    batcher.close()


def test_a_cancelled_item_is_not_run(batcher: Batcher[int, int], work: Work, drops: list[str]) -> None:
    occupy(batcher, work)
    gone, stays = batcher.submit([1, 2], NEVER)
    assert gone.cancel()
    work.opened.set()
    assert results([stays]) == [4]
    assert work.batches == [[0], [2]]
    assert drops == ["client_closed"]


def test_an_item_past_its_deadline_is_not_run(batcher: Batcher[int, int], work: Work, drops: list[str]) -> None:
    occupy(batcher, work)
    [late] = batcher.submit([1], time.monotonic())
    [stays] = batcher.submit([2], NEVER)
    work.opened.set()
    assert results([stays]) == [4]
    with pytest.raises(DeadlineError):
        late.result(60)
    assert work.batches == [[0], [2]]
    assert drops == ["deadline_passed"]


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


def test_a_crowd_does_not_keep_others_waiting(batcher: Batcher[int, int], work: Work) -> None:
    first = occupy(batcher, work)
    crowd = batcher.submit(range(100, 160), NEVER)
    couple = batcher.submit([200, 201], NEVER)
    single = batcher.submit([300], NEVER)
    work.opened.set()
    assert results([first, *crowd, *couple, *single]) == [2 * i for i in (0, *range(100, 160), 200, 201, 300)]
    assert work.batches[1:4] == [[100, 200, 300, 101], [201, 102, 103, 104], [105, 106, 107, 108]]


def test_parts_of_one_group_count_as_one(batcher: Batcher[int, int], work: Work) -> None:
    first = occupy(batcher, work)
    group = object()
    parts = [batcher.submit([i, i + 1], NEVER, group) for i in (10, 12, 14)]
    single = batcher.submit([30], NEVER)
    work.opened.set()
    results([first, *single, *(future for part in parts for future in part)])
    assert work.batches == [[0], [10, 30, 11, 12], [13, 14], [15]]


def test_a_group_whose_turn_was_cut_off_comes_first_in_the_next_batch(batcher: Batcher[int, int], work: Work) -> None:
    first = occupy(batcher, work)
    futures = [future for i in range(1, 7) for future in batcher.submit([i, 10 * i], NEVER)]
    work.opened.set()
    results([first, *futures])
    assert work.batches == [[0], [1, 2, 3, 4], [5, 6, 10, 20], [30, 40, 50, 60]]


@pytest.mark.parametrize(
    ("most", "sizes"),
    [
        (1, [1]),
        (6, [1, 2, 4, 6]),
        (8, [1, 2, 4, 8]),
        (40, [1, 2, 4, 8, 16, 32, 40]),
    ],
)
def test_batch_sizes_are_powers_of_two_and_the_largest(most: int, sizes: list[int]) -> None:
    assert list(batch_sizes(most)) == sizes


def test_batches_have_sizes_of_the_fixed_set_and_cancelled_items_do_not_count(work: Work) -> None:
    batcher = Batcher[int, int]("test", work, max_batch=40)
    first = occupy(batcher, work)
    futures = batcher.submit(range(1, 32), NEVER)
    assert all(future.cancel() for future in futures[:2])
    work.opened.set()
    results([first, *futures[2:]])
    batcher.close()
    assert [len(batch) for batch in work.batches] == [1, 16, 8, 4, 1]


def test_turns_go_to_those_who_wait_in_their_order() -> None:
    turns, order = Turns(), list[int]()

    def run(name: int) -> None:
        with turns.one():
            order.append(name)

    threads = [threading.Thread(target=run, args=(name,)) for name in range(4)]
    with turns.one():
        for i, thread in enumerate(threads):
            thread.start()
            wait_until(lambda count=i + 1: len(turns._waiting) == count)
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == [0, 1, 2, 3]


def test_networks_that_take_turns_never_run_at_once() -> None:
    turns, free = Turns(), threading.Semaphore(1)
    together: list[int] = []

    def work(items: list[int], alone: bool) -> list[int]:
        assert alone
        if not free.acquire(blocking=False):
            together.extend(items)
            return items
        time.sleep(0.001)  # so that another would meet it
        free.release()
        return items

    batchers = [Batcher[int, int](name, work, max_batch=1, turns=turns) for name in ("one", "other")]
    futures = [future for batcher in batchers for future in batcher.submit(range(20), NEVER)]
    assert results(futures) == [*range(20), *range(20)]
    for batcher in batchers:
        batcher.close()
    assert together == []


def test_what_comes_while_a_network_waits_for_its_turn_is_in_its_batch(work: Work) -> None:
    turns = Turns()
    batcher = Batcher[int, int]("test", work, max_batch=4, turns=turns)
    with turns.one():
        futures = batcher.submit([1], NEVER)
        wait_until(lambda: len(turns._waiting) == 1)
        futures += batcher.submit([2], NEVER)
    assert results(futures) == [2, 4]
    batcher.close()
    assert work.batches == [[1, 2]]


def test_places_run_side_by_side_and_share_out_what_waits(work: Work) -> None:
    batcher = Batcher[int, int]("test", work, max_batch=4, turns=Turns(2))
    work.opened.clear()
    futures = batcher.submit([1, 2, 3, 4], NEVER)
    wait_until(lambda: len(work.batches) == 2)  # while neither has ended
    work.opened.set()
    assert results(futures) == [2, 4, 6, 8]
    batcher.close()
    assert sorted(item for batch in work.batches for item in batch) == [1, 2, 3, 4]
    assert {len(batch) for batch in work.batches} <= {1, 2, 4}
    assert work.alone == [False] * len(work.batches)


def test_a_lone_item_has_all_places_and_the_next_one_waits(work: Work) -> None:
    turns = Turns(3)
    batchers = [Batcher[int, int](name, work, max_batch=4, turns=turns) for name in ("one", "other")]
    first = occupy(batchers[0], work)
    [second] = batchers[1].submit([1], NEVER)
    wait_until(lambda: len(turns._waiting) == 1)
    assert work.batches == [[0]]
    work.opened.set()
    assert results([first, second]) == [0, 2]
    for batcher in batchers:
        batcher.close()
    assert work.alone == [True, True]
    assert turns.free == 3


def test_an_item_beside_others_has_one_place(work: Work) -> None:
    turns = Turns(3)
    batcher = Batcher[int, int]("test", work, max_batch=4, turns=turns)
    with turns.one():
        assert results(batcher.submit([1], NEVER)) == [2]
    batcher.close()
    assert work.alone == [False]


def test_many_threads_and_places_lose_nothing() -> None:
    turns = Turns(3)
    batchers = [Batcher[int, int](str(i), lambda items, _: items, max_batch=2, turns=turns) for i in range(2)]
    futures = [batchers[i % 2].submit(range(i, i + i % 5), NEVER) for i in range(300)]
    assert [results(some) for some in futures] == [list(range(i, i + i % 5)) for i in range(300)]
    for batcher in batchers:
        batcher.close()
    assert turns.free == 3
