"""The size of requests: halved by what fails, following the pace, and growing with patience."""

from spl.core.portion import WORTH_S, Portion


def test_what_fails_is_halved_down_to_one() -> None:
    portion = Portion()
    assert portion.count(1000) == 1000
    for left in (500, 250, 125, 62, 31, 15, 7, 3, 1, 1):
        portion.failed(portion.count(1000))
        assert portion.count(1000) == left


def test_what_is_slow_follows_the_pace() -> None:
    portion = Portion()
    portion.carried(1000, 40, 8 * WORTH_S)
    assert portion.count(1000) == 5
    portion.carried(5, 5, WORTH_S)
    assert portion.count(1000) == 5
    portion.carried(5, 1, 3 * WORTH_S)
    assert portion.count(1000) == 1


def test_each_failure_makes_the_next_step_up_wait_longer() -> None:
    portion, tried, failures = Portion(), 0, 0
    while tried < 1000:
        count = portion.count(16)
        tried += 1
        if count > 5:
            failures += 1
            portion.failed(count)
        else:
            portion.carried(count, count, 0.01)
    assert failures < 40, "the border is tried once for every 32 that went through"


def test_it_grows_back_to_whole_pages() -> None:
    portion = Portion()
    for _ in range(10):
        portion.failed(portion.count(1000))
    for _ in range(200):
        portion.carried(portion.count(1000), portion.count(1000), 0.01)
    assert portion.count(1000) == 1000


def test_less_than_it_may_carry_says_nothing() -> None:
    portion = Portion()
    portion.failed(64)
    for _ in range(100):
        portion.carried(3, 3, 0.01)
        portion.carried(32, 0, 60.0)
    assert portion.count(1000) == 32


def grown_after(portion: Portion) -> int:
    """Return how many good requests the next step up takes."""
    before, good = portion.limit, 0
    while portion.limit == before:
        portion.carried(portion.limit, portion.limit, 0.01)
        good += 1
    assert portion.limit == 2 * before
    return good


def test_the_patience_doubles_with_a_failure_and_halves_with_each_step_that_held() -> None:
    portion = Portion()
    for _ in range(2):
        portion.failed(1024)
    assert portion.limit == 256
    assert [grown_after(portion) for _ in range(5)] == [4, 4, 2, 1, 1]
    portion.failed(portion.limit)
    assert [grown_after(portion) for _ in range(3)] == [2, 2, 1]
    slow = Portion()
    slow.carried(1000, 40, 8 * WORTH_S)
    assert [grown_after(slow) for _ in range(2)] == [1, 1]


def test_a_failure_of_more_than_the_present_size_halves_the_present_one() -> None:
    portion = Portion()
    portion.failed(64)
    portion.failed(1000)
    assert portion.limit == 16
    assert portion.count(0) == 1


def test_what_took_no_time_and_what_took_just_long_enough() -> None:
    portion = Portion()
    portion.carried(1000, 40, WORTH_S)
    assert portion.limit == 0, "it was worth its time"
    portion.failed(64)
    for _ in range(10):
        portion.carried(32, 0, 0.0)
    assert portion.limit == 32, "what brought nothing says nothing"
    for _ in range(10):
        portion.carried(32, 1, 1.0)
    assert portion.limit == 32, "more would take too long at this pace"
    for _ in range(2):
        portion.carried(32, 32, 0.0)
    assert portion.limit == 64
