"""Requests and predictions as Parquet files: how others check our metrics with their own code."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import polars as pl

from genrec.data.ids import id_text
from genrec.data.readers.table.items import as_text
from genrec.data.situation import resolved, situation_columns
from genrec.data.times import recognise
from genrec.errors import UserError
from genrec.generation.options import SearchOptions
from genrec.inference.answering import lists
from genrec.inference.bundle import is_bundle
from genrec.inference.recommender import Recommender
from genrec.progress import Progress
from genrec.retrieval.allowed import AllowedItems
from genrec.runs.run import Run


def read_requests(path: Path) -> tuple[pl.DataFrame, pl.Series | None]:
    """The request table in its contract's types, its further columns, and the given histories where it has them."""
    if not path.is_file():
        raise UserError(f"--requests: file not found: {path}")
    try:
        table = pl.read_parquet(path)
    except pl.exceptions.PolarsError as error:
        raise UserError(f"{path}: is not a Parquet file ({str(error).splitlines()[0]})") from error
    return request_table(table, str(path))


def request_table(table: pl.DataFrame, path: str) -> tuple[pl.DataFrame, pl.Series | None]:
    """The same of a table; ``path`` is its name in messages."""
    if "request_id" not in table.columns:
        raise UserError(f"{path}: column 'request_id' is missing; the file has {', '.join(table.columns)}")
    if "user_id" not in table.columns and "history" not in table.columns:
        raise UserError(f"{path}: needs a column 'user_id' or 'history'; the file has {', '.join(table.columns)}")
    columns = [id_text(table[name], path) for name in ("request_id", "user_id") if name in table.columns]
    if "timestamp" in table.columns:
        columns.append(_seconds(table["timestamp"], path))
    if "query" in table.columns:
        columns.append(as_text(table, "query"))
    have = {column.name: column for column in columns}
    types = {"request_id": pl.String, "user_id": pl.String, "timestamp": pl.Int64, "query": pl.String}
    missing = {name: pl.Series(name, [None] * len(table), dtype=dtype) for name, dtype in types.items()}
    further = [column for column in table.iter_columns() if column.name not in (*types, "history")]
    plain = pl.DataFrame([*(have.get(name, missing[name]) for name in types), *further])
    return plain, table["history"] if "history" in table.columns else None


def default_fit(run: Path) -> str | None:
    """The model that answers a request file by default: the one fitted on train, or a bundle's only one."""
    return None if is_bundle(run) else "train"


def _seconds(column: pl.Series, path: str) -> pl.Series:
    """Times in any common notation as seconds; ``UserError`` names one that is not read."""
    seconds = recognise(column, path).seconds(column)
    unread = column.filter(seconds.is_null() & column.is_not_null())
    if len(unread):
        raise UserError(f"{path}: timestamp {unread[0]!r} is no time")
    return seconds


def predict_file(
    run: Path, requests: Path, output: Path, k: int, mode: str, fitted_on: str | None, exclude_seen: bool
) -> int:
    """Answer a request file; returns the number of rows written.

    The default model is the one fitted on train, or a bundle's only one.
    """
    table, histories = read_requests(requests)
    model = Recommender.load(run, fitted_on or default_fit(run))
    with Progress("requests", len(table)) as progress:
        answers = predictions(model, table, histories, k, mode, exclude_seen, progress.advance)
    output.parent.mkdir(parents=True, exist_ok=True)
    answers.write_parquet(output)
    return len(answers)


def predictions(
    model: Recommender,
    table: pl.DataFrame,
    histories: pl.Series | None,
    k: int,
    mode: str,
    exclude_seen: bool,
    progress: Callable[[int], None] | None = None,
) -> pl.DataFrame:
    """The answers of a request table: ``request_id``, ``rank`` (from 1), ``item_id``, ``score``."""
    snapshot, requests = model.snapshot, model.requests(table, histories)
    options = SearchOptions(k, (mode,), exclude_seen, allowed=AllowedItems(snapshot.available))
    ids, scores = lists(snapshot, requests, options, progress)[:2]
    row, rank = np.nonzero(ids >= 0)
    return pl.DataFrame(
        {
            "request_id": table["request_id"][row],
            "rank": rank + 1,
            "item_id": snapshot.table["item_id"][ids[row, rank]],
            "score": scores[row, rank],
        }
    )


def write_requests(run: Path, output: Path, split: str, query_kind: str | None) -> int:
    """Write ``requests.parquet`` (with explicit histories) and ``truth.parquet`` (request_id, item_id) of a split.

    With ``model.situation`` the requests also have columns for attributes and surface.
    """
    opened = Run.open(run)
    data, model = opened.dataset, opened.config.model
    if query_kind is not None and query_kind not in data.query_kinds:
        raise UserError(
            f"--query-kind: '{query_kind}' is not one of "
            f"{', '.join(data.query_kinds) or 'none: the data has no queries'}"
        )
    requests = data.requests(split, query_kind)
    names = data.item_table["item_id"]
    events = pl.DataFrame({
        "row": requests.histories.rows, "item_id": names[requests.items.astype(np.int64)],
        "timestamp": requests.timestamps,
        "action": pl.Series(data.actions_chain, dtype=pl.String)[requests.actions.astype(np.int64)],
        "query": data.texts_of(requests.queries),
    })  # fmt: skip
    history = events.group_by("row", maintain_order=True).agg(
        pl.struct("item_id", "timestamp", "action", "query").alias("history")
    )
    number = np.arange(len(requests))
    texts = pl.Series(requests.query_texts, dtype=pl.String)
    table = (
        pl.DataFrame({"row": number.astype(np.int64), "request_id": number.astype(str), "timestamp": requests.times})
        .with_columns(query=texts[requests.request_queries] if query_kind else pl.lit(None, dtype=pl.String))
        .join(history.with_columns(pl.col("row").cast(pl.Int64)), on="row", how="left", maintain_order="left")
        .drop("row")
    )
    table = table.with_columns(situation_columns(data, requests, resolved(model.situation, data, model.request_time)))
    output.mkdir(parents=True, exist_ok=True)
    table.write_parquet(output / "requests.parquet")
    truth = pl.DataFrame({"request_id": number.astype(str), "item_id": names[requests.targets.astype(np.int64)]})
    truth.write_parquet(output / "truth.parquet")
    return len(requests)
