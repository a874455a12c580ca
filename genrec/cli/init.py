"""The verb ``genrec init``: look at a log, guess its columns, write a config that runs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import polars as pl
import typer
import yaml
from rich.table import Table

from genrec.console import console
from genrec.data.readers import log_sources
from genrec.data.readers.guess import Guess, guess_log
from genrec.data.schema import RawLog
from genrec.data.times import utc
from genrec.errors import UserError

ROWS_SHOWN = 3
TEXT_SHOWN = 36


def init(
    log: Annotated[
        Path, typer.Argument(metavar="LOG", help="A file or folder: CSV, JSON, Parquet, Excel, packed or not.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Where the config goes; default NAME.yaml.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace a config that is there.")] = False,
) -> None:
    """Look at a log, guess its columns, and write a config that runs."""
    if not log.exists():
        raise UserError(f"{log}: no such file or folder")
    target = output or Path(f"{_name(log)}.yaml")
    if target.exists() and not force:
        raise UserError(f"{target} is there already; give another --output, or --force to replace it")
    guess = guess_log(log)
    first = _first_part(guess)
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_text(config_text(guess, first, _name(log)), encoding="utf-8")
    _show(guess, first)
    console.print(f"\nconfig: {target}\nnext:   genrec run {target}", soft_wrap=True)


def config_text(guess: Guess, first: RawLog, name: str) -> str:
    """The YAML of a config for a guess: what was decided and what is unsure as comments, then the settings."""
    data: dict[str, Any] = {"reader": guess.reader, "path": str(guess.path.resolve())}
    if guess.options:
        data["options"] = guess.options
    settings: dict[str, Any] = {"name": name, "data": data}
    kinds = [
        kind
        for kind in ("category", "title")
        if first.items.height and first.items[kind].null_count() < first.items.height
    ]
    if kinds and first.events["query"].null_count() == first.events.height:
        settings["queries"] = {"synthetic": kinds}
    lines = ["# Written by genrec init. What it took the log for:"]
    lines += [f"#   {note}" for note in guess.notes]
    if guess.doubts:
        lines += ["# Unsure, look at these:", *(f"#   {doubt}" for doubt in guess.doubts)]
    if "queries" in settings:
        lines.append("# The log has no searches: queries are made from words of the items (always called synthetic).")
    return "\n".join(lines) + "\n" + yaml.safe_dump(settings, sort_keys=False, allow_unicode=True, width=110)


def _name(log: Path) -> str:
    stem = log.resolve().name.split(".")[0]
    return "".join(sign if sign.isalnum() or sign in "-_" else "-" for sign in stem).strip("-").lower() or "log"


def _first_part(guess: Guess) -> RawLog:
    """The first rows of every table of the log, read with the guessed options."""
    whole = RawLog()
    for source in log_sources(guess.reader, guess.path, guess.options):
        part = next(
            (part for part in source.parts() if part.events.height or part.items.height or part.users is not None), None
        )
        if part is None:
            continue
        if part.events.height and not whole.events.height:
            whole.events = part.events
        if part.items.height and not whole.items.height:
            whole.items = part.items
        whole.users = part.users if whole.users is None else whole.users
    if not whole.events.height:
        raise UserError(
            f"{guess.path}: no event could be read with the guessed columns {guess.options.get('columns', {})}"
        )
    return whole


def _show(guess: Guess, first: RawLog) -> None:
    events = first.events.head(ROWS_SHOWN)
    times = [utc(time) if time >= 100_000_000 else str(time) for time in events["timestamp"]]
    shown = events.select("user_id", "item_id", pl.Series("time", times, dtype=pl.String), "action", "query")
    _print_table("events", shown)
    if first.items.height:
        columns = first.items.head(ROWS_SHOWN).with_columns(pl.col("category").list.join(" > "))
        _print_table("items", columns.select("item_id", "title", "category", "brand", "price"))
        titled = first.items["title"].count() / first.items.height
        console.print(f"{titled:.0%} of the items have a title")
    for note in guess.notes:
        console.print(f"- {note}", highlight=False)
    for doubt in guess.doubts:
        console.print(f"? {doubt}", highlight=False, style="yellow")


def _print_table(title: str, rows: pl.DataFrame) -> None:
    table = Table(title=title, title_justify="left", box=None, pad_edge=False)
    filled = [name for name in rows.columns if rows[name].count() or name in ("user_id", "item_id", "title")]
    for name in filled:
        table.add_column(
            name, overflow="ellipsis", no_wrap=True, max_width=TEXT_SHOWN if name in ("title", "query") else 20
        )
    for row in rows.select(filled).iter_rows():
        table.add_row(*("" if value is None else str(value) for value in row))
    console.print(table)
