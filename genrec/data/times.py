"""Times as logs write them, recognised and read as seconds since 1970 (UTC).

A column of times is looked at once (``recognise``): typed dates, seconds, milliseconds, microseconds, nanoseconds,
Excel day numbers, compact dates (``20240501``), dates as text in common notations, or plain positions. What is
recognised reads the whole column.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime

import polars as pl

from genrec.errors import UserError

UNITS_PER_SECOND = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}
UNITS = (*UNITS_PER_SECOND, "iso", "excel", "order")
YEAR_1971, YEAR_1990, YEAR_2200 = 31_536_000, 631_152_000, 7_258_118_400
LATEST = 253_402_300_799  # the end of the year 9999
SAMPLE = 2_000
EXCEL_EPOCH_DAYS = 25_569  # the day number of 1970-01-01
_COMPACT = {8: "%Y%m%d", 10: "%Y%m%d%H", 12: "%Y%m%d%H%M", 14: "%Y%m%d%H%M%S"}
_CLOCKS = (" %H:%M:%S%.f", " %H:%M", " %I:%M:%S %p", " %I:%M %p", "")
_ISO_DATE = "%Y-%m-%d"
_DATES = (
    _ISO_DATE, "%Y/%m/%d", "%Y.%m.%d", "%Y%m%d", "%d.%m.%Y", "%d/%m/%Y", "%m/%d/%Y", "%d-%m-%Y", "%m-%d-%Y", "%d.%m.%y",
    "%d/%m/%y", "%m/%d/%y", "%d-%b-%Y", "%d-%b-%y", "%d %b %Y", "%d %B %Y", "%b %d, %Y", "%B %d, %Y", "%b %d %Y",
    "%a, %d %b %Y", "%Y %m %d",
)  # fmt: skip
# Numbers lose the leading zeros of a date: its digits.
_WIDTHS = {
    "%m%d": 4, "%d%m": 4, "%d%m%Y": 8, "%m%d%Y": 8, "%y%m%d": 6, "%d%m%y": 6, "%m%d%y": 6,
}  # fmt: skip
_WHOLE = ("%a %b %d %H:%M:%S %Y", "%d/%b/%Y:%H:%M:%S")  # notations whose clock does not follow the date


@dataclass(frozen=True)
class TimeNotation:
    """How a column of times is written. ``kind`` is ``typed``, a unit of ``UNITS`` or ``text`` with its ``formats``."""

    kind: str
    formats: tuple[str, ...] = ()
    checked: bool = False
    """Whether most times are of our days, so that one in 1970 or beyond 2200 is none."""

    def __str__(self) -> str:
        if self.kind == "text":
            return f"dates written {self.formats[0].removesuffix('%.f')}"
        names = {"s": "seconds", "ms": "milliseconds", "us": "microseconds", "ns": "nanoseconds", "iso": "ISO dates"}
        return names.get(
            self.kind, {"excel": "Excel day numbers", "order": "positions in order"}.get(self.kind, "dates")
        )

    def seconds(self, column: pl.Series) -> pl.Series:
        """The column as Int64 seconds since 1970, rounded down; null where a value is not written so."""
        name, dtype = column.name, column.dtype
        if dtype.is_temporal():
            zone = getattr(dtype, "time_zone", None)
            return column.cast(pl.Datetime("us", zone)).dt.epoch("s").alias(name)
        if self.kind in ("iso", "text"):
            return _text_seconds(column.cast(pl.String), self.formats or _formats(_ISO_DATE)).alias(name)
        numbers = _integers(column)
        if self.kind == "excel":
            days = column.cast(pl.String).str.replace(",", ".", literal=True).cast(pl.Float64, strict=False)
            days = days.to_frame().select(pl.when(pl.col(name).is_between(1, 2_958_465)).then(pl.col(name)))[name]
            return ((days - EXCEL_EPOCH_DAYS) * 86_400).round().cast(pl.Int64)
        return numbers if self.kind == "order" else numbers // UNITS_PER_SECOND[self.kind]


def utc(seconds: int | float) -> str:
    """A time as a person reads it, in UTC; the number itself where no date can be written."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M:%S")
    except (OverflowError, ValueError, OSError):
        return str(seconds)


def checked_seconds(seconds: float, source: str) -> None:
    """``UserError`` for a time that cannot be seconds since 1970: it lies beyond the year 9999, as milliseconds do."""
    if not 0 <= seconds <= LATEST:
        raise UserError(f"{source}: {seconds:.16g} is no number of seconds since 1970 (are these milliseconds?)")


