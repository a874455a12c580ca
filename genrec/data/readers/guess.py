"""Guess how a log is laid out: which files hold events, items and users, and what their columns mean.

A guess is a config for the ``table`` reader with a note for each decision and each doubt; the reader checks it like
any other.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.data.ids import NULL_WORDS
from genrec.data.readers.guess_names import EVENT_NAMES, ITEM_NAMES, USER_NAMES, bare, rank_of, stage_of
from genrec.data.readers.table.columns import expose
from genrec.data.readers.table.formats import Layout, layout_of, looks_like_data, table_batches, table_files
from genrec.data.readers.toolkit import LINE, plain_name
from genrec.data.times import recognise
from genrec.errors import UserError

SAMPLE_ROWS = 5_000
MAX_FILES = 40
LABELLED = r"^\S+-[01](?:\s\S+-[01])*$"
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


@dataclass
class Table:
    """A group of files with the same columns: their layout, a sample of the first one, and the roles of its columns."""

    files: list[Path]
    layout: Layout
    sample: pl.DataFrame
    header: list[str] | None
    """The names given to the columns of a file without a header line."""
    columns: dict[str, str] = field(default_factory=dict)
    items: dict[str, str] = field(default_factory=dict)

    def distinct(self, name: str) -> float:
        """The fraction of distinct values of a column in the sample."""
        column = self.sample[name].drop_nulls()
        return column.n_unique() / max(len(column), 1)


@dataclass
class Guess:
    """A config for a log, what was decided, and what is unsure."""

    reader: str
    path: Path
    options: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    doubts: list[str] = field(default_factory=list)


def guess_log(path: Path) -> Guess:
    """How the log at a file or folder is laid out. ``UserError`` where no table with users and items can be found."""
    files = table_files(path)
    for reader, pattern in KNOWN_LAYOUTS.items():
        if any(re.fullmatch(pattern, plain_name(file)) for file in files):
            place = path if reader != "amazon-2014" or path.is_dir() else path
            return Guess(
                reader,
                place,
                notes=[f"the files have the names of the layout {reader!r}, which has a reader of its own"],
            )
    guess = Guess("table", path)
    tables = _tables(files, guess)
    base = path if path.is_dir() else path.parent
    events = _choose_events(tables, guess, base)
    _add_events(guess, events, base, path, only=len(tables) == 1)
    _add_catalogue(guess, tables, events, base)
    return guess


def _tables(files: Sequence[Path], guess: Guess) -> list[Table]:
    tables: dict[tuple[str, ...], Table] = {}
    for file in files[:MAX_FILES]:
        try:
            table = _sampled(file)
        except UserError as error:
            guess.doubts.append(f"{file.name} was passed over: {str(error)[:150]}")
            continue
        if table.sample.is_empty():
            continue
        key = (table.layout.kind, *(name for name in table.sample.columns))
        if key in tables and table.header is None and file.parent == tables[key].files[0].parent:
            tables[key].files.append(file)
        else:
            tables[(*key, str(file)) if key in tables else key] = table
    if not tables:
        raise UserError(f"{guess.path}: no table can be read there; {'; '.join(guess.doubts[:2])}")
    for table in tables.values():
        _assign(table)
    return list(tables.values())


def _sampled(file: Path) -> Table:
    layout = layout_of(file)
    names: list[str] | None = None
    if layout.kind == "text":
        first = next(
            iter(table_batches(file, layout, [f"column_{n}" for n in range(1, _width(file, layout) + 1)], None))
        )
        rows = first.table.drop(LINE)
        if looks_like_data([value or "" for value in rows.row(0)] if rows.height else [], rows):
            names = list(rows.columns)
    batch = next(iter(table_batches(file, layout, names, None)))
    batch.table = batch.table.head(SAMPLE_ROWS)
    for leaf in list(_leaves(batch.table.drop(LINE).schema)):
        if leaf not in batch.table.columns and "." in leaf:
            expose(batch, leaf)
    return Table([file], layout, batch.table.drop(LINE).head(SAMPLE_ROWS), names)


def _width(file: Path, layout: Layout) -> int:
    for batch in table_batches(file, Layout("text", "\x00", False, layout.encoding), ["line"], None):
        lines = batch.table["line"].drop_nulls()
        if len(lines):
            return (
                int(lines[-1].count(layout.separator)) + 1
                if not layout.quoted
                else len(_fields(lines[0], layout.separator))
            )
    raise UserError(f"{file}: empty")


def _fields(line: str, separator: str) -> list[str]:
    return re.split(re.escape(separator) + r'(?=(?:[^"]*"[^"]*")*[^"]*$)', line)


def _leaves(schema: Any, prefix: str = "") -> Iterable[str]:
    """Dotted names of the plain fields of a schema; key-value lists, whose rows are no records, are passed over."""
    for name, dtype in schema.items():
        inner = dtype.inner if isinstance(dtype, pl.List) else dtype
        if isinstance(inner, pl.Struct):
            fields = {entry.name: entry.dtype for entry in inner.fields}
            if isinstance(dtype, pl.List) and {"key", "value"} <= {*fields}:
                continue
            yield from _leaves(fields, f"{prefix}{name}.")
        else:
            yield prefix + name


def _assign(table: Table) -> None:
    """Give the columns of a table their roles, by name first and by what they hold second."""
    taken: set[str] = set()
    for role, names in EVENT_NAMES.items():
        ranked = [
            (rank, name)
            for name in table.sample.columns
            if name not in taken and (rank := rank_of(name, names)) is not None
        ]
        for _, name in sorted(ranked):
            if _fits(table, role, name):
                table.columns[role] = name
                taken.add(name)
                break
    if table.header:
        _assign_by_content(table, taken)
    else:
        _assign_leftovers(table, taken)
    for role, names in ITEM_NAMES.items():
        free = [name for name in table.sample.columns if name not in {*taken} - {table.columns.get("item_id")}]
        ranked = [
            (rank, name)
            for name in free
            if (rank := rank_of(name, names)) is not None and name != table.columns.get("item_id")
        ]
        if ranked:
            table.items[role] = min(ranked)[1]
    item = table.columns.get("item_id")
    if item and bare(item) in ITEM_NAMES["title"] and "title" not in table.items:
        table.items["title"] = item


def _fits(table: Table, role: str, name: str) -> bool:
    column = table.sample[name]
    if column.null_count() == len(column):
        return False
    if role in ("user_id", "item_id") and column.dtype == pl.String:
        missing = column.is_null() | column.is_in(list(NULL_WORDS))
        return float(missing.sum()) < 0.5 * len(column)
    if role == "timestamp":
        return _time_kind(column) is not None
    if role == "action" and bare(name).endswith("id"):
        return False
    if role == "action":
        return (
            column.dtype == pl.String
            and column.n_unique() <= 50
            or column.dtype.is_integer()
            and column.n_unique() <= 10
        )
    if role == "quantity":
        return column.cast(pl.String, strict=False).drop_nulls().str.contains(r"^-?\d+([.,]\d+)?$").all()
    return not column.dtype.is_nested() or role == "item_id"


def _time_kind(column: pl.Series) -> str | None:
    """How a column of times is written, "ambiguous" where two notations fit, None for no time."""
    if column.dtype.is_nested():
        return None
    try:
        notation = recognise(column, "sample")
    except UserError as error:
        return "ambiguous" if " may be " in str(error) else None
    read = notation.seconds(column)
    return notation.kind if read.null_count() <= column.null_count() + 0.2 * len(column) else None


def _assign_leftovers(table: Table, taken: set[str]) -> None:
    """A time under an unknown name by what it holds, and a bare ``id`` as the item where each row has a user."""
    if "timestamp" not in table.columns and "user_id" in table.columns:
        times = [name for name in table.sample.columns if name not in taken and _is_clear_time(table.sample[name])]
        if times:
            table.columns["timestamp"] = times[0]
            taken.add(times[0])
    bare_id = next((name for name in table.sample.columns if bare(name) == "id" and name not in taken), None)
    if "user_id" in table.columns and "item_id" not in table.columns and bare_id is not None:
        table.columns["item_id"] = bare_id
        taken.add(bare_id)


def _is_fractional(column: pl.Series) -> bool:
    """Whether a text column holds numbers with a fraction, which are no ids: coordinates, hours, amounts."""
    texts = column.drop_nulls()
    return int(texts.str.contains(r"^-?\d+\.\d+$").sum()) > 0.5 * len(texts)


def _is_clear_time(column: pl.Series) -> bool:
    """Whether a column holds dates, or numbers that are seconds (or parts of them) between 1995 and 2040."""
    kind = _time_kind(column)
    if kind in (None, "order", "excel"):
        return False
    if kind == "ambiguous":
        return True
    middle = recognise(column, "sample").seconds(column).median()
    return isinstance(middle, float) and 788_918_400 < middle < 2_208_988_800


def _assign_by_content(table: Table, taken: set[str]) -> None:
    """Roles of a file without column names: the time, the action, then user and item as the first columns of ids."""
    names = list(table.sample.columns)
    for name in names:
        if "timestamp" not in table.columns and _is_clear_time(table.sample[name]):
            table.columns["timestamp"] = name
            taken.add(name)
        elif "action" not in table.columns and table.sample[name].n_unique() <= 20:
            values = table.sample[name].drop_nulls().cast(pl.String).unique().to_list()
            if values and sum(stage_of(value) is not None for value in values) >= 0.5 * len(values):
                table.columns["action"] = name
                taken.add(name)
    ids = [name for name in names if name not in taken and table.sample[name].null_count() < 0.5 * len(table.sample)]
    ids = [name for name in ids if not _is_fractional(table.sample[name])]
    labelled = [name for name in ids if _is_labelled(table.sample[name])]
    if labelled:
        table.columns["item_id"] = labelled[0]
        ids.remove(labelled[0])
        ids = [name for name in ids if table.distinct(name) < 0.999] or ids
    elif "timestamp" not in table.columns and ids and table.distinct(ids[0]) > 0.99:
        table.columns["item_id"] = ids.pop(0)  # a table of items: its first column is the key
        texts = sorted(ids, key=lambda name: -float(table.sample[name].str.len_chars().mean() or 0))  # type: ignore[arg-type]
        table.items |= (
            dict(zip(("text", "title"), texts, strict=False))
            if len(texts) > 1
            else dict.fromkeys(["title"][: len(texts)], texts[0])
        )
        return
    if ids:
        table.columns["user_id"] = ids.pop(0)
    if "item_id" not in table.columns and ids:
        first = table.distinct(ids[0])
        richer = [name for name in ids if table.distinct(name) > 2 * first]
        table.columns["item_id"] = richer[0] if richer and table.sample.height > 50 else ids[0]


def _choose_events(tables: Sequence[Table], guess: Guess, base: Path) -> list[Table]:
    """The tables with a user and an item each row; where none has both, one with items joined to one with users."""
    both = [table for table in tables if {"user_id", "item_id"} <= {*table.columns}]
    timed = [table for table in both if "timestamp" in table.columns]
    if both:
        chosen = timed or both
        full = [table for table in chosen if not _is_session(table.columns["user_id"])]
        return full or chosen
    for table in tables:
        for other in tables:
            if "item_id" not in table.columns or "user_id" not in other.columns or other is table:
                continue
            keys = [
                name
                for name in table.sample.columns
                if name in other.sample.columns and name != table.columns["item_id"]
            ]
            keys = [key for key in keys if other.distinct(key) > 0.99]
            if keys:
                guess.options["joins"] = [{"file": _relative(other.files[0], base), "on": keys[0]}]
                guess.notes.append(f"users come from {other.files[0].name}, joined by {keys[0]}")
                time = other.columns.get("timestamp")
                table.columns = {
                    **{role: name for role, name in other.columns.items() if role != "item_id"},
                    **table.columns,
                }
                if time:
                    table.columns["timestamp"] = time
                fresh = [name for name in other.sample.columns if name not in table.sample.columns]
                cycled = np.arange(table.sample.height) % other.sample.height
                table.sample = table.sample.hstack(other.sample.select(fresh)[cycled])
                return [table]
    have = "; ".join(f"{table.files[0].name}: {', '.join(table.sample.columns)}"[:160] for table in tables[:3])
    raise UserError(
        f"{guess.path}: no column can be told to be the user or the item ({have}); "
        "write a config with data.reader=table and "
        "data.options.columns"
    )


def _is_session(name: str) -> bool:
    return "session" in bare(name) or bare(name) == "visitid"


def _relative(file: Path, base: Path) -> str:
    return str(file.relative_to(base)) if file.is_relative_to(base) else str(file)


def _pattern(table: Table, base: Path) -> str:
    """One path for the files of a table: a file, or a pattern that matches them."""
    if len(table.files) == 1:
        return _relative(table.files[0], base)
    first, last = table.files[0].name, table.files[-1].name
    start = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return _relative(table.files[0].parent / (first[:start] + "*" + "".join(table.files[0].suffixes)), base)


def _add_events(guess: Guess, events: Sequence[Table], base: Path, path: Path, only: bool) -> None:
    """The options of the event tables; ``only``: there are no other tables at the path."""
    main = events[0]
    if len(events) == 1:
        if path.is_dir() and not only:  # else files that come later belong to the events too
            guess.options["events"] = _pattern(main, base)
        guess.options |= _event_options(main, guess)
        return
    entries = []
    for table in events:
        own = _event_options(table, guess)
        own.pop("chain", None)
        if "action" not in table.columns and (word := _action_of(table.files[0])):
            own["action"] = word
        entries.append({"file": _pattern(table, base), **own})
    shared: dict[str, Any] = {
        key: entries[0][key]
        for key in ("timestamp_unit", "timestamp_format")
        if all(entry.get(key) == entries[0].get(key) for entry in entries) and key in entries[0]
    }
    guess.options["events"] = [{key: value for key, value in entry.items() if key not in shared} for entry in entries]
    guess.options |= shared
    actions = sorted({entry["action"] for entry in entries if "action" in entry}, key=lambda word: stage_of(word) or 0)
    if len(actions) > 1 and all("action" in entry for entry in entries):
        guess.options["chain"] = actions
    guess.notes.append(f"events lie in {len(events)} tables: {', '.join(table.files[0].name for table in events)}")


def _action_of(file: Path) -> str | None:
    """The action that a file's name speaks of, as ``buys.csv``."""
    words = re.split(r"[\W_]+", file.name.lower())
    known = [word for word in words if stage_of(word) is not None or stage_of(word.rstrip("s")) is not None]
    return known[-1].rstrip("s") if known else None


