"""Readers: from the files of a log, in their original layout, to the tables of the data contract, part by part.

``rows_read`` of the parts counts the data rows of all files (headers and blank lines are no rows), so
``events + items + users + quarantine + filtered == rows_read`` for a format whose rows go to one table each.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from genrec.data.readers.amazon2014 import amazon_2014_sources
from genrec.data.readers.amazon2018 import amazon_2018_files, amazon_2018_sources
from genrec.data.readers.amazon2023 import amazon_2023_files, amazon_2023_sources
from genrec.data.readers.esci import read_esci
from genrec.data.readers.jdsearch import read_jdsearch
from genrec.data.readers.kuairand import kuairand_sources
from genrec.data.readers.kuaisar import kuaisar_sources
from genrec.data.readers.kuaisearch import read_kuaisearch
from genrec.data.readers.movielens import read_movielens
from genrec.data.readers.product_search import read_product_search
from genrec.data.readers.qilin import read_qilin
from genrec.data.readers.simulator import read_simulator
from genrec.data.readers.table import table_sources
from genrec.data.readers.toolkit import LogSource, did_you_mean, files_at, is_glob, parts_of
from genrec.data.readers.trivago import trivago_sources
from genrec.data.schema import RawLog
from genrec.errors import UserError

READERS: dict[str, Callable[[Path, dict], Iterator[RawLog]]] = {
    "esci": read_esci,
    "jdsearch": read_jdsearch,
    "kuaisearch": read_kuaisearch,
    "movielens": read_movielens,
    "product-search": read_product_search,
    "qilin": read_qilin,
    "simulator": read_simulator,
}
"""Readers of logs that are one section; a reader of your own is one more entry."""
PATHLESS_READERS = ("simulator",)
BY_FILE: dict[str, Callable[[Path, dict, list[str] | None], list[LogSource]]] = {
    "amazon-2014": amazon_2014_sources,
    "amazon-2018": amazon_2018_sources,
    "amazon-2023": amazon_2023_sources,
    "kuairand": kuairand_sources,
    "kuaisar": kuaisar_sources,
    "table": table_sources,
    "trivago": trivago_sources,
}
"""Readers whose event files can be read one by one, so that new files are appended without reading the old ones."""

FILES_READ: dict[str, Callable[[Path], list[Path]]] = {
    "amazon-2018": amazon_2018_files,
    "amazon-2023": amazon_2023_files,
}
"""Readers that also read files next to the path they are given."""


def read_log(reader: str, path: str | Path | None, options: dict | None = None) -> Iterator[RawLog]:
    """Read a log with the named reader, part by part (``schema.join_parts`` makes one log of them).

    ``path`` is a folder, a file or a pattern, as the reader takes it, and ``options`` are the reader's own. Raises
    ``UserError`` for an unknown reader and for a path that does not exist at once, for an unknown option or a broken
    file while it is read.
    """
    check_path(reader, path)
    return parts_of(log_sources(reader, path, options))


def log_sources(
    reader: str, path: str | Path | None, options: dict | None = None, columns: list[str] | None = None
) -> list[LogSource]:
    """The sections of a log in order: one for each event file where the reader can read files one by one, else one.

    ``columns`` names the event columns the caller will use (None: all); a reader may leave out the others.
    """
    checked, options = check_path(reader, path), dict(options or {})
    if reader in BY_FILE:
        return BY_FILE[reader](checked, options, columns)
    return [LogSource(log_files(reader, path, options), partial(READERS[reader], checked, options))]


def log_files(reader: str, path: str | Path | None, options: dict | None = None) -> list[Path]:
    """Every file that a log is read from: a change in any of them may change the log."""
    if reader in PATHLESS_READERS or not path:
        return []
    checked = check_path(reader, path)
    if reader == "table":  # its options may name any file
        return [file for source in table_sources(checked, dict(options or {}), None) for file in source.files]
    if reader in FILES_READ:
        return FILES_READ[reader](checked)
    if checked.is_dir():
        return sorted(file for file in checked.rglob("*") if file.is_file())
    return files_at(checked)


def check_path(reader: str, path: str | Path | None) -> Path:
    """The path for a reader; ``UserError`` for an unknown reader, and where nothing is there."""
    names = [*READERS, *BY_FILE]
    if reader not in names:
        raise UserError(f"unknown reader {reader!r}; {did_you_mean(reader, names)}")
    if reader in PATHLESS_READERS:
        return Path()
    if not path:
        raise UserError(f"reader {reader!r} needs a path to its data; none was given")
    if not Path(path).exists() and not is_glob(path):
        raise UserError(f"{path}: no such file or folder for reader {reader!r}; check the path")
    return Path(path)
