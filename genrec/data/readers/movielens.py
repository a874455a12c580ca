"""MovieLens in its three layouts, recognised by the files in the folder (each plain or ``.gz``).

- RecBole atomic files: ``*.inter``, ``*.item``, ``*.user``, tab-separated with a ``name:type`` header;
- GroupLens CSV (``latest-small`` and later): ``ratings.csv``, ``movies.csv``;
- GroupLens classic (``ml-100k``): ``u.data``, ``u.item`` (Latin-1, 19 genre flags), ``u.user``.

Source: Harper and Konstan, "The MovieLens datasets: history and context", TiiS 5(4), 2015.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    Batch,
    SeenKeys,
    check_options,
    delimited_batches,
    find_one,
    finite,
    number,
)
from genrec.data.schema import EVENT_SCHEMA, ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.errors import UserError

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

    Option ``min_rating`` (default 0) keeps events with at least this rating; the others are counted as filtered.
    Events are in file order with a further column ``rating``; items have a further column ``release_year``. A rating
    has ``action`` "rating" and ``surface`` "feed".
    """
    check_options("movielens", options, ("min_rating",))
    min_rating = number("movielens", options, "min_rating", 0)
    if inter := find_one(path, "*.inter"):
        yield from _read_atomic(path, inter, min_rating)
    elif ratings := find_one(path, "ratings.csv"):
        yield from _read_csv(path, ratings, min_rating)
    elif data := find_one(path, "u.data"):
        yield from _read_classic(path, data, min_rating)
    else:
        raise UserError(
            f"{path}: no *.inter, ratings.csv or u.data (plain or .gz); reader 'movielens' needs a folder with one"
        )


def _events(batch: Batch, names: Sequence[str], min_rating: float, file: Path) -> RawLog:
    """One part of ratings; ``names`` are the file's columns of user, item, rating and time."""
    batch.need(names, file)
    batch.table = batch.table.select(
        LINE, *(pl.col(theirs).alias(ours) for theirs, ours in zip(names, EVENT_COLUMNS, strict=True))
    )
    batch.refuse_blank("user_id")
    batch.refuse_blank("item_id")
    # RecBole types times as float, so "881250949.0" is a time too; 64-bit floats hold whole seconds exactly.
    batch.table = batch.table.with_columns(finite("timestamp").cast(pl.Int64, strict=False), finite("rating"))
    batch.refuse(pl.col("timestamp").is_null(), "the time is not a number")
    batch.refuse(pl.col("rating").is_null(), "the rating is not a number")
    if min_rating > 0:
        batch.leave_out(pl.col("rating") < min_rating, "below min_rating")
    events = batch.table.select(*EVENT_COLUMNS, pl.lit("rating").alias("action"), pl.lit("feed").alias("surface"))
    return batch.part(events=conform(events, EVENT_SCHEMA, str(file)))


def _films(
    batches: Iterable[Batch], file: Path, key: str, to_items: Callable[[pl.DataFrame], pl.DataFrame]
) -> Iterator[RawLog]:
    seen = SeenKeys("item_id")
    for batch in batches:
        batch.need([key], file)
        batch.table = batch.table.rename({key: "item_id"})
        batch.refuse_blank("item_id")
        batch.refuse_repeats(seen)
        yield batch.part(items=conform(to_items(batch.table), ITEM_SCHEMA, str(file)))


def _people(batches: Iterable[Batch], file: Path) -> Iterator[RawLog]:
    seen = SeenKeys("user_id")
    for batch in batches:
        batch.need(["user_id"], file)
        batch.refuse_blank("user_id")
        batch.refuse_repeats(seen)
        users = batch.table.drop(LINE)
        users = users.with_columns(pl.col("age").cast(pl.Int64, strict=False)) if "age" in users.columns else users
        yield batch.part(users=conform(users, USER_SCHEMA, str(file)))


def _read_atomic(folder: Path, inter: Path, min_rating: float) -> Iterator[RawLog]:
    for batch in _untyped(inter):
        yield _events(batch, EVENT_COLUMNS, min_rating, inter)
    if file := find_one(folder, "*.item"):
        yield from _films(_untyped(file), file, "item_id", _atomic_items)
    if file := find_one(folder, "*.user"):
        yield from _people(_untyped(file), file)


def _untyped(file: Path) -> Iterator[Batch]:
    """The rows of an atomic file, without the types in its ``name:type`` header."""
    for batch in delimited_batches(file, "\t"):
        batch.table = batch.table.rename({name: name.split(":")[0] for name in batch.table.columns})
        yield batch


def _atomic_items(table: pl.DataFrame) -> pl.DataFrame:
    title = next((name for name in ("movie_title", "title") if name in table.columns), None)
    genres = next((name for name in ("class", "genre", "genres") if name in table.columns), None)
    columns = [pl.col("item_id")]
    if title:
        columns.append(pl.col(title).alias("title"))
    if genres:
        columns.append(pl.col(genres).str.split(" ").alias("category"))
    if "release_year" in table.columns:
        columns.append(pl.col("release_year").cast(pl.Int64, strict=False))
    return table.select(columns)


def _read_csv(folder: Path, ratings: Path, min_rating: float) -> Iterator[RawLog]:
    for batch in delimited_batches(ratings, ","):
        yield _events(batch, ("userId", "movieId", "rating", "timestamp"), min_rating, ratings)
    if file := find_one(folder, "movies.csv"):
        films = delimited_batches(file, ",", required=("movieId", "title", "genres"))
        yield from _films(films, file, "movieId", _csv_items)


def _csv_items(table: pl.DataFrame) -> pl.DataFrame:
    return table.select(
        "item_id",
        pl.col("title").str.replace(YEAR_AT_END, "").alias("title"),
        pl.when(pl.col("genres") != "(no genres listed)").then(pl.col("genres").str.split("|")).alias("category"),
        pl.col("title").str.extract(YEAR_AT_END).cast(pl.Int64).alias("release_year"),
    )


def _read_classic(folder: Path, data: Path, min_rating: float) -> Iterator[RawLog]:
    for batch in delimited_batches(data, "\t", columns=EVENT_COLUMNS):
        yield _events(batch, EVENT_COLUMNS, min_rating, data)
    if file := find_one(folder, "u.item"):
        films = delimited_batches(file, "|", quoted=False, columns=CLASSIC_ITEM_COLUMNS, encoding="latin-1")
        yield from _films(films, file, "item_id", _classic_items)
    if file := find_one(folder, "u.user"):
        people = delimited_batches(file, "|", quoted=False, columns=CLASSIC_USER_COLUMNS)
        yield from _people(people, file)


def _classic_items(table: pl.DataFrame) -> pl.DataFrame:
    genres = pl.concat_list(pl.when(pl.col(genre) == "1").then(pl.lit(genre)) for genre in GENRES).list.drop_nulls()
    return table.select(
        "item_id",
        pl.col("title").str.replace(YEAR_AT_END, "").alias("title"),
        pl.when(genres.list.len() > 0).then(genres).alias("category"),
        # The date is the release ("01-Jan-1995"); the title names the year also where the date is missing.
        pl.coalesce(pl.col("title").str.extract(YEAR_AT_END), pl.col("release_date").str.extract(r"(\d{4})$"))
        .cast(pl.Int64)
        .alias("release_year"),
    )
