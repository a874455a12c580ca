"""MovieLens in its three layouts, told apart by the files in the folder (each plain or ``.gz``).

- RecBole atomic files: ``*.inter``, ``*.item``, ``*.user``, tab-separated with a ``name:type`` header;
- GroupLens CSV (``latest-small`` and later): ``ratings.csv``, ``movies.csv``;
- GroupLens classic (``ml-100k``): ``u.data``, ``u.item`` (Latin-1, 19 genre flags), ``u.user``.

Source: Harper and Konstan, "The MovieLens datasets: history and context", TiiS 5(4), 2015.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import polars as pl

from genrec.data.readers.common import (
    LINE,
    RAW,
    blank,
    check_options,
    did_you_mean,
    find_one,
    join_quarantine,
    read_lines,
    set_aside,
    set_repeats_aside,
    split_fields,
)
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.errors import UserError

OPTIONS = ("min_rating",)
GENRES = ["unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary", "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi", "Thriller", "War", "Western"]
CLASSIC_ITEM_COLUMNS = ["item_id", "title", "release_date", "video_release_date", "url", *GENRES]
CLASSIC_USER_COLUMNS = ["user_id", "age", "gender", "occupation", "zip_code"]
EVENT_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
YEAR_AT_END = r"\s*\((\d{4})(?:-\d{0,4})?\)\s*$"


@dataclass
class _Found:
    """What has been read so far; text tables in the contract's names, with the line column."""

    events: pl.DataFrame
    items: pl.DataFrame | None = None
    users: pl.DataFrame | None = None
    aside: list[pl.DataFrame] = field(default_factory=list)
    rows: int = 0


def read_movielens(path: Path, options: dict) -> RawLog:
    """Read a MovieLens folder of any layout.

    Option ``min_rating`` (default 0) keeps events with at least this rating. Events are in file order with a further column
    ``rating``; items have a further column ``release_year``. A rating has ``action`` "rating" and ``surface`` "feed".
    """
    check_options("movielens", options, OPTIONS)
    min_rating = options.get("min_rating", 0)
    if isinstance(min_rating, bool) or not isinstance(min_rating, (int, float)):
        raise UserError(f"reader 'movielens': option min_rating must be a number, not {min_rating!r}")
    if inter := find_one(path, ["*.inter"]):
        found = _read_atomic(path, inter)
    elif ratings := find_one(path, ["ratings.csv"]):
        found = _read_csv(path, ratings)
    elif data := find_one(path, ["u.data"]):
        found = _read_classic(path, data)
    else:
        raise UserError(f"{path}: no *.inter, ratings.csv or u.data (plain or .gz); reader 'movielens' needs a folder with one of them")
    events = found.events.filter(pl.col("rating") >= min_rating) if min_rating > 0 else found.events
    events = events.drop(LINE).with_columns(pl.lit("rating").alias("action"), pl.lit("feed").alias("surface"))
    items = found.items.drop(LINE) if found.items is not None else pl.DataFrame(schema=ITEM_SCHEMA)
    users = conform(found.users.drop(LINE), USER_SCHEMA, str(path)) if found.users is not None else None
    return RawLog(
        events=conform(events, EVENT_SCHEMA, str(path)),
        items=conform(items, ITEM_SCHEMA, str(path)),
        users=users,
        quarantine=join_quarantine(found.aside),
        rows_read=found.rows,
    )


def _read_delimited(
    file: Path, separator: str, aside: list[pl.DataFrame], columns: list[str] | None = None, quoted: bool = False, encoding: str = "utf-8"
) -> tuple[pl.DataFrame, int]:
    """A text table and its number of data rows; without ``columns`` the first line holds their names."""
    lines, wrong = read_lines(file, encoding)
    if columns is None:
        if lines.is_empty():
            raise UserError(f"{file}: empty; expected a header line and data")
        columns = [name.strip() for name in lines[RAW][0].split(separator)]
        lines = lines.slice(1)
    table, ragged = split_fields(lines, columns, separator, file.name, quoted)
    aside += [wrong, ragged]
    return table, table.height + ragged.height + wrong.height


def _rename(table: pl.DataFrame, names: dict[str, str], file: Path) -> pl.DataFrame:
    """Give columns the contract's names; ``UserError`` for one that the file does not have."""
    have = [name for name in table.columns if name != LINE]
    for theirs in names.values():
        if theirs not in have:
            raise UserError(f"{file}: no column {theirs!r}; {did_you_mean(theirs, have)}")
    return table.rename({theirs: ours for ours, theirs in names.items() if ours != theirs})


