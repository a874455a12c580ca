"""Queries of events: the logged ones where the log has any, else synthetic ones, in chunks of the sorted log."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import polars as pl

from genrec.config.schema import Config
from genrec.data import everyday_queries as everyday
from genrec.data import queries as rules
from genrec.data.dataset import TRAIN
from genrec.data.ids import IdMap, first_order
from genrec.data.prepare.assemble import Arrays
from genrec.data.prepare.blocks import ArrayFile
from genrec.data.prepare.splits import UserChunk, user_chunks

HELDOUT_SCHEMA = {"event": pl.Int64, "kind": pl.String, "query": pl.Int64}


def attach_queries(
    arrays: Arrays, split: ArrayFile, users: pl.DataFrame, items: pl.DataFrame, names: pl.Series, config: Config
) -> tuple[pl.DataFrame, pl.DataFrame, bool]:
    """Fill ``arrays.queries`` (-1 for none) with logged queries, or with synthetic ones for a log that has none.

    Returns the query table, the held-out events' queries by kind, and whether they are synthetic. ``names``: the logged
    queries behind the codes in ``arrays.queries``.
    """
    logged = any((arrays.queries.read(chunk.start, chunk.stop) >= 0).any() for chunk in user_chunks(arrays.offsets))
    if logged or not config.queries.synthetic:
        return *_logged(arrays, split, names), False
    return *_synthetic(arrays, split, users, items, config), True


def _logged(arrays: Arrays, split: ArrayFile, names: pl.Series) -> tuple[pl.DataFrame, pl.DataFrame]:
    order, known = np.full(len(names), -1, np.int32), 0
    heldout = [pl.DataFrame(schema=HELDOUT_SCHEMA)]
    for chunk in user_chunks(arrays.offsets):
        codes = arrays.queries.read(chunk.start, chunk.stop)
        if not (codes >= 0).any():
            continue
        known = first_order(codes, order)
        dense = np.where(codes < 0, np.int32(-1), order[codes])
        arrays.queries.write(chunk.start, dense)
        rows = np.flatnonzero((split.read(chunk.start, chunk.stop) != TRAIN) & (dense >= 0))
        heldout.append(_held(chunk, rows, "logged", dense[rows]))
    codes = np.argsort(order, kind="stable")[len(order) - known :]
    return names.gather(codes).alias("query").to_frame(), pl.concat(heldout)


def _held(chunk: UserChunk, rows: np.ndarray, kind: str, queries: np.ndarray) -> pl.DataFrame:
    return pl.DataFrame(
        {"event": chunk.start + rows, "kind": [kind] * len(rows), "query": queries}, schema_overrides=HELDOUT_SCHEMA
    )


def _synthetic(
    arrays: Arrays, split: ArrayFile, users: pl.DataFrame, items: pl.DataFrame, config: Config
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Queries from the items' words.

    Ids follow the first appearance among the events' queries, then among the held-out ones, kind by kind.
    """
    ids = IdMap()
    texts: list[pl.Series] = []
    kinds = [kind for kind in ("category", "title") if kind in config.queries.synthetic]
    maker = everyday.EverydayQueries(items) if "everyday" in config.queries.synthetic else None
    held: dict[str, list[pl.DataFrame]] = {kind: [] for kind in (*kinds, *(everyday.EVERYDAY if maker else ()))}
    for chunk, made, chosen, draws in _made(arrays, users, items, config, maker):
        codes, fresh = ids.encode(chosen)
        texts.append(fresh)
        arrays.queries.write(chunk.start, codes)
        rows = np.flatnonzero(split.read(chunk.start, chunk.stop) != TRAIN)
        queries_of = {kind: (rows, series[rows]) for kind, series in made.items()}
        if maker is not None:
            turn = everyday.kind_of(draws[rows])
            event_items = arrays.items.read(chunk.start, chunk.stop).astype(np.int64)
            for number, kind in enumerate(everyday.EVERYDAY):
                own = rows[turn == number]
                queries_of[kind] = own, maker.queries(kind, event_items[own], draws[own])
        for kind, (own, series) in queries_of.items():
            frame = pl.DataFrame({"event": chunk.start + own, "text": series}, schema_overrides={"text": pl.String})
            held[kind].append(frame.filter(pl.col("text").is_not_null()))
    heldout = [pl.DataFrame(schema=HELDOUT_SCHEMA)]
    for kind, frames in held.items():
        for frame in frames:
            codes, fresh = ids.encode(frame["text"])
            texts.append(fresh)
            heldout.append(frame.select("event", pl.lit(kind).alias("kind"), pl.Series("query", codes, dtype=pl.Int64)))
    table = pl.concat([pl.Series("query", [], pl.String), *(series.alias("query") for series in texts)])
    return table.to_frame(), pl.concat(heldout)


def _made(
    arrays: Arrays, users: pl.DataFrame, items: pl.DataFrame, config: Config, maker: everyday.EverydayQueries | None
) -> Iterator[tuple[UserChunk, dict[str, pl.Series], pl.Series, np.ndarray]]:
    """For each chunk: the category and title query of every event, the query that it gets, and its random number.

    Most events get none (null).
    """
    kinds = config.queries.synthetic
    user_hash, item_hash = rules.string_hash(users["user_id"]), rules.string_hash(items["item_id"])
    by_item = rules.category_queries(items) if "category" in kinds else None
    words = rules.title_words(items) if "title" in kinds else None
    for chunk in user_chunks(arrays.offsets):
        event_items = arrays.items.read(chunk.start, chunk.stop).astype(np.int64)
        with np.errstate(over="ignore"):
            event_hash = rules.mix(
                user_hash[chunk.first + chunk.owner] * np.uint64(0x9E3779B1) + item_hash[event_items]
            )
            draw, turn = rules.mix(event_hash + np.uint64(1)), rules.mix(event_hash + np.uint64(2))
        made = {}
        if by_item is not None:
            made["category"] = by_item[event_items]
        if words is not None:
            made["title"] = rules.title_queries(words, event_items, event_hash)
        kind = pl.Series((turn % np.uint64(len(kinds))).astype(np.int64))
        gets_one = pl.Series((draw % np.uint64(10_000)) < config.queries.share * 10_000)
        drawn = dict(made)
        if maker is not None:
            mine = np.flatnonzero((kind == kinds.index("everyday")) & gets_one)
            drawn["everyday"] = _everyday(maker, event_items, event_hash, mine)
        frame = pl.DataFrame({name: series.alias(name) for name, series in drawn.items()}).with_columns(
            kind=kind, gets_one=gets_one
        )
        pick = pl.coalesce([pl.when(pl.col("kind") == index).then(pl.col(name)) for index, name in enumerate(kinds)])
        yield chunk, made, frame.select(pl.when("gets_one").then(pick).alias("query"))["query"], event_hash


def _everyday(maker: everyday.EverydayQueries, items: np.ndarray, draws: np.ndarray, rows: np.ndarray) -> pl.Series:
    """Queries (n_events,) of the trained kinds for the events ``rows``, null for the others."""
    turn = rules.mix(draws[rows] + np.uint64(5)) % np.uint64(len(everyday.TRAINED))
    texts = pl.repeat(None, len(items), dtype=pl.String, eager=True)
    for number, name in enumerate(everyday.TRAINED):
        own = rows[turn == number]
        if len(own):
            texts = texts.scatter(own, maker.queries(name, items[own], draws[own]))
    return texts
