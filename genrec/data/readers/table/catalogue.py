"""Items and users of the table reader: tables with a row each, rows of properties, or columns of the events."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import polars as pl

from genrec.data.ids import id_text
from genrec.data.readers.table.columns import Columns
from genrec.data.readers.table.items import as_text, typed_items
from genrec.data.readers.table.joins import Join, named_batches, read_whole
from genrec.data.readers.table.options import TableOptions
from genrec.data.readers.table.rows import clean_ids
from genrec.data.readers.toolkit import LINE, Batch, SeenKeys
from genrec.data.schema import ITEM_SCHEMA, USER_SCHEMA, RawLog, conform
from genrec.errors import UserError


def items_of(
    batch: Batch, columns: Columns, seen: SeenKeys, settings: TableOptions, tree: CategoryTree | None
) -> pl.DataFrame:
    """The items of a batch of events that were not met before in the file."""
    own = Batch(batch.table, batch.table.height, batch.source)
    columns.rename(own)
    first = own.table.filter(seen.is_new(own.table)).select(list(columns.names))
    return contract_items(first, settings, batch.source, tree)


class CategoryTree:
    """The path from the root to each category, from a table of categories and their parents."""

    def __init__(self, base: Path, settings: TableOptions):
        names = settings.category_tree or {}
        if {"file", "id", "parent"} - {*names}:
            raise UserError("reader 'table': option category_tree needs 'file', 'id' and 'parent'")
        file = base / names["file"]
        table = read_whole(file, settings)
        for key in ("id", "parent", "name"):
            if key in names and names[key] not in table.columns:
                raise UserError(f"{file}: no column {names[key]!r} (category_tree); it has {', '.join(table.columns)}")
        ids, parents = (id_text(table[names[key]], str(file)).to_list() for key in ("id", "parent"))
        labels = table[names["name"]].cast(pl.String).to_list() if "name" in names else ids
        parent_of, label_of = dict(zip(ids, parents, strict=True)), dict(zip(ids, labels, strict=True))
        self.paths = {}
        for category in ids:
            path: list[str] = []
            node = category
            while node in parent_of and node not in path:  # a cycle ends where it closes
                path.append(node)
                node = parent_of[node]
            self.paths[category] = [label_of[node] or node for node in reversed(path)]

    def extended(self, items: pl.DataFrame) -> pl.DataFrame:
        """Items whose category is the whole path; one that the table lacks stays as it is."""
        known = pl.DataFrame(
            {"_leaf": list(self.paths), "_path": list(self.paths.values())},
            schema={"_leaf": pl.String, "_path": pl.List(pl.String)},
        )
        leaf = id_text(items["category"].list.last(), "category")
        joined = items.with_columns(leaf.alias("_leaf")).join(known, on="_leaf", how="left", maintain_order="left")
        return joined.with_columns(pl.coalesce("_path", "category").alias("category")).drop("_leaf", "_path")


def contract_items(
    table: pl.DataFrame, settings: TableOptions, source: str, tree: CategoryTree | None = None
) -> pl.DataFrame:
    """Items as the data contract has them."""
    items = conform(typed_items(table, settings, source), ITEM_SCHEMA, source)
    return tree.extended(items) if tree is not None else items


def read_catalogue(
    item_files: Sequence[Path], user_files: Sequence[Path], settings: TableOptions, base: Path
) -> Iterator[RawLog]:
    """The items and users of a log that have tables of their own."""
    tree = CategoryTree(base, settings) if settings.category_tree else None
    if item_files:
        joins = [Join(base, entry, settings) for entry in settings.item_joins]
        if settings.item_properties:
            yield from _items_from_properties(item_files, settings, tree)
        else:
            for batch in _keyed_batches(item_files, "item_id", settings, joins):
                yield batch.part(items=contract_items(batch.table, settings, batch.source, tree))
    for batch in _keyed_batches(user_files, "user_id", settings, []) if user_files else ():
        yield batch.part(users=conform(batch.table, USER_SCHEMA, str(user_files[0])))


def _keyed_batches(files: Sequence[Path], key: str, settings: TableOptions, joins: Sequence[Join]) -> Iterator[Batch]:
    """Items or users in batches: one row for each key, over all files."""
    seen = SeenKeys(key)
    items = key == "item_id"
    mapping, names = (
        (settings.item_columns, settings.item_names) if items else (settings.user_columns, settings.user_names)
    )
    for file in files:
        columns = Columns(mapping, [key], "item_columns" if items else "user_columns", file, late=False)
        for batch in named_batches(file, settings, columns, names, None, joins):
            clean_ids(batch, (key,), settings, file)
            batch.refuse_repeats(seen)
            batch.table = batch.table.drop(LINE)
            yield batch


def _items_from_properties(
    files: Sequence[Path], settings: TableOptions, tree: CategoryTree | None
) -> Iterator[RawLog]:
    """Items out of rows (item, property, value): the last value of each property that ``item_columns`` names."""
    names = settings.item_properties or {}
    if {"item", "property", "value"} - {*names}:
        raise UserError("reader 'table': option item_properties needs the columns 'item', 'property' and 'value'")
    wanted = {
        ours: theirs for ours, theirs in settings.item_columns.items() if ours != "item_id" and isinstance(theirs, str)
    }
    if not wanted:
        raise UserError(
            "reader 'table': with item_properties, item_columns names the properties to keep, as category: categoryid"
        )
    kept: pl.DataFrame | None = None
    mapping: dict[str, str | list[str]] = {
        "item_id": names["item"],
        "property": names["property"],
        "value": names["value"],
    }
    for file in files:
        columns = Columns(mapping, list(mapping), "item_properties", file, late=False)
        for batch in named_batches(file, settings, columns, None, None, []):
            clean_ids(batch, ("item_id",), settings, file)
            batch.table = batch.table.with_columns(as_text(batch.table, "property"), as_text(batch.table, "value"))
            rows = batch.table.filter(pl.col("property").is_in(list(wanted.values()))).select(*mapping)
            batch.count("rows of item properties, joined to one row an item", batch.table.height)
            kept = rows if kept is None else pl.concat([kept, rows])
            kept = kept.unique(["item_id", "property"], keep="last", maintain_order=True)
            yield batch.part()
    assert kept is not None
    wide = kept.pivot("property", index="item_id", values="value", aggregate_function="last")
    lacking = [theirs for theirs in wanted.values() if theirs not in wide.columns]
    if lacking:
        raise UserError(f"{files[0]}: no property {lacking[0]!r}; set item_columns to properties of the file")
    table = wide.select("item_id", *(pl.col(theirs).alias(ours) for ours, theirs in wanted.items()))
    yield RawLog(items=contract_items(table, settings, files[0].name, tree))
