"""trivago 2019 (RecSys Challenge): sessions of hotel search with destinations, filters, looks at hotels and click-outs.

Files, known by their names (plain, ``.gz`` or ``.zst``), comma- or tab-separated:

- sessions, ``train*``, ``test*`` or ``trivago_*`` (``.csv`` or ``.tsv``): ``user_id``, ``session_id``, ``timestamp``
  (seconds), ``step``, ``action_type`` and ``reference`` are required; ``current_filters``, ``impressions`` and
  ``prices`` are lists with "|" between; ``platform``, ``city``, ``device`` and any further column are kept;
- ``item_metadata*.csv`` -> items: ``item_id``, ``properties`` (a list with "|" between) as ``text``. Hotels have no
  names.

What becomes of a session row, by its ``action_type``:

- ``clickout item`` -> an event "clickout", and one row of ``impressions`` for each hotel of its list:
  ``position`` (from 0), ``price``, ``clickout`` (true for the one clicked). A click-out without a reference (the
  challenge's test rows) has nothing to learn from and is counted as filtered;
- ``interaction item image | info | rating | deals`` and ``search for item`` (the hotel itself was looked for) -> an
  event "interaction";
- ``search for destination``, ``search for poi``, ``filter selection`` -> no event, but the ``query`` of the later
  actions; ``change of sort order`` -> nothing. All four are counted as filtered.

The column ``action_type`` keeps the log's own word. The chain is impression < interaction < clickout.

The query of an action: the reference of the last search before it in its session (for a point of interest with the
city of that row behind it), then " | " and the filters that were on at the last search or filter selection before it.
Before means a smaller time or the same second and a smaller step, so no action ever carries a later search. A
destination "unknown" forgets the search. A session is a run of rows of one user and session id, so one that the file
interrupts starts anew, without its earlier query.

``request_id`` is session, step and time: a few session ids of the log run twice through the same steps. ``surface``
is "search".

A hotel's pictures are one row each: on the 100,003-row sample 53,592 of 87,612 events repeat item, action and second
of the one before (99.6 % of them "interaction item image") and differ in ``step`` alone. They are one look at one
hotel, so ``step`` is no part of the rule for duplicate events and ``data.duplicates`` drops them; ``keep`` keeps
them.

Rows read = events + items + quarantine + filtered; impressions are further rows of their click-outs.

Options: ``min_action`` (interaction or clickout, default interaction: rows below are filtered), ``filters`` (default
true: whether the filters are part of the query).

Source: Knees et al., "RecSys Challenge 2019: session-based hotel recommendations", RecSys 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    Batch,
    LogSource,
    SeenKeys,
    blank,
    check_options,
    choice,
    delimited_batches,
    files_by_kind,
    finite,
    seconds,
    switch,
    whole,
)
from genrec.data.schema import EVENT_SCHEMA, IMPRESSION_SCHEMA, ITEM_SCHEMA, RawLog, conform

CHAIN = ("impression", "interaction", "clickout")
FILES = {"items": r"item_metadata.*\.csv", "sessions": r"(train|test|trivago).*\.(csv|tsv)"}
REQUIRED = ("user_id", "session_id", "timestamp", "step", "action_type", "reference")
OPTIONAL = ("city", "current_filters", "impressions", "prices")
CLICKOUT = "clickout item"
LOOKS = (
    "interaction item image",
    "interaction item info",
    "interaction item rating",
    "interaction item deals",
    "search for item",
)
SEARCHES = ("search for destination", "search for poi")
SETS_FILTERS = (*SEARCHES, "filter selection")
NO_EVENT = (*SETS_FILTERS, "change of sort order")


def trivago_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every file of sessions by itself, then the hotels.

    Raises ``UserError`` for a wrong option, no file of the layout, or a missing column.
    """
    check_options("trivago", options, ("min_action", "filters"))
    min_action = choice("trivago", options, "min_action", CHAIN[1:], CHAIN[1])
    with_filters = switch("trivago", options, "filters", True)
    files = files_by_kind(path, FILES, "trivago")
    sources = [LogSource([file], partial(_sessions, file, min_action, with_filters)) for file in files["sessions"]]
    hotels = files["items"]
    return [*sources, LogSource(hotels, partial(_items, hotels), events=False)] if hotels else sources


def _items(files: list[Path]) -> Iterator[RawLog]:
    seen = SeenKeys("item_id")
    reserved = [name for name in ITEM_SCHEMA if name != "item_id"]
    for file in files:
        for batch in delimited_batches(file, required=["item_id", "properties"], reserved=reserved):
            batch.clean_ids("item_id")
            batch.refuse_repeats(seen)
            text = pl.col("properties").str.replace_all("|", ", ", literal=True).alias("text")
            items = batch.table.with_columns(text).drop(LINE, "properties")
            yield batch.part(items=conform(items, ITEM_SCHEMA, str(file)))


def _sessions(file: Path, min_action: str, with_filters: bool) -> Iterator[RawLog]:
    for batch in _whole_sessions(file):
        yield _part(batch, file, min_action, with_filters)


def _whole_sessions(file: Path) -> Iterator[Batch]:
    """Clean rows in batches that never cut a session."""
    held: pl.DataFrame | None = None
    made = (*EVENT_SCHEMA, *IMPRESSION_SCHEMA, "price", *CHAIN)
    reserved = [name for name in made if name not in (*REQUIRED, *OPTIONAL)]
    for batch in delimited_batches(file, required=REQUIRED, reserved=reserved):
        _clean(batch)
        table = batch.table if held is None else pl.concat([held, batch.table])
        # The last session may continue in the next batch: its rows wait for it.
        run = pl.col("run").rle_id()
        batch.table = table.filter(run < run.max())
        held = table.slice(batch.table.height)
        batch.rows = batch.table.height + sum(part.height for part in batch.rejected)
        if batch.rows:
            yield batch
    if held is not None and held.height:
        yield Batch(held, held.height, file.name)


