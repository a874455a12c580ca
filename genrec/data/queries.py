"""Synthetic queries for logs without searches, made as in the product-search papers. Tables always call them synthetic.

``category`` (the HEM rule): the words of the item's category path without its top level, stop words and repeated
words dropped. ``title``: two or three informative words of the title, drawn by a hash of (user, item), so that an
event always has the same query.
"""

from __future__ import annotations

import zlib

import numpy as np
import polars as pl

from genrec.data.words import SPACED_WORD, SPACELESS, TITLE_WORD

_STOP_WORDS = """
a an and are as at be by for from has in into is it its of on or other others our s t that the this to up was we with
you your new pack set size oz ounce ounces fl ml inch count
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())
_WORD = rf"[{SPACELESS}]+|{SPACED_WORD}"


def string_hash(values: pl.Series) -> np.ndarray:
    """A hash of strings that is the same on every machine and in every version: (n,) uint64."""
    return np.fromiter((zlib.crc32(value.encode()) for value in values), dtype=np.uint64, count=len(values))


def mix(values: np.ndarray) -> np.ndarray:
    """The splitmix64 finaliser: a well-spread uint64 for each uint64."""
    with np.errstate(over="ignore"):
        values = values + np.uint64(0x9E3779B97F4A7C15)
        values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return values ^ (values >> np.uint64(31))


def _top_level(categories: pl.Series) -> str | None:
    """The first category shared by more than half of the items, which says nothing about any of them."""
    first = categories.list.first().drop_nulls()
    if len(first) == 0:
        return None
    counts = first.value_counts(sort=True)
    return counts.row(0)[0] if counts.row(0)[1] * 2 > len(categories) else None


def category_queries(items: pl.DataFrame) -> pl.Series:
    """One query per item from its category path; null where nothing is left: (n_items,) String."""
    top = _top_level(items["category"])
    words = (
        items.select(pl.int_range(pl.len()).alias("item"), pl.col("category"))
        .explode("category")
        .filter(pl.col("category").is_not_null() & pl.col("category").ne_missing(pl.lit(top, dtype=pl.String)))
        .with_columns(pl.col("category").str.to_lowercase().str.extract_all(_WORD).alias("word"))
        .explode("word")
        .filter(pl.col("word").is_not_null() & ~pl.col("word").is_in(list(STOP_WORDS)))
        .unique(["item", "word"], keep="first", maintain_order=True)
        .group_by("item", maintain_order=True)
        .agg(pl.col("word").str.join(" ").alias("query"))
    )
    return _align(words, len(items))


def title_words(items: pl.DataFrame) -> pl.DataFrame:
    """The usable words of each title, in order: ``item``, ``word``, ``position``."""
    return (
        items.select(
            pl.int_range(pl.len()).alias("item"),
            pl.col("title").str.to_lowercase().str.extract_all(TITLE_WORD).alias("word"),
        )
        .explode("word")
        .filter(
            pl.col("word").is_not_null()
            & (pl.col("word").str.len_chars() > 1)
            & ~pl.col("word").is_in(list(STOP_WORDS))
        )
        .filter(~pl.col("word").str.contains(r"^\d+$"))
        .unique(["item", "word"], keep="first", maintain_order=True)
        .with_columns(pl.int_range(pl.len()).over("item").cast(pl.UInt64).alias("position"))
    )


def title_queries(words: pl.DataFrame, event_items: np.ndarray, event_hash: np.ndarray) -> pl.Series:
    """One query per event from two or three title words: (n_events,) String, null for an item without usable words.

    ``words`` as ``title_words`` gives them; ``event_items`` (n_events,) dense item ids; ``event_hash`` (n_events,)
    uint64 of (user, item).
    """
    events = pl.DataFrame(
        {"event": np.arange(len(event_items)), "item": event_items.astype(np.int64), "hash": event_hash}
    )
    drawn = events.join(words, on="item", how="inner", maintain_order="left_right")
    with np.errstate(over="ignore"):
        order = mix(drawn["hash"].to_numpy() + drawn["position"].to_numpy() * np.uint64(0x632BE59BD9B4E019))
    queries = (
        drawn.with_columns(pl.Series("order", order), (2 + (pl.col("hash") // 7) % 2).alias("length"))
        .filter(pl.col("order").rank("ordinal").over("event") <= pl.col("length"))
        .group_by("event", maintain_order=True)
        .agg(pl.col("word").sort_by("position").str.join(" ").alias("query"))
        .rename({"event": "item"})
    )
    return _align(queries, len(event_items))


def _align(queries: pl.DataFrame, length: int) -> pl.Series:
    every = pl.DataFrame({"item": np.arange(length)})
    return every.join(
        queries.with_columns(pl.col("item").cast(pl.Int64)), on="item", how="left", maintain_order="left"
    )["query"]
