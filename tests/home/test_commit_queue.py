"""The commit queue: all or none is taken, a commit is delayed under load but never for long, and each is answered."""

import asyncio
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import replace
from functools import partial

import pytest

from spl.core.errors import SplError
from spl.core.limits import Limits
from spl.home.commit_queue import CommitQueue, Submission, answer
from tests.waiting import DEADLINE_S

LIMITS = replace(Limits(), commit_records=4, waiting_writes=6, commit_delay_s=0.004)


class Clock:
    """Seconds that pass when told; `meanwhile` runs, once each, as soon as somebody looks."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.looks = 0
        self.meanwhile: list[Callable[[], object]] = []

    def __call__(self) -> float:
        self.looks += 1
        if self.meanwhile:
            self.meanwhile.pop(0)()
        return self.now_s


def works(*sizes: int) -> list[Submission[str, str]]:
    return [Submission(tuple(f"{place}.{n}" for n in range(size)), Future(), None) for place, size in enumerate(sizes)]


def queue_of(clock: Clock) -> CommitQueue[str, str]:
    return CommitQueue(LIMITS, steady_s=clock)


def sizes(found: Sequence[Submission[str, str]]) -> list[int]:
    return [len(work.items) for work in found]


def test_what_waits_is_taken_in_order_up_to_the_limit() -> None:
    queue = queue_of(Clock())
    queue.put(works(1, 2, 2, 1))
    assert [sizes(queue.take(False)) for _ in range(3)] == [[1, 2], [2, 1], []]
    queue.put(works(6))
    assert sizes(queue.take(False)) == [6], "one submission is never cut, however large"


def test_over_the_limit_all_of_a_submission_is_refused() -> None:
    queue = queue_of(Clock())
    queue.put(works(1, 4))
    with pytest.raises(SplError) as caught:
        queue.put(works(1, 1))
    assert caught.value.code == "overloaded"
    queue.put(works(1))
    assert [sizes(queue.take(False)), sizes(queue.take(False))] == [[1], [4]]
    assert sizes(queue.take(False)) == [1]


def sized(*sizes: int) -> list[Submission[str, str]]:
    return [Submission(("x",), Future(), None, size) for size in sizes]


def test_a_commit_takes_a_bounded_number_of_bytes() -> None:
    queue = CommitQueue[str, str](replace(LIMITS, commit_bytes=100), steady_s=Clock())
    queue.put(sized(60, 40, 1, 500, 10))
    taken = [[work.bytes for work in queue.take(False)] for _ in range(4)]
    assert taken == [[60, 40], [1], [500], [10]], "one submission is never cut, however large"


def test_over_the_limit_of_bytes_a_submission_is_refused() -> None:
    queue = CommitQueue[str, str](replace(LIMITS, waiting_bytes=100), steady_s=Clock())
    queue.put(sized(900))
    with pytest.raises(SplError) as caught:
        queue.put(sized(1))
    assert caught.value.code == "overloaded"
    queue.take(False)
    queue.put(sized(60))
    queue.put(sized(40))
    with pytest.raises(SplError):
        queue.put(sized(1))


def owned(principal: str, *sizes: int) -> list[Submission[str, str]]:
    return [Submission((principal,) * size, Future(), None, size * 10, principal) for size in sizes]


def principals(found: Sequence[Submission[str, str]]) -> str:
    return "".join(work.principal for work in found)


def test_a_commit_takes_one_submission_of_each_principal_in_turn() -> None:
    """A principal's own stay in order, and none waits for more than one of each other one's."""
    queue = queue_of(Clock())
    bulk = owned("a", 1, 1, 1, 1, 1)
    queue.put(bulk)
    assert queue.take(False) == bulk[:4]
    queue.put(owned("a", 1, 1, 1))
    queue.put(owned("b", 1))
    queue.put(owned("c", 1, 1))
    assert [principals(queue.take(False)) for _ in range(3)] == ["abca", "caa", ""]


def test_a_submission_that_does_not_fit_is_the_first_of_the_next_commit() -> None:
    queue = queue_of(Clock())
    queue.put(owned("a", 3, 1))
    queue.put(owned("b", 3))
    queue.put(owned("c", 1))
    assert [principals(queue.take(False)) for _ in range(3)] == ["a", "bc", "a"]


@pytest.mark.parametrize("bound", ["waiting_writes", "waiting_bytes"])
def test_a_full_queue_refuses_only_those_who_hold_more_than_their_part(bound: str) -> None:
    limit = {"waiting_writes": 8} if bound == "waiting_writes" else {"waiting_bytes": 80}
    queue = CommitQueue[str, str](replace(Limits(), **limit), steady_s=Clock())  # type: ignore[arg-type]
    queue.put(owned("a", 8))
    for _ in range(4):
        queue.put(owned("b", 1))
    for principal in ("a", "b"):
        with pytest.raises(SplError) as caught:
            queue.put(owned(principal, 1))
        assert caught.value.code == "overloaded"
    queue.put(owned("c", 9))
    with pytest.raises(SplError):
        queue.put(owned("c", 1))
    assert sum(len(work.items) for work in queue.take(False)) == 21


def test_what_is_abandoned_is_of_all_principals() -> None:
    queue = queue_of(Clock())
    queue.put(owned("a", 1))
    queue.put(owned("b", 1))
    assert principals(queue.abandon()) == "ab"
    assert queue.take(False) == []


def test_a_commit_is_not_delayed_once_its_bytes_are_full() -> None:
    clock = Clock()
    queue = CommitQueue[str, str](replace(LIMITS, commit_bytes=100), steady_s=clock)
    queue.put(works(1, 1, 1))
    queue.take(True)
    queue.put(sized(100))
    looks = clock.looks
    assert [work.bytes for work in queue.take(True)] == [100]
    assert clock.looks == looks + 1, "only the time of the commit is asked for"


def test_a_lone_writer_is_never_delayed() -> None:
    clock = Clock()
    queue = queue_of(clock)
    for _ in range(3):
        queue.put(works(1))
        looks = clock.looks
        assert sizes(queue.take(True)) == [1]
        assert clock.looks == looks + 1, "nobody asked how long to wait"


def test_under_load_a_commit_waits_for_as_many_as_the_last_one_had() -> None:
    clock = Clock()
    queue = queue_of(clock)
    queue.put(works(1, 1, 1))
    assert sizes(queue.take(True)) == [1, 1, 1]
    queue.put(works(1))
    clock.meanwhile = [partial(queue.put, works(1)), partial(queue.put, works(2))]
    assert sizes(queue.take(True)) == [1, 1, 2]


@pytest.mark.parametrize("passed_s", [0.004, 5.0])
def test_company_is_not_waited_for_after_its_time(passed_s: float) -> None:
    clock = Clock()
    queue = queue_of(clock)
    queue.put(works(1, 1))
    assert sizes(queue.take(True)) == [1, 1]
    queue.put(works(1))
    clock.now_s += passed_s
    assert sizes(queue.take(True)) == [1]
    queue.put(works(1))
    looks = clock.looks
    assert sizes(queue.take(True)) == [1]
    assert clock.looks == looks + 1, "the last write had one: who is alone again is not held up again"


def test_time_that_passes_ends_the_wait_for_company() -> None:
    clock = Clock()
    queue = queue_of(clock)
    queue.put(works(1, 1))
    queue.take(True)
    queue.put(works(1))
    clock.meanwhile = [lambda: None, lambda: setattr(clock, "now_s", clock.now_s + 1)]
    assert sizes(queue.take(True)) == [1]


def test_closing_ends_every_wait_and_hands_out_what_is_left() -> None:
    clock = Clock()
    queue = queue_of(clock)
    queue.put(works(1, 1))
    queue.take(True)
    queue.put(works(1))
    clock.meanwhile = [queue.close]
    assert sizes(queue.take(True)) == [1]
    assert queue.take(True) == []
    with pytest.raises(SplError) as caught:
        queue.put(works(1))
    assert caught.value.code == "shutting-down"


def test_a_waiting_writer_is_woken() -> None:
    queue, taken = queue_of(Clock()), list[list[int]]()
    writer = threading.Thread(target=lambda: taken.append(sizes(queue.take(True))))
    writer.start()
    queue.put(works(3))
    writer.join(DEADLINE_S)
    assert taken == [[3]]


def test_a_turn_that_queues_much_wakes_the_writer_once_at_its_end() -> None:
    """Nothing is lost if the turn never ends: whoever else queues, or closes, wakes the writer at once."""
    queue, taken, soon = queue_of(Clock()), list[list[int]](), list[Callable[[], None]]()
    asleep = threading.Event()

    def write() -> None:
        taken.append(sizes(queue.take(True, asleep.set)))

    for wake in (lambda: soon[0](), lambda: queue.put(works(1)), queue.close):
        writer = threading.Thread(target=write)
        writer.start()
        assert asleep.wait(DEADLINE_S), "what is to be done before the sleep is done"
        for _ in range(2):
            queue.put(works(1), soon.append)
        assert (len(soon), taken) == (1, [])
        wake()
        writer.join(DEADLINE_S)
        assert not writer.is_alive()
        soon.clear()
        asleep.clear()
        taken.clear()


def test_what_listeners_have_to_say_goes_with_the_answers_and_before_them() -> None:
    calls, said = list[Callable[[], None]](), list[str]()
    post, futures = calls.append, [Future[list[str]]() for _ in range(2)]
    given = [Submission(("x",), future, post, found=["y"]) for future in futures]

    def breaks() -> None:
        said.append(f"breaks, answered {futures[0].done()}")
        raise ZeroDivisionError

    answer(given, [(post, breaks), (post, lambda: said.append("second")), (post, lambda: said.append("third"))])
    [call] = calls
    with pytest.raises(ZeroDivisionError):
        call()
    assert said == ["breaks, answered False", "second", "third"]
    assert [future.result(0) for future in futures] == [["y"], ["y"]]


def test_answers_for_another_thread_go_there_by_one_call_each() -> None:
    calls: list[tuple[str, Callable[[], None]]] = []

    def here(call: Callable[[], None]) -> None:
        calls.append(("here", call))

    def there(call: Callable[[], None]) -> None:
        calls.append(("there", call))

    futures: list[Future[list[str]]] = [Future() for _ in range(5)]
    posts = [here, None, there, here, None]
    found = [Submission(("x",), future, post) for future, post in zip(futures, posts, strict=True)]
    for n, work in enumerate(found[:4]):
        work.found = [f"{n}"]
    found[3].found = SplError("bad-field")
    answer(found)
    assert [name for name, _ in calls] == ["here", "there"]
    assert [future.done() for future in futures] == [False, True, False, False, True]
    assert futures[4].exception(0).code == "internal"  # type: ignore[union-attr]
    for _, call in calls:
        call()
    assert [futures[n].result(0) for n in range(3)] == [["0"], ["1"], ["2"]]
    assert futures[3].exception(0).code == "bad-field"  # type: ignore[union-attr]


async def test_a_loop_that_nobody_waits_on_any_more_is_left_alone() -> None:
    loop = asyncio.get_running_loop()
    gone, late, there = (loop.create_future() for _ in range(3))
    gone.cancel()
    found: list[Submission[str, str]] = [
        Submission(("x",), each, loop.call_soon_threadsafe) for each in (gone, late, there)
    ]
    assert [work.is_awaited() for work in found] == [False, True, True]
    for work in found:
        work.found = ["y"]
    late.cancel()
    answer(found)
    assert await there == ["y"]
    assert gone.cancelled()
    assert late.cancelled()


def test_a_loop_that_is_closed_breaks_no_writer() -> None:
    loop = asyncio.new_event_loop()
    future: asyncio.Future[list[str]] = loop.create_future()
    loop.close()
    answer([Submission(("x",), future, loop.call_soon_threadsafe, ["y"])])
    assert not future.done()


def test_a_thread_that_gave_up_is_skipped() -> None:
    [work] = works(1)
    assert isinstance(work.answer, Future)
    work.answer.cancel()
    assert not work.is_awaited()
    answer([work])
