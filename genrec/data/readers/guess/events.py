"""Which tables hold the events, and the options that read them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from genrec.data.readers.guess.languages import role_by_words
from genrec.data.readers.guess.names import EVENT_NAMES, GROUPS, STAGES, bare, rank_of, stage_of
from genrec.data.readers.guess.roles import is_labelled, list_separator, time_kind
from genrec.data.readers.guess.tables import Guess, Table, folder_of
from genrec.data.times import recognise
from genrec.errors import UserError


def choose_events(tables: Sequence[Table], guess: Guess, base: Path) -> list[Table]:
    """The tables with a user and an item each row; where none has both, one with items joined to one with users."""
    both = [table for table in tables if {"user_id", "item_id"} <= {*table.columns}]
    timed = [table for table in both if "timestamp" in table.columns]
    if both:
        chosen = timed or both
        full = [table for table in chosen if not _is_session(table.columns["user_id"])]
        return full or chosen
    joined = _joined(tables, guess, base)
    if joined is not None:
        return [joined]
    for table in tables:
        if name_by_group(table):
            return [table]
    have = "; ".join(f"{table.files[0].name}: {', '.join(table.sample.columns)}"[:160] for table in tables[:3])
    raise UserError(
        f"{guess.path}: no column can be recognised as the user or the item ({have}); "
        "write a config with data.reader=table and "
        "data.options.columns"
    )


def name_by_group(table: Table) -> bool:
    """Let the session, basket or playlist of a table stand for the user; False where it has none, or no item."""
    groups = [(rank, name) for name in table.sample.columns if (rank := rank_of(name, GROUPS)) is not None]
    groups = [(rank, name) for rank, name in groups if rank < 100 and name != table.columns.get("item_id")]
    if "item_id" not in table.columns or not groups:
        return False
    table.columns["user_id"] = min(groups)[1]
    return True


def _joined(tables: Sequence[Table], guess: Guess, base: Path) -> Table | None:
    """A table with items joined to another that says whose they are, as order lines to orders."""
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
                guess.options["joins"] = [{"file": relative(other.files[0], base), "on": keys[0]}]
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
                return table
    return None


def _is_session(name: str) -> bool:
    return "session" in bare(name) or (rank_of(name, GROUPS) or 100) < 100


def relative(file: Path, base: Path) -> str:
    """A path as seen from the data folder; the path itself where it lies elsewhere."""
    return str(file.relative_to(base)) if file.is_relative_to(base) else str(file)


def pattern_of(table: Table, base: Path) -> str:
    """One path for the files of a table: a file, or a pattern that matches them."""
    if len(table.files) == 1:
        return relative(table.files[0], base)
    root = folder_of(table.files[0])
    if table.files[0].parent != root:  # partitions
        levels = ["*"] * (len(table.files[0].relative_to(root).parts) - 1)
        return relative(root.joinpath(*levels, "*" + "".join(table.files[0].suffixes)), base)
    first, last = table.files[0].name, table.files[-1].name
    start = next((n for n, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return relative(table.files[0].parent / (first[:start] + "*" + "".join(table.files[0].suffixes)), base)


def add_events(guess: Guess, events: Sequence[Table], base: Path, whole_path: bool) -> None:
    """The options of the event tables; ``whole_path``: the data path itself is the table, later files included."""
    main = events[0]
    if len(events) == 1:
        if not whole_path:
            guess.options["events"] = pattern_of(main, base)
        guess.options |= _event_options(main, guess)
        return
    entries = []
    for table in events:
        own = _event_options(table, guess)
        own.pop("chain", None)
        if "action" not in table.columns and (word := _action_of(table.files[0])):
            own["action"] = word
        entries.append({"file": pattern_of(table, base), **own})
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
    known = [word for word in words if word in STAGES or word.rstrip("s") in STAGES]
    return known[-1].rstrip("s") if known else None


def _event_options(table: Table, guess: Guess) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if table.header:
        options["names"] = list(table.header)
        guess.doubts.append(f"{table.files[0].name} has no header line: columns are recognised by their values")
    columns = {
        role: table.joined.get(name, name) for role, name in table.columns.items() if name != role or role == "quantity"
    }
    options |= {"columns": columns} if columns else {}
    name = table.files[0].name
    for role in ("user_id", "item_id", "timestamp", "action", "query", "quantity", "rating"):
        if role in table.columns and table.columns[role] != role:
            guess.notes.append(f"{name}: column {table.columns[role]!r} is {role}")
    options |= _time_options(table, guess)
    if _is_session(table.columns["user_id"]):
        guess.doubts.append(
            f"{name}: no column names a person: each {table.columns['user_id']} counts as a user of its own"
        )
    guess.doubts += [f"{name}: {doubt}" for doubt in table.doubts]
    if (example := _accented(table)) and not table.layout.encoding.startswith("utf"):
        guess.doubts.append(f"{name}: read as {table.layout.encoding}, as in {example!r} (encoding)")
    options |= _rating_options(table, guess)
    if "history" in table.columns:
        guess.notes.append(f"{name}: column {table.columns['history']!r} lists items that a user had before the row")
    item = table.sample[table.columns["item_id"]]
    if table.layout.sections:
        guess.notes.append(f"{name}: a line such as '1:' names the item of the lines below it")
    if is_labelled(item):
        options |= {
            "item_separator": " ",
            "item_label": "-",
            "actions": {"0": "impression", "1": "click"},
            "chain": ["impression", "click"],
        }
        guess.notes.append(f"{name}: {table.columns['item_id']!r} lists impressions with 0 (no click) or 1 (click)")
    elif item.dtype == pl.String and (separator := list_separator(item)):
        options["item_separator"] = separator
        guess.notes.append(f"{name}: {table.columns['item_id']!r} lists several items, separated by {separator!r}")
    if "action" in table.columns:
        options |= _action_options(table, guess)
    elif table.flags:
        options |= _flag_options(table, guess)
    return options


def _accented(table: Table) -> str | None:
    """A text of the sample with a letter beyond ASCII."""
    for column in table.sample.select(pl.col(pl.String)):
        texts = column.filter(column.str.contains(r"[^\x00-\x7f]"))
        if len(texts):
            return texts[0][:40]
    return None


def _rating_options(table: Table, guess: Guess) -> dict[str, Any]:
    """A rating below zero is a dislike; else all rated rows are events, and the note says how to change that."""
    if "rating" not in table.columns:
        return {}
    text = table.sample[table.columns["rating"]].cast(pl.String).str.replace(",", ".", literal=True)
    numbers = text.cast(pl.Float64, strict=False).drop_nulls()
    if numbers.is_empty():
        return {}
    (low, high), name = (float(numbers.min()), float(numbers.max())), table.files[0].name  # type: ignore[arg-type]
    if (numbers < 0).any():
        guess.doubts.append(f"{name}: ratings from {low:g} to {high:g}: those below 0 are left out (min_rating)")
        return {"min_rating": 0}
    guess.doubts.append(
        f"{name}: ratings from {low:g} to {high:g} all count as events (min_rating leaves low ones out)"
    )
    return {}


def _flag_options(table: Table, guess: Guess) -> dict[str, Any]:
    """Columns that say yes or no to an action each; a row without any yes is an impression."""
    stages = sorted(dict.fromkeys(table.flags.values()), key=lambda word: stage_of(word) or 0)
    names = ", ".join(table.flags)
    guess.notes.append(f"{table.files[0].name}: {names} say which action a row is, the deepest one; none: impression")
    names_of = {"clicked": "click", "viewed": "view", "purchased": "purchase", "bought": "purchase", "liked": "like"}
    flags = {column: names_of.get(word, word) for column, word in table.flags.items()}
    stages = list(dict.fromkeys(names_of.get(word, word) for word in stages))
    chain = ["impression", *(stage for stage in stages if stage != "impression")]
    return {"action_flags": flags, "chain": chain}


def _time_options(table: Table, guess: Guess) -> dict[str, Any]:
    name = table.files[0].name
    if "timestamp" not in table.columns:
        unread = [column for column in table.sample.columns if role_by_words(column) == "timestamp"]
        unread = [f"{column} holds {table.sample[column].drop_nulls().head(1).to_list()}" for column in unread]
        why = f"no column of times can be read ({unread[0]})" if unread else "no column of times"
        guess.doubts.append(f"{name}: {why}: the order of the rows counts as the order in time")
        return {"timestamp_unit": "order"}
    column = table.sample[table.columns["timestamp"]]
    kind = time_kind(column)
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
    first = known[0]
    if stage_of(first) == 0 and first != "impression":
        return {"chain": ["impression", *known[1:]], "actions": {first: "impression"}}
    return {"chain": known}
