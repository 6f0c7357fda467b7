"""Reads times, as numbers or as dates in the usual spellings, into seconds."""

from __future__ import annotations

import polars as pl

# Two digits first: %Y would take "96" for the year 96.
_DAYS = ("%Y-%m-%d", "%m/%d/%y", "%m/%d/%Y", "%d.%m.%Y", "%Y/%m/%d")
_CLOCKS = (" %H:%M:%S%.f", "T%H:%M:%S%.f", " %H:%M", "T%H:%M")
_TIMES = ("", *_CLOCKS, *(f"{clock}%z" for clock in _CLOCKS))


def seconds(column: pl.Series) -> pl.Series:
    """Times as floats: dates in seconds since 1970, numbers as they stand, null where unreadable.

    Args:
        column: numbers, dates, or text such as "978300760", "1996-02-07", "2/7/96 14:05:00" or
            "1996-02-07T14:05:00+01:00". A date without a zone is taken as UTC. Dates beside numbers
            are unreadable, since nothing says in what unit those are.
    """
    if column.dtype.is_temporal():
        return column.cast(pl.Datetime("us")).dt.epoch("us").cast(pl.Float64) / 1e6
    result = column.cast(pl.Float64, strict=False)
    result = result.set(result.is_nan() | result.is_infinite(), None)
    if column.dtype != pl.String or result.count():
        return result
    text = column.str.strip_chars().str.replace(r"(Z| ?UTC|\+00:00)$", "")
    for day in _DAYS:
        for time in _TIMES:
            open_rows = result.is_null() & text.is_not_null()
            if not open_rows.any():
                return result
            dates = text.str.to_datetime(day + time, strict=False, time_unit="us")
            result = result.zip_with(~open_rows, dates.dt.epoch("us").cast(pl.Float64) / 1e6)
    return result
