"""MovieLens in its three layouts, told apart by the files in the folder (each plain or ``.gz``).

- RecBole atomic files: ``*.inter``, ``*.item``, ``*.user``, tab-separated with a ``name:type`` header;
- GroupLens CSV (``latest-small`` and later): ``ratings.csv``, ``movies.csv``;
- GroupLens classic (``ml-100k``): ``u.data``, ``u.item`` (Latin-1, 19 genre flags), ``u.user``.

Source: Harper and Konstan, "The MovieLens datasets: history and context", TiiS 5(4), 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import polars as pl

from genrec.data.readers.common import (
    LINE,
    RAW,
    SeenKeys,
    blank,
    check_options,
    did_you_mean,
    find_one,
    join_quarantine,
    line_batches,
    set_aside,
    split_fields,
)
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.errors import UserError

OPTIONS = ("min_rating",)
GENRES = [
    "unknown",
    "Action",
    "Adventure",
    "Animation",
    "Children's",
    "Comedy",
    "Crime",
    "Documentary",
    "Drama",
    "Fantasy",
    "Film-Noir",
    "Horror",
    "Musical",
    "Mystery",
    "Romance",
    "Sci-Fi",
    "Thriller",
    "War",
    "Western",
]
CLASSIC_ITEM_COLUMNS = ["item_id", "title", "release_date", "video_release_date", "url", *GENRES]
CLASSIC_USER_COLUMNS = ["user_id", "age", "gender", "occupation", "zip_code"]
EVENT_COLUMNS = ["user_id", "item_id", "rating", "timestamp"]
YEAR_AT_END = r"\s*\((\d{4})(?:-\d{0,4})?\)\s*$"


def read_movielens(path: Path, options: dict) -> Iterator[RawLog]:
    """Read a MovieLens folder of any layout, in parts: the ratings, then the films, then the people.

    Option ``min_rating`` (default 0) keeps events with at least this rating; the others are counted as filtered. Events are in file
    order with a further column ``rating``; items have a further column ``release_year``. A rating has ``action`` "rating" and
    ``surface`` "feed".
    """
    check_options("movielens", options, OPTIONS)
    min_rating = options.get("min_rating", 0)
    if isinstance(min_rating, bool) or not isinstance(min_rating, (int, float)):
        raise UserError(f"reader 'movielens': option min_rating must be a number, not {min_rating!r}")
    if inter := find_one(path, ["*.inter"]):
        yield from _read_atomic(path, inter, min_rating)
    elif ratings := find_one(path, ["ratings.csv"]):
        yield from _read_csv(path, ratings, min_rating)
    elif data := find_one(path, ["u.data"]):
        yield from _read_classic(path, data, min_rating)
    else:
        raise UserError(
            f"{path}: no *.inter, ratings.csv or u.data (plain or .gz); reader 'movielens' needs a folder with one of them"
        )


def _delimited(
    file: Path, separator: str, columns: list[str] | None = None, quoted: bool = False, encoding: str = "utf-8"
) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame], int]]:
    """A text table in batches ``(table, quarantine so far, data rows)``; without ``columns`` the first line holds their names."""
    early: list[pl.DataFrame] = []  # undecodable lines before the header
    for lines, wrong in line_batches(file, encoding, quoted):
        if columns is None:
            if lines.is_empty():
                early.append(wrong)
                continue
            columns = [name.strip() for name in lines[RAW][0].split(separator)]
            lines = lines.slice(1)
        table, ragged = split_fields(lines, columns, separator, file.name, quoted)
        aside, early = [*early, wrong, ragged], []
        yield table, aside, table.height + sum(part.height for part in aside)
    if columns is None:
        raise UserError(f"{file}: empty; expected a header line and data")


def _rename(table: pl.DataFrame, names: dict[str, str], file: Path) -> pl.DataFrame:
    """Give columns the contract's names; ``UserError`` for one that the file does not have."""
    have = [name for name in table.columns if name != LINE]
    for theirs in names.values():
        if theirs not in have:
            raise UserError(f"{file}: no column {theirs!r}; {did_you_mean(theirs, have)}")
    return table.rename({theirs: ours for ours, theirs in names.items() if ours != theirs})


def _events(table: pl.DataFrame, min_rating: float, file: Path, aside: list[pl.DataFrame], rows: int) -> RawLog:
    """One part of ratings; ``table`` has the text columns ``EVENT_COLUMNS`` and the line."""
    table = set_aside(table, blank("user_id"), file.name, "no user id", aside)
    table = set_aside(table, blank("item_id"), file.name, "no item id", aside)
    # RecBole types times as float, so "881250949.0" is a time too; 64-bit floats hold whole seconds exactly.
    seconds = pl.col("timestamp").cast(pl.Float64, strict=False)
    seconds = pl.when(seconds.is_finite()).then(seconds).cast(pl.Int64, strict=False)
    table = table.with_columns(seconds.alias("timestamp"), pl.col("rating").cast(pl.Float64, strict=False))
    table = set_aside(table, pl.col("timestamp").is_null(), file.name, "the time is not a number", aside)
    unrated = pl.col("rating").is_null() | ~pl.col("rating").is_finite()
    table = set_aside(table, unrated, file.name, "the rating is not a number", aside)
    kept = table.filter(pl.col("rating") >= min_rating) if min_rating > 0 else table
    events = kept.select(*EVENT_COLUMNS, pl.lit("rating").alias("action"), pl.lit("feed").alias("surface"))
    filtered = {"below min_rating": table.height - kept.height} if kept.height < table.height else {}
    return RawLog(
        conform(events, EVENT_SCHEMA, str(file)), quarantine=join_quarantine(aside), rows_read=rows, filtered=filtered
    )


