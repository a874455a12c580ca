"""Where the items and users of a log come from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import polars as pl

from genrec.data.readers.guess.events import pattern_of, relative
from genrec.data.readers.guess.names import ITEM_NAMES, USER_NAMES, bare, rank_of
from genrec.data.readers.guess.tables import Guess, Table
from genrec.errors import UserError


def add_catalogue(
    guess: Guess, tables: Sequence[Table], events: Sequence[Table], base: Path, stated: bool = False
) -> None:
    """Items and users: tables of their own, else columns of the event files.

    ``stated``: the first table beside the events is known to hold the items; ``UserError`` where it has no item id.
    """
    joined = {join["file"] for join in guess.options.get("joins", ())}
    rest = [table for table in tables if all(table is not other for other in events)]
    rest = [table for table in rest if relative(table.files[0], base) not in joined]
    tree = next((table for table in rest if _parent_of(table)), None)
    if tree is not None:
        rest = [table for table in rest if table is not tree]
    properties = next(
        (table for table in rest if {"property", "value"} <= {*table.sample.columns} and "item_id" in table.columns),
        None,
    )
    if properties is not None:
        _add_properties(guess, properties, base)
    else:
        _add_items(guess, rest, events[0], base, stated)
        _add_users(guess, rest, base)
    if tree is not None and guess.options.get("item_columns", {}).get("category"):
        _add_tree(guess, tree, base)


def _add_properties(guess: Guess, table: Table, base: Path) -> None:
    guess.options["items"] = pattern_of(table, base)
    guess.options["item_properties"] = {"item": table.columns["item_id"], "property": "property", "value": "value"}
    names = table.sample["property"].drop_nulls().cast(pl.String).unique().to_list()
    category = next((name for name in names if rank_of(name, ITEM_NAMES["category"]) is not None), names[0])
    guess.options["item_columns"] = {"category": category}
    guess.notes.append(f"items come from rows of properties in {table.files[0].name}; {category!r} is the category")


def _add_items(guess: Guess, rest: Sequence[Table], main: Table, base: Path, stated: bool) -> None:
    items = [
        table
        for table in rest
        if "item_id" in table.columns and "user_id" not in table.columns and table.is_key(table.columns["item_id"])
    ]
    items = [table for table in items if table.items] or [
        table for table in rest if table.items and _key_like(table, main)
    ]
    best = rest[0] if stated else max(items, key=lambda table: len(table.items), default=None)
    if best is not None:
        key = best.columns.get("item_id") or _key_like(best, main)
        if key is None:
            raise UserError(
                f"items: no column 'item_id'; the table has {', '.join(best.sample.columns)}. "
                "Rename the column that holds it"
            )
        guess.options["items"] = pattern_of(best, base)
        mapping = {"item_id": key, **best.items}
        guess.options["item_columns"] = {ours: theirs for ours, theirs in mapping.items() if ours != theirs}
        if best.header:
            guess.options["item_names"] = best.header
            guess.doubts.append(f"{best.files[0].name} has no header line: title and text are guessed from the values")
        guess.notes.append(
            f"items come from {best.files[0].name}: "
            + ", ".join(f"{theirs!r} is {ours}" for ours, theirs in mapping.items())
        )
        _add_item_joins(guess, best, [table for table in rest if table is not best], base)
    elif main.items:
        guess.options["item_columns"] = dict(main.items)
        if all(ours == theirs for ours, theirs in main.items.items()):
            guess.options["items_from_events"] = True
        guess.notes.append(
            f"items come from the events: {', '.join(f'{theirs!r} is {ours}' for ours, theirs in main.items.items())}"
        )
    else:
        guess.doubts.append(
            "no titles, categories or texts of items were found: recommendations work, search by words does not"
        )


def _add_users(guess: Guess, rest: Sequence[Table], base: Path) -> None:
    used = guess.options.get("items")
    users = [
        table
        for table in rest
        if "user_id" in table.columns and "item_id" not in table.columns and pattern_of(table, base) != used
    ]
    if users and any(bare(name) in USER_NAMES for name in users[0].sample.columns):
        guess.options["users"] = pattern_of(users[0], base)
        key = users[0].columns["user_id"]
        guess.options |= {"user_columns": {"user_id": key}} if key != "user_id" else {}
        guess.notes.append(f"user attributes come from {users[0].files[0].name}")


def _parent_of(table: Table) -> str | None:
    """The column of a small table of categories that names the parent category."""
    names = table.sample.columns
    parents = [name for name in names if bare(name).startswith("parent")]
    known = any(rank_of(name, ITEM_NAMES["category"]) is not None for name in names if name not in parents)
    return parents[0] if parents and known and len(names) <= 5 and "user_id" not in table.columns else None


def _add_tree(guess: Guess, tree: Table, base: Path) -> None:
    parent = _parent_of(tree)
    others = [name for name in tree.sample.columns if name != parent]
    child = min(others, key=lambda name: rank_of(name, ITEM_NAMES["category"]) or (0 if "cat" in name.lower() else 999))
    names = [name for name in others if name != child and bare(name) in ("name", "title", "categoryname")]
    guess.options["category_tree"] = {"file": relative(tree.files[0], base), "id": child, "parent": parent} | (
        {"name": names[0]} if names else {}
    )
    guess.notes.append(f"{tree.files[0].name} gives the path above each category")


def _key_like(table: Table, main: Table) -> str | None:
    """The column of a table whose values are the items of the events."""
    if "item_id" not in main.columns or main.columns["item_id"] not in main.sample.columns:
        return None
    items = main.sample[main.columns["item_id"]].cast(pl.String, strict=False).drop_nulls().unique()
    for name in table.sample.columns:
        column = table.sample[name]
        if (
            not column.dtype.is_nested()
            and table.is_key(name)
            and column.cast(pl.String, strict=False).is_in(items.implode()).any()
        ):
            return name
    return None


def _add_item_joins(guess: Guess, items: Table, others: Sequence[Table], base: Path) -> None:
    """Small tables that name the category or brand behind a number of the items table."""
    for table in others:
        for key in table.sample.columns:
            if key in items.sample.columns and table.is_key(key) and len(table.sample.columns) <= 6:
                texts = [name for name in table.sample.columns if name != key and name not in items.sample.columns]
                if not texts:
                    continue
                guess.options.setdefault("item_joins", []).append({"file": relative(table.files[0], base), "on": key})
                for role in ("category", "brand", "title"):
                    ranked = [(rank, name) for name in texts if (rank := rank_of(name, ITEM_NAMES[role])) is not None]
                    current = guess.options["item_columns"].get(role)
                    if ranked and (current is None or current == key):
                        guess.options["item_columns"][role] = min(ranked)[1]
                guess.notes.append(f"{table.files[0].name} is joined to the items by {key}")
                break
