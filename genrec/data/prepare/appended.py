"""The logs of a config: ``data.path``, and behind it the logs of ``data.append``, such as the days that came since.

An appended log is in the format of the first, or what ``genrec export-events`` wrote of a server's store.
"""

from __future__ import annotations

from pathlib import Path

from genrec.artifacts.folders import MANIFEST, read_json
from genrec.config.load import to_dict
from genrec.config.schema import DataConfig
from genrec.data.readers import log_files, log_sources
from genrec.data.readers.toolkit import LogSource

TABLES = ("events", "items", "users", "impressions")  # options of the reader ``table`` that name files
SERVED_LOG = "exported_events"  # the kind of a folder that ``genrec export-events`` wrote
SERVED_OPTIONS = {"events": "events.parquet", "impressions": "impressions.parquet"}


def all_log_files(data: DataConfig) -> list[Path]:
    """Every file of the log and of what is appended to it, in order."""
    return [file for reader, path, options in _logs(data) for file in log_files(reader, path, options)]


def all_log_sources(data: DataConfig, columns: list[str] | None = None) -> list[LogSource]:
    """The sections of the log and of what is appended to it, in order."""
    return [source for one in _logs(data) for source in log_sources(*one, columns)]


def is_served_log(path: Path) -> bool:
    """Whether a folder holds the events and impressions of a server's store."""
    return (path / MANIFEST).is_file() and read_json(path / MANIFEST).get("kind") == SERVED_LOG


def _logs(data: DataConfig) -> list[tuple[str, str | None, dict]]:
    """Reader, path and options of each log."""
    options = to_dict(data)["options"]
    appended = [(*_reading(data.reader, Path(path), options), path) for path in data.append]
    return [(data.reader, data.path, options), *((reader, path, own) for reader, own, path in appended)]


def _reading(reader: str, path: Path, options: dict) -> tuple[str, dict]:
    """Reader and options for an appended log: file names of the first count where the appended folder has such."""
    if is_served_log(path):
        return "table", SERVED_OPTIONS
    if reader != "table":
        return reader, options
    return reader, {
        name: value
        for name, value in options.items()
        if name not in TABLES or (path.is_dir() and list(path.glob(str(value))))
    }
