"""The parsed log on disk: every part that a reader yields, with ids as numbers.

Nothing is parsed twice, and memory stays flat. There is one folder per source of the log (``readers.log_sources``),
written whole or not at all. A source's key covers its files, the reader's options and every source before it, because
ids are numbered by first appearance: as long as the sources before it are the same, a parsed source stays valid. New
files behind the old ones are therefore appended without reading the old ones; a changed or removed file is read again
together with all that follow it.

Memory is bounded by one part of the reader and by the distinct ids (users, items, queries), whatever the number of
events.
"""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from genrec.artifacts.folders import fingerprint, read_json, write_json
from genrec.config.load import to_dict
from genrec.config.schema import Config
from genrec.data.ids import IdMap
from genrec.data.prepare.appended import all_log_sources
from genrec.data.prepare.checksums import ChecksumIndex
from genrec.data.prepare.threads import THREADS, ahead
from genrec.data.readers.toolkit import LogSource
from genrec.data.schema import RawLog, stack

log = logging.getLogger(__name__)
PARSE_VERSION = 3  # raised when the same files would be parsed into something else
NOTE = "source.json"
IDS = ("user", "item", "query", "action", "surface")
TABLES = ("items", "users", "judgments", "quarantine")  # kept as they are
GIVEN_SPLITS = {"train": 0, "valid": 1, "validation": 1, "dev": 1, "test": 2}
PROGRESS_ROWS = 10_000_000


@dataclass
class ParsedLog:
    """The parsed sources, in the order of the log; the tables beside the events come last."""

    folders: list[Path]
    notes: list[dict]

    def total(self, name: str) -> int:
        """Rows of a kind (``events``, ``impressions``, ``rows_read``, ``quarantine`` ...) over all sources."""
        return sum(note["rows"].get(name, 0) for note in self.notes)

    @property
    def filtered(self) -> dict[str, int]:
        """Rows that readers left out, by rule."""
        rules = dict.fromkeys(rule for note in self.notes for rule in note["filtered"])
        return {rule: sum(note["filtered"].get(rule, 0) for note in self.notes) for rule in rules}

    @property
    def chain(self) -> list[str]:
        """The feedback chain of the log, from shallow to deep; empty where the format has none."""
        return next((note["chain"] for note in self.notes if note["chain"]), [])

    @property
    def columns(self) -> set[str]:
        """The columns that the parsed events have in some source."""
        return {name for note in self.notes for name in note["columns"]}

    @property
    def first_bad(self) -> dict | None:
        """The first quarantined row."""
        return next((note["first_bad"] for note in self.notes if note["first_bad"]), None)

    @property
    def event_keys(self) -> list[str]:
        """One key per event source: a log that only got new files has the old one's keys and more behind them."""
        return [note["key"] for note in self.notes if note["chained"]]

    def files(self, kind: str) -> list[Path]:
        """The Parquet files of a kind (``impressions``, ``items`` ...), in the order of the log."""
        return [file for folder in self.folders for file in sorted(folder.glob(f"{kind}-*.parquet"))]

    def table(self, kind: str) -> pl.DataFrame | None:
        """All rows of a kind in memory, None without any: for tables that are small against the events."""
        files = self.files(kind)
        return stack([pl.read_parquet(file) for file in files]) if files else None

    def names(self, kind: str) -> pl.Series:
        """The strings behind the codes of one of ``IDS``: string number c has code c."""
        parts = [pl.read_parquet(folder / f"ids-{kind}.parquet")["name"] for folder in self.folders]
        return pl.concat([pl.Series("name", [], pl.String), *parts])

    def events(self, columns: list[str]) -> Iterator[tuple[int, pl.DataFrame]]:
        """The events part by part: the position of the first one in the log, and the requested columns."""
        start = 0
        for folder in self.folders:
            for file in sorted(folder.glob("events-*.arrow")):
                part = pl.read_ipc(file, columns=[name for name in columns if name in pl.read_ipc_schema(file)])
                yield start, part
                start += part.height


# What preparing makes use of.
EVENT_COLUMNS = ["user_id", "item_id", "timestamp", "action", "query", "surface", "split"]


def parse_log(config: Config, folder: Path, checksums: ChecksumIndex) -> ParsedLog:
    """Bring ``folder`` up to date with the configured log: known sources are kept, new and changed ones are parsed."""
    key = fingerprint(PARSE_VERSION, pl.__version__, config.data.reader, to_dict(config.data)["options"])
    folder.mkdir(parents=True, exist_ok=True)
    sources = all_log_sources(config.data, EVENT_COLUMNS)
    parsed, reader = ParsedLog([], []), None
    chained = [source for source in sources if source.events]
    for number, source in enumerate(chained):
        key = fingerprint(key, _stamp(source, checksums))
        target = folder / f"{number:06d}"
        if not _is_good(target, key):
            if reader is None:
                _forget(folder, number, source)
                reader = _Parser(parsed)
            reader.parse(source, target, key)
        _add(parsed, target)
    surplus = _forget(folder, len(chained), None) if reader is None else 0
    log.info(
        "prepare: %d events in %d sources are parsed%s",
        parsed.total("events"),
        len(chained),
        f", {surplus} are gone" if surplus else "",
    )
    # Tables that come with the events share no ids with them: each is read by itself.
    options = to_dict(config.data)["options"]
    for number, source in enumerate(source for source in sources if not source.events):
        target = folder / (f"tables-{number}" if number else "tables")
        key = fingerprint(PARSE_VERSION, config.data.reader, options, _stamp(source, checksums))
        if not _is_good(target, key):
            _Parser(ParsedLog([], [])).parse(source, target, key, chained=False)
        _add(parsed, target)
    return parsed


