"""What every reader needs: lines with their numbers, fields without losing a row, and messages that name the mistake.

The rule behind all of it: a row that cannot be read is put into quarantine with its file, its line and the reason. A reader
therefore never lets a parser guess (fill in a missing field, drop a surplus one, replace a byte); it counts first.
"""

from __future__ import annotations

import csv
import difflib
import gzip
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import zstandard

from genrec.data.ids import IdMap
from genrec.data.schema import QUARANTINE_SCHEMA, RawLog, empty
from genrec.errors import UserError

LINE = "__line__"  # the line a row came from, counted from 1; no log has a column of this name
RAW = "__raw__"  # the text of that line
WRONG_ENCODING = "bytes that are not valid {encoding}"
BATCH_BYTES = 64 << 20


def nearest(name: str, valid: Iterable[str]) -> str | None:
    """The valid name that looks most like ``name``, if one does."""
    lowered = {candidate.lower(): candidate for candidate in valid}
    found = difflib.get_close_matches(name.lower(), lowered, n=1, cutoff=0.5)
    return lowered[found[0]] if found else None


def did_you_mean(name: str, valid: Sequence[str]) -> str:
    """The tail of an error message: the nearest valid name, then all of them."""
    close = nearest(name, valid)
    hint = f"did you mean {close!r}? " if close else ""
    return f"{hint}valid: {', '.join(valid)}"


def check_options(reader: str, options: dict, valid: Sequence[str]) -> None:
    """Raise ``UserError`` for the first option that the reader does not have."""
    for key in options:
        if key not in valid:
            tail = did_you_mean(str(key), valid) if valid else "it takes none"
            raise UserError(f"reader {reader!r} has no option {str(key)!r}; {tail}")


def find_one(folder: Path, patterns: Sequence[str]) -> Path | None:
    """The one file in ``folder`` that matches a pattern (plain or ``.gz``); ``UserError`` when there are several."""
    found = sorted({path for pattern in patterns for suffix in ("", ".gz") for path in folder.glob(pattern + suffix)})
    if len(found) > 1:
        raise UserError(
            f"{folder}: {' and '.join(path.name for path in found[:3])} both match; keep one of them in the folder"
        )
    return found[0] if found else None


def quarantine(source: str, lines: pl.DataFrame, reason: str) -> pl.DataFrame:
    """A quarantine table for the rows of ``lines`` (any table with the line column), all for one reason."""
    return lines.select(
        pl.lit(source).alias("source"), pl.col(LINE).cast(pl.Int64).alias("line"), pl.lit(reason).alias("reason")
    )


def join_quarantine(tables: Sequence[pl.DataFrame]) -> pl.DataFrame:
    """All quarantine tables as one, by file and line."""
    return pl.concat([empty(QUARANTINE_SCHEMA), *tables]).sort("source", "line", maintain_order=True)


