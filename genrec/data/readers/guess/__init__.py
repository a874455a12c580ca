"""Guess how a log is laid out: which files hold events, items and users, and what their columns mean.

A guess is a config for the ``table`` reader with a note for each decision and each doubt; the reader checks it like
any other.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from genrec.data.prepare.appended import SERVED_OPTIONS, is_served_log
from genrec.data.readers.guess.catalogue import add_catalogue
from genrec.data.readers.guess.events import add_events, choose_events, name_by_group
from genrec.data.readers.guess.roles import assign_roles
from genrec.data.readers.guess.tables import Guess, Table, sampled_tables
from genrec.data.readers.table.layout import table_files
from genrec.data.readers.toolkit import plain_name
from genrec.errors import UserError

__all__ = ["Guess", "Table", "guess_log", "guess_tables"]

# Published layouts with a reader of their own, by the names of their files.
KNOWN_LAYOUTS = {
    "amazon-2014": r"reviews_.+\.json",
    "kuairand": r"log_(standard|random)_.*\.csv",
    "kuaisar": r"(rec|src)_inter.*\.csv",
    "jdsearch": r"(release_data|user_behavior_data).*\.txt",
    "product-search": r"(train|test)\.qrels\.txt",
    "qilin": r"(search|recommendation)_(train|test)(-.*)?\.(parquet|csv)",
    "movielens": r".+\.inter|u\.data",
}


def guess_log(path: Path) -> Guess:
    """How the log at a file or folder is laid out. ``UserError`` where no table with users and items can be found."""
    if is_served_log(path):
        return Guess("table", path, dict(SERVED_OPTIONS), ["a server's events and impressions (genrec export-events)"])
    files = table_files(path)
    for reader, pattern in KNOWN_LAYOUTS.items():
        if any(re.fullmatch(pattern, plain_name(file)) for file in files):
            note = f"the files have the names of the layout {reader!r}, which has a reader of its own"
            return Guess(reader, path, notes=[note])
    guess = Guess("table", path)
    tables = sampled_tables(files, guess)
    for table in tables:
        assign_roles(table)
    base = path if path.is_dir() else path.parent
    events = choose_events(tables, guess, base)
    add_events(guess, events, base, whole_path=len(tables) == 1 or not path.is_dir())
    add_catalogue(guess, tables, events, base)
    return guess


def guess_tables(
    events: Mapping[str, Path],
    items: Path | None,
    base: Path,
    columns: Mapping[str, str] = MappingProxyType({}),
    item_columns: Mapping[str, str] = MappingProxyType({}),
) -> Guess:
    """How tables whose kind is stated are laid out.

    ``events``: name in messages -> file or folder, all of them events; ``items``: one of items. ``columns`` and
    ``item_columns`` are stated and win over what is guessed. ``UserError`` names a table without user or item, and one
    called ``queries`` without a query.
    """
    guess = Guess("table", base)
    tables = []
    for name, path in events.items():
        table = sampled_tables(table_files(path), guess)[0]
        assign_roles(table)
        table.columns |= {ours: theirs for ours, theirs in columns.items() if theirs in table.sample.columns}
        _check_roles(table, name)
        tables.append(table)
    catalogue = []
    if items is not None:
        catalogue = sampled_tables(table_files(items), guess)[:1]
        assign_roles(catalogue[0])
        catalogue[0].columns |= {ours: theirs for ours, theirs in item_columns.items() if ours == "item_id"}
        catalogue[0].items |= {ours: theirs for ours, theirs in item_columns.items() if ours != "item_id"}
    add_events(guess, tables, base, whole_path=False)
    add_catalogue(guess, [*tables, *catalogue], tables, base, stated=items is not None)
    return guess


def _check_roles(table: Table, name: str) -> None:
    required = ["user_id", "item_id"] + (["query"] if name == "queries" else [])
    missing = [role for role in required if role not in table.columns]
    if missing == ["user_id"] and name_by_group(table):
        return
    if missing:
        raise UserError(
            f"{name}: no column '{missing[0]}'; the table has {', '.join(table.sample.columns)}. "
            "Rename the column that holds it"
        )
