"""Delimited text: fields by a separator, with or without quotes, and no row lost on the way."""

from __future__ import annotations

import csv
import logging
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit.batches import LINE, Batch, blank, may_be_blank, quarantine
from genrec.data.readers.toolkit.lines import RAW, line_batches
from genrec.data.readers.toolkit.options import nearest
from genrec.data.schema import QUARANTINE_SCHEMA
from genrec.errors import UserError

log = logging.getLogger(__name__)
_ESCAPED = r'[^\\]\\"[^;,\t|"]'  # a quote inside a field, escaped as databases and programs do
_ESCAPE = r'([^\\]|^)\\"'
SECTION = r"^([^\s,;|]+):$"
_HIDDEN = "\x1f"  # stands for a separator inside quotes; a line that holds one takes the slow path
csv.field_size_limit(1 << 30)  # the default of 131,072 characters refuses long descriptions


def delimited_batches(
    file: Path,
    separator: str | None = None,
    *,
    quoted: bool | None = None,
    columns: Sequence[str] | None = None,
    is_header: Callable[[list[str]], bool] | None = None,
    optional: int = 0,
    required: Sequence[str] = (),
    reserved: Sequence[str] = (),
    encoding: str = "utf-8",
    skip: int = 0,
    repeats: bool = False,
    sections: bool = False,
) -> Iterator[Batch]:
    """Rows of fields in batches, every field as text, an empty one as null.

    Args:
        file: the text file, plain or compressed.
        separator: None takes a tab when the first line has one, else a comma.
        quoted: whether double quotes enclose fields as in CSV; None: yes, except in tab-separated files.
        columns: the names of the columns where the first line does not hold them.
        optional: how many of the last ``columns`` a file may lack.
        is_header: with ``columns``, whether the fields of the first line are a header all the same.
        required: columns that the header must name.
        reserved: names that the reader gives to columns of its own, which the header must not use.
        encoding: of the file.
        skip: lines before the header (or the first row) that belong to no table.
        repeats: number a column whose name the header repeats (``price_2``), with a warning, instead of refusing it.
        sections: lines such as ``17:`` give the first field of the lines below them, and are no rows.

    Raises ``UserError`` for an empty file that should have a header, and for a header that names a column twice, lacks
    a required column or uses a reserved name.
    """
    head: _Head | None = None
    early: list[pl.DataFrame] = []  # undecodable lines before the header
    quotes = quoted is not False and separator != "\t"
    section = ""
    for lines, wrong in _repaired_lines(file, encoding, quotes, skip):
        if head is None:
            lines, wrong = _from_header(lines, skip), wrong.filter(pl.col("line") > skip)
            if lines.is_empty():
                early.append(wrong)
                continue
            head = _Head.read(lines[RAW][0], separator, quoted, file, (columns, optional), is_header, skip > 0, repeats)
            check_header(head.names, required if head.named else (), reserved if head.named else (), file)
            lines = lines.slice(int(head.named))
        if sections:
            lines, section = _with_sections(lines, section, head.separator)
        table, ragged = split_fields(lines, head.names, head.separator, file.name, head.quoted)
        table = nulls_for_blanks(table, head.names)
        rejected, early = [*early, wrong, ragged], []
        # A quoted row may span lines, so rows are counted after the cut.
        yield Batch(table, table.height + sum(part.height for part in rejected), file.name, rejected)
    if head is None and columns is None:
        raise UserError(f"{file}: empty; expected a header line and data")
    if early:
        schema = {LINE: pl.Int64, **dict.fromkeys(columns or (), pl.String)}
        yield Batch(pl.DataFrame(schema=schema), sum(map(len, early)), file.name, early)


def _repaired_lines(file: Path, encoding: str, quotes: bool, skip: int) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """The lines of a file and those that cannot be decoded; with ``quotes`` repaired by what its first lines show."""
    repairs: list[tuple[str, str]] | None = None
    for lines, wrong in line_batches(file, encoding, quoted=quotes):
        if repairs is None:
            repairs = _repairs(lines, skip) if quotes else []
        for pattern, text in repairs:
            lines = lines.with_columns(pl.col(RAW).str.replace_all(pattern, text))
        yield lines, wrong


@dataclass
class _Head:
    """What the first line of a file decides. ``named``: the line itself holds the names of the columns."""

    names: list[str]
    separator: str
    quoted: bool
    named: bool

    @classmethod
    def read(
        cls,
        line: str,
        separator: str | None,
        quoted: bool | None,
        file: Path,
        columns: tuple[Sequence[str] | None, int],
        is_header: Callable[[list[str]], bool] | None,
        commented: bool,
        repeats: bool,
    ) -> _Head:
        """By the first line; ``columns``: the given names and how many of the last ones a file may lack."""
        separator = separator or ("\t" if "\t" in line else ",")
        quoted = len(separator) == 1 and (separator != "\t" if quoted is None else quoted)
        first, (given, optional) = header_fields(line, separator, file, quoted), columns
        if given is not None and (is_header is None or not is_header(first)):
            return cls(list(given)[: max(len(first), len(given) - optional)], separator, quoted, False)
        if commented or separator in first[0]:
            first[0] = first[0].removeprefix("#").strip()
        return cls(_numbered_names(first, file) if repeats else first, separator, quoted, True)


