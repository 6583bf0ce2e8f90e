"""Delays stay between their floor and cap; a bucket lets through what it says and no more."""

from hypothesis import given
from hypothesis import strategies as st

from spl.core.backoff import Backoff, Buckets, TokenBucket

DRAWN = st.binary(min_size=4, max_size=4)


@given(attempt=st.integers(0, 10**6), base=st.floats(0.001, 100), cap=st.floats(0.001, 1000), drawn=DRAWN)
def test_delay_is_bounded(attempt: int, base: float, cap: float, drawn: bytes) -> None:
    backoff = Backoff(lambda _: drawn, base, cap)
    backoff.attempt = attempt
    for delay in (backoff.delay_s(), backoff.failed()):
        assert 0 < delay <= cap
        assert delay >= 0.1 * min(cap, base)


@given(interval=st.floats(1, 1000), drawn=DRAWN)
def test_spread_stays_within_a_tenth(interval: float, drawn: bytes) -> None:
    assert 0.9 * interval <= Backoff(lambda _: drawn, 1, 10).spread_s(interval) <= 1.1 * interval + 1e-9


def test_failures_in_a_row_double_the_delay_and_a_success_ends_the_row() -> None:
    backoff = Backoff(lambda _: b"\x80\0\0\0", 1, 10)
    assert [backoff.failed() for _ in range(6)] == [0.5, 1, 2, 4, 5, 5]
    assert (backoff.attempt, backoff.delay_s(0.5, 30)) == (6, 8)
    backoff.reset()
    assert (backoff.attempt, backoff.failed()) == (0, 0.5)


def test_the_next_try_is_after_the_delay_and_never_before_the_pause() -> None:
    backoff = Backoff(lambda _: b"\x80\0\0\0", 1, 10)
    backoff.failed(now_ms=7000)
    assert backoff.retry_ms == 7500
    backoff.failed(now_ms=8000, pause_ms=2000)
    assert backoff.retry_ms == 10_000


def test_the_first_failure_counts_from_now_and_its_number_is_drawn_from_four_bytes() -> None:
    backoff = Backoff(lambda size: b"\xff" * size, 1, 10)
    assert (backoff.attempt, backoff.retry_ms) == (0, 0)
    assert 0.99 < backoff.delay_s() < 1, "as after the first failure"
    assert 0.99 < backoff.failed() < 1
    assert backoff.retry_ms == 999
    hasty = Backoff(lambda size: bytes(size), 0.001, 10)
    hasty.failed()
    assert hasty.retry_ms == 0


def test_each_failure_draws_another_number() -> None:
    drawn = iter([b"\0\0\0\0", b"\x40\0\0\0", b"\x80\0\0\0"])
    backoff = Backoff(lambda _: next(drawn), 1, 1)
    assert [backoff.failed(), backoff.failed()] == [0.25, 0.5]


def test_bucket_refuses_when_empty_and_says_how_long() -> None:
    bucket = TokenBucket(size=2, per_s=0.5)
    bucket, first, _ = bucket.take(100)
    bucket, second, _ = bucket.take(100)
    bucket, third, wait_s = bucket.take(100)
    assert (first, second, third, wait_s) == (True, True, False, 2.0)
    bucket, fourth, _ = bucket.take(102)
    assert fourth


@given(st.lists(st.floats(0, 1000), min_size=1, max_size=60))
def test_bucket_never_lets_more_through_than_size_and_rate(times: list[float]) -> None:
    bucket, passed = TokenBucket(size=3, per_s=0.1), 0
    for now in sorted(times):
        bucket, allowed, wait_s = bucket.take(now)
        passed += allowed
        assert allowed == (wait_s == 0)
    assert passed <= 3 + 0.1 * (max(times) - min(times)) + 1e-6


def test_each_source_has_a_bucket_of_its_own_and_the_oldest_is_forgotten() -> None:
    buckets = Buckets(size=1, per_s=0.5, sources_max=2)
    assert [buckets.take("a", 0), buckets.take("a", 0), buckets.take("b", 0)] == [0, 2, 0]
    assert buckets.take("c", 0) == 0
    assert buckets.take("b", 0) == 2
    assert buckets.take("a", 0) == 0, "the source not heard for longest was not forgotten"


def test_asking_how_long_a_source_waits_takes_nothing_from_it() -> None:
    buckets = Buckets(size=1, per_s=0.5, sources_max=2)
    assert [buckets.wait_s("a", 0), buckets.wait_s("a", 0), buckets.take("a", 0), buckets.wait_s("a", 0)] == [
        0,
        0,
        0,
        2,
    ]


def test_a_bucket_that_holds_too_little_says_when_it_holds_enough() -> None:
    bucket, _, _ = TokenBucket(size=2, per_s=0.5).take(0, 1.5)
    assert bucket.take(0, 1)[1:] == (False, 1.0)


def test_a_bucket_that_is_never_filled_again_waits_for_ever() -> None:
    bucket, allowed, _ = TokenBucket(size=1, per_s=0).take(0)
    assert allowed
    assert bucket.take(1e9)[1:] == (False, float("inf"))


def test_clock_stepping_back_refills_nothing() -> None:
    bucket, _, _ = TokenBucket(size=1, per_s=1).take(100)
    _, allowed, _ = bucket.take(50)
    assert not allowed
