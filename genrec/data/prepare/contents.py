"""What a prepared log holds, in the words a person checks it by, and the mistakes that such a look reveals.

A table that joins nothing, a chain that was not stated, times that are all one: each of them gives a dataset without
a word, and a model that learns nothing. ``check_joins`` and ``check_impressions`` refuse them, ``contents`` states
the rest.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import polars as pl

from genrec.config.schema import Config
from genrec.data.prepare.assemble import Arrays, Numbering
from genrec.data.prepare.ordering import OrderedLog
from genrec.data.prepare.parsed import ParsedLog
from genrec.data.times import YEAR_1990, utc
from genrec.errors import UserError

log = logging.getLogger(__name__)
TEXT_COLUMNS = ("title", "category", "price", "text")
FIRST = 3
LARGE = 0.2  # a user or item with more of the events than this is named


def check_joins(parsed: ParsedLog, key: str, table: str) -> None:
    """Refuse a table of items or users none of whose ids the events have: both sides' first ids are named."""
    beside = parsed.table(table)
    names = parsed.names(key.removesuffix("_id"))
    if beside is None or beside.is_empty() or names.is_empty() or not parsed.total("events"):
        return
    known = beside[key]
    if names.is_in(known.implode()).any():
        return
    hint = _hint(names.head(1000), known)
    raise UserError(
        f"no {key} of the events is in the table of {table}: events have {_first(names)}, "
        f"{table} have {_first(known)}{hint}"
    )


def _first(ids: pl.Series) -> str:
    return ", ".join(repr(value) for value in ids.head(FIRST))


def _hint(events: pl.Series, table: pl.Series) -> str:
    """What would make the ids meet, where a known difference of notation explains it."""
    changes = {
        "leading zeros differ; set data.options.strip_leading_zeros=true": lambda ids: ids.str.replace(r"^0+(.)", "$1"),
        "upper and lower case differ": lambda ids: ids.str.to_lowercase(),
        "signs around the ids differ": lambda ids: ids.str.replace_all(r"[^\w]", ""),
        "a prefix differs": lambda ids: ids.str.extract(r"(\d+)$"),
    }
    for words, change in changes.items():
        if change(events).drop_nulls().is_in(change(table).drop_nulls().implode()).any():
            return f"; {words}"
    return "; check which column of each file is the id"


def check_impressions(config: Config, parsed: ParsedLog, actions: list[str]) -> None:
    """Refuse a log whose impressions would be predicted like clicks, because nothing says which action is deeper."""
    impressions = [name for name in actions if name.lower() in ("impression", "impressions", "exposure")]
    if impressions and len(actions) > 1 and not parsed.chain and config.data.target_action is None:
        others = [name for name in actions if name not in impressions]
        raise UserError(
            f"the log has the actions {', '.join(actions[:8])} and no feedback chain: a mere impression "
            "would "
            f"be predicted like one that was clicked; set data.options.chain=[impression,{','.join(others[:4])}], or "
            "data.actions to those that count"
        )


def contents(
    parsed: ParsedLog, ordered: OrderedLog, numbering: Numbering, arrays: Arrays, actions: list[str]
) -> dict[str, Any]:
    """What the dataset holds: span, filled columns, largest user and item, actions and the first events."""
    items, total = numbering.items, max(len(arrays.items), 1)
    counts = np.zeros(max(len(actions), 1), np.int64)
    for start in range(0, len(arrays.items), 1 << 22):
        counts += np.bincount(
            arrays.actions.read(start, min(start + (1 << 22), len(arrays.items))), minlength=len(counts)
        )
    result: dict[str, Any] = {
        "first_time": arrays.first_time,
        "last_time": arrays.last_time,
        "filled": {name: items[name].count() / max(items.height, 1) for name in TEXT_COLUMNS if name in items.columns},
        "actions": {name: int(count) for name, count in zip(actions, counts, strict=False)},
        "first_events": [],
    }
    for kind, per_id in (("user", ordered.user_counts), ("item", ordered.item_counts)):
        if len(per_id) and per_id.max() > 0:
            name = parsed.names(kind)[int(per_id.argmax())]
            result[f"largest_{kind}"] = {"id": name, "events": int(per_id.max()), "share": float(per_id.max()) / total}
    if len(arrays.items):
        last = min(FIRST, len(arrays.items))
        users = np.searchsorted(arrays.offsets, np.arange(last), side="right") - 1
        names = numbering.users["user_id"]
        columns = (arrays.items.read(0, last), arrays.timestamps.read(0, last), arrays.actions.read(0, last))
        result["first_events"] = [
            {
                "user": names[int(user)],
                "item": items["item_id"][int(item)],
                "time": int(time),
                "action": actions[action],
            }
            for user, item, time, action in zip(users, *columns, strict=True)
        ]
    return result


def describe(info: dict) -> list[str]:
    """Lines of at most 80 columns: first events with dates, span, filled columns, largest user and item, actions."""
    held = info.get("contents")
    if not held:
        return []
    as_time = utc if held["last_time"] >= 100_000_000 else str
    lines = ["first events:"]
    lines += [
        f"  {_cut(e['user'])}  {_cut(e['item'])}  {as_time(e['time'])}  {e['action'][:16]}"
        for e in held["first_events"]
    ]
    lines.append(f"span: {as_time(held['first_time'])} to {as_time(held['last_time'])}")
    lines.append("items with " + ", ".join(f"{name} {share:.0%}" for name, share in held["filled"].items()))
    for kind in ("user", "item"):
        if (largest := held.get(f"largest_{kind}")) is not None:
            number = f"{largest['events']:,} events ({largest['share']:.1%})"
            lines.append(f"largest {kind}: {_cut(largest['id'], 30)} with {number}")
    lines.append("actions: " + ", ".join(f"{name} {count:,}" for name, count in list(held["actions"].items())[:6]))
    return lines + [f"look at this: {warning}" for warning in warnings(held)]


def warnings(held: dict) -> list[str]:
    """What a person should look at: times that are none, items without words, one user with much of the log."""
    warnings = []
    if held["first_time"] == held["last_time"]:
        warnings.append(f"every event has the time {utc(held['first_time'])}: their order is that of the file")
    elif held["last_time"] < YEAR_1990 and held["last_time"] >= 100_000_000:
        warnings.append(f"all times lie before {utc(held['last_time'])[:10]}; is the unit right?")
    if held["filled"] and not any(held["filled"].values()):
        warnings.append("no item has a title, category, price or text: search by words finds nothing")
    for kind in ("user", "item"):
        largest = held.get(f"largest_{kind}")
        if largest and largest["share"] > LARGE and largest["events"] > 100:
            part = f"{largest['share']:.0%} of all events"
            warnings.append(f"{kind} {_cut(largest['id'], 30)} has {part}; is it a word for a missing id?")
    return warnings


def _cut(text: str, width: int = 20) -> str:
    return text if len(text) <= width else text[: width - 1] + "…"
