"""What the table reader does to the rows of events: ids, times, actions, several items in a field."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl

from genrec.data.ids import id_text
from genrec.data.readers.table.columns import explode
from genrec.data.readers.table.items import as_text
from genrec.data.readers.table.options import TableOptions
from genrec.data.readers.toolkit import Batch, SeenKeys, finite, text_lists
from genrec.data.readers.toolkit.json_lines import parse_json
from genrec.data.schema import EVENT_SCHEMA, conform, json_text
from genrec.data.times import YEAR_1971, YEAR_1990, YEAR_2200, TimeNotation, recognise, utc
from genrec.errors import UserError

log = logging.getLogger(__name__)


def unpack_items(batch: Batch, settings: TableOptions) -> None:
    """One row for each item, where a field of the file holds several; a label behind an item becomes its action."""
    table = batch.table
    if settings.item_separator is not None and table["item_id"].dtype == pl.String:
        batch.table = table.with_columns(pl.col("item_id").str.strip_chars().str.split(settings.item_separator))
    ids = batch.table["item_id"]
    if ids.dtype == pl.String and ids.count() and ids.drop_nulls().str.contains(r"^\s*\[.*\]\s*$").all():
        batch.table = batch.table.with_columns(text_lists(ids.str.strip_chars()))
    if isinstance(batch.table["item_id"].dtype, pl.List):
        lists = [
            name
            for name in EVENT_SCHEMA
            if name in batch.table.columns and isinstance(batch.table[name].dtype, pl.List)
        ]
        explode(batch, ["item_id", *(name for name in lists if name != "item_id")])
        batch.leave_out(
            pl.col("item_id").cast(pl.String).fill_null("").str.strip_chars() == "", "an empty element of item_id"
        )
    if settings.item_label is not None:
        item = pl.col("item_id").cast(pl.String)
        label = item.str.split(settings.item_label).list.last()
        bare = item.str.head(item.str.len_chars() - label.str.len_chars() - len(settings.item_label))
        labelled = item.str.contains(settings.item_label, literal=True)
        batch.table = batch.table.with_columns(
            pl.when(labelled).then(bare).otherwise(item).alias("item_id"), pl.when(labelled).then(label).alias("action")
        )


def history_of(batch: Batch, settings: TableOptions, file: Path, people: SeenKeys) -> pl.DataFrame:
    """``user_id``, ``timestamp`` and the list ``history`` of rows whose user is met for the first time.

    Later rows of a user repeat the history, and then hold items that the log itself has.
    """
    table, batch.table = batch.table, batch.table.drop("history")
    if table["history"].dtype == pl.String:
        items = pl.col("history").str.strip_chars().str.split(settings.item_separator or " ")
        table = table.with_columns(items)
    elif not isinstance(table["history"].dtype, pl.List):
        raise UserError(f"{file}: columns.history must list items, not hold {table['history'].dtype}")
    table = table.with_columns(id_text(table["user_id"], str(file))).drop_nulls("user_id")
    first = table.filter(people.is_new(table)).select("user_id", "timestamp", "history")
    return first.filter(pl.col("history").list.len() > 0)


def history_events(rows: pl.DataFrame, notation: TimeNotation, settings: TableOptions, file: Path) -> pl.DataFrame:
    """The items that users had before their first row as events, a second apart, the last just before that row."""
    n = pl.col("history").list.len().cast(pl.Int64)
    table = rows.with_columns(notation.seconds(rows["timestamp"])).with_columns(
        pl.int_ranges(pl.col("timestamp") - n, pl.col("timestamp")).alias("timestamp"), item_id="history"
    )
    table = table.explode("item_id", "timestamp").drop("history")
    table = table.with_columns(id_text(table["item_id"], str(file))).drop_nulls().filter(pl.col("item_id") != "")
    action = settings.lowest_event or settings.action
    if action is not None:
        table = table.with_columns(pl.lit(action).alias("action"))
    return conform(table, EVENT_SCHEMA, str(file))


def leave_out_low_ratings(batch: Batch, settings: TableOptions, file: Path) -> None:
    """Leave out and count rows whose rating is below ``min_rating``; those without one go to quarantine."""
    batch.need(["rating"], file)
    column = batch.table["rating"]
    if column.dtype == pl.String:
        column = column.str.strip_chars().str.replace(",", ".", literal=True)
    batch.table = batch.table.with_columns(column.cast(pl.Float64, strict=False).alias("rating"))
    batch.refuse(pl.col("rating").is_null(), "the rating is not a number")
    batch.leave_out(pl.col("rating") < settings.min_rating, f"rating below {settings.min_rating:g}")


def clean_ids(batch: Batch, keys: Sequence[str], settings: TableOptions, file: Path) -> None:
    """Ids as text; rows whose id stands for none are left out, those without one go to quarantine."""
    for key in keys:
        dtype = batch.table[key].dtype
        maybe_nested = dtype.is_nested() or dtype == pl.String
        column = batch.table.select(json_text(key))[key] if dtype.is_nested() else id_text(batch.table[key], str(file))
        if settings.strip_leading_zeros:
            column = column.str.replace(r"^0+(.)", "$1")
        batch.table = batch.table.with_columns(column)
        words = column.is_in(settings.null_words)
        if words.any():
            batch.leave_out(pl.Series(words), f"{key} stands for none ({column.filter(words)[0]})")
        batch.refuse_blank(key)
        if maybe_nested:
            _refuse_lists(batch, key)


def _refuse_lists(batch: Batch, key: str) -> None:
    """Quarantine the rows whose id is a list or an object, written as JSON."""
    column = batch.table[key]
    if not column.str.contains("[", literal=True).any() and not column.str.contains("{", literal=True).any():
        return
    looks = column.str.contains(r"^\s*[\[{]")
    ids = column.filter(looks).unique()
    lists = [text for text in ids if isinstance(parse_json(text), list | dict)]  # "[deleted]" is an id like any other
    batch.refuse(pl.col(key).is_in(lists), f"{key} is a list or an object")


def recognised(column: pl.Series, settings: TableOptions, file: Path) -> TimeNotation:
    """How the times of a file are written; times that cannot be right are logged."""
    notation = recognise(column, str(file), settings.timestamp_unit, settings.timestamp_format)
    seconds = notation.seconds(column)
    low, high, typical = seconds.min(), seconds.max(), seconds.median()
    if not isinstance(low, int) or not isinstance(high, int):
        return notation
    if notation.kind != "order" and isinstance(typical, float) and YEAR_1990 <= typical <= YEAR_2200:
        notation = replace(notation, checked=True)
    if settings.timestamp_unit is None and notation.kind not in ("s", "typed"):
        log.info("%s: times are read as %s, from %s to %s", file.name, notation, utc(low), utc(high))
    if settings.timestamp_unit is None and notation.kind == "order":
        log.warning(
            "%s: times from %d to %d would lie in 1970: they are taken as positions in order; set timestamp_format or "
            "timestamp_unit if they are dates",
            file.name,
            low,
            high,
        )
    elif high < YEAR_1990 and notation.kind != "order":
        log.warning("%s: times lie from %s to %s; check timestamp_unit", file.name, utc(low), utc(high))
    if low == high and column.len() > 2:
        log.warning(
            "%s: the first %d times are all %s: the order is that of the rows", file.name, column.len(), utc(low)
        )
    return notation


def to_seconds(batch: Batch, notation: TimeNotation) -> None:
    """Times as seconds since 1970; rows with an unreadable one go to quarantine."""
    column = batch.table["timestamp"]
    if column.dtype.is_nested():
        column = batch.table.select(json_text("timestamp"))["timestamp"]
    seconds = notation.seconds(column)
    text = column.cast(pl.String, strict=False).fill_null("empty").str.head(40).alias("_written")
    batch.table = batch.table.with_columns(seconds.alias("timestamp"), text)
    expected = "a number" if notation.kind in ("s", "ms", "us", "ns", "order", "excel") else "a date"
    reason = pl.format("the time is not {} ({}): {}", pl.lit(expected), pl.lit(str(notation)), pl.col("_written"))
    batch.refuse(pl.col("timestamp").is_null(), reason)
    if notation.checked:  # 0 for none, or another unit, among times of our days
        odd = ~pl.col("timestamp").is_between(YEAR_1971, YEAR_2200)
        reason = pl.format("the time lies in 1970 or beyond 2200, unlike the others: {}", pl.col("_written"))
        batch.refuse(odd, reason)
    batch.table = batch.table.drop("_written")


TRUE, FALSE = ("1", "1.0", "true", "t", "yes", "y"), ("0", "0.0", "false", "f", "no", "n", "")


def _deepest_flag(batch: Batch, settings: TableOptions, file: Path) -> pl.Series:
    """``action``: the deepest stage of the chain whose column is true; the chain's first where none is."""
    assert settings.action_flags is not None and settings.chain is not None
    batch.need(list(settings.action_flags), file)
    chain = settings.chain
    stages = pl.Series("action", [chain[0]] * batch.table.height, dtype=pl.String)
    for column, stage in sorted(settings.action_flags.items(), key=lambda entry: chain.index(entry[1])):
        text = batch.table[column].cast(pl.String).str.strip_chars().str.to_lowercase().fill_null("")
        odd = text.filter(~text.is_in([*TRUE, *FALSE]))
        if len(odd):
            raise UserError(f"{file}: action_flags: column {column!r} is no true or false, such as {odd[0]!r}")
        stages = pl.select(pl.when(text.is_in(TRUE)).then(pl.lit(stage)).otherwise(stages).alias("action"))["action"]
    return stages


