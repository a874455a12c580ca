"""What the readers of feedback logs share: files by name, headed tables in batches, flags, and the stage a person reached.

A feedback log has one row for each item that was shown, and a column for each thing the person may have done with it. Every such row
becomes one row of ``impressions``; those at or above an option ``min_action`` of the chain become ``events`` as well.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl

from genrec.data.readers import common
from genrec.data.readers.common import LINE, RAW, blank, did_you_mean, join_quarantine, nearest, set_aside
from genrec.data.schema import EVENT_SCHEMA, QUARANTINE_SCHEMA, RawLog, conform, empty
from genrec.errors import UserError

YEAR_2000 = 946_684_800  # seconds; nothing logs behaviour from before it
YEAR_2200 = 7_258_118_400
PACKED = r"(\.gz|\.zst)?"
_HIDDEN = "\x1f"  # stands for a separator inside quotes; a line that holds one takes the slow road
# A JSON list of whole numbers or of plain texts.
_ELEMENT = r'(?:-?\d+|"[^"\\,]*[^"\\,\s][^"\\,]*")'
_LIST = rf"^\s*\[\s*(?:{_ELEMENT}(?:\s*,\s*{_ELEMENT})*)?\s*\]\s*$"


def files_by_kind(path: Path, kinds: Mapping[str, str], reader: str) -> dict[str, list[Path]]:
    """The files of a layout at a folder, a file or a glob, by kind, each kind sorted by name.

    ``kinds`` maps a kind to the regular expression of its file names (without ``.gz`` or ``.zst``). Raises ``UserError`` when there is
    no file of any kind, or when one table lies there twice (plain and packed).
    """
    if path.is_dir():
        candidates = [file for file in path.iterdir() if file.is_file()]
    elif path.exists():
        candidates = [path]
    elif any(sign in str(path) for sign in "*?["):
        candidates = [file for file in Path(path.anchor).glob(str(path.relative_to(path.anchor))) if file.is_file()]
    else:
        raise UserError(f"{path}: no such file or folder for reader {reader!r}; check the path")
    found: dict[str, list[Path]] = {kind: [] for kind in kinds}
    tables: dict[tuple[Path, str], Path] = {}
    for file in sorted(candidates):
        kind = next((kind for kind, name in kinds.items() if re.fullmatch(name + PACKED, file.name)), None)
        if kind is None:
            continue
        bare = (file.parent, re.sub(r"(\.gz|\.zst)$", "", file.name))
        if bare in tables:
            raise UserError(
                f"{file.parent}: {tables[bare].name} and {file.name} are the same table twice; keep one of them"
            )
        tables[bare] = file
        found[kind].append(file)
    if not tables:
        names = ", ".join(name.replace("\\", "").replace(".*", "*") for name in kinds.values())
        raise UserError(f"{path}: no file of reader {reader!r} there; expected {names} (plain, .gz or .zst)")
    return found


def choice(reader: str, options: dict, key: str, valid: Sequence[str], default: str) -> str:
    """An option that is one of a few words; ``UserError`` for any other."""
    value = options.get(key, default)
    if value not in valid:
        raise UserError(f"reader {reader!r}: option {key} cannot be {value!r}; {did_you_mean(str(value), valid)}")
    return value


def switch(reader: str, options: dict, key: str, default: bool) -> bool:
    """An option that is true or false; ``UserError`` for any other value."""
    value = options.get(key, default)
    if not isinstance(value, bool):
        raise UserError(f"reader {reader!r}: option {key} must be true or false, not {value!r}")
    return value


def headed_batches(
    file: Path, separator: str | None, required: Sequence[str], quoted: bool = True, own: Sequence[str] = ()
) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame]]]:
    """A delimited text file with a header line, in batches of ``(text table with LINE, its quarantine so far)``.

    An empty field is null. Without a ``separator`` it is a tab when the header has one, else a comma; tab-separated files have no
    quotes. Rows of a batch = rows of the table + rows of its quarantine. ``own`` are names that the reader gives to columns it makes.
    Raises ``UserError`` for a file without a header, a column named twice or like one of ``own``, and a ``required`` one that is missing.
    """
    header: list[str] | None = None
    early: list[pl.DataFrame] = []  # undecodable lines before the header
    for lines, wrong in common.line_batches(file, quoted=quoted and separator != "\t", batch_bytes=common.BATCH_BYTES):
        if header is None:
            if lines.is_empty():
                early.append(wrong)
                continue
            first = lines[RAW][0]
            separator = separator or ("\t" if "\t" in first else ",")
            header = _header(first, separator, required, own, file)
            lines = lines.slice(1)
        table, bad = _split(lines, header, separator, file.name, quoted and separator != "\t")
        table = table.with_columns(pl.when(~blank(name)).then(pl.col(name)).alias(name) for name in header)
        yield table, [*early, wrong, bad]
        early = []
    if header is None:
        raise UserError(f"{file}: empty; expected a header line and data")


def json_batches(file: Path, fields: Sequence[str]) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame]]]:
    """A file of JSON objects, one a line, in batches like those of ``headed_batches``: only ``fields``, all as text.

    A list or an object comes as its JSON text, a field that is missing as null.
    """
    for lines, wrong in common.line_batches(file, batch_bytes=common.BATCH_BYTES):
        table, broken = common.parse_json_lines(lines, file.name, dict.fromkeys(fields, pl.String()))
        yield (
            table.with_columns(pl.when(~blank(name)).then(pl.col(name)).alias(name) for name in fields),
            [wrong, broken],
        )


def _header(line: str, separator: str, required: Sequence[str], own: Sequence[str], file: Path) -> list[str]:
    names = common.parse_record(line, separator) if separator != "\t" else line.split(separator)
    if isinstance(names, str):
        raise UserError(f"{file}: the header line cannot be read: {names}")
    names = [name.strip() for name in names]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{file}: the header names column {twice[0]!r} twice; rename one")
    taken = [name for name in names if name in own or name == LINE]
    if taken:
        raise UserError(f"{file}: column {taken[0]!r} is not of this layout and its name is needed; rename it")
    for name in required:
        if name not in names:
            close = nearest(name, names)
            hint = f"nearest: {close!r}; " if close else ""
            raise UserError(f"{file}: no column {name!r}; {hint}the file has: {', '.join(names)[:300]}")
    return names


def _split(
    lines: pl.DataFrame, header: list[str], separator: str, source: str, quoted: bool
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """``split_fields``, but without its loop where the quotes of a line only hold separators, as in a column of lists."""
    count = pl.col(RAW).str.count_matches('"', literal=True)
    if not quoted or lines.select((count == 0).all()).item():
        return common.split_fields(lines, header, separator, source, quoted=False)
    if lines.select((count % 2 != 0).any()).item():  # a quoted line break or a stray quote
        return common.split_fields(lines, header, separator, source, quoted=True)
    parts = lines.select(LINE, pl.col(RAW).str.split('"').alias("part")).explode("part")
    place, last = pl.int_range(pl.len()).over(LINE), pl.len().over(LINE) - 1
    outside = place % 2 == 0
    opens = (place == 0) | pl.col("part").str.starts_with(separator) | ((place == last) & (pl.col("part") == ""))
    closes = (place == last) | pl.col("part").str.ends_with(separator) | ((place == 0) & (pl.col("part") == ""))
    hidden = (
        pl.when(outside)
        .then(pl.col("part"))
        .otherwise(pl.col("part").str.replace_all(separator, _HIDDEN, literal=True))
    )
    simple = (~outside | (opens & closes)) & ~pl.col("part").str.contains(_HIDDEN, literal=True)
    joined = parts.with_columns(simple.alias("simple"), hidden.alias("part")).group_by(LINE, maintain_order=True)
    joined = joined.agg(pl.col("part").str.join("").alias(RAW), pl.col("simple").all())
    table, bad = common.split_fields(joined.filter("simple").select(LINE, RAW), header, separator, source, quoted=False)
    table = table.with_columns(pl.col(header).str.replace_all(_HIDDEN, separator, literal=True))
    odd = lines.filter(~joined["simple"])
    more, more_bad = common.split_fields(odd, header, separator, source, quoted=True)
    return pl.concat([table, more]).sort(LINE), pl.concat([bad, more_bad])


def milliseconds(column: str) -> pl.Expr:
    """A text column of times in milliseconds as Int64; null where it is no time between the years 2000 and 2200.

    Whole numbers, also as "1650812741436.0" or "1.650812741436e12", which is how a float column is written.
    """
    real = pl.col(column).cast(pl.Float64, strict=False)
    real = pl.when(real.is_finite()).then(real).cast(pl.Int64, strict=False)
    value = pl.coalesce(pl.col(column).cast(pl.Int64, strict=False), real)
    return pl.when(value.is_between(YEAR_2000 * 1000, YEAR_2200 * 1000)).then(value)


def seconds(column: str) -> pl.Expr:
    """A text column of whole seconds as Int64; null where it is no time between the years 2000 and 2200."""
    value = pl.col(column).cast(pl.Int64, strict=False)
    return pl.when(value.is_between(YEAR_2000, YEAR_2200)).then(value)


def whole(column: str) -> pl.Expr:
    """A text column as Int64, null where it is no whole number (also as "12.0")."""
    real = pl.col(column).cast(pl.Float64, strict=False)
    real = pl.when(real.is_finite() & (real == real.floor())).then(real).cast(pl.Int64, strict=False)
    return pl.coalesce(pl.col(column).cast(pl.Int64, strict=False), real)


def finite(column: str) -> pl.Expr:
    """A text column as Float64, null where it is no finite number."""
    real = pl.col(column).cast(pl.Float64, strict=False)
    return pl.when(real.is_finite()).then(real)


def json_list(column: str) -> pl.Expr:
    """A text column of JSON lists of ids ("[3, 14]") as List(String); null where it is no list of whole numbers or plain texts."""
    text = pl.col(column)
    inner = text.str.strip_chars(" \t[]")
    ids = inner.str.split(",").list.eval(pl.element().str.strip_chars(' \t"'))
    ids = pl.when(inner == "").then(pl.lit([], dtype=pl.List(pl.String))).otherwise(ids)
    return pl.when(text.str.contains(_LIST)).then(ids)


def id_columns(table: pl.DataFrame, keys: Sequence[str], source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """Rows without one of the ids go to ``aside``; ids lose the spaces around them and the ".0" of a float column."""
    for key in keys:
        table = set_aside(table, blank(key), source, f"no {key}", aside)
    return table.with_columns(pl.col(key).str.strip_chars().str.replace(r"^(\d+)\.0+$", "$1") for key in keys)


def flags(table: pl.DataFrame, names: Mapping[str, str], source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    """Replace the feedback columns of a text table (ours -> theirs, where it has them) by true/false columns.

    0, 1, true and false are read, an empty field stays null (not known), and a row with any other value goes to ``aside``.
    """
    for ours, theirs in names.items():
        if theirs not in table.columns:
            continue
        word, number = pl.col(theirs).str.strip_chars().str.to_lowercase(), finite(theirs)
        yes, no = (number == 1) | (word == "true"), (number == 0) | (word == "false")
        value = pl.when(yes.fill_null(False)).then(True).when(no.fill_null(False)).then(False)
        wrong = pl.col(theirs).is_not_null() & value.is_null()
        table = set_aside(table, wrong, source, f"{theirs} is neither 0 nor 1", aside)
        table = table.with_columns(value.alias(ours))
        table = table.drop(theirs) if theirs != ours else table
    return table


def stage(table: pl.DataFrame, chain: Sequence[str]) -> pl.Expr:
    """``action``: the deepest stage of the chain whose flag is true; the first stage (shown) where none is."""
    reached = [pl.when(pl.col(name)).then(pl.lit(name)) for name in reversed(chain[1:]) if name in table.columns]
    return pl.coalesce([*reached, pl.lit(chain[0])]).alias("action")


def deep_enough(chain: Sequence[str], least: str) -> pl.Expr:
    """True where ``action`` is at or above a stage of the chain."""
    return pl.col("action").is_in(list(chain[list(chain).index(least) :]))


def events_of(
    shown: pl.DataFrame, chain: Sequence[str], least: str, source: str, extra: Sequence[str] = ()
) -> pl.DataFrame:
    """The rows of an impressions table that are events: deep enough, and not hated where the log says so."""
    kept = shown.filter(deep_enough(chain, least))
    if "hate" in kept.columns:
        kept = kept.filter(~pl.col("hate").fill_null(False))
    columns = [name for name in (*EVENT_SCHEMA, *extra) if name in kept.columns]
    return conform(kept.select(columns), EVENT_SCHEMA, source)


def rows_aside(aside: Sequence[pl.DataFrame]) -> int:
    """How many rows are in a quarantine so far."""
    return sum(table.height for table in aside)


def part(aside: list[pl.DataFrame], kept: int, **tables: object) -> RawLog:
    """One part of a log: its tables, its quarantine, and the rows behind it (``kept`` rows, those left out by rule, and the bad)."""
    log = RawLog(quarantine=join_quarantine(aside), **tables)
    log.rows_read = kept + sum(log.filtered.values()) + log.quarantine.height
    return log


def left_out(files: Sequence[Path], rule: str, headed: bool = True) -> Iterator[RawLog]:
    """Parts without tables for files that an option or a rule leaves out: their rows are counted under the rule's name."""
    for file in files:
        rows = 0
        for lines, wrong in common.line_batches(file, batch_bytes=common.BATCH_BYTES):
            rows += lines.height + wrong.height
        rows = max(rows - headed, 0)
        if rows:
            yield RawLog(filtered={rule: rows}, rows_read=rows, quarantine=empty(QUARANTINE_SCHEMA))