def _stamp(source: LogSource, checksums: ChecksumIndex) -> list:
    return [checksums.fingerprint(file) for file in source.files]


def _is_good(target: Path, key: str) -> bool:
    return (target / NOTE).is_file() and read_json(target / NOTE)["key"] == key


def _add(parsed: ParsedLog, target: Path) -> None:
    parsed.folders.append(target)
    parsed.notes.append(read_json(target / NOTE))


def _forget(folder: Path, first: int, source: LogSource | None) -> int:
    """Drop parsed sources from number ``first`` on, and say so: the log is not the old one with new files behind it."""
    stale = [target for target in sorted(folder.glob("[0-9]" * 6)) if int(target.name) >= first]
    if stale and (stale[0] / NOTE).is_file():
        was = ", ".join(read_json(stale[0] / NOTE)["files"]) or "the log"
        now = ", ".join(file.name for file in source.files) if source else "nothing"
        log.warning(
            "prepare: where %s was parsed there is now %s, or it changed: this and all that follows is read again",
            was,
            now,
        )
    for target in [*stale, *folder.glob("*.partial")]:
        shutil.rmtree(target)
    return len(stale)


class _Parser:
    """Parses sources one after another, with the id maps of all before them."""

    def __init__(self, parsed: ParsedLog):
        self.maps = {kind: IdMap(parsed.names(kind)) for kind in IDS}
        self.rows, self.said = parsed.total("events"), parsed.total("events")
        self.pool = ThreadPoolExecutor(THREADS)  # two id columns are looked up at the same time

    def parse(self, source: LogSource, target: Path, key: str, chained: bool = True) -> None:
        """Write one source; the folder appears under its name when it is whole."""
        work = target.with_name(f"{target.name}.{os.getpid()}.partial")
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir()
        fresh: dict[str, list[pl.Series]] = {kind: [] for kind in IDS}
        note = {
            "key": key,
            "chained": chained,
            "files": [file.name for file in source.files],
            "columns": [],
            "filtered": {},
            "chain": [],
            "first_bad": None,
            "rows": {"rows_read": 0},
        }
        try:
            for number, part in enumerate(ahead(source.parts())):
                self._write(part, number, work, note, fresh)
            for kind, names in fresh.items():
                joined = pl.concat([pl.Series("name", [], pl.String), *(series.alias("name") for series in names)])
                joined.to_frame().write_parquet(work / f"ids-{kind}.parquet", compression="lz4")
            write_json(work / NOTE, note)
            shutil.rmtree(target, ignore_errors=True)
            work.rename(target)
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _write(self, part: RawLog, number: int, work: Path, note: dict, fresh: dict[str, list[pl.Series]]) -> None:
        rows = note["rows"]
        rows["rows_read"] += part.rows_read
        note["chain"] = list(part.chain) or note["chain"]
        for rule, count in part.filtered.items():
            note["filtered"][rule] = note["filtered"].get(rule, 0) + count
        if note["first_bad"] is None and part.quarantine.height:
            note["first_bad"] = part.quarantine.row(0, named=True)
        tables = {name: getattr(part, name) for name in TABLES}
        if part.events.height:
            events = self._coded_events(part.events, fresh)
            # Not packed: numbers are read again several times, and packing them took longer than parsing.
            events.write_ipc(work / f"events-{number:06d}.arrow", compression="uncompressed")
            note["columns"] = sorted({*note["columns"], *events.columns})
            rows["events"] = rows.get("events", 0) + events.height
        if part.impressions is not None:
            tables["impressions"] = self._coded(part.impressions, {"user_id": "user", "item_id": "item"}, fresh)
        for name, table in tables.items():
            if table is None or not table.height:
                continue
            table.write_parquet(work / f"{name}-{number:06d}.parquet", compression="lz4")
            rows[name] = rows.get(name, 0) + table.height
        self.rows += part.events.height
        if self.rows - self.said >= PROGRESS_ROWS:
            self.said = self.rows
            log.info("prepare: read %d events", self.rows)

    def _coded_events(self, events: pl.DataFrame, fresh: dict[str, list[pl.Series]]) -> pl.DataFrame:
        """Codes in place of strings. A query of spaces is none; an event without an action is called ``event``."""
        query = pl.col("query").str.strip_chars()
        extra = {"split": pl.col("split").cast(pl.String).str.to_lowercase()} if "split" in events.columns else {}
        table = events.select(
            "user_id",
            "item_id",
            "timestamp",
            "surface",
            query=pl.when(query != "").then(query),
            action=pl.col("action").fill_null("event"),
            **extra,
        )
        kinds = {"user_id": "user", "item_id": "item", "action": "action"}
        optional = [name for name in ("query", "surface") if table[name].null_count() < table.height]
        kinds |= {name: name for name in optional}
        coded = (
            self._coded(table, kinds, fresh).rename({"timestamp": "time"}).with_columns(pl.col("action").cast(pl.Int16))
        )
        columns = ["user", "item", "time", "action", *optional]
        if extra:
            coded = coded.with_columns(
                given=pl.col("split").replace_strict(GIVEN_SPLITS, default=-1, return_dtype=pl.Int8).fill_null(-1)
            )
            columns.append("given")
        return coded.select(columns)

    def _coded(self, table: pl.DataFrame, kinds: dict[str, str], fresh: dict[str, list[pl.Series]]) -> pl.DataFrame:
        done = self.pool.map(lambda kind: self.maps[kind[1]].encode(table[kind[0]]), kinds.items())
        columns = {}
        for (_, kind), (codes, new) in zip(kinds.items(), done, strict=True):
            fresh[kind].append(new)
            columns[kind] = pl.Series(kind, codes)
        rest = table.drop(name for name in kinds if name not in columns)
        return rest.with_columns(columns.values())