def to_actions(batch: Batch, settings: TableOptions, file: Path) -> None:
    """Actions under our names; rows with an action outside the chain and returned goods are left out and counted."""
    if settings.action is not None and "action" not in batch.table.columns:
        batch.table = batch.table.with_columns(pl.lit(settings.action).alias("action"))
    if settings.action_flags:
        batch.table = batch.table.with_columns(_deepest_flag(batch, settings, file))
    if "action" in batch.table.columns:
        words = batch.table["action"].drop_nulls()
        if words.dtype == pl.Boolean and not settings.actions:
            raise UserError(
                f"{file}: the actions are true and false; set action_flags to what true means, as "
                "{clicked: click}, and chain to [impression, click]"
            )
        batch.table = batch.table.with_columns(as_text(batch.table, "action"))
        action = pl.col("action").str.strip_chars()
        if settings.actions:
            action = action.replace(settings.actions)
        batch.table = batch.table.with_columns(action)
    if settings.chain:
        if "action" not in batch.table.columns:
            raise UserError(
                f"{file}: option chain needs actions; set columns.action, or action where all rows are of one"
            )
        counts = batch.table["action"].value_counts(sort=True).rows()
        unknown = {name: count for name, count in counts if name not in settings.chain}
        if unknown and len(unknown) == len(counts):
            raise UserError(
                f"{file}: no action of chain {settings.chain} is there; "
                f"the file has: {', '.join(map(str, unknown))[:200]}; "
                "map them by option actions"
            )
        for name in unknown:
            batch.leave_out(pl.col("action").eq_missing(name), f"action {name} is not in the chain")
    quantity = "quantity" if "quantity" in batch.table.columns else None
    if quantity:
        number = (
            finite(quantity)
            if batch.table[quantity].dtype == pl.String
            else pl.col(quantity).cast(pl.Float64, strict=False)
        )
        batch.leave_out(number <= 0, "returned or cancelled (quantity not above 0)")
