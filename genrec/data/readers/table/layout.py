"""The files of a table and how each is laid out: format, encoding, separator and header, by name and content."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import files_at, is_glob, plain_name
from genrec.data.readers.toolkit.delimited import SECTION
from genrec.data.readers.toolkit.files import COMPRESSED
from genrec.data.readers.toolkit.json_lines import parse_json
from genrec.data.readers.toolkit.lines import open_stream
from genrec.errors import UserError

ENDINGS = {
    ".parquet": "parquet", ".pq": "parquet", ".csv": "csv", ".tsv": "tsv", ".tab": "tsv", ".jsonl": "json",
    ".ndjson": "json", ".json": "json", ".xlsx": "excel", ".xls": "excel",
    ".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow",
}  # fmt: skip
PASSED_OVER = (".crc", ".md", ".pdf", ".sh", ".py", ".yaml", ".yml", ".html", ".log.bak", ".sql")
SEPARATORS = ("\t", ";", ",", "|", "::")
SCRIPTS = ("cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1251", "koi8_r", "cp1253", "cp1255", "cp1256")
BINARY = {
    b"SQLite format 3\x00": "a SQLite database; export each table: sqlite3 FILE -header -csv 'select * from TABLE'",
    b"Obj\x01": "an Avro file; write it as Parquet or JSON lines",
    b"ORC": "an ORC file; write it as Parquet",
    b"\x89HDF": "an HDF5 file; write its tables as Parquet",
    b"\x80\x04": "a pickle; write its frame with to_parquet",
    b"\xd0\xcf\x11\xe0": "an old Excel file (.xls); save it as .xlsx or CSV",
}
"""First bytes of files that are no table of text -> what they are and what to do."""
PLAIN_ROW = r"[\w.:-]+(?: [\w.:-]+)+ ?"
"""A line of ids between spaces, as benchmarks write a pair, or a user and all items."""
SAMPLE_BYTES = 1 << 20
SAMPLE_LINES = 200


@dataclass(frozen=True)
class Layout:
    """How one file is laid out.

    ``kind`` is parquet, arrow, excel, json, array, sequences (lines of a user and its items) or text; the other fields
    only count for text.
    """

    kind: str
    separator: str = ","
    quoted: bool = True
    encoding: str = "utf-8"
    skip: int = 0
    """Lines before the header: comments, or the title of a report."""
    sections: bool = False
    """Whether lines such as ``17:`` give the first field of the lines below them."""


def is_empty(file: Path) -> bool:
    """Whether a file holds nothing."""
    return file.stat().st_size < 1_000 and not _head(file).strip()


def table_files(path: Path) -> list[Path]:
    """The files of a table at a path (file, folder, or pattern), sorted by name; ``UserError`` when there are none."""
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.is_file() and not _hidden(file.relative_to(path)))
    elif path.exists() or is_glob(path):
        files = files_at(path)
    else:
        raise UserError(f"{path}: no such file or folder for reader 'table'; check the path")
    files = [file for file in files if path == file or not file.name.endswith(PASSED_OVER)]
    if not files:
        raise UserError(
            f"{path}: no table to read; the folder holds no file, or only files whose names start with '_' or '.'"
        )
    return files


def _hidden(relative: Path) -> bool:
    return any(part.startswith((".", "_")) for part in relative.parts)


def partition_values(file: Path) -> dict[str, str]:
    """The values that folders written as ``day=2024-05-01`` give to all rows of a file."""
    return dict(part.split("=", 1) for part in file.parent.parts if part.count("=") == 1 and not part.startswith("="))


def layout_of(file: Path, format: str | None = None, separator: str | None = None, quoted: bool | None = None,
              encoding: str | None = None) -> Layout:  # fmt: skip
    """How a file is laid out: what is stated, the rest by its name and first megabyte."""
    ending = ENDINGS.get(Path(plain_name(file)).suffix.lower())
    kind = {"jsonl": "json", "json": "json"}.get(format or "", format) or ending
    head = _head(file)
    if kind == "parquet" or (kind is None and head.startswith(b"PAR1")):
        if file.suffix in COMPRESSED:
            raise UserError(f"{file}: Parquet files are compressed inside; unpack it")
        return Layout("parquet")
    if kind == "arrow" or head.startswith(b"ARROW1"):
        return Layout("arrow")
    for start, words in BINARY.items():
        if head.startswith(start):
            raise UserError(f"{file}: is {words}")
    if kind == "excel":
        return Layout("excel")
    encoding = encoding or guess_encoding(head)
    text = head.decode(encoding, errors="replace").removeprefix("\ufeff")
    if kind not in ("csv", "tsv", "text") and (kind == "json" or text.lstrip()[:1] in ("{", "[")):
        first = text.lstrip()
        lines = first.splitlines()
        whole = first.startswith("[") or (
            first.startswith("{") and len(lines) > 1 and not isinstance(parse_json(lines[0]), dict)
        )
        if whole and first.startswith("{") and any(isinstance(parse_json(line), dict) for line in lines[:50]):
            whole = False  # lines of objects, the first of which is broken
        if len(lines) == 1 and isinstance(only := parse_json(first), dict):
            whole = document_rows(only) != [only]
        return Layout("array" if whole else "json", encoding=encoding)
    raw = text.splitlines()[:SAMPLE_LINES]
    if kind in (None, "text") and separator is None and _is_sequences(raw):
        return Layout("sequences", encoding=encoding)
    default = "\t" if kind == "tsv" else "," if kind == "csv" else None
    skip = lines_before_header(raw, separator, default)
    lines = [line for line in raw[skip:] if line.strip()]
    sections = bool(lines) and re.fullmatch(SECTION, lines[0]) is not None
    if sections:
        lines = [line for line in lines if not re.fullmatch(SECTION, line)]
    chosen = separator or guess_separator(lines, default)
    if quoted is None:
        quoted = chosen not in ("\t", "::") or (
            bool(lines) and all(len(name) > 1 and name[0] == name[-1] == '"' for name in lines[0].split("\t"))
        )
    return Layout("text", chosen, quoted, encoding, skip, sections)


def _is_sequences(lines: Sequence[str]) -> bool:
    """Whether lines hold a user and its items, a different number each, with spaces between them."""
    rows = [line for line in lines if line.strip()]
    numbers = {line.count(" ") for line in rows}
    return len(rows) > 1 and len(numbers) > 1 and all(re.fullmatch(PLAIN_ROW, line) for line in rows)


def lines_before_header(lines: Sequence[str], separator: str | None, default: str | None = None) -> int:
    """How many first lines are comments (``# ...``) or a report's title: lines without the separator of the others.

    ``default``: the separator that the file's name speaks of; where all lines have it, it is that.
    """
    body = [line for line in lines if line.strip() and not line.startswith("#")]
    if body and re.fullmatch(SECTION, body[0]):
        return 0
    named = default is not None and all(default in line for line in body[:20])
    sign = separator or (default if named else None) or guess_separator(body[len(body) // 2 :], None)
    for index, line in enumerate(lines[:20]):
        if line.lower().startswith("sep="):
            return index
        if sign in line or not line.strip():
            if line.startswith("#") and len(body) and line.count(sign) != body[-1].count(sign):
                continue
            if line.strip():
                rest = [other for other in lines[index + 1 :] if other.strip()]
                regular = len(rest) > 1 and all(sign in other for other in rest[:5])
                return index if regular and index else 0
    return 0


def _head(file: Path) -> bytes:
    try:
        with open_stream(file) as stream:
            return stream.read(SAMPLE_BYTES)
    except UserError:
        raise
    except Exception:  # a broken file: the reader that takes it names what is wrong
        return b""


def guess_encoding(head: bytes) -> str:
    """The encoding of a text file by its mark, else UTF-8, else Windows-1252 where nothing speaks for UTF-8."""
    for mark, name in ((b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"), (b"\xef\xbb\xbf", "utf-8")):
        if head.startswith(mark) and (name == "utf-8" or b"\x00" in head[:400]):
            return name
    if head[:400].count(b"\x00") > len(head[:400]) // 4:
        return "utf-16-le" if head[1:2] == b"\x00" else "utf-16-be"
    lines = head.split(b"\n")[: -1 if len(head) == SAMPLE_BYTES else None]
    odd = [index for index, line in enumerate(lines) if not _is_utf8(line)]
    if not odd or (len(odd) < 2 and odd[0] > 0 and len(lines) > 5):  # one bad line is damage, not an encoding
        return "utf-8"
    multibyte = any(not line.isascii() and _is_utf8(line) for line in lines)
    if multibyte:
        return "utf-8"
    if all(_in_words(lines[index]) for index in odd):
        return "cp1252" if _decodes(head, "cp1252") else "latin-1"
    return _script_encoding(b"\n".join(lines)) or "utf-8"


def _script_encoding(content: bytes) -> str | None:
    """The encoding of a text in another script, such as Chinese, Cyrillic or Greek, by how frequent its letters are."""
    import charset_normalizer

    best = charset_normalizer.from_bytes(content[: 1 << 16], cp_isolation=list(SCRIPTS)).best()
    if best is None or not _decodes(content, best.encoding):
        return None
    words = re.findall(r"[^\W\d_a-zA-Z]+", content.decode(best.encoding))
    damage = best.encoding.startswith(("cp12", "koi8")) and max(map(len, words), default=0) < 3
    return None if damage else best.encoding


def _in_words(line: bytes) -> bool:
    """Whether the bytes above ASCII stand next to letters, as accents do, or are a currency or degree sign."""
    pattern = rb"(?i)(?<=[a-z])[\xc0-\xff]{1,3}|[\xc0-\xff]{1,3}(?=[a-z])|[\x80\xa3\xa7\xb0]"
    accents = sum(map(len, re.findall(pattern, line)))
    return accents > 0 and accents == sum(byte > 0x7F for byte in line)


def _is_utf8(line: bytes) -> bool:
    return _decodes(line, "utf-8")


def _decodes(content: bytes, encoding: str) -> bool:
    try:
        content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return True


def guess_separator(lines: Sequence[str], default: str | None) -> str:
    """The separator whose number per line agrees best; ``default`` where it is in the first line."""
    if lines and lines[0].lower().startswith("sep=") and len(lines[0]) > 4:
        return lines[0][4:].strip("\r\n") or "\t"
    if not lines or (
        default
        and default in lines[0]
        and not any(lines[0].count(other) > lines[0].count(default) for other in SEPARATORS)
    ):
        return default or ","
    best, agreeing = default or ",", 0.0
    for separator in SEPARATORS:
        counts = Counter(_outside_quotes(line, separator) for line in lines[:50])
        counts.pop(0, None)
        if counts:
            number, lines_with = counts.most_common(1)[0]
            score = lines_with + min(number, 20) / 100
            if score > agreeing and lines_with >= 0.5 * min(len(lines), 50):
                best, agreeing = separator, score
    if not agreeing and default is None and all(re.fullmatch(PLAIN_ROW, line) for line in lines[:50]):
        return " "
    return best


def _outside_quotes(line: str, separator: str) -> int:
    parts = line.split('"')
    return sum(part.count(separator) for part in (parts[::2] if len(parts) % 2 else parts))


def looks_like_data(first: Sequence[str], rows: pl.DataFrame | None = None) -> bool:
    """Whether a first line is data: a date or long number, half of it numbers, or the shape of ``rows``."""
    values = [value.strip() for value in first if value and value.strip()]
    numbers = [value for value in values if re.fullmatch(r"-?\d+(?:[.,]\d+)?", value)]
    dated = any(re.match(r"\d{4}-\d\d-\d\d|\d{1,2}[./]\d{1,2}[./]\d{2,4}\b", value) for value in values)
    if values and (dated or len(numbers) >= max(1, 0.5 * len(values)) or any(len(value) >= 9 for value in numbers)):
        return True
    if rows is None or rows.height < 3 or any(_is_known(value) for value in values):
        return False
    for value, name in zip(first, rows.columns, strict=True):
        shapes = (
            rows[name]
            .slice(1)
            .drop_nulls()
            .head(50)
            .cast(pl.String)
            .str.replace_all(r"[A-Za-z]+", "a")
            .str.replace_all(r"\d+", "9")
        )
        if value and any(map(str.isdigit, value)) and len(shapes) > 1:
            own = re.sub(r"\d+", "9", re.sub(r"[A-Za-z]+", "a", value))
            if (shapes == own).sum() >= 0.8 * len(shapes):
                return True
    return False


def _is_known(name: str) -> bool:
    return name.lower() in ("user_id", "item_id", "timestamp", "title", "category", "user", "item", "time")


def document_rows(document: dict) -> list:
    """The rows of a JSON object: its one list of objects, or a list under each user's id, or the object itself."""
    lists = [value for value in document.values() if isinstance(value, list) and value]
    if len(document) > 1 and len(lists) == len(document):
        if all(isinstance(row, dict) for rows in lists for row in rows):
            return [{"user_id": user, **row} for user, rows in document.items() for row in rows]
        if not any(isinstance(row, dict | list) for rows in lists for row in rows):
            return [{"user_id": user, "item_id": rows} for user, rows in document.items()]
    records = [rows for rows in lists if isinstance(rows[0], dict)]
    return records[0] if len(records) == 1 else [document]
