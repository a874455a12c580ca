"""The logs of a config: ``data.path``, and behind it the logs of ``data.append``, such as the days that came since."""

from __future__ import annotations

from pathlib import Path

from genrec.config.load import to_dict
from genrec.config.schema import DataConfig
from genrec.data.readers import log_files, log_sources
from genrec.data.readers.toolkit import LogSource

TABLES = ("events", "items", "users")  # options of the reader ``table`` that name files beside each other


def all_log_files(data: DataConfig) -> list[Path]:
    """Every file of the log and of what is appended to it, in order."""
    return [file for path, options in _logs(data) for file in log_files(data.reader, path, options)]


def all_log_sources(data: DataConfig, columns: list[str] | None = None) -> list[LogSource]:
    """The sections of the log and of what is appended to it, in order."""
    return [source for path, options in _logs(data) for source in log_sources(data.reader, path, options, columns)]


def _logs(data: DataConfig) -> list[tuple[str | None, dict]]:
    options = to_dict(data)["options"]
    return [(data.path, options), *((path, _options_for(data.reader, Path(path), options)) for path in data.append)]


def _options_for(reader: str, path: Path, options: dict) -> dict:
    """The options for an appended log: file names of the first log count where the appended folder has such files."""
    if reader != "table":
        return options
    return {
        name: value
        for name, value in options.items()
        if name not in TABLES or (path.is_dir() and list(path.glob(str(value))))
    }
