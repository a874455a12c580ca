"""The feedback chain: which stage a person reached, and which impressions become events.

A feedback log has one row for each item that was shown, and a column for each thing the person may have done with it.
Every such row becomes one row of ``impressions``; those at or above an option ``min_action`` of the chain become
``events`` as well.
"""

from __future__ import annotations

from collections.abc import Sequence

import polars as pl

from genrec.data.schema import EVENT_SCHEMA, conform


def deepest_stage(table: pl.DataFrame, chain: Sequence[str]) -> pl.Expr:
    """``action``: the deepest stage of the chain whose flag is true; the first stage (impression) where none is."""
    reached = [pl.when(pl.col(name)).then(pl.lit(name)) for name in reversed(chain[1:]) if name in table.columns]
    return pl.coalesce([*reached, pl.lit(chain[0])]).alias("action")


def reaches(chain: Sequence[str], min_action: str) -> pl.Expr:
    """True where ``action`` is at or above a stage of the chain."""
    return pl.col("action").is_in(list(chain[list(chain).index(min_action) :]))


def events_of(
    impressions: pl.DataFrame, chain: Sequence[str], min_action: str, source: str, extra: Sequence[str] = ()
) -> pl.DataFrame:
    """The impressions that are events: deep enough in the chain, and without the flag ``hate`` where the log has it."""
    kept = impressions.filter(reaches(chain, min_action))
    if "hate" in kept.columns:
        kept = kept.filter(~pl.col("hate").fill_null(False))
    columns = [name for name in (*EVENT_SCHEMA, *extra) if name in kept.columns]
    return conform(kept.select(columns), EVENT_SCHEMA, source)