def _event_options(table: Table, guess: Guess) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if table.header:
        options["names"] = list(table.header)
        guess.doubts.append(f"{table.files[0].name} has no header line: columns are told by what they hold")
    options["columns"] = {role: name for role, name in table.columns.items() if name != role or role == "quantity"}
    name = table.files[0].name
    for role in ("user_id", "item_id", "timestamp", "action", "query", "quantity"):
        if role in table.columns:
            guess.notes.append(f"{name}: column {table.columns[role]!r} is {role}")
    options |= _time_options(table, guess)
    if _is_session(table.columns["user_id"]):
        guess.doubts.append(
            f"{name}: no column names a person: each {table.columns['user_id']} counts as a user of its own"
        )
    item = table.sample[table.columns["item_id"]]
    if _is_labelled(item):
        options |= {
            "item_separator": " ",
            "item_label": "-",
            "actions": {"0": "impression", "1": "click"},
            "chain": ["impression", "click"],
        }
        guess.notes.append(f"{name}: {table.columns['item_id']!r} lists shown items with 0 (impression) or 1 (click)")
    elif item.dtype == pl.String and (separator := _list_separator(item)):
        options["item_separator"] = separator
        guess.notes.append(f"{name}: {table.columns['item_id']!r} lists several items, separated by {separator!r}")
    if "action" in table.columns:
        options |= _action_options(table, guess)
    return options