def _from_header(lines: pl.DataFrame, skip: int) -> pl.DataFrame:
    """The lines from the header on: without the first ``skip``, and without a spreadsheet's note of its separator."""
    lines = lines.filter(pl.col(LINE) > skip)
    noted = not lines.is_empty() and lines[LINE][0] == 1 and lines[RAW][0].lower().startswith("sep=")
    return lines.slice(int(noted))


def _repairs(lines: pl.DataFrame, skip: int) -> list[tuple[str, str]]:
    """Patterns and texts that turn other ways of quoting into that of CSV (RFC 4180), by the first lines of a file.

    Quotes inside fields escaped by a backslash; spaces between quotes and separators; single quotes.
    """
    repairs = [(_ESCAPE, '$1""'), (r"\\\\", "\\")] if lines[RAW].str.contains(_ESCAPED).any() else []
    rows = lines.filter(pl.col(LINE) > skip)[RAW].head(5)
    if rows.str.contains(r"^\s*'(?:[^']|'')*'(?:[;,|]'(?:[^']|'')*')+\s*$").all():
        empty_fields = [(r"(^|[;,|])''([;,|]|$)", "$1$2")] * 2  # twice: neighbours share a separator
        return [*repairs, ('"', '""'), *empty_fields, ("''", "\x1e"), ("'", '"'), ("\x1e", "'")]
    if rows.str.contains(r'^\s*"[^"]*"\s+[;,|]\s*"').all():
        return [*repairs, (r'"\s+([;,|])', '"$1'), (r'([;,|])\s+"', '$1"'), (r'^\s+"', '"'), (r'"\s+$', '"')]
    return repairs


def _with_sections(lines: pl.DataFrame, current: str, separator: str) -> tuple[pl.DataFrame, str]:
    """Lines with the section above them as first field, and the last section; the sections' own lines are taken out."""
    own = pl.col(RAW).str.extract(SECTION)
    table = lines.with_columns(own.alias("own"), own.forward_fill().fill_null(current).alias("section"))
    last = table["section"][-1] if table.height else current
    rows = table.filter(pl.col("own").is_null())
    return rows.select(LINE, pl.concat_str("section", pl.lit(separator), RAW).alias(RAW)), last


def nulls_for_blanks(table: pl.DataFrame, columns: Sequence[str]) -> pl.DataFrame:
    """The table with null for every empty or blank text of ``columns``."""
    doubtful = [name for name in columns if may_be_blank(table[name])]
    return table.with_columns(pl.when(~blank(name)).then(pl.col(name)).alias(name) for name in doubtful)


def header_fields(line: str, separator: str, file: Path, quoted: bool) -> list[str]:
    """The names in a header line, without outer spaces."""
    names = parse_record(line, separator) if quoted else line.split(separator)
    if isinstance(names, str):
        raise UserError(f"{file}: the header line cannot be read: {names}")
    return [name.strip() for name in names]


def _numbered_names(names: list[str], file: Path) -> list[str]:
    """The names, a repeated one with its number behind it."""
    result: list[str] = []
    for name in names:
        fresh, number = name, 1
        while fresh in result:
            number += 1
            fresh = f"{name}_{number}"
        if fresh != name:
            log.warning("%s: the header names column %r again; this one is called %r", file, name, fresh)
        result.append(fresh)
    return result


def check_header(names: list[str], required: Sequence[str], reserved: Sequence[str], file: Path) -> list[str]:
    """The names, or ``UserError`` for one that is there twice, reserved or missing."""
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{file}: the header names column {twice[0]!r} twice; rename one")
    taken = [name for name in names if name in reserved or name == LINE]
    if taken:
        raise UserError(f"{file}: column {taken[0]!r} is not of this layout and its name is needed; rename it")
    for name in required:
        if name not in names:
            close = nearest(name, names)
            hint = f"nearest: {close!r}; " if close else ""
            raise UserError(f"{file}: no column {name!r}; {hint}the file has: {', '.join(names)[:300]}")
    return names


