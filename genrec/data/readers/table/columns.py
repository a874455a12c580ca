"""The columns of a file under the names of the data contract: renamed, unnested, joined."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from genrec.data.readers.toolkit import LINE, Batch
from genrec.data.readers.toolkit.options import nearest
from genrec.errors import UserError

_SELECTOR = re.compile(r"^(?P<list>[^\[]+)\[(?P<key>\w+)=(?P<value>[^\]]*)\]")
Name = str | list[str]


class Columns:
    """The columns that a table takes from a file; ``UserError`` for a required or mapped one that no row has."""

    def __init__(self, mapping: dict[str, Name], required: Sequence[str], option: str, file: Path, late: bool):
        """``late``: rows need not all have every field (JSON), so columns are checked at the end of the file."""
        self.names: dict[str, Name] = {ours: mapping.get(ours, ours) for ours in dict.fromkeys([*required, *mapping])}
        self.option, self.file, self.late = option, file, late
        self.met: dict[str, None] = {}
        self.found: set[str] = set()

    @property
    def sources(self) -> set[str] | None:
        """The columns of the file that are read; None where they cannot be told from the names."""
        flat = [name for names in self.names.values() for name in ([names] if isinstance(names, str) else names)]
        if any("*" in name for name in flat):
            return None
        return {*flat, *(re.split(r"[.\[]", name)[0] for name in flat)}

    def rename(self, batch: Batch) -> None:
        """Bring a batch to the contract's names; a column that it lacks is null, further columns stay behind."""
        self.met.update(dict.fromkeys(name for name in batch.table.columns if name != LINE))
        for names in self.names.values():
            for name in [names] if isinstance(names, str) else names:
                expose(batch, name)
        have = [name for name in batch.table.columns if name != LINE]
        taken: set[str] = {*self.names}
        selected = []
        for ours, names in self.names.items():
            sources = [
                source for name in ([names] if isinstance(names, str) else names) for source in _matches(name, have)
            ]
            if len(sources) >= (1 if isinstance(names, str) else len(names)):
                self.found.add(ours)
            taken |= {*sources}
            selected.append(_combined(ours, sources, any("*" in name for name in names)).alias(ours))
        if not self.late:
            self.check()
        batch.table = batch.table.select(LINE, *selected, *[name for name in have if name not in taken])

    def check(self) -> None:
        """Raise ``UserError`` for the first named column that no batch has had so far."""
        have = list(self.met)
        for ours, names in self.names.items():
            if ours in self.found:
                continue
            lacking = [name for name in ([names] if isinstance(names, str) else names) if name not in have]
            theirs = (lacking or [str(names)])[0]
            close = nearest(theirs, have) or nearest(ours, have)
            hint = f"nearest: {close!r}; " if close else ""
            raise UserError(
                f"{self.file}: no column {theirs!r} for {ours}; {hint}the file has: {', '.join(have)[:400]}; "
                f"set {self.option}.{ours}"
            )


def _matches(name: str, have: Sequence[str]) -> list[str]:
    if name in have or "*" not in name:
        return [name] if name in have else []
    return [column for column in have if fnmatch.fnmatchcase(column, name)]


def _combined(ours: str, sources: list[str], starred: bool) -> pl.Expr:
    """One column out of several: levels of a category, items of a row (named with a star), or texts in a row."""
    if not sources:
        return pl.lit(None, dtype=pl.String)
    if len(sources) == 1 and not (starred and ours == "item_id"):
        return pl.col(sources[0])
    texts = [pl.col(name).cast(pl.String) for name in sources]
    if ours == "category" or (ours == "item_id" and starred):
        return pl.concat_list(texts).list.drop_nulls()
    separator = " " if ours in ("timestamp", "title", "text", "query") else " / "
    return pl.concat_str(texts, separator=separator, ignore_nulls=ours in ("title", "text", "query"))


def expose(batch: Batch, name: str) -> None:
    """Make field ``a.b`` of objects a column of its own name; a list of objects becomes a row for each of them."""
    if name in batch.table.columns:
        return
    if (selector := _SELECTOR.match(name)) and selector["list"] in batch.table.columns:
        _select(batch, selector)
    while name not in batch.table.columns:
        prefixes = [name[: match.start()] for match in re.finditer(r"\.", name)]
        root = next((prefix for prefix in reversed(prefixes) if prefix in batch.table.columns), None)
        if root is None or not _open(batch, root):
            return


def _open(batch: Batch, root: str) -> bool:
    """Take a column of objects apart, or give each element of its lists a row; False where it is neither."""
    column = batch.table[root]
    if column.dtype == pl.String:
        try:
            column = column.str.json_decode(infer_schema_length=None)
        except pl.exceptions.PolarsError:
            return False
    if isinstance(column.dtype, pl.List):
        batch.table = batch.table.with_columns(column)
        explode(batch, [root])
        return True
    if isinstance(column.dtype, pl.Struct):
        fields = column.struct.unnest()
        fields.columns = [f"{root}.{field}" for field in fields.columns]
        batch.table = batch.table.drop(root).hstack(
            fields.drop([field for field in fields.columns if field in batch.table.columns])
        )
        return True
    return False


def _select(batch: Batch, selector: re.Match[str]) -> None:
    root, dtype = selector["list"], batch.table[selector["list"]].dtype
    if isinstance(dtype, pl.List) and isinstance(dtype.inner, pl.Struct):
        key = pl.element().struct.field(selector["key"]).cast(pl.String)
        chosen = pl.col(root).list.eval(pl.element().filter(key == selector["value"])).list.first()
        batch.table = batch.table.with_columns(chosen.alias(selector[0]))


def explode(batch: Batch, names: Sequence[str]) -> None:
    """Give each element of the lists (of equal lengths) a row; a row without an element is left out by rule."""
    batch.leave_out(pl.col(names[0]).list.len().fill_null(0) == 0, f"no {names[0]} in the row")
    if len(names) > 1:
        uneven = pl.any_horizontal(
            pl.col(name).list.len().fill_null(0) != pl.col(names[0]).list.len() for name in names[1:]
        )
        batch.refuse(uneven, f"the lists of {' and '.join(names)} differ in length")
    before = batch.table.height
    batch.table = batch.table.explode(list(names))
    batch.rows += batch.table.height - before