def _is_labelled(column: pl.Series) -> bool:
    """Whether a column lists items with 0 or 1 behind each, as ``N1-0 N2-1``."""
    texts = column.drop_nulls()
    return texts.dtype == pl.String and bool(
        texts.str.contains(LABELLED).all() and texts.str.contains(r"-[01]\s").any()
    )


def _list_separator(item: pl.Series) -> str | None:
    texts = item.drop_nulls()
    for separator in (" ", ",", "|", ";"):
        several = texts.str.contains(rf"^[\w-]+(?:\s*{re.escape(separator)}\s*[\w-]+)+$")
        if len(texts) and several.mean() > 0.5 and texts.str.contains(rf"^[\d{re.escape(separator)}\s]+$").mean() > 0.5:  # type: ignore[operator]
            return separator
    return None


def _time_options(table: Table, guess: Guess) -> dict[str, Any]:
    name = table.files[0].name
    if "timestamp" not in table.columns:
        guess.doubts.append(f"{name}: no column of times: the order of the rows counts as the order in time")
        return {"timestamp_unit": "order"}
    column = table.sample[table.columns["timestamp"]]
    kind = _time_kind(column)
    if kind == "ambiguous":
        text = str(column.drop_nulls()[0])
        clock = " %H:%M:%S" if text.count(":") == 2 else " %H:%M" if ":" in text else ""
        form = (
            "%d"
            + text.lstrip("0123456789")[0]
            + "%m"
            + text.lstrip("0123456789")[0]
            + ("%Y" if re.search(r"\d{4}", text.split(" ")[0]) else "%y")
        )
        guess.doubts.append(
            f"{name}: {text!r} may have its day or its month first: the day is assumed (timestamp_format)"
        )
        return {"timestamp_format": form + clock}
    if kind == "order":
        values = column.cast(pl.Float64, strict=False).drop_nulls()
        days = values.filter((values % 100 >= 1) & (values % 100 <= 31) & (values >= 101) & (values < 1232))
        if (
            len(days) == len(values)
            and len(values) > 20
            and rank_of(table.columns["timestamp"], EVENT_NAMES["timestamp"][:30]) is not None
        ):
            guess.doubts.append(f"{name}: times such as {int(values[0])} are taken as month and day (timestamp_format)")
            return {"timestamp_format": "%m%d"}
        guess.doubts.append(
            f"{name}: {table.columns['timestamp']!r} holds positions, not times: they give the order only"
        )
        return {"timestamp_unit": "order"}
    guess.notes.append(f"{name}: times are {recognise(column, name)}")
    return {}


