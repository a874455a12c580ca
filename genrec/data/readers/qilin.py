"""Qilin: search and recommendation requests of Xiaohongshu people, with all impressions and feedback.

The path is a folder (also with one folder for each table, as published), a file or a pattern. Tables are known by the
name of their file or folder, as Parquet or as CSV (there, lists are in NumPy's notation), CSV plain, ``.gz`` or
``.zst``:

- ``search_train``, ``search_test`` (a row is a request: ``search_idx``, ``session_idx``, ``user_idx``, ``query``,
  ``search_result_details_with_idx``) and ``recommendation_train``, ``recommendation_test`` (``request_idx``,
  ``session_idx``, ``user_idx``, ``rec_result_details_with_idx``; their column ``query`` holds titles of notes clicked
  before, not a query, and is not read);
- ``notes`` (items), ``user_feat`` (users), ``search.test.qrels`` and ``recommendation.test.qrels`` (``qid``, ``pid``);
- ``dqa``: generated answers and how people took them; not behaviour on items, its rows are counted as left out.

===============  ===========================================================================================
impressions      meaning: one row for each result of a request, in their order on the screen
===============  ===========================================================================================
``request_id``   "search:" and ``search_idx``, or "recommendation:" and ``request_idx``
``user_id``      ``user_idx``
``item_id``      ``note_idx``
``timestamp``    seconds: the earliest time among the request's results, so that a request is one moment
``position``     as logged, from 1
``action``       the deepest stage reached: impression < click < like < collect < comment < share
``query``        search only
``surface``      "search" or "feed"
``split``        "train" or "test", as published
``session_id``   ``session_idx``
``click`` ...    true or false for each kind of feedback
``page_time``    seconds on the note; null when it was not opened
===============  ===========================================================================================

``events`` are the impressions with a feedback, with the same columns.

Items: ``title``, ``text``, ``category`` (three levels of ids), and ``note_type``, ``video_duration``, ``image_num``,
``content_length``, ``commercial_flag``. The counts of impressions, clicks and so on of a note are not read: they
cover the time of the test. Users: all columns. The lists of recently clicked notes and of results of other retrieval
models are not read: they have no times.

``judgments``: ``query_id`` is "search_test:" or "recommendation_test:" and ``qid``; the label is "clicked" with gain
1. A ``qid`` belongs to the test request with exactly the same clicked notes; where only one such request exists,
``query`` and ``request_id`` are its.

Source: Chen et al., "Qilin: a multimodal information retrieval dataset with APP-level user sessions", SIGIR 2025.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl

from genrec.data.readers.toolkit import (
    LINE,
    REPEATED_ITEM,
    REPEATED_JUDGMENT,
    REPEATED_REQUEST,
    REPEATED_USER,
    Batch,
    SeenKeys,
    blank,
    check_options,
    delimited_batches,
    files_at,
    filled,
    parquet_batches,
    plain_name,
)
from genrec.data.schema import (
    EVENT_SCHEMA,
    IMPRESSION_SCHEMA,
    ITEM_SCHEMA,
    JUDGMENT_SCHEMA,
    USER_SCHEMA,
    RawLog,
    conform,
)
from genrec.errors import UserError

CHAIN = ("impression", "click", "like", "collect", "comment", "share")
FEEDBACK = CHAIN[1:]
REQUESTS = {  # table -> id column, results column, surface, split
    "search_train": ("search_idx", "search_result_details_with_idx", "search", "train"),
    "recommendation_train": ("request_idx", "rec_result_details_with_idx", "feed", "train"),
    "search_test": ("search_idx", "search_result_details_with_idx", "search", "test"),
    "recommendation_test": ("request_idx", "rec_result_details_with_idx", "feed", "test"),
}
QRELS = {"search.test.qrels": "search_test", "recommendation.test.qrels": "recommendation_test"}
TABLES = (*REQUESTS, "notes", "user_feat", "dqa", *QRELS)
TIMES = ("search_timestamp", "request_timestamp")
RESULT = {"note_idx": pl.String, **dict.fromkeys((*FEEDBACK, "page_time", "position", *TIMES), pl.Float64)}
NOTE_NUMBERS = ("note_type", "video_duration", "image_num", "content_length", "commercial_flag")
NOTE_COLUMNS = ("note_idx", "note_title", "note_content", "taxonomy1_id", "taxonomy2_id", "taxonomy3_id", *NOTE_NUMBERS)
USER_NUMBERS = ("fans_num", "follows_num", *(f"dense_feat{number}" for number in range(1, 41)))
USER_COLUMNS = ("user_idx", "gender", "platform", "age", "location", *USER_NUMBERS)
MILLISECONDS = 100_000_000_000  # a larger time is in milliseconds: as seconds it is beyond the year 5000
DQA = "dqa: answers to questions are not behaviour on items"


def read_qilin(path: Path, options: dict) -> Iterator[RawLog]:
    """Read requests, then notes, users and judgments, in parts.

    A request is kept whole or goes to quarantine whole, so rows read are requests, items, users, judgments, rows in
    quarantine and rows left out by a rule. Raises ``UserError`` when no file at the path has the name of a table.
    """
    check_options("qilin", options, ())
    tables: dict[str, list[Path]] = {}
    for file in files_at(path, subfolders=True):
        if name := _table(file):
            tables.setdefault(name, []).append(file)
    if not tables:
        raise UserError(
            f"{path}: no file or folder named {', '.join(TABLES[:4])} ... (.parquet or .csv); reader 'qilin' needs one"
        )
    clicked: list[pl.DataFrame] = []
    once = SeenKeys("request_id")
    for name in REQUESTS:
        for file in tables.get(name, ()):
            yield from _requests(file, name, once, clicked)
    notes, people = SeenKeys("item_id"), SeenKeys("user_id")
    for file in tables.get("notes", ()):
        for batch in _batches(file, NOTE_COLUMNS):
            _to_items(batch, file, notes)
            yield batch.part(items=conform(batch.table, ITEM_SCHEMA, str(file)), chain=CHAIN)
    for file in tables.get("user_feat", ()):
        for batch in _batches(file, USER_COLUMNS):
            _to_users(batch, file, people)
            yield batch.part(users=conform(batch.table, USER_SCHEMA, str(file)), chain=CHAIN)
    for file in tables.get("dqa", ()):
        for batch in _batches(file, ("query", "search_idx")):
            batch.count(DQA, batch.table.height)
            yield batch.part(chain=CHAIN)
    for name, table in QRELS.items():
        for file in tables.get(name, ()):
            yield from _judgments(file, table, clicked)


def _table(file: Path) -> str | None:
    name = plain_name(file)
    stem = name.removesuffix(".csv").removesuffix(".parquet")
    if stem == name:
        return None
    return next((table for table in TABLES if table in (stem, file.parent.name) or stem.startswith(table + "-")), None)


def _batches(file: Path, columns: tuple[str, ...]) -> Iterator[Batch]:
    """The rows of a table as text; lists of a Parquet file stay lists, and only the ``columns`` are read from it."""
    if file.suffix == ".parquet":
        for batch in parquet_batches(file, columns, f"{file.parent.name}/{file.name}"):
            plain = [name for name, dtype in batch.table.schema.items() if name != LINE and not dtype.is_nested()]
            batch.table = batch.table.with_columns(pl.col(name).cast(pl.String) for name in plain)
            yield batch
        return
    yield from delimited_batches(file, ",", quoted=True)


def _requests(file: Path, table: str, once: SeenKeys, clicked: list[pl.DataFrame]) -> Iterator[RawLog]:
    """Events and impressions of one file; the clicks of each request of a test table are added to ``clicked``."""
    key, details, surface, split = REQUESTS[table]
    columns = (key, "session_idx", "user_idx", *(("query",) if surface == "search" else ()), details)
    for batch in _batches(file, columns):
        batch.need(columns, file)
        batch.refuse(blank(key), f"no {key}")
        batch.refuse(blank("user_idx"), "no user_idx")
        if surface == "search":
            batch.refuse(blank("query"), "no query")
        results = _results_of(batch, details)
        query = filled("query") if surface == "search" else pl.lit(None, dtype=pl.String)
        batch.table = batch.table.select(
            LINE,
            pl.concat_str(pl.lit(table.split("_")[0] + ":"), key).alias("request_id"),
            pl.col("user_idx").alias("user_id"),
            query.alias("query"),
            pl.lit(surface).alias("surface"),
            pl.lit(split).alias("split"),
            filled("session_idx").alias("session_id"),
        )
        batch.keep_first(once, REPEATED_REQUEST)
        impressions = batch.table.join(results, on=LINE, how="inner", maintain_order="right").drop(LINE)
        acted = impressions.filter(pl.col("action") != "impression")
        if split == "test":
            clicks = impressions.filter("click").group_by("request_id", "query", maintain_order=True)
            clicked.append(clicks.agg(_notes("item_id")).with_columns(pl.lit(table).alias("table")))
        yield batch.part(
            events=conform(acted.drop("position"), EVENT_SCHEMA, str(file)),
            impressions=conform(impressions, IMPRESSION_SCHEMA, str(file)),
            chain=CHAIN,
        )


def _notes(column: str) -> pl.Expr:
    """A set of notes as one text."""
    return pl.col(column).unique().sort().str.join(",").alias("notes")


def _results_of(batch: Batch, details: str) -> pl.DataFrame:
    """The results of the requests, one a row with ``LINE``; requests whose list is broken leave the batch."""
    if batch.table[details].dtype == pl.String:
        batch.table = batch.table.with_columns(_from_text(batch.table[details]))
    batch.refuse(pl.col(details).is_null(), "the list of results cannot be read")
    batch.leave_out(pl.col(details).list.len() == 0, "request without results")
    fields = batch.table.select(LINE, details).explode(details).unnest(details)
    missing = [pl.lit(None, dtype=dtype).alias(name) for name, dtype in RESULT.items() if name not in fields.columns]
    results = fields.with_columns(missing).with_columns(pl.col(name).cast(dtype) for name, dtype in RESULT.items())
    times = pl.coalesce(pl.when(pl.col(name).is_finite()).then(pl.col(name)) for name in TIMES)
    seconds = pl.when(times >= MILLISECONDS).then(times / 1000).otherwise(times).floor().cast(pl.Int64, strict=False)
    results = results.with_columns(seconds.min().over(LINE).alias("timestamp"))
    for bad, reason in (
        (blank("note_idx"), "a result without note_idx"),
        (pl.col("timestamp").is_null(), "no time in the results"),
    ):
        batch.refuse(pl.col(LINE).is_in(results.filter(bad)[LINE].unique().to_list()), reason)
    stages = [pl.when(pl.col(name) > 0).then(pl.lit(name)) for name in reversed(FEEDBACK)]
    opened = pl.col("page_time").is_finite() & (pl.col("page_time") > 0)
    return results.select(
        LINE,
        pl.col("note_idx").alias("item_id"),
        "timestamp",
        pl.col("position").cast(pl.Int64, strict=False),
        pl.coalesce(*stages, pl.lit("impression")).alias("action"),
        *[(pl.col(name) > 0).fill_null(False).alias(name) for name in FEEDBACK],
        pl.when(opened).then(pl.col("page_time")).alias("page_time"),
    )


def _from_text(column: pl.Series) -> pl.Series:
    """Lists of results printed by NumPy or as JSON; null where a text is neither."""
    dtype = pl.List(pl.Struct(RESULT))
    text = (
        column.str.replace_all("'", '"', literal=True)
        .str.replace_all(r"\}\s+\{", "},{")
        .str.replace_all(r":\s*(?:nan|NaN|None)\b", ":null")
    )
    try:
        return text.str.json_decode(dtype)
    except pl.exceptions.PolarsError:  # only now is it worth looking at each row by itself
        return pl.Series(column.name, [_results(value) for value in text], dtype=dtype)


def _results(text: str | None) -> list[dict] | None:
    try:
        return [
            {name: _field(row.get(name), dtype) for name, dtype in RESULT.items()} for row in json.loads(text or "")
        ]
    except (ValueError, TypeError, AttributeError):
        return None


def _field(value: Any, dtype: type[pl.DataType]) -> str | float | None:
    if value is None:
        return None
    return str(value) if dtype == pl.String else float(value)


def _to_items(batch: Batch, file: Path, first: SeenKeys) -> None:
    batch.need(NOTE_COLUMNS[:6], file)
    batch.refuse(blank("note_idx"), "no note_idx")
    levels = pl.concat_list(filled(f"taxonomy{level}_id") for level in (1, 2, 3)).list.drop_nulls()
    batch.table = batch.table.select(
        pl.col("note_idx").alias("item_id"),
        filled("note_title").alias("title"),
        filled("note_content").alias("text"),
        pl.when(levels.list.len() > 0).then(levels).alias("category"),
        *[pl.col(name).cast(pl.Float64, strict=False) for name in NOTE_NUMBERS if name in batch.table.columns],
    )
    batch.keep_first(first, REPEATED_ITEM)


def _to_users(batch: Batch, file: Path, first: SeenKeys) -> None:
    batch.need(("user_idx",), file)
    batch.refuse(blank("user_idx"), "no user_idx")
    have = [name for name in USER_COLUMNS[1:] if name in batch.table.columns]
    numbers = [pl.col(name).cast(pl.Float64, strict=False) for name in have if name in USER_NUMBERS]
    texts = [filled(name).alias(name) for name in have if name not in USER_NUMBERS]
    batch.table = batch.table.select(pl.col("user_idx").alias("user_id"), *texts, *numbers)
    batch.keep_first(first, REPEATED_USER)


def _judgments(file: Path, table: str, clicked: list[pl.DataFrame]) -> Iterator[RawLog]:
    batches = list(_batches(file, ("qid", "pid")))  # small: the test requests only, and a topic may lie across batches
    first = SeenKeys("pair")
    for batch in batches:
        batch.need(("qid", "pid"), file)
        batch.refuse(blank("qid"), "no qid")
        batch.refuse(blank("pid"), "no pid")
        batch.table = batch.table.with_columns(pl.concat_str("qid", "pid", separator=" ").alias("pair"))
        batch.keep_first(first, REPEATED_JUDGMENT)
    pairs = (
        pl.concat([batch.table.select("qid", "pid") for batch in batches])
        if batches
        else pl.DataFrame(schema={"qid": pl.String})
    )
    topics = pairs.group_by("qid", maintain_order=True).agg(_notes("pid")) if batches else pairs
    known = pl.concat(clicked).filter(pl.col("table") == table) if clicked else pl.DataFrame()
    if known.is_empty() or topics.is_empty():
        requests = pl.DataFrame(schema={"qid": pl.String, "request_id": pl.String, "query": pl.String})
    else:
        requests = topics.filter(pl.col("notes").is_unique()).join(
            known.filter(pl.col("notes").is_unique()), on="notes", how="inner"
        )
    for batch in batches:
        judged = batch.table.join(
            requests.select("qid", "request_id", "query"), on="qid", how="left", maintain_order="left"
        )
        judgments = judged.select(
            pl.concat_str(pl.lit(table + ":"), "qid").alias("query_id"),
            "query",
            pl.col("pid").alias("item_id"),
            pl.lit("clicked").alias("label"),
            pl.lit(1.0).alias("gain"),
            pl.lit("test").alias("split"),
            "request_id",
        )
        yield batch.part(judgments=conform(judgments, JUDGMENT_SCHEMA, str(file)), chain=CHAIN)
