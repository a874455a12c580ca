"""Fit a model on tables in memory or on files, without a config file: the work behind ``Recommender.fit``."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import polars as pl

from genrec.console import log_handler
from genrec.data.readers.guess import Guess, guess_log, guess_tables
from genrec.errors import UserError
from genrec.pipeline.stages import stage_evaluate, stage_train
from genrec.runs.run import Run

log = logging.getLogger(__name__)
DEFAULTS = {"evaluation.baselines": ["popularity"]}  # others cost as much as the model itself


def fit_frames(
    events: Any, items: Any = None, queries: Any = None, output: str | Path = "runs/fit", **settings: Any
) -> Run:
    """Fit a model and return its run, which ``Recommender.load(output)`` opens too.

    ``events``, ``items`` and ``queries`` are Polars or pandas frames, Arrow tables, or paths of anything that ``genrec
    init`` reads; ``events`` may be a folder that also holds the items. Columns under common names, units of time and
    feedback chains are recognised as by ``genrec init``, and logged. ``queries`` are further events, each with the
    query that led to its item.

    ``output`` is the run folder; a second call with the same tables only does what is not done yet. ``settings`` are
    those of a config: ``training={"epochs": 5}`` or ``training__epochs=5``. ``UserError`` names a missing column.
    """
    folder = Path(output)
    _show_progress()
    stated = _dotted(settings)
    guess = _guess(events, items, queries, folder / "log", stated)
    for line in (*guess.notes, *guess.doubts):
        log.info("%s", line)
    given: dict[str, Any] = {"data.reader": guess.reader, "data.path": str(guess.path)}
    given |= {f"data.options.{key}": value for key, value in guess.options.items()}
    if items is not None:
        given["data.keep_unseen_items"] = True
    given |= DEFAULTS | stated | {"output": str(folder.parent), "name": folder.name}
    run = Run.create(None, [f"{key}={json.dumps(value)}" for key, value in given.items()])
    stage_train(run)
    return run


def _guess(events: Any, items: Any, queries: Any, tables: Path, stated: Mapping[str, Any]) -> Guess:
    """How the tables are laid out; tables in memory are written to ``tables`` first."""
    if isinstance(events, str | Path) and items is None and queries is None:
        return guess_log(_existing(Path(events), "events"))
    tables.mkdir(parents=True, exist_ok=True)
    names = ["events"] if queries is None else ["events", "queries"]
    paths = [_as_path(table, tables, name) for table, name in zip((events, queries), names, strict=False)]
    catalogue = None if items is None else _as_path(items, tables, "items")
    columns = {
        key: {
            name.rpartition(".")[2]: value for name, value in stated.items() if name.startswith(f"data.options.{key}.")
        }
        for key in ("columns", "item_columns")
    }
    return guess_tables(dict(zip(names, paths, strict=True)), catalogue, tables, **columns)


def evaluate(run: Run, split: str = "test") -> pl.DataFrame:
    """The results table of a run: a row per model and kind of request, with its metrics on a split."""
    rows = [
        {"model": row.model, "requests": row.query_kind or "recommendation", "fitted_on": row.fitted_on} | row.metrics
        for row in stage_evaluate(run, split).rows
    ]
    return pl.DataFrame(rows, infer_schema_length=None)


def _show_progress() -> None:
    """Log lines of the stages appear in a notebook or script that has not set up logging itself."""
    logger = logging.getLogger("genrec")
    if not logger.hasHandlers():
        logger.addHandler(log_handler())
        logger.setLevel(logging.INFO)
        logging.getLogger("lightning").setLevel(logging.WARNING)


def _as_path(table: Any, folder: Path, name: str) -> Path:
    """The path of a table; one in memory is written to the folder."""
    if isinstance(table, str | Path):
        return _existing(Path(table), name)
    path = folder / f"{name}.parquet"
    _frame(table, name).sink_parquet(path, maintain_order=True)
    return path


def _existing(path: Path, name: str) -> Path:
    if not path.exists():
        raise UserError(f"{name}: {path} does not exist")
    return path.resolve()


def _frame(table: Any, name: str) -> pl.LazyFrame:
    """A lazy frame of a Polars or pandas frame or an Arrow table."""
    if isinstance(table, pl.LazyFrame):
        return table
    if isinstance(table, pl.DataFrame):
        return table.lazy()
    made: pl.DataFrame | pl.Series
    try:
        if hasattr(table, "iloc"):
            made = pl.from_pandas(table, include_index=any(level is not None for level in table.index.names))
        else:
            made = pl.from_arrow(table)
    except (ImportError, TypeError, ValueError, pl.exceptions.PolarsError) as error:
        if hasattr(table, "iloc"):
            reason = str(error).splitlines()[0][:200]
            raise UserError(
                f"{name}: a column mixes types ({reason}); convert it, as frame['user'].astype(str)"
            ) from error
        raise UserError(
            f"{name}: a {type(table).__name__} is no table; give a Polars or pandas frame, an Arrow table or a path"
        ) from error
    if not isinstance(made, pl.DataFrame):
        raise UserError(f"{name}: a {type(table).__name__} is one column, not a table")
    return made.lazy()


def _dotted(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key: from nested mappings, from ``section__key`` and from dotted keys themselves."""
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        key = prefix + name.replace("__", ".")
        flat |= _dotted(value, f"{key}.") if isinstance(value, Mapping) else {key: value}
    return flat
