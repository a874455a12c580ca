"""Layouts of logs with invented rows, and what a person reads in them: shared by the tests of readers and guesses."""

from __future__ import annotations

import io
import json
import zipfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl

from genrec.data.readers import read_log
from genrec.data.readers.guess import guess_log
from genrec.data.schema import RawLog, join_parts

T = 1_714_566_600  # 2024-05-01 12:30:00 UTC
DAY = 86_400
Event = tuple[str, str, int]


@dataclass
class Layout:
    """Files by name, the options that read them, and the events (user, item, time) that they hold; None: not checked.

    ``path`` is the file under the folder, where a folder is not what a user would give. ``guess`` is false where a
    person has to decide. ``bad_rows`` go to quarantine.
    """

    files: dict[str, str | bytes | Callable[[Path], None]]
    events: list[Event]
    options: dict[str, Any] = field(default_factory=dict)
    titles: dict[str, str] = field(default_factory=dict)
    categories: dict[str, list[str]] = field(default_factory=dict)
    prices: dict[str, float] = field(default_factory=dict)
    actions: list[str] | None = None
    chain: tuple[str, ...] | None = None
    queries: list[str | None] | None = None
    path: str = ""
    guess: bool = True
    bad_rows: int = 0


def lines(*rows: str, end: str = "\n") -> str:
    return "".join(row + end for row in rows)


def json_lines(*rows: dict) -> str:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def zipped(files: dict[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def parquet(table: pl.DataFrame) -> Callable[[Path], None]:
    return lambda path: table.write_parquet(path)


def write(layout: Layout, folder: Path) -> Path:
    """The files of a layout in a folder; the path that a user would give."""
    for name, content in layout.files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        else:
            path.write_bytes(content.encode() if isinstance(content, str) else content)
    if layout.path:
        return folder / layout.path
    return folder / next(iter(layout.files)) if len(layout.files) == 1 else folder


def check(log: RawLog, layout: Layout) -> None:
    """What was read is what a person reads."""
    rows = log.events.select("user_id", "item_id", "timestamp").rows()
    assert sorted(rows) == sorted(layout.events)
    items = {row["item_id"]: row for row in log.items.iter_rows(named=True)}
    for name, expected in (("title", layout.titles), ("category", layout.categories), ("price", layout.prices)):
        assert {item: items[item][name] for item in expected} == expected, name
    for name, column in (("action", layout.actions), ("query", layout.queries)):
        assert column is None or log.events[name].to_list() == column
    assert layout.chain is None or log.chain == layout.chain
    assert log.quarantine.height == layout.bad_rows


def guessed(path: Path) -> RawLog:
    """The log that ``genrec init`` and ``genrec run`` read at a path."""
    guess = guess_log(path)
    return join_parts(read_log(guess.reader, guess.path, guess.options))
