"""Readers: from the files of a log, in their original layout, to the tables of the data contract.

``rows_read`` of the returned log counts the data rows of all its files (headers and blank lines are no rows), so
``events + items + users + quarantine == rows_read`` unless an option (such as ``min_rating``) left rows out.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from genrec.data.readers.amazon2014 import read_amazon_2014
from genrec.data.readers.amazon2018 import read_amazon_2018
from genrec.data.readers.amazon2023 import read_amazon_2023
from genrec.data.readers.common import did_you_mean
from genrec.data.readers.esci import read_esci
from genrec.data.readers.jdsearch import read_jdsearch
from genrec.data.readers.kuairand import read_kuairand
from genrec.data.readers.kuaisar import read_kuaisar
from genrec.data.readers.kuaisearch import read_kuaisearch
from genrec.data.readers.movielens import read_movielens
from genrec.data.readers.product_search import read_product_search
from genrec.data.readers.qilin import read_qilin
from genrec.data.readers.simulator import read_simulator
from genrec.data.readers.table import is_glob, read_table
from genrec.data.readers.trivago import read_trivago
from genrec.data.schema import RawLog
from genrec.errors import UserError

READERS: dict[str, Callable[[Path, dict], RawLog]] = {
    "amazon-2014": read_amazon_2014,
    "amazon-2018": read_amazon_2018,
    "amazon-2023": read_amazon_2023,
    "esci": read_esci,
    "jdsearch": read_jdsearch,
    "kuairand": read_kuairand,
    "kuaisar": read_kuaisar,
    "kuaisearch": read_kuaisearch,
    "movielens": read_movielens,
    "product-search": read_product_search,
    "qilin": read_qilin,
    "table": read_table,
    "trivago": read_trivago,
    "simulator": read_simulator,
}
PATHLESS_READERS = ("simulator",)


def read_log(reader: str, path: str | Path | None, options: dict | None = None) -> RawLog:
    """Read a log with the named reader.

    ``path`` is a folder (``table``: also a file or a pattern) and ``options`` are the reader's own. Raises ``UserError`` for
    an unknown reader or option and for a path that does not exist.
    """
    if reader not in READERS:
        raise UserError(f"unknown reader {reader!r}; {did_you_mean(reader, list(READERS))}")
    options = dict(options or {})
    if reader in PATHLESS_READERS:
        return READERS[reader](Path(), options)
    if not path:
        raise UserError(f"reader {reader!r} needs a path to its data; none was given")
    place = Path(path)
    if not place.exists() and not (reader == "table" and is_glob(str(path))):
        raise UserError(f"{path}: no such file or folder for reader {reader!r}; check the path")
    return READERS[reader](place, options)