def _clean(batch: Batch) -> None:
    batch.clean_ids("user_id", "session_id")
    batch.table = batch.table.with_columns(seconds("timestamp").alias("timestamp"), whole("step").alias("step"))
    batch.refuse(pl.col("timestamp").is_null(), "timestamp is no time in seconds (2000 to 2200)")
    batch.refuse(pl.col("step").is_null(), "step is not a whole number")
    kind, reference = pl.col("action_type"), pl.col("reference")
    batch.refuse(~kind.is_in([CLICKOUT, *LOOKS, *NO_EVENT]).fill_null(False), "unknown action_type")
    no_item = ~reference.str.contains(r"^\s*\d+\s*$").fill_null(False)
    needs_item = kind.is_in(LOOKS) | ((kind == CLICKOUT) & reference.is_not_null())
    batch.refuse(needs_item & no_item, "the reference is no item")
    missing = [pl.lit(None, dtype=pl.String).alias(name) for name in OPTIONAL if name not in batch.table.columns]
    batch.table = batch.table.with_columns(missing).with_columns(
        pl.col("impressions").str.split("|").list.eval(pl.element().str.strip_chars()), pl.col("prices").str.split("|")
    )
    with_list = (kind == CLICKOUT) & pl.col("impressions").is_not_null()
    batch.refuse(with_list & pl.col("impressions").list.contains(""), "an empty position in impressions")
    uneven = pl.col("prices").is_not_null() & (pl.col("prices").list.len() != pl.col("impressions").list.len())
    batch.refuse(with_list & uneven, "impressions and prices differ in number")
    batch.table = batch.table.with_columns(pl.struct("user_id", "session_id").hash().alias("run"))


def _part(batch: Batch, file: Path, min_action: str, with_filters: bool) -> RawLog:
    batch.table = batch.table.with_columns(_queries(batch.table, with_filters))
    kind = pl.col("action_type")
    for name in NO_EVENT:
        batch.leave_out(kind == name, f"{name} (no event)")
    batch.leave_out((kind == CLICKOUT) & pl.col("reference").is_null(), "clickout item without a reference")
    batch.table = batch.table.with_columns(
        pl.col("reference").str.strip_chars().alias("item_id"),
        pl.when(kind == CLICKOUT).then(pl.lit("clickout")).otherwise(pl.lit("interaction")).alias("action"),
        pl.lit("search").alias("surface"),
        pl.concat_str("session_id", "step", "timestamp", separator="/").alias("request_id"),
    )
    clicked = pl.col("action") == "clickout"
    if min_action == "clickout":
        batch.leave_out(~clicked, "interaction below option min_action")
    events = batch.table.drop(LINE, "run", "reference", "current_filters", "impressions", "prices")
    return batch.part(
        events=conform(events, EVENT_SCHEMA, str(file)),
        impressions=_impressions(batch.table.filter(clicked), str(file)),
        chain=CHAIN,
    )


def _queries(table: pl.DataFrame, with_filters: bool) -> pl.Series:
    """The query of each row: what was searched and filtered before it in its session. (n_rows,) String."""
    kind, known = pl.col("action_type"), ~blank("reference") & (pl.col("reference") != "unknown")
    poi = pl.concat_str("reference", "city", separator=", ", ignore_nulls=True)
    destination = pl.when(kind == "search for poi").then(poi).otherwise(pl.col("reference"))
    destination = pl.when(known).then(destination).otherwise(pl.lit(""))
    filters = pl.col("current_filters").fill_null("").str.replace_all("|", ", ", literal=True)
    ordered = table.with_row_index("row").with_columns(pl.col("run").rle_id()).sort("run", "timestamp", "step", "row")
    ordered = ordered.with_columns(
        pl.when(kind.is_in(SEARCHES)).then(destination).forward_fill().over("run").alias("destination"),
        pl.when(kind.is_in(SETS_FILTERS)).then(filters).forward_fill().over("run").alias("filters"),
    ).with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in ("destination", "filters"))
    parts = ["destination", "filters"] if with_filters else ["destination"]
    query = pl.concat_str(parts, separator=" | ", ignore_nulls=True)
    return ordered.with_columns(pl.when(query != "").then(query).alias("query")).sort("row")["query"]


def _impressions(clicks: pl.DataFrame, source: str) -> pl.DataFrame:
    """One row for each hotel of a click-out's list."""
    rows = clicks.filter(pl.col("impressions").is_not_null()).select(
        "request_id", "user_id", "timestamp", "query", "surface", pl.col("item_id").alias("clicked"), "impressions",
        pl.coalesce("prices", pl.col("impressions").list.eval(pl.when(False).then(pl.element()))).alias("price"),
        pl.int_ranges(0, pl.col("impressions").list.len()).alias("position"),
    )  # fmt: skip
    rows = rows.explode("impressions", "price", "position").rename({"impressions": "item_id"})
    clicked = pl.col("item_id") == pl.col("clicked")
    rows = rows.with_columns(
        finite("price").alias("price"),
        clicked.alias("clickout"),
        pl.when(clicked).then(pl.lit("clickout")).otherwise(pl.lit("impression")).alias("action"),
    )
    return conform(rows.drop("clicked"), IMPRESSION_SCHEMA, source)
