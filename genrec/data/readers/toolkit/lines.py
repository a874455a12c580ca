"""Text files line by line: plain or compressed, in batches of bounded size, undecodable lines in quarantine."""

from __future__ import annotations

import bz2
import codecs
import gzip
import lzma
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO, BinaryIO

import polars as pl
import zstandard

from genrec.data.readers.toolkit.batches import LINE, Batch, blank, quarantine
from genrec.data.schema import QUARANTINE_SCHEMA, RawLog, empty
from genrec.errors import UserError

RAW = "__raw__"  # the text of a line
WRONG_ENCODING = "bytes that are not valid {encoding}"
BATCH_BYTES = 64 << 20
_MARK = "\ufeff"
_NOTES = ("license", "readme", "license.txt", "readme.txt", ".md", ".pdf", ".html")  # beside the data in an archive


def read_lines(path: Path, encoding: str = "utf-8") -> tuple[pl.DataFrame, pl.DataFrame]:
    """The non-blank lines of a text file (plain, ``.gz`` or ``.zst``), and the quarantine of lines in a wrong encoding.

    Returns ``(lines, quarantine)``; ``lines`` has the line number (``LINE``, from 1, blank lines counted) and its
    text (``RAW``). Line ends may be LF or CRLF; a byte order mark is removed. Raises ``UserError`` when the file
    cannot be opened or unpacked.
    """
    batches = list(line_batches(path, encoding, batch_bytes=-1))
    if not batches:
        return pl.DataFrame(schema={LINE: pl.Int64, RAW: pl.String}), empty(QUARANTINE_SCHEMA)
    return batches[0]


def line_batches(
    path: Path, encoding: str = "utf-8", quoted: bool = False, batch_bytes: int | None = None
) -> Iterator[tuple[pl.DataFrame, pl.DataFrame]]:
    """As ``read_lines``, but in batches of about ``batch_bytes`` (default ``BATCH_BYTES``), so that memory is bounded.

    Line numbers continue from batch to batch. With ``quoted`` a batch ends where the number of double quotes so far
    is even, so that a CSV record with a line break inside quotes is never cut (unless it is longer than a batch: then
    a stray quote is more likely). An empty file yields nothing.
    """
    size = BATCH_BYTES if batch_bytes is None else batch_bytes
    first, rest = 1, b""
    blocks = _blocks(path, size)
    if encoding.lower().startswith(("utf-16", "utf-32")):  # a line end is no single byte there
        blocks, encoding = _as_utf8(blocks, encoding, path), "utf-8"
    for block in blocks:
        block = rest + block
        cut = block.rfind(b"\n") + 1 if size > 0 else len(block)
        if quoted and cut and block.count(b'"', 0, cut) % 2 and len(rest) < size:
            cut = block.rfind(b"\n", 0, block.rfind(b'"', 0, cut)) + 1
        ready, rest = block[:cut], block[cut:]
        if ready:
            yield _numbered(ready.removesuffix(b"\n"), path, encoding, first)
            first += ready.count(b"\n")
    if rest:
        yield _numbered(rest, path, encoding, first)


def text_batches(file: Path) -> Iterator[Batch]:
    """Lines as they are, in batches: columns ``LINE`` and ``RAW``."""
    for lines, wrong in line_batches(file):
        yield Batch(lines, lines.height + wrong.height, file.name, [wrong])


def skipped_files(files: Sequence[Path], rule: str, header: bool = True) -> Iterator[RawLog]:
    """Parts without tables for files that are not read: their rows are counted under the rule's name."""
    for file in files:
        rows = sum(lines.height + wrong.height for lines, wrong in line_batches(file)) - header
        if rows > 0:
            yield RawLog(filtered={rule: rows}, rows_read=rows)


def open_stream(path: Path) -> BinaryIO:
    """The unpacked bytes of a file: plain, ``.gz``, ``.zst``, ``.bz2``, ``.xz`` or ``.zip`` with one file in it."""
    return _open_member(path) if path.suffix == ".zip" else _unpacked(path, path.suffix)


def _unpacked(file: Path | IO[bytes], suffix: str) -> BinaryIO:
    """The bytes behind one compression, of a file or of a stream."""
    if suffix == ".gz":
        return gzip.open(file, "rb")  # type: ignore[return-value]  # GzipFile is a binary stream without saying so
    if suffix == ".zst":
        return zstandard.open(file, "rb")  # type: ignore[arg-type]
    if suffix == ".bz2":
        return bz2.open(file, "rb")  # type: ignore[return-value]
    if suffix == ".xz":
        return lzma.open(file, "rb")  # type: ignore[return-value]
    return file.open("rb") if isinstance(file, Path) else file  # type: ignore[return-value]


def _open_member(path: Path) -> BinaryIO:
    """The one file of a zip archive."""
    archive = zipfile.ZipFile(path)
    names = [name for name in archive.namelist() if not name.endswith("/") and not Path(name).name.startswith(".")]
    names = [name for name in names if not name.startswith("__MACOSX") and not name.lower().endswith(_NOTES)]
    if len(names) != 1:
        raise UserError(f"{path}: holds {len(names)} files ({', '.join(names[:5])}); unpack it and give the folder")
    return _unpacked(archive.open(names[0]), Path(names[0]).suffix)


def _as_utf8(blocks: Iterator[bytes], encoding: str, path: Path) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for block in blocks:
            yield decoder.decode(block).encode()
        yield decoder.decode(b"", final=True).encode()
    except UnicodeError as error:
        raise UserError(f"{path}: {WRONG_ENCODING.format(encoding=encoding)} ({error})") from error


def _blocks(path: Path, size: int) -> Iterator[bytes]:
    try:
        with open_stream(path) as file:
            while block := file.read(size):
                yield block
    except (OSError, EOFError, zlib.error, lzma.LZMAError, zstandard.ZstdError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: cannot be read ({error}); it may be cut off, fetch or copy it again") from error


def _numbered(content: bytes, path: Path, encoding: str, first: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    raw = _decoded_lines(content, encoding)
    table = pl.DataFrame({LINE: pl.int_range(first, first + len(raw), eager=True, dtype=pl.Int64), RAW: raw})
    bad = quarantine(path.name, table.filter(pl.col(RAW).is_null()), WRONG_ENCODING.format(encoding=encoding))
    text = pl.col(RAW).str.strip_suffix("\r")
    text = pl.when(pl.col(LINE) == 1).then(text.str.strip_prefix(_MARK)).otherwise(text)
    good = table.filter(pl.col(RAW).is_not_null()).select(LINE, text.alias(RAW))
    return good.filter(~blank(RAW)), bad


def _decoded_lines(content: bytes, encoding: str) -> pl.Series:
    """The lines as text; null where a line is not in the encoding."""
    try:
        return pl.Series(RAW, content.decode(encoding).split("\n"), dtype=pl.String)
    except UnicodeDecodeError:
        # Only now is it worth decoding each line by itself.
        return pl.Series(RAW, [_decode_or_none(line, encoding) for line in content.split(b"\n")], dtype=pl.String)


def _decode_or_none(line: bytes, encoding: str) -> str | None:
    try:
        return line.decode(encoding)
    except UnicodeDecodeError:
        return None
