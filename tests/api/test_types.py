"""Quantities, durations and times: what goes in comes out."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corral.api.types import (
    GI,
    KI,
    MI,
    format_duration,
    format_mebibytes,
    format_quantity,
    format_rounded,
    format_time,
    parse_duration,
    parse_quantity,
    parse_time,
)


@given(st.integers(min_value=0, max_value=2**53))
def test_a_quantity_is_read_back_exactly(count: int) -> None:
    assert parse_quantity(format_quantity(count)) == count


@given(st.integers(min_value=0, max_value=2**53))
def test_mebibytes_are_never_less_and_less_than_one_more(count: int) -> None:
    assert 0 <= parse_quantity(format_mebibytes(count)) - count < MI


@given(st.integers(min_value=KI, max_value=2**50))
def test_a_rounded_quantity_is_within_a_twentieth_of_its_unit(count: int) -> None:
    shown = format_rounded(count)
    unit = parse_quantity("1" + shown.lstrip("0123456789."))
    assert abs(parse_quantity(shown) - count) <= unit / 2
    assert len(shown) <= 8


@pytest.mark.parametrize(
    ("text", "count"),
    [("0", 0), (12, 12), ("12", 12), ("1k", 1000), ("1Ki", 1024), ("1.5Gi", 3 * GI // 2), ("0.1", 1), ("24Gi", 24 * GI), ("2M", 2_000_000)],
)
def test_quantities(text: str | int, count: int) -> None:
    assert parse_quantity(text) == count


@pytest.mark.parametrize("text", ["", "1 Gi", "1GB", "-1", "Gi", "1e3", "0x10", "1.Gi", True, None, 1.5])
def test_what_is_not_a_quantity_is_refused_by_name(text) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("count", "shown"), [(0, "0"), (536 * MI, "536Mi"), (int(5.1 * GI), "5.1Gi"), (41 * GI, "41Gi"), (1536 * MI, "1.5Gi"), (512, "512")]
)
def test_rounded_quantities_are_for_eyes(count: int, shown: str) -> None:
    assert format_rounded(count) == shown


@given(st.timedeltas(min_value=timedelta(0), max_value=timedelta(days=4000)))
def test_a_duration_is_read_back_to_the_millisecond(value: timedelta) -> None:
    assert parse_duration(format_duration(value)) == value - value % timedelta(milliseconds=1)


@pytest.mark.parametrize(
    ("text", "seconds", "shown"), [("30s", 30, "30s"), ("180s", 180, "3m"), ("1h30m", 5400, "1h30m"), ("0s", 0, "0s"), ("1.5s", 1.5, "1s500ms")]
)
def test_durations(text: str, seconds: float, shown: str) -> None:
    assert parse_duration(text) == timedelta(seconds=seconds)
    assert format_duration(parse_duration(text)) == shown


@pytest.mark.parametrize("text", ["", "30", "5 minutes", "-1s", "1d", "s", 30, None])
def test_what_is_not_a_duration_is_refused_by_name(text) -> None:
    with pytest.raises(ValueError, match="is not a duration"):
        parse_duration(text)


@given(st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1), timezones=st.just(UTC)))
def test_a_time_is_read_back_to_the_millisecond(value: datetime) -> None:
    told = parse_time(format_time(value))
    assert timedelta(0) <= value - told < timedelta(milliseconds=1)


def test_times_are_told_in_utc() -> None:
    assert format_time(datetime(2026, 1, 2, 3, 4, 5, tzinfo=timezone(timedelta(hours=2)))) == "2026-01-02T01:04:05Z"
    assert parse_time("2026-01-02T03:04:05+02:00") == datetime(2026, 1, 2, 1, 4, 5, tzinfo=UTC)
    with pytest.raises(ValueError, match="no time zone"):
        parse_time("2026-01-02T03:04:05")
