"""Typed values out of text columns."""

from __future__ import annotations

from collections.abc import Mapping

import polars as pl

from genrec.data.readers.toolkit.batches import Batch, blank

YEAR_2000 = 946_684_800  # seconds; nothing logs behaviour from before it
YEAR_2200 = 7_258_118_400


def filled(column: str) -> pl.Expr:
    """A text column without its outer spaces; null where nothing is left."""
    return pl.when(~blank(column)).then(pl.col(column).str.strip_chars())


def whole(column: str) -> pl.Expr:
    """A text column as Int64 (also from "12.0"); null where it is no whole number."""
    real = finite(column)
    real = pl.when(real == real.floor()).then(real).cast(pl.Int64, strict=False)
    return pl.coalesce(pl.col(column).cast(pl.Int64, strict=False), real)


def finite(column: str) -> pl.Expr:
    """A text column as Float64; null where it is no finite number."""
    real = pl.col(column).cast(pl.Float64, strict=False)
    return pl.when(real.is_finite()).then(real)


def milliseconds(column: str) -> pl.Expr:
    """A text column of times in milliseconds as Int64; null where it is no time between the years 2000 and 2200.

    Whole numbers, also as "1650812741436.0" or "1.650812741436e12", which is how a float column is written.
    """
    value = pl.coalesce(pl.col(column).cast(pl.Int64, strict=False), finite(column).cast(pl.Int64, strict=False))
    return pl.when(value.is_between(YEAR_2000 * 1000, YEAR_2200 * 1000)).then(value)


def seconds(column: str) -> pl.Expr:
    """A text column of whole seconds as Int64; null where it is no time between the years 2000 and 2200."""
    value = pl.col(column).cast(pl.Int64, strict=False)
    return pl.when(value.is_between(YEAR_2000, YEAR_2200)).then(value)


def parse_flags(batch: Batch, names: Mapping[str, str]) -> None:
    """Replace the feedback columns of a batch (ours -> theirs, where it has them) by true/false columns.

    0, 1, true and false are read, an empty field stays null (not known), and a row with any other value is quarantined.
    """
    for ours, theirs in names.items():
        if theirs not in batch.table.columns:
            continue
        word, number = pl.col(theirs).str.strip_chars().str.to_lowercase(), finite(theirs)
        yes, no = (number == 1) | (word == "true"), (number == 0) | (word == "false")
        value = pl.when(yes.fill_null(False)).then(True).when(no.fill_null(False)).then(False)
        batch.refuse(pl.col(theirs).is_not_null() & value.is_null(), f"{theirs} is neither 0 nor 1")
        batch.table = batch.table.with_columns(value.alias(ours))
        if theirs != ours:
            batch.table = batch.table.drop(theirs)
