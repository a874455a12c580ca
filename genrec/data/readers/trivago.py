"""trivago 2019 (RecSys Challenge): sessions of hotel search with destinations, filters, looks at hotels and click-outs.

Files, told by their names (plain, ``.gz`` or ``.zst``), comma- or tab-separated:

- sessions, ``train*``, ``test*`` or ``trivago_*`` (``.csv`` or ``.tsv``): ``user_id``, ``session_id``, ``timestamp`` (seconds), ``step``,
  ``action_type`` and ``reference`` are required; ``current_filters``, ``impressions`` and ``prices`` are lists with "|" between;
  ``platform``, ``city``, ``device`` and any further column are kept;
- ``item_metadata*.csv`` -> items: ``item_id``, ``properties`` (a list with "|" between) as ``text``. Hotels have no names.

What becomes of a session row, by its ``action_type``:

- ``clickout item`` -> an event "clickout", and one row of ``impressions`` for each hotel that was shown with it: ``position`` (from 0),
  ``price``, ``clickout`` (true for the one clicked). A click-out without a reference (the challenge's test rows) has nothing to learn
  from and is counted as filtered;
- ``interaction item image | info | rating | deals`` and ``search for item`` (the hotel itself was looked for) -> an event "interaction";
- ``search for destination``, ``search for poi``, ``filter selection`` -> no event, but the ``query`` of the later actions;
  ``change of sort order`` -> nothing. All four are counted as filtered.

The column ``action_type`` keeps the log's own word. The chain is impression < interaction < clickout.

The query of an action: the reference of the last search before it in its session (for a point of interest with the city of that row
behind it), then " | " and the filters that were on at the last search or filter selection before it. Before means a smaller time or the
same second and a smaller step, so no action ever carries a later search. A destination "unknown" forgets the search. A session is a run of
rows of one user and session id, so one that the file interrupts starts anew, without its earlier query.

``request_id`` is session, step and time: a few session ids of the log run twice through the same steps. ``surface`` is "search".

A hotel's pictures are one row each: on the 100,003-row sample 53,592 of 87,612 events repeat item, action and second of the one before
(99.6 % of them "interaction item image") and differ in ``step`` alone. They are one look at one hotel, so ``step`` is no part of the rule
for duplicate events and ``data.duplicates`` drops them; ``keep`` keeps them.

Rows read = events + items + quarantine + filtered; impressions are further rows of their click-outs.

Options: ``min_action`` (interaction or clickout, default interaction: rows below are filtered), ``filters`` (default true: whether the
filters are part of the query).

Source: Knees et al., "RecSys Challenge 2019: session-based hotel recommendations", RecSys 2019.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import polars as pl

from genrec.data.readers.common import LINE, LogSource, SeenKeys, blank, check_options, parts_of, set_aside
from genrec.data.readers.feedback import (
    choice,
    files_by_kind,
    finite,
    headed_batches,
    id_columns,
    part,
    rows_aside,
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


def read_trivago(path: Path, options: dict) -> Iterator[RawLog]:
    """Read the files of trivago 2019 at a folder, a file or a glob, one part for each batch of lines.

    Raises ``UserError`` for a wrong option, no file of the layout, or a missing column.
    """
    yield from parts_of(trivago_sources(path, options))


def trivago_sources(path: Path, options: dict, columns: list[str] | None = None) -> list[LogSource]:
    """Every file of sessions by itself, then the hotels."""
    check_options("trivago", options, ("min_action", "filters"))
    least = choice("trivago", options, "min_action", CHAIN[1:], CHAIN[1])
    with_filters = switch("trivago", options, "filters", True)
    found = files_by_kind(path, FILES, "trivago")
    sources = [LogSource([file], partial(_sessions, file, least, with_filters)) for file in found["sessions"]]
    return (
        [*sources, LogSource(found["items"], partial(_items, found["items"]), events=False)]
        if found["items"]
        else sources
    )


def _items(files: list[Path]) -> Iterator[RawLog]:
    seen = SeenKeys("item_id")
    for file in files:
        own = [name for name in ITEM_SCHEMA if name != "item_id"]
        for table, aside in headed_batches(file, None, ["item_id", "properties"], own=own):
            table = id_columns(table, ["item_id"], file.name, aside)
            table = seen.first_rows(table, file.name, aside).drop(LINE)
            table = table.rename({"properties": "text"}).with_columns(
                pl.col("text").str.replace_all("|", ", ", literal=True)
            )
            yield part(aside, table.height, items=conform(table, ITEM_SCHEMA, str(file)))


def _sessions(file: Path, least: str, with_filters: bool) -> Iterator[RawLog]:
    for table, aside in _whole_sessions(file):
        yield _part(table, aside, file, least, with_filters)


def _whole_sessions(file: Path) -> Iterator[tuple[pl.DataFrame, list[pl.DataFrame]]]:
    """Clean rows in batches that never cut a session, and the quarantine read on the way."""
    held: pl.DataFrame | None = None
    own = [name for name in (*EVENT_SCHEMA, *IMPRESSION_SCHEMA, "price", *CHAIN) if name not in (*REQUIRED, *OPTIONAL)]
    for table, aside in headed_batches(file, None, REQUIRED, own=own):
        table = _clean(table, file.name, aside)
        table = table if held is None else pl.concat([held, table])
        # The last session may go on in the next batch: its rows wait for it.
        run = pl.col("run").rle_id()
        ready = table.filter(run < run.max())
        held = table.slice(ready.height)
        if ready.height or rows_aside(aside):
            yield ready, aside
    if held is not None and held.height:
        yield held, []


def _clean(table: pl.DataFrame, source: str, aside: list[pl.DataFrame]) -> pl.DataFrame:
    table = id_columns(table, ["user_id", "session_id"], source, aside)
    table = table.with_columns(seconds("timestamp").alias("timestamp"), whole("step").alias("step"))
    table = set_aside(
        table, pl.col("timestamp").is_null(), source, "timestamp is no time in seconds (2000 to 2200)", aside
    )
    table = set_aside(table, pl.col("step").is_null(), source, "step is not a whole number", aside)
    known = pl.col("action_type").is_in([CLICKOUT, *LOOKS, *NO_EVENT]).fill_null(False)
    table = set_aside(table, ~known, source, "unknown action_type", aside)
    no_item = ~pl.col("reference").str.contains(r"^\s*\d+\s*$").fill_null(False)
    needs_item = pl.col("action_type").is_in(LOOKS) | (
        (pl.col("action_type") == CLICKOUT) & pl.col("reference").is_not_null()
    )
    table = set_aside(table, needs_item & no_item, source, "the reference is no item", aside)
    missing = [pl.lit(None, dtype=pl.String).alias(name) for name in OPTIONAL if name not in table.columns]
    table = table.with_columns(missing).with_columns(
        pl.col("impressions").str.split("|").list.eval(pl.element().str.strip_chars()), pl.col("prices").str.split("|")
    )
    shown = (pl.col("action_type") == CLICKOUT) & pl.col("impressions").is_not_null()
    table = set_aside(
        table, shown & pl.col("impressions").list.contains(""), source, "an empty place in impressions", aside
    )
    uneven = pl.col("prices").is_not_null() & (pl.col("prices").list.len() != pl.col("impressions").list.len())
    table = set_aside(table, shown & uneven, source, "impressions and prices differ in number", aside)
    return table.with_columns(pl.struct("user_id", "session_id").hash().alias("run"))


def _part(table: pl.DataFrame, aside: list[pl.DataFrame], file: Path, least: str, with_filters: bool) -> RawLog:
    table = table.with_columns(_queries(table, with_filters))
    kind = pl.col("action_type")
    filtered = {f"{name} (no event)": table.filter(kind == name).height for name in NO_EVENT}
    hidden = (kind == CLICKOUT) & pl.col("reference").is_null()
    filtered["clickout item without a reference"] = table.filter(hidden).height
    table = table.filter(~hidden & ~kind.is_in(NO_EVENT)).with_columns(
        pl.col("reference").str.strip_chars().alias("item_id"),
        pl.when(kind == CLICKOUT).then(pl.lit("clickout")).otherwise(pl.lit("interaction")).alias("action"),
        pl.lit("search").alias("surface"),
        pl.concat_str("session_id", "step", "timestamp", separator="/").alias("request_id"),
    )
    if least == "clickout":
        filtered["interaction below option min_action"] = table.filter(pl.col("action") != "clickout").height
        table = table.filter(pl.col("action") == "clickout")
    shown = table.filter(pl.col("action") == "clickout")
    events = table.drop(LINE, "run", "reference", "current_filters", "impressions", "prices")
    return part(
        aside,
        events.height,
        events=conform(events, EVENT_SCHEMA, str(file)),
        impressions=_impressions(shown, str(file)),
        chain=CHAIN,
        filtered={rule: count for rule, count in filtered.items() if count},
    )


def _queries(table: pl.DataFrame, with_filters: bool) -> pl.Series:
    """The query of each row: what was searched and filtered before it in its session. (n_rows,) String."""
    kind, known = pl.col("action_type"), ~blank("reference") & (pl.col("reference") != "unknown")
    place = pl.when(kind == "search for poi").then(
        pl.concat_str("reference", "city", separator=", ", ignore_nulls=True)
    )
    place = pl.when(known).then(place.otherwise(pl.col("reference"))).otherwise(pl.lit(""))
    filters = pl.col("current_filters").fill_null("").str.replace_all("|", ", ", literal=True)
    ordered = table.with_row_index("row").with_columns(pl.col("run").rle_id()).sort("run", "timestamp", "step", "row")
    ordered = ordered.with_columns(
        pl.when(kind.is_in(SEARCHES)).then(place).forward_fill().over("run").alias("place"),
        pl.when(kind.is_in(SETS_FILTERS)).then(filters).forward_fill().over("run").alias("filters"),
    ).with_columns(pl.when(pl.col(name) != "").then(pl.col(name)).alias(name) for name in ("place", "filters"))
    parts = ["place", "filters"] if with_filters else ["place"]
    query = pl.concat_str(parts, separator=" | ", ignore_nulls=True)
    return ordered.with_columns(pl.when(query != "").then(query).alias("query")).sort("row")["query"]


def _impressions(clicks: pl.DataFrame, source: str) -> pl.DataFrame:
    """One row for each hotel that was shown with a click-out."""
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