def set_aside(table: pl.DataFrame, bad: pl.Expr, source: str, reason: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows of ``table`` that are not ``bad``; the bad ones go to ``aside`` as quarantine rows."""
    marked = table.select(bad.fill_null(False).alias("bad"))["bad"]
    if not marked.any():
        return table
    aside.append(quarantine(source, table.filter(marked), reason))
    return table.filter(~marked)


def set_repeats_aside(table: pl.DataFrame, key: str, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """Keep the first row of each ``key``; the later ones go to quarantine."""
    return set_aside(table, ~pl.col(key).is_first_distinct(), source, f"repeated {key}; its first row is kept", aside)


@dataclass(frozen=True)
class LogSource:
    """A piece of a log that can be read by itself: ``files``, and ``parts()`` that reads them.

    ``events=False`` marks tables (items, users) that stand beside the events and may change without touching them.
    """

    files: list[Path]
    parts: Callable[[], Iterator[RawLog]]
    events: bool = True


def parts_of(sources: Iterable[LogSource]) -> Iterator[RawLog]:
    """The parts of all sources, one after another."""
    for source in sources:
        yield from source.parts()


class SeenKeys:
    """The keys of a table read in batches, so that a repeated one is found however far apart its rows are. Exact; holds every key."""

    def __init__(self, key: str):
        self.key, self._ids = key, IdMap()

    def fresh(self, table: pl.DataFrame) -> pl.Series:
        """True where the key (text, no nulls) comes for the first time, over all batches and files: (n,) Boolean."""
        known = len(self._ids)
        codes, _ = self._ids.encode(table[self.key])
        return pl.Series("fresh", codes >= known) & table[self.key].is_first_distinct()

    def first_rows(self, table: pl.DataFrame, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
        """The first row of each key; the later ones go to quarantine (``aside``)."""
        fresh = self.fresh(table)
        if fresh.all():
            return table
        aside.append(quarantine(source, table.filter(~fresh), f"repeated {self.key}; its first row is kept"))
        return table.filter(fresh)


def is_glob(path: str | Path) -> bool:
    """Whether a path is a pattern such as ``logs/day-*.csv.gz``."""
    return any(sign in str(path) for sign in "*?[")


def glob_files(pattern: Path) -> list[Path]:
    """The files that match an absolute or relative pattern, by name."""
    anchor = Path(pattern.anchor)
    return sorted(file for file in anchor.glob(str(pattern.relative_to(anchor))) if file.is_file())


def blank(column: str) -> pl.Expr:
    """True where a text column holds nothing: null, empty or spaces only."""
    return pl.col(column).is_null() | (pl.col(column).str.strip_chars() == "")


def set_blank_aside(table: pl.DataFrame, key: str, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """The rows of ``table`` whose text column ``key`` holds something; the others go to quarantine."""
    low, high = table[key].min(), table[key].max()
    # Texts sort by their bytes: between "!" and "~" none is empty or starts with a space of any script. Looking at each costs far more.
    if not table[key].null_count() and low is not None and low >= "!" and high < "\x7f":
        return table
    return set_aside(table, blank(key), source, f"no {key}", aside)


def read_lines(path: Path, encoding: str = "utf-8") -> tuple[pl.DataFrame, pl.DataFrame]:
    """The non-blank lines of a text file (plain, ``.gz`` or ``.zst``), and the quarantine of lines in a wrong encoding.

    Returns ``(lines, quarantine)``; ``lines`` has the line number (``LINE``, from 1, blank lines counted) and its text (``RAW``).
    Line ends may be LF or CRLF; a byte order mark is removed. Raises ``UserError`` when the file cannot be opened or unpacked.
    """
    batches = list(line_batches(path, encoding, batch_bytes=-1))
    if not batches:
        return pl.DataFrame(schema={LINE: pl.Int64, RAW: pl.String}), empty(QUARANTINE_SCHEMA)
    return batches[0]


def line_batches(
    path: Path, encoding: str = "utf-8", quoted: bool = False, batch_bytes: int = BATCH_BYTES
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """As ``read_lines``, but in batches of about ``batch_bytes``: memory stays flat however large the file is.

    Line numbers go on from batch to batch. With ``quoted`` a batch ends where the double quotes before it are even in number, so that
    a CSV record with a line break inside quotes is never cut (unless it is longer than a batch: then a stray quote is more likely).
    An empty file yields nothing.
    """
    first, rest = 1, b""
    for block in _blocks(path, batch_bytes):
        block = rest + block
        cut = block.rfind(b"\n") + 1 if batch_bytes > 0 else len(block)
        if quoted and cut and block.count(b'"', 0, cut) % 2 and len(rest) < batch_bytes:
            cut = block.rfind(b"\n", 0, block.rfind(b'"', 0, cut)) + 1
        ready, rest = block[:cut], block[cut:]
        if ready:
            yield _numbered(ready.removesuffix(b"\n"), path, encoding, first)
            first += ready.count(b"\n")
    if rest:
        yield _numbered(rest, path, encoding, first)


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    try:
        with _open(path) as file:
            while block := file.read(size):
                yield block
    except (OSError, EOFError, zlib.error, zstandard.ZstdError) as error:
        raise UserError(f"{path}: cannot be read ({error}); it may be cut off, fetch or copy it again") from error


def _open(path: Path):
    if path.suffix == ".gz":
        return gzip.open(path, "rb")
    if path.suffix == ".zst":
        return zstandard.open(path, "rb")
    return path.open("rb")


def _numbered(content: bytes, path: Path, encoding: str, first: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    raw, wrong = _decode(content, encoding)
    table = pl.DataFrame(
        {LINE: pl.int_range(first, first + len(raw), eager=True, dtype=pl.Int64), RAW: raw, "wrong": wrong}
    )
    bad = quarantine(path.name, table.filter("wrong"), WRONG_ENCODING.format(encoding=encoding))
    text = pl.col(RAW).str.strip_suffix("\r")
    text = pl.when(pl.col(LINE) == 1).then(text.str.strip_prefix("\ufeff")).otherwise(text)
    good = table.filter(~pl.col("wrong")).select(LINE, text.alias(RAW))
    return good.filter(~blank(RAW)), bad


def _decode(content: bytes, encoding: str) -> tuple[pl.Series, pl.Series]:
    """Split into lines: their text, and which of them are not in the encoding."""
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        # Only now is it worth looking at each line by itself.
        pieces = content.split(b"\n")
        decoded = [_decode_or_none(piece, encoding) for piece in pieces]
        raw = pl.Series(RAW, decoded, dtype=pl.String)
        return raw, raw.is_null()
    raw = pl.Series(RAW, text.split("\n"), dtype=pl.String)
    return raw, pl.repeat(False, len(raw), eager=True, dtype=pl.Boolean)


def _decode_or_none(piece: bytes, encoding: str) -> str | None:
    try:
        return piece.decode(encoding)
    except UnicodeDecodeError:
        return None


def split_fields(
    lines: pl.DataFrame, columns: Sequence[str], separator: str, source: str, quoted: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut lines into text fields; a line with too many or too few goes to quarantine.

    ``quoted`` reads double quotes as CSV does (RFC 4180), also around a line break; the row's line is then its first one.
    Returns ``(table, quarantine)``; ``table`` has ``LINE`` and ``columns``, all text, in file order. Raises ``UserError`` for a column
    named twice or like the line column.
    """
    taken = {LINE}
    for name in columns:
        if name in taken:
            raise UserError(f"{source}: the header names column {name!r} a second time; rename one")
        taken.add(name)
    if not quoted:
        return _split_plain(lines, columns, separator, source)
    with_quote = pl.col(RAW).str.contains('"', literal=True)
    # A line break inside quotes: the quotes up to there are odd in number. Lines that belong together share a record number.
    odd = (pl.col(RAW).str.count_matches('"', literal=True) % 2).cast(pl.Int64)
    starts = (odd.cum_sum() - odd) % 2 == 0
    records = lines.with_columns(starts.cum_sum().alias("record"), with_quote.alias("quote"))
    simple = records.filter(~pl.col("quote").any().over("record"))
    table, bad = _split_plain(simple.select(LINE, RAW), columns, separator, source)
    if simple.height == records.height:
        return table, bad
    special = records.filter(pl.col("quote").any().over("record"))
    groups = special.group_by("record", maintain_order=True).agg(pl.col(LINE), pl.col(RAW))
    more, more_bad = _split_quoted(groups, columns, separator, source)
    return pl.concat([table, more]).sort(LINE), pl.concat([bad, more_bad])


def _split_plain(
    lines: pl.DataFrame, columns: Sequence[str], separator: str, source: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    expected = len(columns)
    counted = lines.with_columns((pl.col(RAW).str.count_matches(separator, literal=True) + 1).alias("fields"))
    wrong = counted.filter(pl.col("fields") != expected)
    reason = pl.format("{} fields where {} are expected", pl.col("fields"), pl.lit(expected))
    bad = wrong.select(pl.lit(source).alias("source"), pl.col(LINE).alias("line"), reason.alias("reason"))
    good = counted.filter(pl.col("fields") == expected)
    split = good[RAW].str.split_exact(separator, expected - 1).struct.unnest()
    split.columns = list(columns)
    return split.insert_column(0, good[LINE]), bad


def _split_quoted(
    groups: pl.DataFrame, columns: Sequence[str], separator: str, source: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Records that hold a quote, one by one: they are the few with text in them, and the csv module is the judge of quotes."""
    rows: list[list] = []
    wrong: list[tuple[str, int, str]] = []
    for numbers, pieces in groups.select(LINE, RAW).iter_rows():
        fields = parse_record("\n".join(pieces), separator)
        if isinstance(fields, list) and len(fields) == len(columns):
            rows.append([numbers[0], *fields])
            continue
        # A stray quote must cost its own line only, not all lines up to the next quote: read each line by itself.
        for number, piece in zip(numbers, pieces):
            fields = parse_record(piece, separator)
            if isinstance(fields, list) and len(fields) == len(columns):
                rows.append([number, *fields])
            else:
                reason = (
                    fields if isinstance(fields, str) else f"{len(fields)} fields where {len(columns)} are expected"
                )
                wrong.append((source, number, reason))
    schema = {LINE: pl.Int64, **{name: pl.String for name in columns}}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table, pl.DataFrame(wrong, schema=QUARANTINE_SCHEMA, orient="row")


def parse_record(record: str, separator: str) -> list[str] | str:
    """The fields of one CSV record, or the reason why it has none."""
    try:
        return next(csv.reader([record], delimiter=separator, strict=True))
    except csv.Error as error:
        return f"broken quotes ({error})"


def parse_json_lines(
    lines: pl.DataFrame, source: str, schema: dict[str, pl.DataType] | None
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """JSON objects, one a line, as a table; a line that is not one goes to quarantine.

    With a ``schema`` only those fields are read, with these types; without, types are inferred from all lines. Returns
    ``(table, quarantine)``; ``table`` starts with ``LINE``.
    """
    none = empty(QUARANTINE_SCHEMA)
    if lines.is_empty():
        return pl.DataFrame(schema={LINE: pl.Int64(), **(schema or {})}), none
    table = _fast_json(lines, schema)
    if table is not None:
        return table, none
    reasons = pl.Series("reason", [_json_problem(raw) for raw in lines[RAW]], dtype=pl.String)
    broken = lines.with_columns(reasons).filter(pl.col("reason").is_not_null())
    bad = broken.select(pl.lit(source).alias("source"), pl.col(LINE).alias("line"), pl.col("reason"))
    good = lines.filter(reasons.is_null())
    if good.is_empty():
        return pl.DataFrame(schema={LINE: pl.Int64(), **(schema or {})}), bad
    table = _fast_json(good, schema)
    if table is None:  # valid objects that the fast parser refuses (NaN, types that change from line to line)
        rows = [json.loads(raw) for raw in good[RAW]]
        # As text: a column whose type changes from line to line has no other common type.
        names = list(schema) if schema else list(dict.fromkeys(key for row in rows for key in row))
        texts = {name: [_as_text(row.get(name)) for row in rows] for name in names}
        table = pl.DataFrame(texts, schema={name: pl.String for name in names}).insert_column(0, good[LINE])
    return table, bad


def parse_json(text: str) -> object:
    """The value of a JSON text; None for text that is none."""
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _as_text(value: object) -> str | None:
    return value if value is None or isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _fast_json(lines: pl.DataFrame, schema: dict[str, pl.DataType] | None) -> pl.DataFrame | None:
    content = "\n".join(lines[RAW].to_list()).encode()
    try:
        table = pl.read_ndjson(content, schema=schema, infer_schema_length=None)
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException):
        return None
    # Two objects on one line would shift every later line number; the slow path finds them.
    return table.insert_column(0, lines[LINE]) if table.height == lines.height else None


def _json_problem(raw: str) -> str | None:
    try:
        value = json.loads(raw)
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return "half of a surrogate pair, which is no text"
    except (ValueError, RecursionError) as error:
        return f"broken JSON ({str(error)[:80]})"
    return None if isinstance(value, dict) else "not a JSON object"