def _clean_events(table: pl.DataFrame, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    table = set_aside(table, blank("user_id"), source, "no user id", aside)
    table = set_aside(table, blank("item_id"), source, "no item id", aside)
    # RecBole types times as float, so "881250949.0" is a time too; 64-bit floats hold whole seconds exactly.
    seconds = pl.col("timestamp").cast(pl.Float64, strict=False)
    seconds = pl.when(seconds.is_finite()).then(seconds).cast(pl.Int64, strict=False)
    table = table.with_columns(seconds.alias("timestamp"), pl.col("rating").cast(pl.Float64, strict=False))
    table = set_aside(table, pl.col("timestamp").is_null(), source, "the time is not a number", aside)
    unrated = pl.col("rating").is_null() | ~pl.col("rating").is_finite()
    return set_aside(table, unrated, source, "the rating is not a number", aside)


def _clean_keys(table: pl.DataFrame, key: str, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    table = set_aside(table, blank(key), source, f"no {key}", aside)
    return set_repeats_aside(table, key, source, aside)


def _filled(column: str) -> pl.Expr:
    """The column with empty text as null."""
    return pl.when(~blank(column)).then(pl.col(column))


def _read_atomic(folder: Path, inter: Path) -> _Found:
    aside: list[pl.DataFrame] = []
    raw, rows = _read_delimited(inter, "\t", aside)
    table = _rename(_untyped(raw), {name: name for name in EVENT_COLUMNS}, inter)
    found = _Found(_clean_events(table.select(LINE, *EVENT_COLUMNS), inter.name, aside), aside=aside, rows=rows)
    if file := find_one(folder, ["*.item"]):
        raw, rows = _read_delimited(file, "\t", aside)
        table = _rename(_untyped(raw), {"item_id": "item_id"}, file)
        found.items = _atomic_items(_clean_keys(table, "item_id", file.name, aside))
        found.rows += rows
    if file := find_one(folder, ["*.user"]):
        raw, rows = _read_delimited(file, "\t", aside)
        table = _rename(_untyped(raw), {"user_id": "user_id"}, file)
        found.users = _typed_users(_clean_keys(table, "user_id", file.name, aside))
        found.rows += rows
    return found


def _untyped(table: pl.DataFrame) -> pl.DataFrame:
    """Drop the type from the ``name:type`` headers."""
    return table.rename({name: name.split(":")[0] for name in table.columns})


def _atomic_items(table: pl.DataFrame) -> pl.DataFrame:
    title = next((name for name in ("movie_title", "title") if name in table.columns), None)
    genres = next((name for name in ("class", "genre", "genres") if name in table.columns), None)
    columns = [pl.col(LINE), pl.col("item_id")]
    if title:
        columns.append(_filled(title).alias("title"))
    if genres:
        columns.append(pl.when(~blank(genres)).then(pl.col(genres).str.split(" ")).alias("category"))
    if "release_year" in table.columns:
        columns.append(pl.col("release_year").cast(pl.Int64, strict=False))
    return table.select(columns)


def _typed_users(table: pl.DataFrame) -> pl.DataFrame:
    filled = table.select(LINE, *[_filled(name).alias(name) for name in table.columns if name != LINE])
    return filled.with_columns(pl.col("age").cast(pl.Int64, strict=False)) if "age" in filled.columns else filled


def _read_csv(folder: Path, ratings: Path) -> _Found:
    aside: list[pl.DataFrame] = []
    table, rows = _read_delimited(ratings, ",", aside, quoted=True)
    table = _rename(table, dict(zip(EVENT_COLUMNS, ("userId", "movieId", "rating", "timestamp"))), ratings)
    found = _Found(_clean_events(table.select(LINE, *EVENT_COLUMNS), ratings.name, aside), aside=aside, rows=rows)
    if file := find_one(folder, ["movies.csv"]):
        table, rows = _read_delimited(file, ",", aside, quoted=True)
        table = _rename(table, {"item_id": "movieId", "title": "title", "genres": "genres"}, file)
        table = _clean_keys(table, "item_id", file.name, aside)
        known = ~blank("genres") & (pl.col("genres") != "(no genres listed)")
        found.items = table.select(
            LINE,
            "item_id",
            _filled("title").str.replace(YEAR_AT_END, "").alias("title"),
            pl.when(known).then(pl.col("genres").str.split("|")).alias("category"),
            pl.col("title").str.extract(YEAR_AT_END).cast(pl.Int64).alias("release_year"),
        )
        found.rows += rows
    return found


def _read_classic(folder: Path, data: Path) -> _Found:
    aside: list[pl.DataFrame] = []
    table, rows = _read_delimited(data, "\t", aside, columns=EVENT_COLUMNS)
    found = _Found(_clean_events(table, data.name, aside), aside=aside, rows=rows)
    if file := find_one(folder, ["u.item"]):
        table, rows = _read_delimited(file, "|", aside, columns=CLASSIC_ITEM_COLUMNS, encoding="latin-1")
        table = _clean_keys(table, "item_id", file.name, aside)
        flagged = [pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES]
        genres = pl.concat_list(flagged).list.drop_nulls()
        found.items = table.select(
            LINE,
            "item_id",
            _filled("title").str.replace(YEAR_AT_END, "").alias("title"),
            pl.when(genres.list.len() > 0).then(genres).alias("category"),
            # The date is the release ("01-Jan-1995"); the title names the year also where the date is missing.
            pl.coalesce(pl.col("title").str.extract(YEAR_AT_END), pl.col("release_date").str.extract(r"(\d{4})$"))
            .cast(pl.Int64)
            .alias("release_year"),
        )
        found.rows += rows
    if file := find_one(folder, ["u.user"]):
        table, rows = _read_delimited(file, "|", aside, columns=CLASSIC_USER_COLUMNS)
        found.users = _typed_users(_clean_keys(table, "user_id", file.name, aside))
        found.rows += rows
    return found
