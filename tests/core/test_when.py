"""Times and durations: one text for each moment, and nothing taken that has two readings."""

from calendar import monthrange
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from spl.core import when

YEAR_1_MS, YEAR_9999_MS = -62_135_596_800_000, 253_402_300_799_999


@given(st.integers(YEAR_1_MS, YEAR_9999_MS))
def test_text_and_milliseconds_go_both_ways(unix_ms: int) -> None:
    """Every millisecond has one text, which sorts as time does."""
    text = when.text_of(unix_ms)
    assert when.ms_of(text) == unix_ms
    assert len(text) == 24
    assert unix_ms == YEAR_1_MS or when.text_of(unix_ms - 1) < text


@given(st.datetimes(timezones=st.just(UTC)))
def test_other_precisions_are_read_to_the_millisecond(moment: datetime) -> None:
    """Texts of other programs, with none to six decimals, are cut to milliseconds."""
    whole_ms = (
        int(moment.timestamp()) if moment.microsecond == 0 else int(moment.replace(microsecond=0).timestamp())
    ) * 1000
    assert when.ms_of(f"{moment:%Y-%m-%dT%H:%M:%S}Z".rjust(20, "0")) == whole_ms
    text = f"{moment:%Y-%m-%dT%H:%M:%S}.{moment.microsecond:06d}Z".rjust(27, "0")
    assert when.ms_of(text) == whole_ms + moment.microsecond // 1000


def test_every_month_of_four_centuries_begins_and_ends_on_its_day() -> None:
    for year in (1, 4, 100, *range(1900, 2402), 9999):
        for month in range(1, 13):
            days = monthrange(year, month)[1]
            for day in (1, 28, days):
                at_ms = int(datetime(year, month, day, tzinfo=UTC).timestamp()) * 1000
                text = f"{year:04}-{month:02}-{day:02}T00:00:00.000Z"
                assert (when.text_of(at_ms), when.ms_of(text)) == (text, at_ms)
            for day in (0, days + 1):
                with pytest.raises(when.WhenError):
                    when.ms_of(f"{year:04}-{month:02}-{day:02}T00:00:00Z")


def test_each_hour_has_its_text_and_each_decimal_its_value() -> None:
    for hour in range(24):
        assert when.text_of(hour * 3_600_000) == f"1970-01-01T{hour:02}:00:00.000Z"
    for decimals, ms in (
        ("", 0),
        (".5", 500),
        (".05", 50),
        (".12", 120),
        (".123", 123),
        (".1239", 123),
        (".000999", 0),
    ):
        assert when.ms_of(f"1970-01-01T00:00:00{decimals}Z") == ms


def test_the_last_moment_of_a_day_is_read() -> None:
    last = "2026-12-31T23:59:59.999Z"
    assert when.text_of(when.ms_of(last)) == last
    for text in ("2026-11-23T24:00:00Z", "2026-11-23T00:60:00Z", "2026-11-23T00:00:60Z", "2026-11-23T25:61:61Z"):
        with pytest.raises(when.WhenError):
            when.ms_of(text)


@pytest.mark.parametrize("unix_ms", [YEAR_1_MS - 1, YEAR_9999_MS + 1, 2**70])
def test_years_of_more_or_less_than_four_digits_have_no_text(unix_ms: int) -> None:
    with pytest.raises(ValueError, match="no such text"):
        when.text_of(unix_ms)


@pytest.mark.parametrize(
    "text",
    [
        "", "now", "2026-11-23", "2026-11-23T06:10:11", "2026-11-23T06:10:11+00:00", "2026-11-23t06:10:11Z",
        "2026-11-23 06:10:11Z", "2026-11-23T06:10:11Z\n", " 2026-11-23T06:10:11Z", "2026-11-23T06:10:11.Z",
        "2026-11-23T06:10:11.1234567Z", "2026-13-01T00:00:00Z", "2026-02-29T00:00:00Z", "2026-11-23T24:00:00Z",
        "2026-11-23T23:59:60Z", "0000-01-01T00:00:00Z", "٢٠٢٦-11-23T06:10:11Z", None, 0, 1.5, b"2026-11-23T06:10:11Z",
    ],
    ids=repr,
)  # fmt: skip
def test_any_other_text_is_no_time(text: object) -> None:
    """Local times, leap seconds, foreign digits and dates that do not exist are `bad-field`."""
    with pytest.raises(when.WhenError) as caught:
        when.ms_of(text)
    assert caught.value.code == "bad-field"


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("0", 0),
        ("5", 5000),
        ("250ms", 250),
        ("30s", 30_000),
        ("5m", 300_000),
        ("2h", 7_200_000),
        ("7d", 604_800_000),
        ("3650d", 3650 * 86_400_000),
    ],
)
def test_durations_have_one_unit(text: str, ms: int) -> None:
    """A number and one unit; seconds where none is given."""
    assert when.duration_ms(text) == ms


@pytest.mark.parametrize(
    "text",
    ["", "s", "-1s", "+1s", "1.5h", "1w", "5 m", "1h30m", "5M", "1s\n", "1_0s", "٣s", "9" * 10, "9999999d", "3651d"],
)
def test_any_other_text_is_no_duration(text: str) -> None:
    """It is a mistake of usage and says what to write."""
    with pytest.raises(when.WhenError) as caught:
        when.duration_ms(text)
    assert caught.value.code == "usage"
    assert "30s" in caught.value.hint


@pytest.mark.parametrize(
    ("ms", "coarse", "fine"),
    [
        (-5_000, "0s", "0s"),
        (0, "0s", "0s"),
        (0.5, "0s", "0s"),
        (1, "0s", "1ms"),
        (999, "0s", "999ms"),
        (1000, "1s", "1s"),
        (59_999, "59s", "59s"),
        (60_000, "1m", "1m"),
        (3_599_999, "59m", "59m59s"),
        (3_600_000, "1h", "1h"),
        (172_799_999, "47h", "47h59m"),
        (172_800_000, "2d", "2d"),
        (250, "0s", "250ms"),
        (10_000, "10s", "10s"),
        (190_000, "3m", "3m10s"),
        (300_000, "5m", "5m"),
        (7_500_000, "2h", "2h5m"),
        (86_400_000, "24h", "24h"),
        (259_200_000, "3d", "3d"),
        (273_600_000, "3d", "3d 4h"),
    ],
)
def test_spans_read_well(ms: float, coarse: str, fine: str) -> None:
    """One unit where an age is meant, two where a wait is."""
    assert (when.span(ms), when.span_fine(ms)) == (coarse, fine)


def test_an_age_says_on_which_side_of_now_it_lies() -> None:
    assert [when.age(ms) for ms in (5000, 0, -5000)] == ["5s ago", "0s ago", "in 5s"]