def _action_options(table: Table, guess: Guess) -> dict[str, Any]:
    values = table.sample[table.columns["action"]].drop_nulls().cast(pl.String).value_counts(sort=True).rows()
    words = [value for value, _ in values]
    known = sorted((word for word in words if stage_of(word) is not None), key=lambda word: stage_of(word) or 0)
    unknown = [word for word in words if word not in known]
    name = table.files[0].name
    if len(known) < 2:
        if unknown and len(words) > 1:
            guess.doubts.append(
                f"{name}: actions {', '.join(words[:8])} are not known; set actions and chain to give them an order"
            )
        return {}
    guess.notes.append(f"{name}: the feedback chain is {' < '.join(known)}")
    if unknown:
        guess.doubts.append(f"{name}: rows with action {', '.join(unknown[:8])} are left out, for the chain lacks them")
    shown = known[0]
    if stage_of(shown) == 0 and shown != "impression":
        return {"chain": ["impression", *known[1:]], "actions": {shown: "impression"}}
    return {"chain": known}


def _add_catalogue(guess: Guess, tables: Sequence[Table], events: Sequence[Table], base: Path) -> None:
    """Items and users: tables of their own, else columns of the event files."""
    main = events[0]
    rest = [table for table in tables if table not in events]
    joined = {join["file"] for join in guess.options.get("joins", ())}
    rest = [table for table in rest if _relative(table.files[0], base) not in joined]
    properties = next(
        (table for table in rest if {"property", "value"} <= {*table.sample.columns} and "item_id" in table.columns),
        None,
    )
    if properties is not None:
        guess.options["items"] = _pattern(properties, base)
        guess.options["item_properties"] = {
            "item": properties.columns["item_id"],
            "property": "property",
            "value": "value",
        }
        names = properties.sample["property"].drop_nulls().cast(pl.String).unique().to_list()
        category = next((name for name in names if rank_of(name, ITEM_NAMES["category"]) is not None), names[0])
        guess.options["item_columns"] = {"category": category}
        guess.notes.append(
            f"items come from rows of properties in {properties.files[0].name}; {category!r} is the category"
        )
        return
    items = [
        table
        for table in rest
        if "item_id" in table.columns and ("user_id" not in table.columns) and _is_key(table, table.columns["item_id"])
    ]
    items = [table for table in items if table.items] or [
        table for table in rest if table.items and _key_like(table, main)
    ]
    if items:
        best = max(items, key=lambda table: len(table.items))
        guess.options["items"] = _pattern(best, base)
        key = best.columns.get("item_id") or _key_like(best, main)
        mapping = {"item_id": key, **best.items}
        guess.options["item_columns"] = {ours: theirs for ours, theirs in mapping.items() if ours != theirs}
        if best.header:
            guess.options["item_names"] = best.header
            guess.doubts.append(f"{best.files[0].name} has no header line: title and text are told by what they hold")
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
    used = guess.options.get("items")
    users = [
        table
        for table in rest
        if "user_id" in table.columns and "item_id" not in table.columns and _pattern(table, base) != used
    ]
    if users and any(bare(name) in USER_NAMES for name in users[0].sample.columns):
        guess.options["users"] = _pattern(users[0], base)
        key = users[0].columns["user_id"]
        guess.options |= {"user_columns": {"user_id": key}} if key != "user_id" else {}
        guess.notes.append(f"user attributes come from {users[0].files[0].name}")


