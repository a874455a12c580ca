"""Whole numbers for strings, batch after batch: the dictionary behind every dense id."""

from __future__ import annotations

import numpy as np
import polars as pl

from genrec.errors import UserError


class IdMap:
    """Codes 0, 1, 2 ... for strings in order of first appearance; memory grows with the distinct strings."""

    def __init__(self, known: pl.Series | None = None):
        """``known`` are distinct strings that get the first codes, in their order."""
        self._type = pl.Categorical(pl.Categories.random())
        # The engine forgets its numbers when no series uses them.
        self._anchor = pl.Series([""], dtype=pl.String).cast(self._type)
        self._codes = np.zeros(0, np.int32)  # what the engine calls a string -> our code
        self._size = 0
        if known is not None:
            self.encode(known)

    def __len__(self) -> int:
        return self._size

    def encode(self, values: pl.Series) -> tuple[np.ndarray, pl.Series]:
        """The codes of ``values`` (n,) as (n,) int32, -1 for null, and the new strings in order of their codes."""
        values = values.cast(pl.String)
        physical = values.cast(self._type).to_physical()
        # Nothing promises that the engine numbers strings as it meets them: its numbers are looked up in ours.
        largest = physical.max()
        if not isinstance(largest, int):
            return np.full(len(values), -1, np.int32), values.clear()
        if largest >= len(self._codes):
            self._codes = np.concatenate([self._codes, np.full(largest + 1 - len(self._codes), -1, np.int32)])
        known = physical.is_not_null().to_numpy() if physical.null_count() else None
        raw = (physical if known is None else physical.fill_null(0)).to_numpy()
        codes = self._codes[raw]
        if known is None and codes.min() >= 0:
            return codes, values.clear()
        if known is not None:
            codes[~known] = -1
        rows = np.flatnonzero(codes < 0 if known is None else (codes < 0) & known)
        if not len(rows):
            return codes, values.clear()
        new, first = np.unique(raw[rows], return_index=True)
        order = np.argsort(first)
        self._codes[new[order]] = np.arange(self._size, self._size + len(new), dtype=np.int32)
        self._size += len(new)
        codes[rows] = self._codes[raw[rows]]
        return codes, values.gather(rows[first[order]])


def first_order(codes: np.ndarray, order: np.ndarray) -> int:
    """Number the codes of a batch that have no number yet, by first appearance; returns how many are numbered.

    ``codes`` (n,) may hold -1, which is passed over; ``order`` (n_codes,) holds the numbers so far (-1 = none) and is
    filled in place.
    """
    known = int(order.max(initial=-1)) + 1
    fresh = codes[codes >= 0]
    fresh = fresh[order[fresh] < 0]
    new, first = np.unique(fresh, return_index=True)
    order[new[np.argsort(first)]] = np.arange(known, known + len(new))
    return known + len(new)


_NULL_WORDS = r"NULL null Null NA N/A n/a #N/A NaN nan None none \N (null) (none) undefined <null> <NA>"
NULL_WORDS = (*_NULL_WORDS.split(), "(not set)")
"""Texts that stand for a missing id in exports of databases, spreadsheets and analytics tools."""
LARGEST_EXACT = 1 << 53  # whole numbers above it are not exact as 64-bit floats


def id_text(column: pl.Series, source: str) -> pl.Series:
    """Ids as the text a person would write: no outer spaces, whole numbers without ".0", null for NaN and infinite.

    Raises ``UserError`` where digits are lost already: floats above 2^53, and numbers that a spreadsheet wrote as
    "1.23E+12".
    """
    name, dtype = column.name, column.dtype
    if dtype.is_float():
        if (column.is_finite() & (column.abs() > LARGEST_EXACT)).any():
            value = column.filter(column.is_finite() & (column.abs() > LARGEST_EXACT))[0]
            raise UserError(
                f"{source}: {name} holds floats above 2^53 such as {value:.0f}, whose last digits are lost; "
                "export ids as text"
            )
        real = pl.when(pl.col(name).is_finite()).then(pl.col(name))
        whole = real.cast(pl.Int64, strict=False)
        written = pl.when(whole == real).then(whole.cast(pl.String)).otherwise(real.cast(pl.String))
        return column.to_frame().select(written.alias(name))[name]
    text = (_decoded(column) if dtype == pl.Binary else column.cast(pl.String, strict=False)).str.strip_chars()
    if dtype.is_integer():
        return text
    if text.str.contains(r".0", literal=True).any():
        text = text.str.replace(r"^(-?\d+)\.0+$", "$1")
    if text.str.contains("E+", literal=True).any() or text.str.contains("e+", literal=True).any():
        lost = text.filter(text.str.contains(r"^\d(?:[.,]\d+)?[eE]\+\d+$"))
        if len(lost):
            raise UserError(f"{source}: {name} holds {lost[0]!r}, whose last digits are lost; export ids as text")
    return text


def plain_id(value: str) -> str:
    """One id as ``id_text`` writes it; ``UserError`` for one that stands for none, as ``undefined`` and ``null``."""
    text = id_text(pl.Series("id", [value]), "id")[0] if "." in value or "+" in value else value.strip()
    if not text or text in NULL_WORDS:
        raise UserError(f"{value!r} stands for no id")
    return text


def _decoded(column: pl.Series) -> pl.Series:
    """Bytes as text; null where they are not UTF-8."""
    try:
        return column.cast(pl.String)
    except pl.exceptions.PolarsError:
        texts = [None if value is None else value.decode(errors="surrogateescape") for value in column]
        return pl.Series(
            column.name, [text if text and text.isprintable() else None for text in texts], dtype=pl.String
        )