def _keyed(
    file: Path,
    batches: Iterator[tuple[pl.DataFrame, list[pl.DataFrame], int]],
    key: str,
    shape: Callable[[pl.DataFrame], pl.DataFrame],
) -> Iterator[RawLog]:
    """Parts of items or users: ``shape`` turns the text table with ``key`` into the contract's columns."""
    seen = SeenKeys(key)
    for table, aside, rows in batches:
        table = set_aside(table, blank(key), file.name, f"no {key}", aside)
        table = shape(seen.first_rows(table, file.name, aside))
        if key == "item_id":
            yield RawLog(
                items=conform(table, ITEM_SCHEMA, str(file)), quarantine=join_quarantine(aside), rows_read=rows
            )
        else:
            yield RawLog(
                users=conform(table, USER_SCHEMA, str(file)), quarantine=join_quarantine(aside), rows_read=rows
            )


def _filled(column: str) -> pl.Expr:
    """The column with empty text as null."""
    return pl.when(~blank(column)).then(pl.col(column))


def _read_atomic(folder: Path, inter: Path, min_rating: float) -> Iterator[RawLog]:
    for raw, aside, rows in _delimited(inter, "\t"):
        table = _rename(_untyped(raw), {name: name for name in EVENT_COLUMNS}, inter)
        yield _events(table.select(LINE, *EVENT_COLUMNS), min_rating, inter, aside, rows)
    for pattern, key, shape in (("*.item", "item_id", _atomic_items), ("*.user", "user_id", _typed_users)):
        if file := find_one(folder, [pattern]):
            named = (
                (_rename(_untyped(raw), {key: key}, file), aside, rows) for raw, aside, rows in _delimited(file, "\t")
            )
            yield from _keyed(file, named, key, shape)


def _untyped(table: pl.DataFrame) -> pl.DataFrame:
    """Drop the type from the ``name:type`` headers."""
    return table.rename({name: name.split(":")[0] for name in table.columns})


def _atomic_items(table: pl.DataFrame) -> pl.DataFrame:
    title = next((name for name in ("movie_title", "title") if name in table.columns), None)
    genres = next((name for name in ("class", "genre", "genres") if name in table.columns), None)
    columns = [pl.col("item_id")]
    if title:
        columns.append(_filled(title).alias("title"))
    if genres:
        columns.append(pl.when(~blank(genres)).then(pl.col(genres).str.split(" ")).alias("category"))
    if "release_year" in table.columns:
        columns.append(pl.col("release_year").cast(pl.Int64, strict=False))
    return table.select(columns)


def _typed_users(table: pl.DataFrame) -> pl.DataFrame:
    filled = table.select(_filled(name).alias(name) for name in table.columns if name != LINE)
    return filled.with_columns(pl.col("age").cast(pl.Int64, strict=False)) if "age" in filled.columns else filled


def _read_csv(folder: Path, ratings: Path, min_rating: float) -> Iterator[RawLog]:
    for table, aside, rows in _delimited(ratings, ",", quoted=True):
        table = _rename(table, dict(zip(EVENT_COLUMNS, ("userId", "movieId", "rating", "timestamp"))), ratings)
        yield _events(table.select(LINE, *EVENT_COLUMNS), min_rating, ratings, aside, rows)
    if file := find_one(folder, ["movies.csv"]):
        names = {"item_id": "movieId", "title": "title", "genres": "genres"}
        named = (
            (_rename(table, names, file), aside, rows) for table, aside, rows in _delimited(file, ",", quoted=True)
        )
        yield from _keyed(file, named, "item_id", _csv_items)


def _csv_items(table: pl.DataFrame) -> pl.DataFrame:
    known = ~blank("genres") & (pl.col("genres") != "(no genres listed)")
    return table.select(
        "item_id",
        _filled("title").str.replace(YEAR_AT_END, "").alias("title"),
        pl.when(known).then(pl.col("genres").str.split("|")).alias("category"),
        pl.col("title").str.extract(YEAR_AT_END).cast(pl.Int64).alias("release_year"),
    )


def _read_classic(folder: Path, data: Path, min_rating: float) -> Iterator[RawLog]:
    for table, aside, rows in _delimited(data, "\t", EVENT_COLUMNS):
        yield _events(table, min_rating, data, aside, rows)
    if file := find_one(folder, ["u.item"]):
        yield from _keyed(
            file, _delimited(file, "|", CLASSIC_ITEM_COLUMNS, encoding="latin-1"), "item_id", _classic_items
        )
    if file := find_one(folder, ["u.user"]):
        yield from _keyed(file, _delimited(file, "|", CLASSIC_USER_COLUMNS), "user_id", _typed_users)


def _classic_items(table: pl.DataFrame) -> pl.DataFrame:
    genres = pl.concat_list(pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES).list.drop_nulls()
    return table.select(
        "item_id",
        _filled("title").str.replace(YEAR_AT_END, "").alias("title"),
        pl.when(genres.list.len() > 0).then(genres).alias("category"),
        # The date is the release ("01-Jan-1995"); the title names the year also where the date is missing.
        pl.coalesce(pl.col("title").str.extract(YEAR_AT_END), pl.col("release_date").str.extract(r"(\d{4})$"))
        .cast(pl.Int64)
        .alias("release_year"),
    )