def _is_key(table: Table, name: str) -> bool:
    return table.distinct(name) > 0.9


def _key_like(table: Table, main: Table) -> str | None:
    """The column of a table whose values are the items of the events."""
    if "item_id" not in main.columns or main.columns["item_id"] not in main.sample.columns:
        return None
    items = main.sample[main.columns["item_id"]].cast(pl.String, strict=False).drop_nulls().unique()
    for name in table.sample.columns:
        column = table.sample[name]
        if (
            not column.dtype.is_nested()
            and _is_key(table, name)
            and column.cast(pl.String, strict=False).is_in(items.implode()).any()
        ):
            return name
    return None


def _add_item_joins(guess: Guess, items: Table, others: Sequence[Table], base: Path) -> None:
    """Small tables that name the category or brand behind a number of the items table."""
    for table in others:
        for key in table.sample.columns:
            if key in items.sample.columns and _is_key(table, key) and len(table.sample.columns) <= 6:
                texts = [name for name in table.sample.columns if name != key and name not in items.sample.columns]
                if not texts:
                    continue
                guess.options.setdefault("item_joins", []).append({"file": _relative(table.files[0], base), "on": key})
                for role in ("category", "brand", "title"):
                    ranked = [(rank, name) for name in texts if (rank := rank_of(name, ITEM_NAMES[role])) is not None]
                    current = guess.options["item_columns"].get(role)
                    if ranked and (current is None or current == key):
                        guess.options["item_columns"][role] = min(ranked)[1]
                guess.notes.append(f"{table.files[0].name} is joined to the items by {key}")
                break