def split_fields(
    lines: pl.DataFrame, columns: Sequence[str], separator: str, source: str, quoted: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Cut lines into text fields; a line with too many or too few goes to quarantine.

    ``quoted`` reads double quotes as CSV does (RFC 4180), also around a line break; the row's line is then its first
    one. Returns ``(table, quarantine)``; ``table`` has ``LINE`` and ``columns``, all text, in file order.
    """
    quotes = pl.col(RAW).str.count_matches('"', literal=True)
    if not quoted or lines.select((quotes == 0).all()).item():
        return _split_plain(lines, columns, separator, source)
    if lines.select((quotes % 2 == 0).all()).item():  # no line break inside quotes, no stray quote
        return _split_hidden(lines, columns, separator, source)
    # A line break inside quotes: the quotes up to there are odd in number. Lines that belong together share a record
    # number.
    odd = (quotes % 2).cast(pl.Int64)
    starts = (odd.cum_sum() - odd) % 2 == 0
    records = lines.with_columns(starts.cum_sum().alias("record"), (quotes > 0).alias("quote"))
    simple = records.filter(~pl.col("quote").any().over("record"))
    table, bad = _split_plain(simple.select(LINE, RAW), columns, separator, source)
    special = records.filter(pl.col("quote").any().over("record"))
    groups = special.group_by("record", maintain_order=True).agg(pl.col(LINE), pl.col(RAW))
    more, more_bad = _split_records(groups, columns, separator, source)
    return pl.concat([table, more]).sort(LINE), pl.concat([bad, more_bad])


def _split_plain(
    lines: pl.DataFrame, columns: Sequence[str], separator: str, source: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    expected = len(columns)
    counted = lines.with_columns((pl.col(RAW).str.count_matches(separator, literal=True) + 1).alias("fields"))
    wrong = counted.filter(pl.col("fields") != expected)
    bad = quarantine(source, wrong, pl.format("{} fields where {} are expected", pl.col("fields"), pl.lit(expected)))
    good = counted.filter(pl.col("fields") == expected)
    split = good[RAW].str.split_exact(separator, expected - 1).struct.unnest()
    split.columns = list(columns)
    return split.insert_column(0, good[LINE]), bad


def _split_hidden(
    lines: pl.DataFrame, columns: Sequence[str], separator: str, source: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Lines whose quotes only enclose separators, as in a column of lists, without a loop; the others one by one."""
    chunks = lines.select(LINE, pl.col(RAW).str.split('"').alias("chunk")).explode("chunk")
    index, last = pl.int_range(pl.len()).over(LINE), pl.len().over(LINE) - 1
    outside, text = index % 2 == 0, pl.col("chunk")
    opens = (index == 0) | text.str.starts_with(separator) | ((index == last) & (text == ""))
    closes = (index == last) | text.str.ends_with(separator) | ((index == 0) & (text == ""))
    hidden = pl.when(outside).then(text).otherwise(text.str.replace_all(separator, _HIDDEN, literal=True))
    simple = (~outside | (opens & closes)) & ~text.str.contains(_HIDDEN, literal=True)
    by_line = chunks.with_columns(simple.alias("simple"), hidden.alias("chunk")).group_by(LINE, maintain_order=True)
    joined = by_line.agg(pl.col("chunk").str.join("").alias(RAW), pl.col("simple").all())
    table, bad = _split_plain(joined.filter("simple").select(LINE, RAW), columns, separator, source)
    table = table.with_columns(pl.col(columns).str.replace_all(_HIDDEN, separator, literal=True))
    special = lines.filter(~joined["simple"]).select(pl.concat_list(LINE).alias(LINE), pl.concat_list(RAW).alias(RAW))
    more, more_bad = _split_records(special, columns, separator, source)
    return pl.concat([table, more]).sort(LINE), pl.concat([bad, more_bad])


def _split_records(
    groups: pl.DataFrame, columns: Sequence[str], separator: str, source: str
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Records with quotes, one by one: they are few, and the csv module decides what a quote means."""
    rows: list[list] = []
    wrong: list[tuple[str, int, str]] = []
    for numbers, lines in groups.select(LINE, RAW).iter_rows():
        fields = parse_record("\n".join(lines), separator)
        if isinstance(fields, list) and len(fields) == len(columns) and not _are_rows(lines, separator, len(columns)):
            rows.append([numbers[0], *fields])
            continue
        # A stray quote must cost its own line only, not all lines up to the next quote: read each line by itself.
        for number, line in zip(numbers, lines, strict=True):
            fields = parse_record(line, separator)
            if isinstance(fields, list) and len(fields) == len(columns):
                rows.append([number, *fields])
            else:
                counted = f"{len(fields)} fields where {len(columns)} are expected"
                wrong.append((source, number, fields if isinstance(fields, str) else counted))
    schema = {LINE: pl.Int64(), **dict.fromkeys(columns, pl.String())}
    table = pl.DataFrame(rows, schema=schema, orient="row")
    return table, pl.DataFrame(wrong, schema=QUARANTINE_SCHEMA, orient="row")


def _are_rows(lines: Sequence[str], separator: str, expected: int) -> bool:
    """Whether lines that quotes seem to join are a row each: two stray quotes must not swallow a row."""
    return len(lines) > 1 and all(line.count(separator) + 1 == expected for line in lines)


def parse_record(record: str, separator: str) -> list[str] | str:
    """The fields of one CSV record, or the reason why it has none."""
    try:
        return next(csv.reader([record], delimiter=separator, strict=True))
    except csv.Error as error:
        return f"broken quotes ({error})"