def recognise(column: pl.Series, source: str, unit: str | None = None, form: str | None = None) -> TimeNotation:
    """How a column of times is written, from a sample of its values.

    ``unit`` or ``form`` (a strptime format) are taken at their word, but a unit or format that puts the log before
    1990 or beyond 2200 is an error. Raises ``UserError``, which names a value, where no notation fits or two fit and
    differ.
    """
    sample = column.drop_nulls()
    sample = sample.gather_every(max(1, len(sample) // SAMPLE))
    if column.dtype.is_temporal():
        return TimeNotation("typed")
    if column.dtype.is_nested() or column.dtype == pl.Boolean:
        raise UserError(
            f"{source}: the column of times holds {column.dtype}, not times; map columns.timestamp to another"
        )
    if form is not None:
        return _checked_format(sample, source, form)
    if unit is not None:
        notation = TimeNotation(unit)
        _check_span(notation, sample, source)
        return notation
    if sample.is_empty():
        return TimeNotation("s")
    numbers = (
        sample.cast(pl.String).str.strip_chars().str.replace(r"^(\d+),(\d+)$", "$1.$2").cast(pl.Float64, strict=False)
    )
    numbers = numbers.filter(numbers.is_finite().fill_null(False))
    if len(numbers) >= 0.5 * len(sample):
        return _numeric(numbers, source)
    return _textual(sample.cast(pl.String), source)


def _integers(column: pl.Series) -> pl.Series:
    if column.dtype.is_integer():
        return column.cast(pl.Int64, strict=False)
    if column.dtype == pl.String:
        column = column.str.strip_chars()
    real = column.cast(pl.Float64, strict=False)
    real = real.to_frame("x").select(pl.when(pl.col("x").is_finite()).then(pl.col("x")))["x"].floor()
    real = real.cast(pl.Int64, strict=False)
    if column.dtype.is_float():
        return real.alias(column.name)
    # Whole numbers first: a 64-bit float cannot hold nanoseconds exactly.
    return column.cast(pl.Int64, strict=False).fill_null(real).alias(column.name)


def _numeric(numbers: pl.Series, source: str) -> TimeNotation:
    low, high, typical = float(numbers.min()), float(numbers.max()), float(numbers.median())  # type: ignore[arg-type]
    whole = bool((numbers == numbers.floor()).all())
    if whole and (form := _compact_format(numbers)):
        return TimeNotation("text", (form,))
    if low >= 20_000 and high <= 73_050 and (not whole or (low >= 36_526 and high <= 55_153)):
        return TimeNotation("excel")
    for unit, per_second in UNITS_PER_SECOND.items():
        if 100_000_000 <= abs(typical) / per_second <= YEAR_2200:
            return TimeNotation(unit)
    if whole and abs(typical) < 100_000_000:
        return TimeNotation("order")
    raise UserError(
        f"{source}: the times cannot be recognised, such as {numbers[0]:.16g}; set timestamp_unit "
        "(s, ms, us, ns, excel, order) or timestamp_format, such as '%Y%m%d'"
    )


def _compact_format(numbers: pl.Series) -> str | None:
    """The format of dates written as one number (20240501), where every number of the sample is one."""
    texts = numbers.cast(pl.Int64, strict=False).cast(pl.String).drop_nulls()
    lengths = texts.str.len_bytes().unique().to_list()
    form = _COMPACT.get(lengths[0]) if len(lengths) == 1 else None
    if form is None:
        return None
    read = _text_seconds(texts, (form,))
    fits = read.null_count() == 0 and int(read.min()) > 0 and int(read.max()) < 4_102_444_800  # type: ignore[arg-type]  # 2100
    # Ten digits are seconds as well: the reading as a date must be the likelier one.
    return form if fits and (len(form) != 8 or int(numbers.min()) > 1_990_000_000) else None  # type: ignore[arg-type]


def _formats(date: str) -> tuple[str, ...]:
    return tuple(date + clock for clock in _CLOCKS)


def _textual(sample: pl.Series, source: str) -> TimeNotation:
    sample = sample.unique(maintain_order=True).head(SAMPLE)
    readings = {
        formats: _text_seconds(sample, formats) for formats in [*map(_formats, _DATES), *((form,) for form in _WHOLE)]
    }
    best = max(len(read) - read.null_count() for read in readings.values())
    if best < 0.5 * len(sample):
        raise UserError(
            f"{source}: the times cannot be recognised, such as {sample[0]!r}; "
            "set timestamp_format, such as '%d.%m.%Y %H:%M'"
        )
    chosen = [formats for formats, read in readings.items() if len(read) - read.null_count() == best]
    first = chosen[0]
    other = next((formats for formats in chosen[1:] if not readings[formats].equals(readings[first])), None)
    if other is not None:
        if sample.str.contains(r"(?i)[ap]m\s*$").any():  # clocks of twelve hours go with months first
            return TimeNotation("text", next((formats for formats in chosen if formats[0].startswith("%m")), first))
        form = 1 if ":" in sample[0] else -1
        raise UserError(
            f"{source}: {sample[0]!r} may be {utc(readings[first][0])[:10]} or {utc(readings[other][0])[:10]}; "
            f"set timestamp_format to {first[form]!r} or {other[form]!r}"
        )
    return TimeNotation("iso") if first == _formats(_ISO_DATE) else TimeNotation("text", first)


def _text_seconds(text: pl.Series, formats: tuple[str, ...]) -> pl.Series:
    """Texts as seconds by the first format that fits; UTC where a text has no offset, null before the year 1900."""
    column = pl.col("text")
    clean = column.str.strip_chars().str.replace(r"(\d)T(\d)", "$1 $2").str.replace(r"(?i)\s*(?:Z|UTC|GMT)$", "+00:00")
    # "Tue Apr 03 18:00:09 +0000 2012" has its offset before the year.
    clean = clean.str.replace(r"^\w{3} (\w{3}) (\d\d?) ([\d:]+) ([+-]\d{4}) (\d{4})$", "$2 $1 $5 $3 $4")
    clean = clean.str.replace(r"(:\d\d),(\d+)", "$1.$2").str.replace(r"(?:\s+à)?\s+(\d\d?)h(\d\d)$", " $1:$2")
    clean = clean.str.replace(r"(:\d\d(?:\.\d+)?)\s*([+-]\d\d):?(\d\d)?(?:\s*\([^)]*\))?$", "$1$2:$3").str.replace(
        r"([+-]\d\d:)$", "${1}00"
    )
    frame = text.alias("text").to_frame().select(clean)
    has_offset = frame["text"].str.contains(r":\d\d(?:\.\d+)?[+-]\d\d:\d\d$").any()
    readings = []
    for form in formats:
        value, bare = _complete(column, form)
        readings.append(value.str.to_datetime(bare, time_unit="us", strict=False).dt.replace_time_zone("UTC"))
        if has_offset and bare == form:
            readings.append(value.str.to_datetime(form + "%:z", time_unit="us", time_zone="UTC", strict=False))
    seconds = pl.coalesce(readings).dt.epoch("s")
    return frame.select(pl.when(seconds > -2_208_988_800).then(seconds).alias("text"))["text"]


def _complete(column: pl.Expr, form: str) -> tuple[pl.Expr, str]:
    """Texts and their format with what the parser needs: leading zeros, a clock, and the century."""
    value, bare = column, form
    if (width := _WIDTHS.get(form)) is not None:
        value = value.str.zfill(width)
    if "%H" in form and "%M" not in form:
        value, bare = value + "00", bare + "%M"
    elif "%H" not in form and "%I" not in form:
        value, bare = value + " 00:00", bare + " %H:%M"
    if "%y" not in form.lower():
        value, bare = pl.lit("2000 ") + value, "%Y " + bare
    return value, bare


def _checked_format(sample: pl.Series, source: str, form: str) -> TimeNotation:
    notation = TimeNotation("text", (form,))
    try:
        read = notation.seconds(sample)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{source}: timestamp_format {form!r} is no format ({str(error).splitlines()[0]})") from error
    if len(sample) and read.null_count() == len(sample):
        raise UserError(f"{source}: timestamp_format {form!r} does not read {sample[0]!r}")
    return notation


def _check_span(notation: TimeNotation, sample: pl.Series, source: str) -> None:
    """Refuse a unit that cannot be right: the order of the log would be lost, or its dates mean nothing."""
    try:
        typical = notation.seconds(sample).median()
    except pl.exceptions.PolarsError as error:
        raise UserError(
            f"{source}: the times cannot be read as {notation.kind!r} ({str(error).splitlines()[0]})"
        ) from error
    if notation.kind == "order" or typical is None:
        return
    if float(typical) > YEAR_2200:  # type: ignore[arg-type]
        raise UserError(
            f"{source}: read as {notation.kind!r} the times lie beyond the year 2200; "
            "set timestamp_unit to ms, us or ns"
        )
    if notation.kind in ("ms", "us", "ns") and float(typical) < YEAR_1990:  # type: ignore[arg-type]
        raise UserError(
            f"{source}: read as {notation.kind!r} the times lie around {utc(float(typical))[:10]}, "  # type: ignore[arg-type]
            f"such as {sample[0]}; leave timestamp_unit out and the unit is recognised"
        )
